"""Optuna's samplers: a new one for each trial, so that a search that goes on draws what it would have drawn."""

import math
from collections.abc import Callable
from typing import Any

from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler

from model.system.seeds import derive
from sweep.config import SearchConfig
from sweep.search.points import size


class _NumberedQMC(QMCSampler):
    """Quasi-Monte Carlo sampler that draws the point with its trial's number. Optuna's own takes the next number from a
    counter in the study."""

    def __init__(self, seed: int, number: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._number = number

    def _find_sample_id(self, *_: Any) -> int:
        return self._number


# (config, index of the trial) → a new sampler for that trial.
SAMPLERS: dict[str, Callable[[SearchConfig, int], BaseSampler]] = {
    "tpe": lambda c, number: TPESampler(
        n_startup_trials=max(4, min(10, trial_count(c) // 3)),
        multivariate=True,
        group=True,
        constant_liar=True,
        seed=derive(c.seed, number),
    ),
    "random": lambda c, number: RandomSampler(seed=derive(c.seed, number)),
    "grid": lambda c, number: RandomSampler(seed=derive(c.seed, number)),  # only completes given points
    "qmc": lambda c, number: _NumberedQMC(c.seed, number),
    "cmaes": lambda c, number: CmaEsSampler(seed=derive(c.seed, number), warn_independent_sampling=False),
}


def trial_count(config: SearchConfig) -> int:
    """The number of trials to search: `search.trials`, but at most the number of points in the space."""
    return int(min(_wanted(config), size(config.space)))


def _wanted(config: SearchConfig) -> float:
    return config.trials or (math.inf if config.searcher == "grid" else 20)


def limit(config: SearchConfig) -> str | None:
    """A sentence for the user if the space has fewer points than the trials wanted, else None."""
    few, wanted = trial_count(config), _wanted(config)
    return f"the search space has {few} points: {few} trials, not {wanted:g}" if few < wanted < math.inf else None
