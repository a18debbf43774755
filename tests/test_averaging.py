"""The averaged weights against a loop written out, and that training does not notice them."""

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


@pytest.mark.parametrize(("steps", "every"), [(20, 1), (399, 1), (1000, 5)])
def test_the_average_is_exponential_with_a_warm_up_over_a_tenth_of_the_steps(steps: int, every: int) -> None:
    layer = nn.Linear(3, 2)
    average = AveragedWeights(layer, steps)
    expected = layer.weight.detach().clone()
    for step in range(100):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 3))
        average.update()
        if step % every == 0:
            samples = step // every
            decay = 0.0 if samples == 0 else min(1 - 10 * every / steps, (1 + samples) / (10 + samples))
            expected = decay * expected + (1 - decay) * layer.weight.detach()
    assert torch.allclose(average.state_dict()["network"]["weight"], expected, atol=1e-5)


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
