"""The search: an Optuna study with an ask-and-tell interface that suggests trials and stops them early.

The study is in the sweep's SQLite file, so everything that the searcher and early stopping know is on disk after each
epoch. Each trial gets a new sampler, seeded by its number, and enters the study with all its values in one write; each
report is one more, with the decision that follows from it. Therefore an interrupted search draws the same trials after
a resume as it would have without the interruption.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext, suppress
from copy import copy
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
from sweep.search import study_file, study_tables
from sweep.search.early_stopping import PRUNERS, Rungs, is_spared
from sweep.search.points import Point, at_random, identity, lies_in, size, suggest, untried
from sweep.search.records import State, TrialRecord, record_of, trial_name
from sweep.search.samplers import SAMPLERS, Observed, trial_count
from sweep.search.storage import Draft, WrittenThrough
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
        self._live: dict[int, None] = {}  # the numbers of the running trials, in the order of their starts
        self._rungs, self._observed = Rungs(), Observed()
        self._tried: set[Hashable] = set()  # the identities of the searched trials' values
        self._unended: set[int] = set()  # the searched trials that have not ended
        self._replicates: dict[str, list[int]] = {}  # a trial's name → the numbers of its replicates
        self._confirmable: list[TrialRecord] | None = None  # see `_top`; None if a searched trial has changed since
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
            self._storage = WrittenThrough(storage)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name="sweep",
                sampler=RandomSampler(),  # never used: trials are added with their values
                pruner=PRUNERS[config.search.early_stopping.name](config.search.early_stopping, self._rungs),
                direction="minimize",
                load_if_exists=True,
            )
            self._require_same_config(config, database)
            for trial in self._study.get_trials(deepcopy=False):
                record = record_of(trial)
                if not lies_in(config.search.space, record.values):  # as a replicate's, or damaged
                    config.with_values(record.values)
                if record.number != trial.number:
                    raise ValueError(f"trial {trial.number} has the record of trial {record.number}")
                self._remember(record)
                for epoch, value in trial.intermediate_values.items():
                    self._rungs.add(epoch, value)
                self._observed.add(trial)
                if not trial.state.is_finished():
                    self._again.append(trial.number)
        self.trials = 0
        self.resize(None)
        self._given = [completed(config.search.space, point) for point in config.search.points]
        self._publish()

    def _reopen_failed(self, storage: RDBStorage) -> None:
        """Resets the failed trials of the study to unfinished ones without any epoch."""
        study_id = storage.get_study_id_from_name("sweep")
        for trial in storage.get_all_trials(study_id, states=(TrialState.FAIL,)):
            record = record_of(trial)
            if record.state == "failed":
                trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                study_tables.reopen(storage, trial_id)
                new = TrialRecord(
                    record.number, record.name, record.values, "interrupted", replicate_of=record.replicate_of
                )
                storage.set_trial_user_attr(trial_id, "record", asdict(new))

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

    def resize(self, trials: int | None, at_once: int | None = None) -> None:
        """Sets how many trials to search, `search.trials` for None: at most the points of the space, and no fewer than
        there are already. If more than `at_once` run, those that started last pause after their epoch."""
        self._at_once = at_once
        wanted = trial_count(self.config.model_copy(update={"trials": trials or self.config.trials}))
        self.trials = max(wanted, self._searched)

    @property
    def running(self) -> int:
        """How many trials run now."""
        return len(self._live)

    def ask(self) -> TrialRecord | None:
        """The next trial to run: one to resume or retry, then a new one, then a replicate. None if there is none now;
        another may follow unless `exhausted`."""
        if self.halted:
            return None
        if self._again:
            return self._started(self._again.pop(0)) or self.ask()
        if self._searched < self.trials:
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
        return self._searched < self.trials or self._unconfirmed is not None

    @property
    def _searched(self) -> int:
        """The number of trials so far, without replicates."""
        return len(self.records) - sum(map(len, self._replicates.values()))

    @property
    def _top(self) -> list[TrialRecord]:
        """The trials to confirm with replicates, best first; empty until all searched trials have ended."""
        if self.confirm is None or self._searched < self.trials or self._unended:
            return []
        if self._confirmable is None:
            self._confirmable = self._best_distinct(self.confirm.top)
        return self._confirmable

    def _best_distinct(self, most: int) -> list[TrialRecord]:
        """The best searched trials, at most `most`.

        Stopped trials rank after completed ones, because longer training might have improved their scores. Trials whose
        values are nearly those of a better one rank last: replicates of both would add little information.
        """
        scored = [r for r in self.records.values() if r.replicate_of is None and r.best_epoch is not None]
        scored.sort(key=lambda record: (record.state != "completed", record.score(self.config.metric), record.number))
        distinct, rest = list[TrialRecord](), list[TrialRecord]()
        for record in scored:
            if len(distinct) == most:
                break
            near = any(nearly_same(self.config.space, record.values, other.values) for other in distinct)
            (rest if near else distinct).append(record)
        return [*distinct, *rest][:most]

    def replicates(self, record: TrialRecord) -> list[TrialRecord]:
        return [self.records[number] for number in self._replicates.get(record.name, [])]

    @property
    def _unconfirmed(self) -> TrialRecord | None:
        """The top trial with the fewest replicates; None if all have enough."""
        if self.confirm is None or not (top := self._top):
            return None
        fewest = min(top, key=lambda record: len(self.replicates(record)))
        return fewest if len(self.replicates(fewest)) < self.confirm.seeds else None

    def _replicate(self, record: TrialRecord) -> FrozenTrial:
        """A replicate of the trial: the same values with a training seed that no trial or replicate has had."""
        searched = [other for other in self.records.values() if other.replicate_of is None]
        relatives = [*searched, *self.replicates(record)]
        known = {relative.values.get("training.seed", self._seed) for relative in relatives}
        seeds = (derive(self._seed, index) for index in itertools.count(1))
        seed = next(seed for seed in seeds if seed not in known)
        number, values = len(self.records), {**record.values, "training.seed": seed}
        new = TrialRecord(number, trial_name(number, values), values, replicate_of=record.name)
        original = self._frozen(record.number)
        return optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=original.params,
            distributions=original.distributions,
            user_attrs={"record": asdict(new)},
        )

    def _drawn(self) -> FrozenTrial:
        """A new trial with its values and its record. No point of a finite space is tried twice: if the sampler repeats
        one, a random untried point replaces it."""
        index, space, tried = self._searched, self.config.space, self._tried
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
        return trial.study.get_trials(deepcopy=False)[-1]

    def _suggested(self, index: int, fixed: Point) -> tuple[Point, optuna.Trial]:
        """The `fixed` values completed by the sampler, and their trial in a draft of the study. The real study gets the
        trial only with all its values."""
        earlier: Sequence[FrozenTrial] = self._study.get_trials(deepcopy=False)
        if self.config.searcher == "tpe":
            earlier = self._observed.among(earlier, self._unfinished)
        draft = optuna.create_study(
            storage=Draft(earlier, len(self.records)), sampler=SAMPLERS[self.config.searcher](self.config, index)
        )
        if fixed:
            draft.enqueue_trial({path: plain(value) for path, value in fixed.items()})
        trial = draft.ask()
        return suggest(trial, self.config.space), trial

    def _added(self, trial: FrozenTrial) -> TrialRecord | None:
        self._study.add_trial(trial)
        self._publish()
        return self._started(len(self.records))

    def _started(self, number: int) -> TrialRecord | None:
        """Marks the trial as running and returns its record. None if its record already had a final state: the search
        was interrupted before it could tell Optuna, which is done now."""
        frozen = self._frozen(number)
        record = stored = record_of(frozen)
        self._live[number] = None
        if record.state in _FINAL_STATES:
            self._keep(record)
            self._tell_end(record)
            return None
        record = replace(record, state="running", error=None)
        (self._remember if record == stored else self._keep)(record)
        for listener in self.listeners:
            listener.started(record)
        return record

    def _frozen(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(number)

    def report(self, number: int, result: dict[str, Any]) -> bool:
        """Takes the result of `Trial.step` and returns whether the trial should continue. Early stopping compares
        `rung_score`, if the result has one."""
        before, intermediate = self.records[number], dict[int, float]()
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
                trial = copy(self._frozen(number))
                if record.epochs not in trial.intermediate_values:
                    intermediate = {record.epochs: float(result["rung_score"])}
                    trial.intermediate_values = trial.intermediate_values | intermediate
                    self._rungs.add(record.epochs, intermediate[record.epochs])
                prune = self._study.pruner.prune
                if state == "running" and prune(self._study, trial) and not is_spared(record, self._sweep):
                    record = replace(record, state="stopped")
        elif state == "running":  # it repeats epochs that were reported before, because its checkpoints were lost
            record = replace(before, note=record.note)
        self._keep(record, intermediate)
        for listener in self.listeners:
            listener.reported(record)
        if record.state != "running":
            self._tell_end(record)
            return False
        if self.halted:
            self._release(replace(record, state="interrupted"))
            return False
        if self._at_once is not None and number in list(self._live)[self._at_once :]:
            self._release(record)
            self._again.append(number)
            return False
        return True

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
            record = replace(record, state="failed")
            self._keep(record)
            self._tell_end(record)

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
            self._remember(record)
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

    def _keep(self, record: TrialRecord, intermediate: Mapping[int, float] | None = None) -> None:
        """Stores the record, new `intermediate` values, and the end of the trial if its state is final, all in one
        write: after a crash the study has all of an epoch or nothing of it."""
        number, intermediate = record.number, intermediate or {}
        if number in self._live:
            ended = _FINAL_STATES.get(record.state)
            values = {**self._frozen(number).intermediate_values, **intermediate}
            end = None if ended is None else (ended, self._final_value(record, values))
            self._storage.change(number, {"record": asdict(record)}, intermediate, end)
            if ended is not None:
                del self._live[number]
                self._observed.add(self._frozen(number))
            self._publish()
        self._remember(record)

    def _final_value(self, record: TrialRecord, intermediate: Mapping[int, float]) -> float | None:
        """The value of an ended trial in the study. That of a stopped one is its last intermediate value, as in all of
        Optuna."""
        if record.state == "completed":
            return record.score(self.config.metric)
        if record.state == "stopped" and intermediate:
            last = intermediate[max(intermediate)]
            return None if math.isnan(last) else last
        return None

    def _remember(self, record: TrialRecord) -> None:
        known = record.number in self.records
        self.records[record.number] = record
        if record.replicate_of is not None:
            if not known:
                self._replicates.setdefault(record.replicate_of, []).append(record.number)
            return
        self._confirmable = None
        self._tried.add(identity(record.values))
        (self._unended.discard if record.state in _FINAL_STATES else self._unended.add)(record.number)

    def _release(self, record: TrialRecord) -> None:
        self._keep(record)
        self._let_go(record)

    def _let_go(self, record: TrialRecord) -> None:
        self._live.pop(record.number, None)
        for listener in self.listeners:
            listener.released(record)

    def _tell_end(self, record: TrialRecord) -> None:
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
