"""Recorded trials: what they say of early stopping's score, and of how often a sweep's pick is right."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.ground_truth import AVERAGED, FILE, GroundTruth
from tests.replay import METHODS, TPE, Replay, summary


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    return GroundTruth()


def test_every_schedule_was_tried_at_every_rate_with_every_seed_to_its_end(truth: GroundTruth) -> None:
    assert FILE.stat().st_size < 1_000_000
    assert (len(truth.schedules), len(truth.rates), len(truth.seeds)) == (7, 5, 4)
    assert len(truth.trials) == 7 * 5 * 4
    assert {len(trial.epochs) for trial in truth.trials.values()} == {truth.epochs}


@pytest.mark.parametrize("rung", [2, 4])
def test_the_averaged_weights_foretell_the_end_better_than_the_last_ones(truth: GroundTruth, rung: int) -> None:
    trials = list(truth.trials.values())
    ends = [trial.test_error_rate for trial in trials]
    correlation = {
        score: spearmanr([trial.epochs[rung - 1][score] for trial in trials], ends).statistic
        for score in (AVERAGED, "loss", "error_rate", "cer")
    }
    assert max(correlation, key=lambda score: correlation[score]) == AVERAGED


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
