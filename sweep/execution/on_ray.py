"""Ray executor: runs a search's trials as Ray Tune actors, each on its share of CPUs and GPU.

Ray starts, places and restarts processes. `Search` suggests values, stops trials early and keeps the results; Tune's
searcher and scheduler only forward to it. A restarted trial resumes from its own checkpoint, not from Ray's.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from model.system.malloc import collector_paused

with collector_paused():
    import ray
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    from sweep.config import SweepConfig
    from sweep.config.workplace import Workplace
    from sweep.execution import ray_compat
    from sweep.execution.bus_error import cut_pool
    from sweep.execution.interrupts import held_back, passed_to_tune
    from sweep.execution.nodes import Members, alive
    from sweep.execution.ray_cluster import RayCluster, RayLost
    from sweep.execution.trial import Trial, keep_to_share
    from sweep.execution.width import Width
    from sweep.machine.resources import Allotment, room
    from sweep.search.records import TrialRecord
    from sweep.search.search import Search
    from sweep.wording.faults import last_error

ray_compat.share_workers()
ray_compat.survive_memory_monitor()

_COUNTED_EACH = 1.0  # seconds after which the cluster's nodes are counted again
# Words in Ray's reason for the loss of an actor:
_NODE_DIED, _LOW_MEMORY, _PROCESS_ENDED = "its node has died", "running low on memory", "Worker unexpectedly exits"
_NODE_ENDS = "its node is about to end"


MakeTrial = Callable[[TrialRecord], Trial]


class NodeEnds(Exception):
    """Raised by a trial in place of its next epoch, because its node is drained: shut down after a notice."""


class RayTrial(tune.Trainable):
    """Adapts `Trial` to Ray Tune's class API: `step` trains one epoch, `cleanup` closes the trial. `step` also creates
    the trial, because Tune hangs if the reset of a reused actor fails."""

    make_trial: MakeTrial  # these are class attributes of the subclass that `run` makes
    gpus: float
    joined: bool

    def setup(self, config: dict[str, Any]) -> None:
        self.trial: Trial | None = None

    def step(self) -> dict[str, Any]:
        if self.joined and ray.get_runtime_context().get_node_id() in ray_compat.draining_nodes():
            self.cleanup()
            raise NodeEnds(_NODE_ENDS)
        if self.trial is None:
            keep_to_share(self.gpus)
            self.trial = self.make_trial(TrialRecord(**self.config["record"]))
        # In a tuple: Tune flattens dictionaries in dictionaries.
        return {"result": (self.trial.step(),)}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        return True

    def cleanup(self) -> None:
        trial, self.trial = self.trial, None
        if trial is not None:
            trial.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Does nothing: Ray calls this when it is interrupted, but a trial saves its own checkpoints."""


_NOT_PICKLED = ("_search", "_width", "_cluster", "_members")


class _HasSearch:
    """Keeps the search and the cluster out of the pickles in which Ray saves its state: `study.db` holds the search."""

    _search: Search

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in _NOT_PICKLED}


class _Suggestions(_HasSearch, Searcher):
    """Tune searcher that asks `Search` for the next trial if one more may run."""

    def __init__(self, search: Search, width: Width, allotment: Allotment, members: Members | None) -> None:
        super().__init__()
        self._search, self._width, self._allotment, self._members = search, width, allotment, members
        self._room, self._counted = 0, -math.inf
        self._avoid: list[str] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if time.monotonic() >= self._counted + _COUNTED_EACH:
            usable, self._avoid = (alive(), []) if self._members is None else self._members.usable()
            resources = [node["Resources"] for node in usable]
            self._room = room(self._allotment, ((each.get("CPU", 0), each.get("GPU", 0)) for each in resources))
            self._counted = time.monotonic()
        with held_back():
            wide = self._search.running < self._width.at_once(self._room)
            record = self._search.ask() if wide else None
        if record is not None:
            return {"record": asdict(record), "avoid": self._avoid}
        return str(Searcher.FINISHED) if wide and self._search.exhausted else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing: the scheduler has already reported to the search."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: `study.db` holds the search."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


class _Places(tune.Callback):
    """Tune callback that remembers on which node of a joined cluster the process of each trial has started."""

    def __init__(self) -> None:
        self.nodes: dict[int, str | None] = {}  # a trial's number → the node's ID

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.nodes[_record(trial)["number"]] = ray_compat.node_of(trial.temporary_state.ray_actor)


class _Decisions(_HasSearch, FIFOScheduler):
    """Tune scheduler that reports each epoch to `Search`, whose answer stops the trial or lets it continue."""

    def __init__(
        self, search: Search, cluster: RayCluster, places: _Places, cut_pool: Callable[[], str | None]
    ) -> None:
        super().__init__()
        self._search, self._cluster, self._places, self._cut_pool = search, cluster, places, cut_pool

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        with held_back():
            go_on = self._search.report(_record(trial)["number"], result["result"][0])
        if not go_on:  # Tune may keep the process, which would hold the trial's lock and memory
            trial.temporary_state.ray_actor.cleanup.remote()
        return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        if self._cluster.is_ending(within=1):
            return  # the trial is not to blame: `Search.interrupt` will mark it, and a resume continues it
        number, reason = _record(trial)["number"], _error_text(trial)
        what, counts = _loss(reason, self._cluster.has_lost(self._places.nodes.pop(number, None)))
        with held_back():
            if (cut := self._cut_pool()) is not None:
                self._search.halt(number, cut)
                return
            self._search.fail(number, what, **counts)


def _error_text(trial: Any) -> str:
    """What Ray wrote about the trial's error. `trial.get_error` finds nothing yet: it reads a copy made later."""
    try:
        return Path(trial.error_file).read_text("utf-8", "replace")
    except (OSError, TypeError):  # a full disk; no file
        return "no reason was given"


def _loss(reason: str, node_is_lost: bool) -> tuple[str, dict[str, bool]]:
    """What to say about the loss of a trial, and what `Search.fail` is to count it as."""
    if _NODE_ENDS in reason:
        return _NODE_ENDS, {"node_lost": True}
    if node_is_lost or _NODE_DIED in reason:
        return "its node was lost", {"node_lost": True}
    if _LOW_MEMORY in reason:
        return "its process was lost: Ray ended it, because memory ran low", {"out_of_memory": True}
    if _PROCESS_ENDED in reason:  # at length, Ray guesses why
        return "its process was lost: killed, as for lack of memory, or crashed", {}
    return f"its process was lost: {last_error(reason)}", {}


def run(
    search: Search,
    make_trial: MakeTrial,
    config: SweepConfig,
    workplace: Workplace,
    allotment: Allotment,
    width: Width,
    cluster: RayCluster,
    members: Members | None,
    give_up: Callable[[str], None],
) -> None:
    """Runs trials until all are final. Returns early after Ctrl-C or SIGTERM and when Ray is lost, with trials still
    unfinished in `search`. `make_trial` is pickled and called in the trials' processes. If Ray is lost while the main
    thread is blocked inside Ray's C++, another thread calls `give_up` with the reason."""
    try:
        cluster.wait()
        with cluster.watched(give_up), passed_to_tune():
            # Not `tune.with_parameters`, which puts its values into Ray's object store: when the raylet disconnects,
            # Ray's C++ tries to mark them as lost in that store, finds it closed, and ends the sweep's process.
            attributes = {"make_trial": staticmethod(make_trial), "gpus": allotment.gpus, "joined": cluster.joined}
            trainable = type("SweepsTrial", (RayTrial,), attributes)
            places = _Places()
            decisions = _Decisions(search, cluster, places, partial(cut_pool, config, workplace.pools))
            suggestions = _Suggestions(search, width, allotment, members)
            trainable = tune.with_resources(trainable, partial(_request, allotment))
            callbacks = [places] if cluster.joined else []
            _tuner(trainable, suggestions, decisions, callbacks, workplace.root).fit()
    except RayLost as error:
        search.halted = str(error)


def _request(allotment: Allotment, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """A trial's share, on any node but those to avoid."""
    bundle = {"CPU": allotment.cpus, "GPU": allotment.gpus}
    if not config["avoid"]:
        return tune.PlacementGroupFactory([bundle])
    others = f"!in({','.join(config['avoid'])})"
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[{"ray.io/node-id": others}])


def _tuner(
    trainable: Any, suggestions: _Suggestions, decisions: _Decisions, callbacks: list[tune.Callback], root: Path
) -> tune.Tuner:
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=suggestions,
            scheduler=decisions,
            num_samples=-1,  # until the searcher says that it has finished
            max_concurrent_trials=sys.maxsize,  # the searcher decides; without it Tune starts one after the other
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(root),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=callbacks,
            verbose=0,
        ),
    )


def _name(trial: Any) -> str:
    return str(_record(trial)["name"])


def _record(trial: Any) -> dict[str, Any]:
    """The values of the trial's `TrialRecord`."""
    found: dict[str, Any] = trial.config["record"]
    return found
