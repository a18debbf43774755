"""What to try next, and when to stop: one Optuna study that any executor asks and tells.

The study lives in the sweep's SQLite file while the sweep runs, so all that the searcher and early stopping know is
on disk after each epoch; samplers are seeded per trial, so they have no memory of their own.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from sweep.config import SearchConfig, SweepConfig, Value
from sweep.early_stopping import PRUNERS
from sweep.search_space import grid_points, suggest

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

State = Literal["running", "completed", "stopped", "diverged", "failed", "interrupted"]


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial. Scores are the validation scores of its best epoch; None before its first."""

    number: int
    name: str
    values: dict[str, Value]
    state: State = "running"
    epochs: int = 0
    error_rate: float | None = None
    cer: float | None = None
    loss: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    error: str | None = None
    failures: int = 0  # how often it was tried again
    note: str | None = None  # what was unusual when it went on

    def score(self, metric: str) -> float:
        """The value to minimise; infinite while there is none."""
        value = getattr(self, metric)
        return float("inf") if value is None else float(value)


class Listener(Protocol):
    """Hears of each trial: when it starts or goes on, after each epoch, when it is let go of for a while (to be tried
    again or resumed), and once when its state is final."""

    def started(self, record: TrialRecord) -> None: ...
    def reported(self, record: TrialRecord) -> None: ...
    def released(self, record: TrialRecord) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...


# A sampler for each trial, from (seed, number): a resumed search draws what an uninterrupted one would have.
SAMPLERS: dict[str, Callable[[SearchConfig, int], BaseSampler]] = {
    "tpe": lambda c, number: TPESampler(
        n_startup_trials=max(4, min(10, trial_count(c) // 3)),
        multivariate=True,
        group=True,
        constant_liar=True,
        seed=c.seed + number,
    ),
    "random": lambda c, number: RandomSampler(seed=c.seed + number),
    "grid": lambda c, number: RandomSampler(seed=c.seed + number),  # its points are enqueued
    "qmc": lambda c, number: QMCSampler(scramble=True, seed=c.seed, warn_independent_sampling=False),
    "cmaes": lambda c, number: CmaEsSampler(seed=c.seed + number, warn_independent_sampling=False),
}

_FINAL_STATES: dict[State, TrialState] = {
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "failed": TrialState.FAIL,
}


def trial_count(config: SearchConfig) -> int:
    wanted = config.trials or 20
    if config.searcher != "grid":
        return wanted
    points = len(grid_points(config.space))
    return min(config.trials or points, points)


class Search:
    """Asks the sampler, tells it and the pruner, and keeps a record of each trial. Without `database`, in memory.

    With the database of an earlier search it goes on with that one: trials that had not ended are given out first.
    """

    def __init__(self, config: SweepConfig, database: Path | None, listeners: tuple[Listener, ...] = ()) -> None:
        self.config, self.listeners = config.search, listeners
        self.epochs = config.training.epochs
        self.trials = trial_count(config.search)
        self.records: dict[int, TrialRecord] = {}
        self.halted: str | None = None  # why no trial may go on
        self._live: dict[int, optuna.Trial] = {}
        self._again: list[int] = []  # numbers of trials that failed and are tried again when all others were given out
        self._study = optuna.create_study(
            storage=f"sqlite:///{database}" if database else None,
            study_name="sweep",
            pruner=PRUNERS[config.search.early_stopping.name](config.search.early_stopping),
            direction="minimize",
            load_if_exists=True,
        )
        known = self._study.get_trials(deepcopy=False)
        self._unfinished = [trial.number for trial in known if trial.state == TrialState.RUNNING]
        for trial in known:
            if trial.state.is_finished():
                self.records[trial.number] = TrialRecord(**trial.user_attrs["record"])
        first = list(config.search.points)
        if config.search.searcher == "grid":
            first += grid_points(config.search.space)
        for point in first[len(known) : self.trials]:
            self._study.enqueue_trial(point)

    def ask(self) -> TrialRecord | None:
        """The next trial, or None: then, if `exhausted`, none will follow."""
        if self.halted:
            return None
        if self._unfinished:
            return self._started(self._continued(self._unfinished.pop(0))) or self.ask()
        number = len(self.records)
        if number < self.trials:
            self._study.sampler = self._sampler(number)
            return self._started(self._study.ask())
        if self._again:
            return self._started(self._continued(self._again.pop(0)))
        return None

    @property
    def exhausted(self) -> bool:
        """Nothing runs and nothing is left to give out."""
        left = self._unfinished or self._again or len(self.records) < self.trials
        return not self._live and (self.halted is not None or not left)

    def _sampler(self, number: int) -> BaseSampler:
        return SAMPLERS[self.config.searcher](self.config, number)

    def _continued(self, number: int) -> optuna.Trial:
        """A trial that is RUNNING in the study; values it has drawn already stay."""
        self._study.sampler = self._sampler(number)
        return optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)

    def _started(self, trial: optuna.Trial) -> TrialRecord | None:
        """None if the trial's end was decided, but not yet told, when the search was cut."""
        values = suggest(trial, self.config.space)
        record = TrialRecord(trial.number, trial_name(trial.number, values), values)
        record = TrialRecord(**trial.user_attrs.get("record", asdict(record)))
        self._live[record.number] = trial
        if record.state in _FINAL_STATES:
            self._end(record)
            return None
        record = replace(record, state="running", error=None)
        self._keep(record)
        for listener in self.listeners:
            listener.started(record)
        return record

    def report(self, number: int, result: dict[str, Any]) -> bool:
        """Takes what `Trial.step` returned; says whether the trial should go on."""
        trial, before = self._live[number], self.records[number]
        state: State = result["state"]
        if state in ("failed", "interrupted"):
            self.fail(number, result["error"], for_now=state == "interrupted")
            return False
        record = replace(before, state=state, error=result.get("error"), **_scores(result))
        if record.epochs > before.epochs:  # else it was trained again because its checkpoint was lost
            trial.report(result[f"epoch_{_stopping_metric(self.config)}"], record.epochs)
            if state == "running" and trial.should_prune():
                record = replace(record, state="stopped")
        self._keep(record)
        for listener in self.listeners:
            listener.reported(record)
        if record.state != "running":
            self._end(record)
        return record.state == "running" and not self.halted

    def fail(self, number: int, error: str, for_now: bool = False) -> None:
        """For a trial that raised an error or lost its process: it is tried again, from its checkpoint, as often as
        the config allows. `for_now`: what is wrong concerns all, the search halts and can be resumed."""
        if number not in self._live:
            return
        record = replace(self.records[number], error=error)
        if for_now:
            self.halted = error
            self._release(replace(record, state="interrupted"))
        elif record.failures < self.config.max_failures:
            self._release(replace(record, failures=record.failures + 1))
            self._again.append(number)
        else:
            self._keep(replace(record, state="failed"))
            self._end(self.records[number])

    def interrupt(self) -> None:
        """Lets go of what still runs or waits. It stays RUNNING in the study, for a later search to continue."""
        for number in [*self._live, *self._again]:
            self._release(replace(self.records[number], state="interrupted"))
        self._again.clear()

    @property
    def interrupted(self) -> bool:
        started = len(self.records) + len(self._unfinished)
        return started < self.trials or any(r.state == "interrupted" for r in self.records.values())

    @property
    def exit_code(self) -> int:
        """0 finished, 1 with a failed trial, 130 interrupted."""
        failed = any(record.state == "failed" for record in self.records.values())
        return 130 if self.interrupted else 1 if failed else 0

    def ranked(self) -> list[TrialRecord]:
        """Best first; trials without a score last, in their own order."""
        return sorted(self.records.values(), key=lambda record: (record.score(self.config.metric), record.number))

    @property
    def best(self) -> TrialRecord | None:
        ranked = [record for record in self.ranked() if record.best_epoch is not None]
        return ranked[0] if ranked else None

    def _keep(self, record: TrialRecord) -> None:
        """In one write, so that a cut leaves the study knowing all of an epoch or nothing."""
        if record.number in self._live:
            self._live[record.number].set_user_attr("record", asdict(record))
        self.records[record.number] = record

    def _release(self, record: TrialRecord) -> None:
        self._keep(record)
        self._live.pop(record.number, None)
        for listener in self.listeners:
            listener.released(record)

    def _end(self, record: TrialRecord) -> None:
        """Tells the study what is already in the record."""
        trial = self._live.pop(record.number)
        self.records[record.number] = record
        final = _FINAL_STATES[record.state]
        value = record.score(self.config.metric) if final == TrialState.COMPLETE else None
        self._study.tell(trial, value, state=final)
        for listener in self.listeners:
            listener.ended(record)


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    kept = ("epochs", "error_rate", "cer", "loss", "best_epoch", "seconds", "note")
    return {key: result[key] for key in kept if key in result}


def _stopping_metric(config: SearchConfig) -> str:
    return getattr(config.early_stopping, "metric", config.metric)


def trial_name(number: int, values: dict[str, Value]) -> str:
    """`0007_lr=1.2e-03_schedule=cosine`: as many values as fit into 80 safe characters."""
    name = f"{number:04d}"
    for path, value in values.items():
        section, _, key = path.rpartition(".")
        label = section.rpartition(".")[2] if key == "name" else key
        text = f"{value:.1e}" if isinstance(value, float) else str(value)
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "._=+-") else "-" for c in f"{label}={text}")
        if len(name) + 1 + len(safe) > 80:
            break
        name += f"_{safe}"
    return name
