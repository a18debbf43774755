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
from sweep.search.early_stopping import decides
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from tests.conftest import REPOSITORY
from tests.ground_truth import AVERAGED, SCORES, GroundTruth

CONFIG = REPOSITORY / "configs" / "schedules.yaml"
ASHA = {"name": "asha", "grace_epochs": 3, "reduction_factor": 2}
CONFIRM = {"top": 3, "seeds": 3}


@dataclass(frozen=True)
class Method:
    name: str
    searcher: str
    trials: int
    early_stopping: Mapping[str, Any] | str = "none"
    confirm: Mapping[str, int] | None = None


TPE = Method("tpe + asha + confirm", "tpe", 40, ASHA, CONFIRM)
# The others have about as many epochs as TPE; the grid is every config once.
METHODS = [
    TPE,
    Method("random + asha + confirm", "random", 43, ASHA, CONFIRM),
    Method("tpe + asha", "tpe", 52, ASHA),
    Method("random + asha", "random", 58, ASHA),
    Method("tpe", "tpe", 39),
    Method("random", "random", 39),
    Method("grid", "grid", 35),
]


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
        order: dict[Any, int] = {}  # of the training seeds, as they come: the search's own first
        epochs = 0
        while (record := search.ask()) is not None:
            place = order.setdefault(record.values.get("training.seed"), len(order))
            epochs += self._train(search, record, seeds[place])
        best = search.best
        assert best is not None
        picked = self._nearest(best)
        return Outcome(picked, self.means[picked] - self.means[self.best], epochs)

    def _config(self, method: Method, seed: int) -> SweepConfig:
        rates, schedules = self.truth.rates, self.truth.schedules
        half = math.sqrt(rates[1] / rates[0])
        between = {"loguniform": [rates[0] / half, rates[-1] * half]}
        space = {
            "optimizer.lr": {"grid": rates} if method.searcher == "grid" else between,
            "schedule.name": {"choice": schedules},
        }
        search = {"searcher": method.searcher, "trials": method.trials, "early_stopping": method.early_stopping}
        values = {"confirm": method.confirm, "search": {**search, "space": space, "seed": seed}}
        return load(CONFIG, values)

    def _nearest(self, record: TrialRecord) -> tuple[str, float]:
        wanted = math.log(float(record.values["optimizer.lr"]))
        return str(record.values["schedule.name"]), min(self.truth.rates, key=lambda r: abs(math.log(r) - wanted))

    def _train(self, search: Search, record: TrialRecord, seed: int) -> int:
        """Reports the recorded epochs until the search has seen enough; says how many."""
        trial = self.truth.trials[(*self._nearest(record), seed)]
        best, best_epoch = {"error_rate": math.inf, "loss": math.inf}, 0
        for epoch, scores in enumerate(trial.epochs, start=1):
            if (scores["error_rate"], scores["loss"]) < (best["error_rate"], best["loss"]):
                best, best_epoch = {name: scores[name] for name in SCORES}, epoch
            ended = epoch == len(trial.epochs)
            result = {
                "state": "completed" if ended else "running",
                "epochs": epoch,
                "scores": best,
                "best_epoch": best_epoch,
                "rung_score": scores[AVERAGED] if decides(search.config.early_stopping, epoch) and not ended else None,
                **({"test_error_rate": trial.test_error_rate} if ended and record.replicate_of else {}),
            }
            if not search.report(record.number, result):
                return epoch
        raise AssertionError("the search has not noticed the trial's end")


def summary(replay: Replay, method: Method, replays: int) -> dict[str, float]:
    outcomes = [replay.sweep(method, seed) for seed in range(replays)]
    return {
        "within_standard_error": fmean(outcome.regret <= replay.standard_error for outcome in outcomes),
        "regret": fmean(outcome.regret for outcome in outcomes),
        "epochs": fmean(outcome.epochs for outcome in outcomes),
    }


def main(replays: int = 100) -> None:
    replay = Replay(GroundTruth())
    schedule, rate = replay.best
    every = len(replay.truth.trials) * replay.truth.epochs
    print(f"the best: {schedule} at {rate:g}, {replay.means[replay.best]:.2%} ± {replay.standard_error:.2%} wrong")
    print("| search | within a standard error of the best | regret, points of error | epochs, of all recorded |")
    print("|---|---|---|---|")
    for method in METHODS:
        found = summary(replay, method, replays)
        print(
            f"| {method.name}, {method.trials} trials | {found['within_standard_error']:.0%} "
            f"| {100 * found['regret']:.2f} | {found['epochs']:.0f} ({found['epochs'] / every:.0%}) |"
        )


if __name__ == "__main__":
    main()
