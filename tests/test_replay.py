"""Recorded trials: what they say of early stopping's score, and of how often a sweep's pick is right."""

import re

import numpy as np
import pytest
from scipy.stats import spearmanr

from sweep.search import early_stopping
from tests.ground_truth import AVERAGED, GroundTruth
from tests.replay import METHODS, TPE, Replay, summary


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    return GroundTruth()


ROWS = {"last weights: loss": "loss", "last weights: error rate": "error_rate", "last weights: CER": "cer"}


@pytest.mark.parametrize(("row", "score"), [*ROWS.items(), ("averaged weights: loss", AVERAGED)])
def test_the_table_of_early_stoppings_scores_is_that_of_the_recorded_trials(
    truth: GroundTruth, row: str, score: str
) -> None:
    (cells,) = re.findall(rf"^\| {row} \| ([\d.]+) \| ([\d.]+) \|", early_stopping.__doc__ or "", re.MULTILINE)
    trials = list(truth.trials.values())
    ends = [min(epoch["error_rate"] for epoch in trial.epochs) for trial in trials]
    for written, rung in zip(cells, (truth.epochs // 4, truth.epochs // 2), strict=True):
        found = spearmanr([trial.epochs[rung - 1][score] for trial in trials], ends).statistic
        assert float(written) == pytest.approx(found, abs=0.0055)


def test_a_replay_trains_what_the_search_asks_for_and_knows_what_it_picked(truth: GroundTruth) -> None:
    replay = Replay(truth)
    grid = METHODS[-1]
    outcome = replay.sweep(grid, seed=0)
    assert outcome.epochs == 35 * truth.epochs
    seed = int(np.random.default_rng(0).permutation(truth.seeds)[0])
    validated = {
        (schedule, rate): min((epoch["error_rate"], epoch["loss"]) for epoch in trial.epochs)
        for (schedule, rate, s), trial in truth.trials.items()
        if s == seed
    }
    assert outcome.config == min(validated, key=lambda config: validated[config])
    assert outcome.regret == replay.means[outcome.config] - min(replay.means.values())


@pytest.mark.slow
def test_a_confirmed_sweep_picks_what_is_as_good_as_the_best_for_a_third_of_the_grid(truth: GroundTruth) -> None:
    found = summary(Replay(truth), TPE, replays=100)
    assert found["within_standard_error"] >= 0.9
    assert found["epochs"] <= len(truth.trials) * truth.epochs / 3
