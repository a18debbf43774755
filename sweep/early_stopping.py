"""When a trial stops before its end. Rungs are read from the study's own values, so they are saved with it."""

import math
from collections.abc import Callable
from typing import Any

from optuna import Study
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial

from sweep.config import Asha, Median, NoStopping


class AshaPruner(BasePruner):
    """Stops a trial at a rung unless its value is among the best ⌈n / reduction_factor⌉ of the n seen there so far.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", section 3.2, in its stopping form. Rounded
    up: of the first few trials at a rung more pass than later, when there is something to compare them with.
    """

    def __init__(self, config: Asha) -> None:
        self._config = config

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        epoch = trial.last_step
        if epoch is None or not is_rung(epoch, self._config):
            return False
        seen = sorted(
            other.intermediate_values[epoch]
            for other in study.get_trials(deepcopy=False)
            if epoch in other.intermediate_values
        )
        kept = math.ceil(len(seen) / self._config.reduction_factor)
        return trial.intermediate_values[epoch] > seen[kept - 1]


def decides(config: NoStopping | Asha | Median, epoch: int) -> bool:
    """Whether a trial is compared with others after this epoch."""
    return isinstance(config, Median) or (isinstance(config, Asha) and is_rung(epoch, config))


def is_rung(epoch: int, config: Asha) -> bool:
    rung = config.grace_epochs
    while rung < epoch:
        rung *= config.reduction_factor
    return rung == epoch


PRUNERS: dict[str, Callable[[Any], BasePruner]] = {
    "none": lambda c: NopPruner(),
    "asha": AshaPruner,
    "median": lambda c: MedianPruner(n_startup_trials=c.startup_trials, n_warmup_steps=c.grace_epochs),
}
