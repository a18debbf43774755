"""Many trials at once on a simulated Ray cluster: does the sweep's own process keep up with their reports?

`CONCURRENT_TRIALS=200 CLUSTER_NODES=10 pytest -m cluster -s tests/test_concurrent_trials.py` prints the figures of a
large one. Each trial takes a process of about 120 MB.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sweep.config import load
from sweep.config.workplace import Workplace
from sweep.machine.resources import Allotment
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from sweep.terminal.terminal import Terminal
from tests.conftest import QUICKSTART
from tests.processes import UNCONFIRMED

AT_ONCE = int(os.environ.get("CONCURRENT_TRIALS", "6"))
NODES = int(os.environ.get("CLUSTER_NODES", "2"))
EPOCHS = 30


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of `NODES` nodes on this machine, by Ray's own `cluster_utils`."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    from sweep.execution import ray_compat

    ray_compat.import_ray(joining=True)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": -(-AT_ONCE // NODES), "object_store_memory": 80_000_000}
    # Short enough for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = {**node, "include_dashboard": False, "temp_dir": folder}
        cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        try:
            for _ in range(NODES - 1):
                patiently(lambda: cluster.add_node(**node))
            yield cluster.address
        finally:
            cluster.shutdown()


def patiently(start: Callable[[], Any]) -> Any:
    """Starts a node, up to four times: Ray gives it 30 seconds, which are too few on a busy machine."""
    for _ in range(3):
        with suppress(Exception):
            return start()
    return start()


def idle_trainable() -> Any:
    """A Trainable without work. It measures how long each report waits until the decision to go on has come back, and
    says so with the next report. Made in a function, so that Ray sends the class itself: importing this module would
    import torch in each process."""
    from ray import tune

    class Idle(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.epoch, self.reported_at, self.epochs = 0, 0.0, self.sweep.training.epochs  # type: ignore[attr-defined]

        def step(self) -> dict[str, Any]:
            import time

            import ray

            waited = time.time() - self.reported_at
            self.epoch += 1
            result = {
                "state": "completed" if self.epoch == self.epochs else "running",
                "epochs": self.epoch,
                "best_epoch": self.epoch,
                "scores": {"error_rate": 0.5, "cer": 0.5, "loss": waited if self.epoch > 1 else 0.0},
            }
            self.reported_at = time.time()
            return {"result": (result,), "node": ray.get_runtime_context().get_node_id()}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

    return Idle


class Watch:
    """Listener of the search that takes the times of all reports, and how long the one before waited for its
    decision."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.waits: list[float] = []

    def started(self, record: TrialRecord) -> None: ...
    def released(self, record: TrialRecord) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...

    def reported(self, record: TrialRecord) -> None:
        self.times.append(time.monotonic())
        if record.epochs > 1:
            self.waits.append(record.scores["loss"])


@pytest.mark.cluster
@pytest.mark.own_process
def test_each_report_of_many_trials_at_once_is_answered_quickly(address: str, tmp_path: Path) -> None:
    from sweep.execution import on_ray
    from sweep.execution.ray_cluster import JoinedCluster
    from sweep.execution.width import Width

    settings = {"search.searcher": "random", "search.trials": AT_ONCE, "search.early_stopping": "none"}
    config = load(QUICKSTART, UNCONFIRMED | settings | {"training.epochs": EPOCHS})
    search, watch = Search(config, tmp_path / "study.db"), Watch()
    search.listeners = (watch,)
    cluster = JoinedCluster(address)
    try:
        workplace = Workplace(tmp_path, tmp_path / "pools", threads=1, gpus=0, elsewhere=True)
        allotment = Allotment(cpus=1, gpus=0, at_once=AT_ONCE, total_cpus=AT_ONCE)
        width = Width(tmp_path, search, Terminal(config, tmp_path, resume="", verbosity=0), AT_ONCE)
        on_ray.run(search, config, workplace, allotment, width, cluster, pytest.fail, idle_trainable())
    finally:
        cluster.close()
    assert [record.state for record in search.finished] == ["completed"] * AT_ONCE
    assert len(watch.times) == AT_ONCE * EPOCHS
    middle = slice(len(watch.times) // 4, 3 * len(watch.times) // 4)
    seconds = watch.times[middle][-1] - watch.times[middle][0]
    waits = sorted(watch.waits[middle])
    rate, usual, long = len(waits) / seconds, statistics.median(waits), waits[len(waits) * 95 // 100]
    print(f"\n{AT_ONCE} trials on {NODES} nodes: {rate:.0f} reports/s")
    print(f"from a report to its decision {1000 * usual:.0f} ms (95 %: {1000 * long:.0f} ms)")
    assert usual < 0.1 * AT_ONCE  # each of them waits for the reports of all others at most
