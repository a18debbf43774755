"""The averaged weights: over how long they average, and that training does not notice them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model.config import TrialConfig
from model.data.batches import Data
from model.training import checkpoints
from model.training.averaging import AveragedWeights
from model.training.loop import make_network, train

Make = Callable[..., TrialConfig]
MakeData = Callable[[TrialConfig], Data]
CPU = torch.device("cpu")


def average_of(values: list[float], steps: int) -> float:
    """The average of a network of one weight that had these values, one after each step."""
    layer = nn.Linear(1, 1, bias=False)
    average = AveragedWeights(layer, steps)
    for value in values:
        nn.init.constant_(layer.weight, value)
        average.update()
    return float(average.state_dict()["network"]["weight"])


@pytest.mark.parametrize("steps", [400, 1000, 4000])
def test_a_tenth_of_the_steps_after_a_jump_the_average_has_made_all_but_an_eth_of_it(steps: int) -> None:
    jump = [0.0] * steps + [1.0] * (steps // 10)
    assert average_of(jump, steps) == pytest.approx(1 - 1 / math.e, abs=0.02)


@pytest.mark.parametrize("steps", [20, 400, 4000])
def test_the_average_soon_forgets_the_initial_weights(steps: int) -> None:
    every = max(1, steps // 200)  # steps between two samples
    assert average_of([1.0], steps) == 1.0
    assert average_of([0.0] * every + [1.0] * 9 * every, steps) > 0.99


def test_training_is_the_same_with_and_without_an_average(tiny: Make, tiny_data: MakeData) -> None:
    config = tiny({"network.dropout": 0.2})
    data, plain, averaged = tiny_data(config), make_network(config, CPU), make_network(config, CPU)
    average = AveragedWeights(averaged, config.steps_per_epoch * config.training.epochs)
    list(train(config, plain, data))
    for epoch in train(config, averaged, data, average=average):
        average.scores(data, epoch.number, "float32")
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in averaged.state_dict().items())


def test_weights_that_stand_still_score_as_they_do_themselves_with_fresh_statistics(
    tiny: Make, tiny_data: MakeData
) -> None:
    config = tiny({"optimizer.lr": 0.01, "training.epochs": 12})
    data, network = tiny_data(config), make_network(config, CPU)
    *_, last = train(config, network, data)
    average = AveragedWeights(network, 1000)
    average.update()
    scores = average.scores(data, 1, "float32")
    assert scores.loss == pytest.approx(last.valid.loss, rel=0.1)
    assert scores.error_rate == pytest.approx(last.valid.error_rate, abs=0.1)


def test_a_resumed_average_scores_like_one_never_interrupted(tiny: Make, tiny_data: MakeData, tmp_path: Path) -> None:
    config = tiny({"network.dropout": 0.2})
    data = tiny_data(config)

    def scores(resume: bool) -> object:
        network = make_network(config, CPU)
        average = AveragedWeights(network, 18)
        state = checkpoints.load(tmp_path / "epoch.pt") if resume else None
        for epoch in train(config, network, data, resume_from=state, average=average):
            if epoch.number == 1:
                checkpoints.save(tmp_path / "epoch.pt", epoch.state)
        return average.scores(data, 3, "float32")

    assert scores(resume=False) == scores(resume=True)
