"""Recorded and compiled steps give what plain ones give; CUDA graphs are recorded on the CPU here."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import TrainingConfig, TrialConfig
from model.data.batches import Data
from model.network import ctc
from model.training import acceleration
from model.training.acceleration import Acceleration
from model.training.averaging import AveragedWeights
from model.training.loop import Epoch, make_network, train
from tests.fake_gpu import GPU, cpu_graphs

Make = Callable[..., TrialConfig]
MakeData = Callable[[TrialConfig], Data]
CPU = torch.device("cpu")


def record_the_step(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(acceleration, "resolve", lambda *_: Acceleration("step"))
    return cpu_graphs(monkeypatch)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_recorded_step_trains_as_a_plain_one(
    tiny: Make, tiny_data: MakeData, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config = tiny({"optimizer.name": optimizer, "schedule.name": "onecycle", "training.augmentation.shift": 2})
    data = tiny_data(config)

    def trained() -> tuple[list[Epoch], dict[str, torch.Tensor]]:
        network = make_network(config, CPU)
        average = AveragedWeights(network, config.steps_per_epoch * config.training.epochs)
        return list(train(config, network, data, average=average)), network.state_dict()

    graphs = record_the_step(monkeypatch)
    with monkeypatch.context() as unrecorded:
        unrecorded.setattr(acceleration, "RecordedStep", lambda step, network, optimizer: step)
        plain, weights = trained()
    recorded, same_weights = trained()
    assert [graph.replays for graph in graphs] == [config.steps_per_epoch * config.training.epochs]
    for one, other in zip(recorded, plain, strict=True):  # a rate in a tensor has 24 bits, Python's has 53
        assert one.train.loss == pytest.approx(other.train.loss, rel=1e-3)
        assert one.valid.loss == pytest.approx(other.valid.loss, rel=1e-3)
    # Not all: a bias before batch-norm has no gradient but rounding errors, which Adam blows up.
    torch.testing.assert_close(same_weights["fc.weight"], weights["fc.weight"], rtol=1e-2, atol=2e-3)


def test_a_trial_goes_on_with_a_recorded_step_where_a_plain_one_was_cut(
    tiny: Make, tiny_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({"schedule.name": "cosine"})
    data, network = tiny_data(config), make_network(config, CPU)
    epochs = train(config, network, data)
    state = copy.deepcopy(next(epochs).state)
    uninterrupted = [(epoch.train, epoch.valid) for epoch in epochs]
    record_the_step(monkeypatch)
    resumed = train(config, make_network(config, CPU), data, resume_from=state)
    for epoch, (trained, validated) in zip(resumed, uninterrupted, strict=True):
        assert epoch.train.loss == pytest.approx(trained.loss, rel=1e-4)
        assert epoch.valid.loss == pytest.approx(validated.loss, rel=1e-4)


def test_a_replay_takes_the_rate_and_the_labels_of_its_own_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_graphs(monkeypatch)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        optimizer.zero_grad()
        loss = (weight * labels).sum()
        loss.backward()
        optimizer.step()
        return loss.detach(), images + labels

    network = torch.nn.Module()
    network.weight = weight
    recorded = acceleration.RecordedStep(step, network, optimizer)
    for rate, label in ((1.0, 1.0), (0.5, 1.0), (0.25, 4.0)):
        acceleration.set_rate(optimizer, rate)
        before = weight.detach().clone()
        recorded(torch.zeros(3), torch.full((3,), label))
        assert torch.equal(before - weight.detach(), torch.full((3,), rate * label))


@pytest.mark.parametrize(
    ("settings", "steps", "device", "chosen"),
    [
        ({}, 10, GPU, Acceleration("network")),
        ({"cuda_graph": True}, 10, GPU, Acceleration("network")),
        ({"cuda_graph": "step"}, 10, GPU, Acceleration("step")),
        ({"cuda_graph": False}, 10, GPU, Acceleration()),
        ({"compile": True}, 10, GPU, Acceleration(compile=True)),
        ({"compile": True, "cuda_graph": "step"}, 10, GPU, Acceleration("step", compile=True)),
        ({"compile": "auto"}, 100, GPU, Acceleration("network")),
        ({"compile": "auto"}, 100_000, GPU, Acceleration(compile=True)),
        ({"compile": "auto"}, 100_000, CPU, Acceleration()),
        ({"cuda_graph": "step"}, 10, CPU, Acceleration()),
        ({"cuda_graph": "step"}, 10, torch.device("xpu"), Acceleration()),
    ],
)
def test_what_is_recorded_and_compiled(
    settings: dict[str, Any], steps: int, device: torch.device, chosen: Acceleration
) -> None:
    assert acceleration.resolve(TrainingConfig(**settings), steps, device) == chosen


def test_recording_the_network_leaves_its_statistics_as_they_were(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(tiny(), CPU)
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def warm_up(network: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        assert network.training
        network(*arguments)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", warm_up)
    acceleration.record_network(network, torch.ones(4, 3, 32, 64), "float32")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_failing_compiler_is_told_and_the_trial_trains_without_it(
    tiny: Make, tiny_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({"training.compile": True})
    data, plain = tiny_data(config), make_network(config, CPU)
    expected = [epoch.valid for epoch in train(tiny(), plain, data)]

    def no_backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler was found")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: compile_(module, backend=no_backend, **options))
    epochs = list(train(config, make_network(config, CPU), data))
    assert [epoch.valid for epoch in epochs] == expected
    assert "no C++ compiler was found" in str(epochs[0].note)
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_network_trains_as_a_plain_one_and_is_kept_beside_the_pools(
    tiny: Make, tiny_data: MakeData, cache: Path
) -> None:
    config = tiny({"training.compile": True, "training.precision": "float32", "training.epochs": 1})
    data = tiny_data(config)
    (plain,) = train(tiny({"training.precision": "float32", "training.epochs": 1}), make_network(config, CPU), data)
    (epoch,) = train(config, make_network(config, CPU), data)
    assert epoch.note is None
    assert epoch.train.loss == pytest.approx(plain.train.loss, rel=1e-3)
    assert any(path.is_file() for path in (cache / "compiled").rglob("*.so"))


def test_an_empty_label_counts_as_one_character() -> None:
    losses, labels = torch.tensor([4.0, 3.0]), torch.tensor([[1, 2], [0, 0]], dtype=torch.uint8)
    assert ctc.mean_per_character(losses, labels).item() == pytest.approx((4 / 2 + 3) / 2)
