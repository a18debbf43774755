"""The search: an Optuna study with an ask-and-tell interface that suggests trials and stops them early.

The study is in the sweep's SQLite file, so everything that the searcher and early stopping know is on disk after each
epoch. Each trial gets a new sampler, seeded by its number, and enters the study with all its values in one write.
Therefore an interrupted search draws the same trials after a resume as it would have without the interruption.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from model.config.format import FORMAT
from model.system.seeds import derive
from sweep.config import ConfigError, Space, SweepConfig, Value, completed, plain, walk
from sweep.config.changes import CHANGEABLE, fixed_changes
from sweep.search import study_file
from sweep.search.early_stopping import PRUNERS, is_spared
from sweep.search.points import Point, at_random, identity, size, suggest, untried
from sweep.search.records import State, TrialRecord, record_of, trial_name
from sweep.search.samplers import SAMPLERS, trial_count
from sweep.search.study_file import StudyError

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

_NEAR = 0.1  # share of a range: closer values count as nearly the same


class Listener(Protocol):
    """Receives a trial's events: started (or resumed), epoch reported, released (interrupted, or waiting for a retry),
    ended (exactly once)."""

    def started(self, record: TrialRecord) -> None: ...
    def reported(self, record: TrialRecord) -> None: ...
    def released(self, record: TrialRecord) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...


_FINAL_STATES: dict[State, TrialState] = {
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "failed": TrialState.FAIL,
}


class Search:
    """Suggests trials (`ask`), takes their results (`report`, `fail`) and keeps a record of each, with an Optuna study
    in the SQLite file `database`, or in memory without one.

    The database of an earlier search is continued: trials that had not ended are given out first, with `retry_failed`
    also those that failed. `read_only` works on a copy in memory. With `working`, the search works on a copy of that
    name, which replaces the database after each decision. `tell` prints a line on the terminal. Raises ConfigError if
    the database is damaged or belongs to another config.
    """

    def __init__(
        self,
        config: SweepConfig,
        database: Path | None,
        listeners: tuple[Listener, ...] = (),
        *,
        read_only: bool = False,
        working: Path | None = None,
        retry_failed: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config, self.confirm, self.listeners = config.search, config.confirm, listeners
        self._sweep = config
        self.epochs, self._seed = config.training.epochs, config.training.seed
        self.records: dict[int, TrialRecord] = {}
        self.halted: str | None = None  # the reason why no trial may continue
        self._live: dict[int, optuna.Trial] = {}
        self._again: list[int] = []  # trials to resume or retry next
        self._alone: list[int] = []  # trials that ran out of memory: retried when no other trial runs
        storage: RDBStorage | None = None
        if database is not None:
            storage = study_file.copied(database) if read_only else study_file.storage(database, tell, working)
        self._publish: Callable[[], None] = lambda: None
        if database is not None and working is not None:
            self._publish = partial(study_file.publish, working, database)
        with study_file.readable(database) if database else nullcontext():
            if storage is not None and retry_failed:
                self._reopen_failed(storage)
            self._study = optuna.create_study(
                storage=storage,
                study_name="sweep",
                sampler=RandomSampler(),  # never used: trials are added with their values
                pruner=PRUNERS[config.search.early_stopping.name](config.search.early_stopping),
                direction="minimize",
                load_if_exists=True,
            )
            self._require_same_config(config, database)
            for trial in self._study.get_trials(deepcopy=False):
                record = record_of(trial)
                config.with_values(record.values)
                if record.number != trial.number:
                    raise ValueError(f"trial {trial.number} has the record of trial {record.number}")
                self.records[trial.number] = record
                if not trial.state.is_finished():
                    self._again.append(trial.number)
        self.trials = max(trial_count(config.search), len(self._searched))
        self._given = [completed(config.search.space, point) for point in config.search.points]
        self._publish()

    def _reopen_failed(self, storage: RDBStorage) -> None:
        """Resets the failed trials of the study to unfinished ones without any epoch."""
        study_id = storage.get_study_id_from_name("sweep")
        for trial in storage.get_all_trials(study_id, states=(TrialState.FAIL,)):
            record = record_of(trial)
            if record.state == "failed":
                study_file.reopen(storage, trial._trial_id)
                new = TrialRecord(
                    record.number, record.name, record.values, "interrupted", replicate_of=record.replicate_of
                )
                storage.set_trial_user_attr(trial._trial_id, "record", asdict(new))

    def _require_same_config(self, config: SweepConfig, database: Path | None) -> None:
        """Stores the config in a new study. Raises ConfigError if an existing study was made with another config, apart
        from CHANGEABLE settings: its results could not be compared with those of new trials."""
        if database is None:
            return
        if (found := self._study.user_attrs.get("format", FORMAT)) > FORMAT:
            raise ConfigError(
                [f"{database}: its format must be at most {FORMAT}, which this version reads, got {found}"]
            )
        if "config" not in self._study.user_attrs:  # a new study, or one of version 0.1.0
            if not self._study.get_trials(deepcopy=False):
                self._study.set_user_attr("format", FORMAT)
                self._study.set_user_attr("config", config.yaml)
            return
        before = SweepConfig.from_yaml(self._study.user_attrs["config"])
        if changed := fixed_changes(before, config):
            file = database.parent / "sweep.yaml"
            raise ConfigError(
                [
                    f"{file}: {', '.join(changed)} must be as in the sweep's beginning; a resume can change only "
                    f"{', '.join(CHANGEABLE)}; for another sweep: --config {file} and a new --name"
                ]
            )

    def ask(self) -> TrialRecord | None:
        """The next trial to run: one to resume or retry, then a new one, then a replicate. None if there is none now;
        another may follow unless `exhausted`."""
        if self.halted:
            return None
        if self._again:
            return self._started(self._again.pop(0)) or self.ask()
        if len(self._searched) < self.trials:
            return self._added(self._drawn())
        if self._alone and not self._live:
            return self._started(self._alone.pop(0))
        if (unconfirmed := self._unconfirmed) is not None:
            return self._added(self._replicate(unconfirmed))
        return None

    @property
    def exhausted(self) -> bool:
        """Whether no trial runs and none is left to give out."""
        return not self._live and (self.halted is not None or not (self._again or self._alone or self._missing))

    @property
    def most(self) -> int:
        """Upper bound of the number of trials, replicates included."""
        replicates = 0 if self.confirm is None else min(self.confirm.top, self.trials) * self.confirm.seeds
        return max(self.trials + replicates, len(self.records))

    @property
    def _missing(self) -> bool:
        """Whether trials or replicates are left that have never been given out."""
        return len(self._searched) < self.trials or self._unconfirmed is not None

    @property
    def _searched(self) -> list[TrialRecord]:
        return [record for record in self.records.values() if record.replicate_of is None]

    @property
    def _top(self) -> list[TrialRecord]:
        """The trials to confirm with replicates, best first; empty until all searched trials have ended.

        Stopped trials rank after completed ones, because longer training might have improved their scores. Trials whose
        values are nearly those of a better one rank last: replicates of both would add little information.
        """
        searched = self._searched
        ended = len(searched) == self.trials and all(record.state in _FINAL_STATES for record in searched)
        if self.confirm is None or not ended:
            return []
        scored = [record for record in searched if record.best_epoch is not None]
        scored.sort(key=lambda record: (record.state != "completed", record.score(self.config.metric), record.number))
        distinct: list[TrialRecord] = []
        for record in scored:
            if not any(nearly_same(self.config.space, record.values, other.values) for other in distinct):
                distinct.append(record)
        rest = [record for record in scored if record not in distinct]
        return [*distinct, *rest][: self.confirm.top]

    def replicates(self, record: TrialRecord) -> list[TrialRecord]:
        return [other for other in self.records.values() if other.replicate_of == record.name]

    @property
    def _unconfirmed(self) -> TrialRecord | None:
        """The top trial with the fewest replicates; None if all have enough."""
        if self.confirm is None or not (top := self._top):
            return None
        fewest = min(top, key=lambda record: len(self.replicates(record)))
        return fewest if len(self.replicates(fewest)) < self.confirm.seeds else None

    def _replicate(self, record: TrialRecord) -> FrozenTrial:
        """A replicate of the trial: the same values with a training seed that no trial or replicate has had."""
        relatives = [*self._searched, *self.replicates(record)]
        known = {relative.values.get("training.seed", self._seed) for relative in relatives}
        seeds = (derive(self._seed, index) for index in itertools.count(1))
        seed = next(seed for seed in seeds if seed not in known)
        number, values = len(self.records), {**record.values, "training.seed": seed}
        new = TrialRecord(number, trial_name(number, values), values, replicate_of=record.name)
        original = self._study.get_trials(deepcopy=False)[record.number]
        return optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=original.params,
            distributions=original.distributions,
            user_attrs={"record": asdict(new)},
        )

    def _drawn(self) -> FrozenTrial:
        """A new trial with its values and its record. No point of a finite space is tried twice: if the sampler repeats
        one, a random untried point replaces it."""
        searched, space = self._searched, self.config.space
        index, tried = len(searched), {identity(record.values) for record in searched}
        if index < len(self._given):
            values, trial = self._suggested(index, self._given[index])
        elif self.config.searcher == "grid":  # of the grid's points, index - len(given) have been tried already
            values, trial = self._suggested(index, untried(space, tried, itertools.count(index - len(self._given))))
        else:
            values, trial = self._suggested(index, {})
        if identity(values) in tried and size(space) < math.inf:
            order = at_random(space, derive(self.config.seed, index, 1))
            values, trial = self._suggested(index, untried(space, tried, order))
        number = len(self.records)
        trial.set_user_attr("record", asdict(TrialRecord(number, trial_name(number, values), values)))
        return trial.study.get_trials(deepcopy=False)[number]

    def _suggested(self, index: int, fixed: Point) -> tuple[Point, optuna.Trial]:
        """The `fixed` values completed by the sampler, and their trial in an in-memory copy of the study. The real
        study gets the trial only with all its values."""
        copy = optuna.create_study(sampler=SAMPLERS[self.config.searcher](self.config, index))
        copy.add_trials(self._study.get_trials(deepcopy=False))
        if fixed:
            copy.enqueue_trial({path: plain(value) for path, value in fixed.items()})
        trial = copy.ask()
        return suggest(trial, self.config.space), trial

    def _added(self, trial: FrozenTrial) -> TrialRecord | None:
        self._study.add_trial(trial)
        return self._started(len(self.records))

    def _started(self, number: int) -> TrialRecord | None:
        """Marks the trial as running and returns its record. None if its record already had a final state: the search
        was interrupted before it could tell Optuna, which is done now."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        record = record_of(frozen)
        self._live[number] = optuna.Trial(self._study, frozen._trial_id)
        if record.state in _FINAL_STATES:
            self._end(record)
            return None
        record = replace(record, state="running", error=None)
        self._keep(record)
        for listener in self.listeners:
            listener.started(record)
        return record

    def report(self, number: int, result: dict[str, Any]) -> bool:
        """Takes the result of `Trial.step` and returns whether the trial should continue. Early stopping compares
        `rung_score`, if the result has one."""
        trial, before = self._live[number], self.records[number]
        state: State = result["state"]
        if state == "interrupted":
            self.halt(number, result["error"])
            return False
        if state == "failed":
            self.fail(number, result["error"], result["out_of_memory"])
            return False
        known = {key: result[key] for key in TrialRecord.__dataclass_fields__ if key in result}
        record = replace(before, **known)
        if record.epochs > before.epochs:
            if record.replicate_of is None and result.get("rung_score") is not None:
                if record.epochs not in self._study.get_trials(deepcopy=False)[number].intermediate_values:
                    trial.report(result["rung_score"], record.epochs)
                if state == "running" and trial.should_prune() and not is_spared(record, self._sweep):
                    record = replace(record, state="stopped")
        elif state == "running":  # it repeats epochs that were reported before, because its checkpoints were lost
            record = replace(before, note=record.note)
        self._keep(record)
        for listener in self.listeners:
            listener.reported(record)
        if record.state != "running":
            self._end(record)
        return record.state == "running" and not self.halted

    def fail(self, number: int, error: str, out_of_memory: bool = False, node_lost: bool = False) -> None:
        """Takes note of a trial that raised an error or lost its process. It is retried from its checkpoint up to
        `search.max_failures` times; after an out-of-memory error only when no other trial runs. The loss of a node,
        which is not the trial's fault, is counted apart: up to `search.max_node_losses`."""
        if number not in self._live:
            return
        record = replace(self.records[number], error=error)
        failures, losses = record.failures + (not node_lost), record.node_losses + node_lost
        if failures <= self.config.max_failures and losses <= self.config.max_node_losses:
            self._release(replace(record, failures=failures, node_losses=losses))
            (self._alone if out_of_memory else self._again).append(number)
        else:
            self._keep(replace(record, state="failed"))
            self._end(self.records[number])

    def halt(self, number: int, reason: str) -> None:
        """Stops the search because a trial met a fault that would hit all others too, such as a full disk. All
        unfinished trials can be resumed."""
        self.halted = reason
        if number in self._live:
            self._release(replace(self.records[number], state="interrupted", error=reason))

    def interrupt(self) -> None:
        """Releases all trials that run or wait. They stay RUNNING in the study, so that a resumed search continues
        them."""
        for number in self._unfinished:
            record = replace(self.records[number], state="interrupted")
            with suppress(StudyError):  # reported when it first occurred; the study still has the trial as RUNNING
                self._keep(record)
            self.records[number] = record
            self._let_go(record)
        self._again.clear()
        self._alone.clear()

    @property
    def _unfinished(self) -> list[int]:
        return [*self._live, *self._again, *self._alone]

    @property
    def finished(self) -> list[TrialRecord]:
        """The records of trials that have ended, in the study too."""
        unfinished = self._unfinished
        return [record for number, record in self.records.items() if number not in unfinished]

    @property
    def interrupted(self) -> bool:
        return self._missing or any(record.state == "interrupted" for record in self.records.values())

    @property
    def exit_code(self) -> int:
        """0 finished, 1 finished with a failed trial, 130 interrupted."""
        failed = any(record.state == "failed" for record in self.records.values())
        return 130 if self.interrupted else 1 if failed else 0

    @property
    def confirmed(self) -> list[TrialRecord]:
        """The top trials by the mean test error of their replicates, best first; empty until all replicates have
        ended."""
        top = [] if self.interrupted else self._top
        judged = {record.name: mean_test_error(self.replicates(record)) for record in top}
        return sorted(top, key=lambda record: (judged[record.name], record.score(self.config.metric), record.number))

    def ranked(self) -> list[TrialRecord]:
        """All records by validation score; those without a score last, by number. After confirmation the first is the
        winner: among the best confirmed config's trial and replicates, the one with the best validation score."""
        records = sorted(self.records.values(), key=lambda record: (record.score(self.config.metric), record.number))
        if confirmed := self.confirmed:
            runs = [confirmed[0], *self.replicates(confirmed[0])]
            best = min(runs, key=lambda record: (record.score(self.config.metric), record.number))
            records.sort(key=lambda record: record != best)
        return records

    @property
    def best(self) -> TrialRecord | None:
        ranked = [record for record in self.ranked() if record.best_epoch is not None]
        return ranked[0] if ranked else None

    def _keep(self, record: TrialRecord) -> None:
        """Stores the record in one write, so that after a crash the study has all of an epoch or nothing of it."""
        if record.number in self._live:
            self._live[record.number].set_user_attr("record", asdict(record))
            self._publish()
        self.records[record.number] = record

    def _release(self, record: TrialRecord) -> None:
        self._keep(record)
        self._let_go(record)

    def _let_go(self, record: TrialRecord) -> None:
        self._live.pop(record.number, None)
        for listener in self.listeners:
            listener.released(record)

    def _end(self, record: TrialRecord) -> None:
        """Ends the trial in the study. Its record, written before, already has the final state."""
        trial = self._live.pop(record.number)
        self.records[record.number] = record
        final = _FINAL_STATES[record.state]
        value = record.score(self.config.metric) if final == TrialState.COMPLETE else None
        self._study.tell(trial, value, state=final)
        self._publish()
        for listener in self.listeners:
            listener.ended(record)


def nearly_same(space: Space, values: Mapping[str, Value], others: Mapping[str, Value]) -> bool:
    """Whether all choices are equal and all numbers differ by less than a tenth of their ranges."""
    if values.keys() != others.keys():
        return False
    for path, parameter, given in walk(space):
        if path in values and given.items() <= values.items():
            if parameter.bounds is None:
                if values[path] != others[path]:
                    return False
            elif abs(parameter.place(values[path]) - parameter.place(others[path])) >= _NEAR:
                return False
    return True


def mean_test_error(replicates: list[TrialRecord]) -> float:
    """Mean test error rate of replicates. A diverged one counts as an error rate of 1, a failed one is left out.
    Infinite if none remains."""
    errors = [1.0 if record.state == "diverged" else record.test_error_rate for record in replicates]
    known = [error for error in errors if error is not None]
    return sum(known) / len(known) if known else float("inf")
