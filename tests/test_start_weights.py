"""Fine-tuning: `network.init` starts from the weights of a best.pt, `network.freeze` keeps layers as they are."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import TrialConfig
from model.data.batches import Data
from model.network.crnn import CRNN
from model.training import acceleration, checkpoints
from model.training.acceleration import Acceleration
from model.training.averaging import AveragedWeights
from model.training.initial_weights import InitialWeights
from model.training.loop import make_network, train
from sweep.config import load
from sweep.run import main
from tests.fake_gpu import cpu_graphs
from tests.processes import TINY, StartLocal, resume_local, sets
from tests.results import leaderboard

Make = Callable[..., TrialConfig]
MakeData = Callable[[TrialConfig], Data]
State = dict[str, torch.Tensor]
CPU = torch.device("cpu")


@pytest.fixture
def best(tiny: Make, tiny_data: MakeData, tmp_path: Path) -> Path:
    """A best.pt of a network that has trained for an epoch, so that also its batch-norm statistics have changed."""
    return saved(tmp_path / "best.pt", tiny({"training.seed": 7}), tiny_data)


def saved(path: Path, config: TrialConfig, tiny_data: MakeData) -> Path:
    network = make_network(config, CPU)
    next(train(config, network, tiny_data(config)))
    checkpoints.save(path, {"config": config.model_dump(mode="json"), "network": network.state_dict()})
    return path


def state_of(network: torch.nn.Module) -> State:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_network_starts_with_the_weights_and_statistics_of_the_file(tiny: Make, best: Path) -> None:
    started = state_of(make_network(tiny({"network.init": str(best)}), CPU))
    saved = checkpoints.load(best)["network"]
    assert started.keys() == saved.keys()
    assert all(torch.equal(started[name], saved[name]) for name in saved)
    assert int(started["cnn.bn11.num_batches_tracked"]) > 0


@pytest.mark.parametrize(
    ("characters", "kept", "said"),
    [
        ("0123", {1: 1, 2: 2, 3: 3, 4: 4}, "all layers and the whole alphabet kept"),
        ("3210", {1: 4, 2: 3, 3: 2, 4: 1}, "all layers and the whole alphabet kept"),
        ("13x", {1: 2, 2: 4}, "all layers and 2 of 3 characters kept; drawn anew: 'x'; left out: '02'"),
        ("0123abc", {1: 1, 2: 2, 3: 3, 4: 4}, "all layers and 4 of 7 characters kept; drawn anew: 'abc'"),
        ("xyz", {}, "all layers and 0 of 3 characters kept; drawn anew: 'xyz'; left out: '0123'"),
    ],
)
def test_classifier_rows_of_shared_characters_and_the_blank_are_kept_and_others_drawn(
    tiny: Make, best: Path, characters: str, kept: dict[int, int], said: str
) -> None:
    config = tiny({"captcha.characters": characters, "network.init": str(best), "training.seed": 3})
    started = state_of(make_network(config, CPU))
    drawn = state_of(make_network(tiny({"captcha.characters": characters, "training.seed": 3}), CPU))
    saved = checkpoints.load(best)["network"]
    for name, value in started.items():
        if not name.startswith("fc."):
            assert torch.equal(value, saved[name])
            continue
        for row in range(len(characters) + 1):
            source = saved[name][{0: 0, **kept}[row]] if row in {0, *kept} else drawn[name][row]
            assert torch.equal(value[row], source), (name, row)
    assert InitialWeights.load(config).summary(characters) == said


def test_a_best_pt_that_was_itself_fine_tuned_is_read_when_its_own_beginning_is_gone(
    tiny: Make, tiny_data: MakeData, best: Path, tmp_path: Path
) -> None:
    again = saved(tmp_path / "again.pt", tiny({"network.init": str(best), "network.freeze": ["cnn"]}), tiny_data)
    best.unlink()
    config, _ = checkpoints.load_network(again)
    assert config.network.init == str(best)
    make_network(tiny({"network.init": str(again)}), CPU)


FROZEN = {  # patterns → which weights they freeze, of all of which some others are left
    ("cnn.*",): lambda name: name.startswith("cnn."),
    ("cnn",): lambda name: name.startswith("cnn."),
    ("cnn.*1",): lambda name: name.startswith("cnn."),
    ("cnn.bn*",): lambda name: ".bn" in name,
    ("encoder", "fc.bias"): lambda name: name.startswith("encoder.") or name == "fc.bias",
    ("*.bias",): lambda name: name.endswith(".bias"),
    ("cnn.conv11.weight",): lambda name: name == "cnn.conv11.weight",
}


@pytest.mark.parametrize("patterns", FROZEN, ids=",".join)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_weights_and_their_statistics_stay_and_all_others_are_trained(
    tiny: Make, tiny_data: MakeData, patterns: tuple[str, ...], optimizer: str
) -> None:
    config = tiny({"network.freeze": patterns, "optimizer.name": optimizer, "optimizer.weight_decay": 0.1})
    network = make_network(config, CPU)
    before = state_of(network)
    next(train(config, network, tiny_data(config)))
    for name, value in network.state_dict().items():
        layer, _, last = name.rpartition(".")
        statistic = last in ("running_mean", "running_var", "num_batches_tracked")
        frozen = (
            all(map(FROZEN[patterns], (f"{layer}.weight", f"{layer}.bias"))) if statistic else FROZEN[patterns](name)
        )
        assert torch.equal(value, before[name]) is frozen, name


def test_a_frozen_network_resumes_bit_for_bit(tiny: Make, tiny_data: MakeData, best: Path, tmp_path: Path) -> None:
    config = tiny({"network.init": str(best), "network.freeze": ["cnn.*"], "network.dropout": 0.2})
    data = tiny_data(config)
    whole = make_network(config, CPU)
    *_, last = train(config, whole, data)
    cut = train(config, make_network(config, CPU), data)
    checkpoints.save(tmp_path / "epoch.pt", next(cut).state)
    resumed = make_network(config, CPU)
    *_, same = train(config, resumed, data, resume_from=checkpoints.load(tmp_path / "epoch.pt"))
    assert (same.train, same.valid) == (last.train, last.valid)
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.state_dict().items())


def test_the_average_of_weights_keeps_the_statistics_of_frozen_layers_and_computes_those_of_others(
    tiny: Make, tiny_data: MakeData, best: Path
) -> None:
    config = tiny({"network.init": str(best), "network.freeze": ["cnn.bn11"]})
    data, network = tiny_data(config), make_network(config, CPU)
    average = AveragedWeights(network, config.steps_per_epoch * config.training.epochs)
    before = state_of(network)
    next(train(config, network, data, average=average))
    average.scores(data, 1, "float32")
    averaged = average.state_dict()["network"]
    assert torch.equal(averaged["cnn.bn11.running_mean"], before["cnn.bn11.running_mean"])
    assert torch.equal(averaged["cnn.bn11.running_var"], before["cnn.bn11.running_var"])
    assert not torch.equal(averaged["cnn.bn21.running_mean"], before["cnn.bn21.running_mean"])


def test_a_recorded_step_leaves_frozen_layers_as_they_are(
    tiny: Make, tiny_data: MakeData, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({"network.init": str(best), "network.freeze": ["cnn.*"]})
    monkeypatch.setattr(acceleration, "resolve", lambda *_: Acceleration("step"))
    graphs = cpu_graphs(monkeypatch)
    network = make_network(config, CPU)
    before = state_of(network)
    next(train(config, network, tiny_data(config)))
    assert [graph.replays for graph in graphs] == [config.steps_per_epoch]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) is name.startswith("cnn."), name


def other_file(best: Path) -> None:
    best.write_text("no checkpoint")


def other_network(best: Path) -> None:
    config = TrialConfig(network={"channels": [8], "pools": [4]})
    checkpoints.save(best, {"config": config.model_dump(mode="json"), "network": CRNN(config).state_dict()})


def other_shape(best: Path) -> None:
    state = checkpoints.load(best)
    config = TrialConfig.model_validate({**state["config"], "captcha": {**state["config"]["captcha"], "color": "grey"}})
    checkpoints.save(best, {"config": config.model_dump(mode="json"), "network": CRNN(config).state_dict()})


def a_folder(best: Path) -> None:
    best.unlink()
    best.mkdir()


BROKEN: list[tuple[Callable[[Path], object], dict[str, Any], str]] = [
    (Path.unlink, {}, "network.init must be a recogniser's best.pt, got '{best}': No such file"),
    (a_folder, {}, "network.init must be a recogniser's best.pt, got '{best}': not a regular file"),
    (other_file, {}, "network.init must be a recogniser's best.pt, got '{best}': this is no checkpoint"),
    (other_network, {}, "network.init must have the layers that network describes, got '{best}': "),
    (other_shape, {}, "its cnn.conv11.weight has the shape (8, 1, 3, 3), must be (8, 3, 3, 3)"),
    (str, {"network.encoder": "gru"}, "its encoder.weight_ih_l0 has the shape"),
    (str, {"network.encoder": "none"}, "its fc.weight has the shape (5, 32), must be (5, 16)"),
    (str, {"network.encoder.layers": 2}, "encoder.weight_ih_l1 is missing"),
    (str, {"network.channels": "[8]", "network.pools": "[[16, 8]]"}, "its cnn.conv21.weight belongs to no layer"),
    (str, {"network.init_sha256": "f" * 64}, "it has other contents than network.init_sha256 says"),
    (str, {"network.init_sha256": "abc"}, "network.init_sha256 must match ^[0-9a-f]"),
    (str, {"network.freeze": "[cnn.*, conv*]"}, "network.freeze must be name patterns of layers, got ['conv*'], which"),
    (str, {"network.freeze": '["*"]'}, "network.freeze must leave a layer to be trained, got ['*'], which fit all"),
    (str, {"network.freeze": "[cnn, encoder, fc]"}, "network.freeze must leave a layer to be trained"),
    (str, {"network.freeze": "cnn"}, "network.freeze must be a list, got 'cnn'"),
    (str, {"search.space.network.freeze": "{choice: [[], [cnn], [cmm]]}"}, "with ['cmm']: network.freeze must be"),
    (str, {"search.space.network.encoder.size": "{int: [16, 17]}"}, "with 17: network.init must have the layers"),
    (str, {"search.space.network.init": "{choice: [null, a.pt]}"}, "not searchable: all trials have the same initial"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "settings", "said"), BROKEN, ids=[said for *_, said in BROKEN])
def test_weights_or_layers_that_cannot_be_used_are_answered_in_a_sentence_before_anything_is_written(
    best: Path,
    damage: Callable[[Path], object],
    settings: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(best)
    values = {**TINY, "network.init": best, **settings}
    assert main([*sets(values), "--output-dir", str(tmp_path / "runs"), "--local"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (sentence,) = printed.err.splitlines()
    assert said.replace("{best}", str(best)) in sentence
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_sweep_says_what_it_starts_from_and_goes_on_with_its_own_copy_of_the_weights(
    local: StartLocal, best: Path, tmp_path: Path
) -> None:
    """Also when the original has changed, has gone, or is restored; but not without the weights."""
    settings = {
        "network.init": best,
        "network.freeze": "[cnn.*]",
        "captcha.characters": "012x",
        "search.trials": 1,
        "training.epochs": 2,
        "data.train_images": 96,
        "confirm": "{top: 1, seeds: 1}",
    }
    said = f"{best}: all layers and 3 of 4 characters kept; drawn anew: 'x'; left out: '3'"
    code, printed = local("whole", **{**settings, "search.trials": 2}).wait()
    assert code == 0
    code, printed = local("tuned", **settings).wait()
    assert code == 0
    root = tmp_path / "tuned"
    assert said in printed
    assert said in (root / "sweep.log").read_text()
    config = load(root / "sweep.yaml")
    assert config.network.init == str(best)
    assert config.network.init_sha256 == hashlib.sha256(best.read_bytes()).hexdigest()
    original = best.read_bytes()
    best.write_bytes(b"another best.pt")
    code, printed = resume_local(root, "--trials", "2").wait()
    assert (code, said in (root / "sweep.log").read_text()) == (0, True)
    assert scores(root) == scores(tmp_path / "whole")
    (root / "init.pt").unlink()
    code, printed = resume_local(root, "--trials", "3").wait()
    assert code == 2
    assert "network.init must be a recogniser's best.pt" in printed
    assert "it has other contents than network.init_sha256 says" in printed
    best.write_bytes(original)
    code, printed = resume_local(root, "--trials", "2").wait()
    assert code == 0
    assert (root / "init.pt").read_bytes() == original
    best.unlink()
    # A sweep that is repeated from its sweep.yaml needs the file again, and one from other weights forgets the digest.
    assert main(["--config", str(root / "sweep.yaml"), "--output-dir", str(tmp_path), "--local", "--dry-run"]) == 2
    shutil.copy(root / "best.pt", tmp_path / "next.pt")
    other = ["--set", f"network.init={tmp_path / 'next.pt'}", "--dry-run", "--local"]
    assert main(["--config", str(root / "sweep.yaml"), "--output-dir", str(tmp_path), *other]) == 0


def scores(root: Path) -> dict[str, tuple[str, str]]:
    rows = leaderboard(root)
    assert all(row["test_error_rate"] for row in rows if row["replicate_of"])
    return {row["trial"][5:]: (row["error_rate"], row["loss"]) for row in rows if not row["replicate_of"]}
