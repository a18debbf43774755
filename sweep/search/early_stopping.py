"""Early stopping: pruners that stop a trial before its last epoch. A rung is the set of intermediate values that Optuna
stores for one epoch, so the study file holds the whole state of early stopping.

Which score to compare was measured on 140 trials of eight epochs that all ran to their end (configs/schedules.yaml:
seven schedules, five rates, four seeds). ρ is Spearman's correlation of a score at a rung with the final validation
error; "best stopped" is how often the best of 24 trials drawn from the 140 was not among the better half at the rung.

| validation score | ρ at 1/4 | ρ at 1/2 | best stopped at 1/4 | best stopped at 1/2 | onecycle the best, at 1/4 |
|---|---|---|---|---|---|
| last weights: loss | 0.69 | 0.69 | 41 % | 41 % | stopped in 64 % |
| last weights: error rate | 0.65 | 0.65 | 44 % | 46 % | 73 % |
| last weights: CER | 0.64 | 0.65 | 45 % | 43 % | 74 % |
| averaged weights: loss | 0.85 | 0.92 | 2 % | 0 % | 3 % |
| averaged weights: error rate | 0.84 | 0.92 | 3 % | 0 % | 4 % |
| averaged weights: CER | 0.84 | 0.91 | 3 % | 0 % | 5 % |

So trials are compared by the loss of their averaged weights (EMA). In 100 replays of sweeps over the same trials
(tests/replay.py, 40 trials, rungs at 3 and 6 of 8 epochs) the winner was within a standard error of the best trial in
98 %. The last weights gave 62 %, and a first rung at 1/4, where the rate of onecycle still rises, 92 %.

Comparing a trial only with trials of its own schedule was worse: with other seeds of the search, for which the setting
above reached 100 %, it gave 94 %, and 76 % with the last weights, because it keeps half of each bad schedule.

A trial on the all-blank plateau (`TrialRecord.on_plateau`) has no score that could be compared. So it is not stopped
before its schedule's highest learning rate has come (`is_spared`). This changes nothing in the replays above: their
first rung is after the peak of every schedule.
"""

import math
from bisect import insort
from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial

from sweep.config import Asha, Median, NoStopping, SweepConfig
from sweep.search.records import TrialRecord
from sweep.wording.formatting import formatted, percent


class Rungs:
    """The intermediate values of all trials by epoch, each epoch's sorted, so that a rung need not be collected from
    all trials for each decision."""

    def __init__(self) -> None:
        self._values: dict[int, list[float]] = {}

    def add(self, epoch: int, value: float) -> None:
        insort(self._values.setdefault(epoch, []), value)

    def at(self, epoch: int) -> Sequence[float]:
        """The values after this epoch, the best first."""
        return self._values.get(epoch, [])


class AshaPruner(BasePruner):
    """Stops a trial at a rung unless its value is among the best ⌈n / reduction_factor⌉ of the n seen there so far.

    The stopping variant of ASHA: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", section 3.2.
    Rounding up lets a larger share of the first trials pass a rung, when there is little to compare them with.
    """

    def __init__(self, config: Asha, rungs: Rungs) -> None:
        self._config, self._rungs = config, rungs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        epoch = trial.last_step
        if epoch is None or not is_rung(epoch, self._config):
            return False
        seen = self._rungs.at(epoch)
        kept = math.ceil(len(seen) / self._config.reduction_factor)
        return trial.intermediate_values[epoch] > seen[kept - 1]


def is_spared(record: TrialRecord, sweep: SweepConfig) -> bool:
    """Whether a trial goes on whatever the pruner says: it is still on the all-blank plateau, where all trials score
    alike, and its schedule has not passed its highest learning rate, with which it may leave the plateau."""
    if not record.on_plateau:
        return False
    trial = sweep.with_values(record.values)
    return record.epochs <= trial.schedule.progress_at_peak() * trial.training.epochs


def plateau_sentence(record: TrialRecord) -> str:
    """Says that a trial is on the all-blank plateau, with the two figures that show it."""
    return (
        f"still on the all-blank plateau after epoch {record.epochs}: nothing is read in {percent(record.blank_share)} "
        f"of the validation images, lowest loss {formatted(record.scores.get('loss'))}"
    )


def decides(config: NoStopping | Asha | Median, epoch: int) -> bool:
    """Whether early stopping compares trials after this epoch."""
    return isinstance(config, Median) or (isinstance(config, Asha) and is_rung(epoch, config))


def is_rung(epoch: int, config: Asha) -> bool:
    rung = config.grace_epochs
    while rung < epoch:
        rung *= config.reduction_factor
    return rung == epoch


PRUNERS: dict[str, Callable[[Any, Rungs], BasePruner]] = {
    "none": lambda c, rungs: NopPruner(),
    "asha": AshaPruner,
    "median": lambda c, rungs: MedianPruner(n_startup_trials=c.startup_trials, n_warmup_steps=c.grace_epochs),
}
