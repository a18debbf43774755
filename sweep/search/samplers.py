"""Optuna's samplers: a new one for each trial, so that a search that goes on draws what it would have drawn."""

import math
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from optuna import Study, create_study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from model.system.seeds import derive
from sweep.config import SearchConfig
from sweep.search.points import size
from sweep.search.storage import Draft

OBSERVED, _BEST = 1000, 100  # ended trials that TPE sees, and how many of them are the best


class _NumberedQMC(QMCSampler):
    """Quasi-Monte Carlo sampler that draws the point with its trial's number. Optuna's own takes the next number from a
    counter in the study."""

    def __init__(self, seed: int, number: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._number = number

    def _find_sample_id(self, *_: Any) -> int:
        return self._number


class _QuickTPE(TPESampler):
    """TPE sampler that takes the groups of parameters from one trial of each kind. Optuna's own splits the groups by
    every trial, and a further trial with the same parameters changes nothing."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        kinds: dict[tuple[str, ...], FrozenTrial] = {}
        for ended in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            kinds.setdefault(tuple(ended.distributions), ended)
        few = create_study(storage=Draft(list(kinds.values()), trial.number), study_name=study.study_name)
        return super().infer_relative_search_space(few, trial)


class Observed:
    """The ended trials that TPE learns from: all, but at most `OBSERVED`, because its time for a suggestion grows with
    them. The best are kept, for it draws near the best 25, and the newest, of which the rest tell it what to avoid."""

    def __init__(self) -> None:
        self._by_promise: list[tuple[tuple[float, ...], int]] = []  # with the trials' numbers
        self._numbers: list[int] = []

    def add(self, trial: FrozenTrial) -> None:
        """Takes note of a trial that has ended, with a value or pruned. TPE ignores failed ones."""
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            insort(self._by_promise, (_promise(trial), trial.number))
            insort(self._numbers, trial.number)

    def among(self, trials: Sequence[FrozenTrial], running: Iterable[int]) -> Sequence[FrozenTrial]:
        """Those of all `trials` that TPE should see: the observed and the `running` ones."""
        if len(self._numbers) <= OBSERVED:
            return trials
        shown = {number for _, number in self._by_promise[:_BEST]}
        newest = (number for number in reversed(self._numbers) if number not in shown)
        shown.update(list(islice(newest, OBSERVED - len(shown))))
        return [trials[number] for number in sorted(shown.union(running))]


def _promise(trial: FrozenTrial) -> tuple[float, ...]:
    """Sorts ended trials as TPE does: complete ones by value, then pruned ones, first those that trained longest."""
    if trial.state == TrialState.COMPLETE:
        assert trial.value is not None
        return 0, 0, trial.value
    epoch, value = max(trial.intermediate_values.items(), default=(-1, 0.0))
    return 1, -epoch, value


# (config, index of the trial) → a new sampler for that trial.
SAMPLERS: dict[str, Callable[[SearchConfig, int], BaseSampler]] = {
    "tpe": lambda c, number: _QuickTPE(
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
