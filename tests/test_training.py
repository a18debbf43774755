import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import OptimizerConfig, TrialConfig
from model.data.batches import Data
from model.training import checkpoints
from model.training.evaluation import evaluate
from model.training.loop import Epoch, make_network, train
from model.training.optimizers import OPTIMIZERS, make_optimizer
from model.training.running_scores import Diverged

Make = Callable[..., TrialConfig]
MakeData = Callable[[TrialConfig], Data]


def run(config: TrialConfig, data: Data, resume_from: Any = None) -> tuple[list[Epoch], dict[str, Any], list[Any]]:
    """All epochs, the final weights, and what was logged."""
    network = make_network(config, torch.device("cpu"))
    logged: list[Any] = []
    epochs = list(train(config, network, data, lambda step, values: logged.append((step, dict(values))), resume_from))
    return epochs, network.state_dict(), logged


def assert_same_weights(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_same_seed_gives_the_same_weights_and_curves_bit_for_bit(tiny: Make, tiny_data: MakeData) -> None:
    config = tiny({"network.dropout": 0.2})
    data = tiny_data(config)
    (first, weights, logged), (second, other_weights, other_logged) = run(config, data), run(config, data)
    assert [(e.train, e.valid) for e in first] == [(e.train, e.valid) for e in second]
    assert logged == other_logged
    assert_same_weights(weights, other_weights)
    different = run(tiny({"network.dropout": 0.2, "training.seed": 1}), data)
    assert different[2] != logged


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_trial_ends_like_one_never_interrupted(
    tiny: Make, tiny_data: MakeData, tmp_path: Path, after: int
) -> None:
    config = tiny({"network.dropout": 0.2, "schedule.name": "onecycle", "optimizer.lr": 0.01})
    data = tiny_data(config)
    whole, weights, logged = run(config, data)
    network = make_network(config, torch.device("cpu"))
    interrupted = train(config, network, data)
    for _ in range(after):
        epoch = next(interrupted)
    checkpoints.save(tmp_path / "epoch.pt", epoch.state)
    interrupted.close()
    torch.manual_seed(99)
    rest, other_weights, other_logged = run(config, data, checkpoints.load(tmp_path / "epoch.pt"))
    assert_same_weights(weights, other_weights)
    assert [(e.number, e.train, e.valid, e.best_number, e.best_valid) for e in rest] == [
        (e.number, e.train, e.valid, e.best_number, e.best_valid) for e in whole[after:]
    ]
    assert other_logged == logged[-len(other_logged) :]


def test_it_learns_to_read(tiny: Make, tiny_data: MakeData) -> None:
    config = tiny({"data.train_images": 1600, "training.epochs": 6, "optimizer.lr": 0.01, "data.valid_images": 200})
    epochs, _, _ = run(config, tiny_data(config))
    assert epochs[-1].train.loss < epochs[0].train.loss / 2
    assert epochs[-1].valid.error_rate < 0.5
    assert epochs[-1].best_valid == min((e.valid for e in epochs), key=lambda s: (s.error_rate, s.loss))


def test_an_infinite_loss_ends_the_trial_at_once(tiny: Make, tiny_data: MakeData) -> None:
    config = tiny({"optimizer.name": "sgd", "optimizer.lr": 1e30, "optimizer.gradient_clip": None})
    logged: list[float] = []
    epochs = train(
        config,
        make_network(config, torch.device("cpu")),
        tiny_data(config),
        lambda step, values: logged.append(values["train/loss"]),
    )
    with pytest.raises(Diverged, match="loss was"):
        next(epochs)
    assert not math.isfinite(logged[-1])
    assert len(logged) < config.steps_per_epoch


@pytest.mark.parametrize("epochs", [1, 3, 150, 450])
def test_batch_curves_have_at_most_200_points_with_increasing_steps(tiny: Make, epochs: int) -> None:
    from model.training.loop import is_logged

    steps = [step for step in range(1, 37 * epochs + 1) if is_logged(step, 37, epochs)]
    assert 0 < len(steps) <= 200
    assert steps == sorted(set(steps))


def test_logged_rate_is_the_schedules(tiny: Make, tiny_data: MakeData) -> None:
    config = tiny({"schedule.name": "linear", "optimizer.lr": 0.5, "training.epochs": 2})
    _, _, logged = run(config, tiny_data(config))
    assert [values["train/lr"] for _, values in logged] == pytest.approx([0.5 * (1 - step / 12) for step in range(12)])
    assert [step for step, _ in logged] == list(range(1, 13))
    assert all(values["train/acc"] + values["train/error_rate"] == 1 for _, values in logged)


def test_scores_weigh_each_image_the_same_whatever_the_batches(tiny: Make, tiny_data: MakeData) -> None:
    config = tiny()
    data = tiny_data(config)
    network = make_network(config, torch.device("cpu"))
    whole, worst = evaluate(network, data.batches(data.valid, 40), "float32")
    ragged, same_worst = evaluate(network, data.batches(data.valid, 17), "float32")
    assert whole.loss == pytest.approx(ragged.loss, rel=1e-5)
    assert whole | {"loss": 0.0} == ragged | {"loss": 0.0}
    assert worst.losses.tolist() == sorted(worst.losses.tolist(), reverse=True)
    assert worst.rows.tolist() == same_worst.rows.tolist()
    assert worst.in_order().rows.tolist() == list(range(40))
    assert torch.equal(worst.in_order().labels, data.valid[0].labels)


def test_bfloat16_gradients_are_close_to_float32(tiny: Make, tiny_data: MakeData) -> None:
    from model.network import ctc
    from model.training.precision import autocast

    config = tiny()
    images, labels, _ = next(tiny_data(config).train_batches(1))
    gradients = {}
    for precision in ("float32", "bfloat16"):
        network = make_network(config, torch.device("cpu"))
        with autocast(torch.device("cpu"), precision):
            logits = network(images)
        ctc.ctc_loss(logits, labels).backward()
        gradients[precision] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    difference = (gradients["bfloat16"] - gradients["float32"]).norm() / gradients["float32"].norm()
    assert 0 < difference < 2e-2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_optimisers_take_the_step_of_torchs_plain_ones(name: str) -> None:
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    more = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    results = []
    for make in (
        lambda p: make_optimizer(p, OptimizerConfig(name=name, lr=0.01, weight_decay=0.1)),
        lambda p: plain(p, lr=0.01, weight_decay=0.1, fused=False, foreach=False, **more),
    ):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(50))
        optimizer = make([weight])
        for _ in range(5):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
        results.append(weight.detach())
    assert torch.allclose(results[0], results[1], rtol=1e-5)


def test_a_stranger_cannot_run_code_through_a_checkpoint(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"network": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt: this is no checkpoint"):
        checkpoints.load(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()
