"""`python -m tests.replay` runs searches over recorded trials, without training: how often does a sweep pick a config
that is as good as the best, how much worse is its pick, and what does that cost?

The search, its early stopping and its confirmation are the real ones. A trial's learning rate is that of the nearest
recorded one, and its seed is drawn anew for each replay: the search sees one, the confirmation others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from sweep.config import SweepConfig, load
from sweep.early_stopping import decides
from sweep.searcher import Search, TrialRecord
from tests.conftest import REPOSITORY
from tests.ground_truth import AVERAGED, GroundTruth

CONFIG = REPOSITORY / "configs" / "schedules.yaml"
ASHA = {"name": "asha", "metric": "loss", "grace_epochs": 2, "reduction_factor": 2}


@dataclass(frozen=True)
class Method:
    """How a sweep searches; without `trials`, as many as the first method's epochs allow."""

    name: str
    settings: Mapping[str, Any]
    trials: int


@dataclass(frozen=True)
class Outcome:
    """Of one replay: the config it picked, its true mean test error less the best's, and the epochs it trained."""

    config: tuple[str, float]
    regret: float
    epochs: int


class Replay:
    def __init__(self, truth: GroundTruth) -> None:
        self.truth = truth
        self.means = {config: float(errors.mean()) for config, errors in truth.errors.items()}
        self.best = min(self.means, key=lambda config: self.means[config])
        best = truth.errors[self.best]
        self.standard_error = float(best.std(ddof=1) / math.sqrt(len(best)))

    def sweep(self, method: Method, seed: int) -> Outcome:
        search = Search(self._config(method, seed), None)
        seeds = [int(s) for s in np.random.default_rng(seed).permutation(self.truth.seeds)]
        epochs = 0
        while (record := search.ask()) is not None:
            epochs += self._train(search, record, seeds[int(record.values.get("training.seed", 0))])
        best = search.best
        assert best is not None
        picked = self._nearest(best)
        return Outcome(picked, self.means[picked] - self.means[self.best], epochs)

    def _config(self, method: Method, seed: int) -> SweepConfig:
        rates, schedules = self.truth.rates, self.truth.schedules
        half = math.sqrt(rates[1] / rates[0])
        space = {
            "optimizer.lr": {"loguniform": [rates[0] / half, rates[-1] * half]},
            "schedule.name": {"choice": schedules},
        }
        common = {"search.space": space, "search.trials": method.trials, "search.seed": 1000 * seed}
        return load(CONFIG, {**common, **method.settings})

    def _nearest(self, record: TrialRecord) -> tuple[str, float]:
        wanted = math.log(float(record.values["optimizer.lr"]))
        return str(record.values["schedule.name"]), min(self.truth.rates, key=lambda r: abs(math.log(r) - wanted))

    def _train(self, search: Search, record: TrialRecord, seed: int) -> int:
        """Reports the recorded epochs until the search has seen enough; says how many."""
        trial = self.truth.trials[(*self._nearest(record), seed)]
        best: dict[str, Any] = {"error_rate": math.inf, "loss": math.inf}
        for epoch, scores in enumerate(trial.epochs, start=1):
            if (scores["error_rate"], scores["loss"]) < (best["error_rate"], best["loss"]):
                best = {**scores, "best_epoch": epoch}
            ended = epoch == len(trial.epochs)
            result = {
                "state": "completed" if ended else "running",
                "epochs": epoch,
                **best,
                "rung_score": scores[AVERAGED] if decides(search.config.early_stopping, epoch) and not ended else None,
                **({"test_error_rate": trial.test_error_rate} if ended and record.replicate_of else {}),
            }
            if not search.report(record.number, result):
                return epoch
        raise AssertionError("the search has not noticed the trial's end")


def summary(replay: Replay, method: Method, replays: int) -> dict[str, float]:
    outcomes = [replay.sweep(method, seed) for seed in range(replays)]
    return {
        "best": fmean(outcome.config == replay.best for outcome in outcomes),
        "within_standard_error": fmean(outcome.regret <= replay.standard_error for outcome in outcomes),
        "regret": fmean(outcome.regret for outcome in outcomes),
        "epochs": fmean(outcome.epochs for outcome in outcomes),
    }
