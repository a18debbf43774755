"""Trials of no work on a Ray cluster of many nodes on this machine, to see whether the sweep's process keeps up.

`python -m tests.many_nodes NODES TRIALS EPOCHS` runs all trials at once and prints a line of JSON: how many ended, the
reports in a second, and the milliseconds from a report to the decision about it. Cluster, search, study and executor
are the real ones. Each trial's process takes some 5 seconds of CPU to start, and a few hundred MB.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from model.config import override
from sweep.benchmark.driver import Replay
from sweep.config import QUICKSTART, SweepConfig, load
from sweep.config.workplace import Workplace
from sweep.execution import ray_compat
from sweep.execution.width import Width
from sweep.machine.resources import Allotment
from sweep.search.records import TrialRecord
from sweep.terminal.terminal import Terminal

_EPOCH = 0.2  # seconds


class IdleTrial:
    """A trial that sleeps for each epoch and tells when it has reported."""

    def __init__(self, epochs: int, record: TrialRecord) -> None:
        self._epochs, self._epoch, self._number = epochs, record.epochs, record.number

    def step(self) -> dict[str, Any]:
        time.sleep(_EPOCH)
        self._epoch += 1
        error = 1 / (1 + self._epoch + self._number)
        return {
            "state": "completed" if self._epoch == self._epochs else "running",
            "epochs": self._epoch,
            "best_epoch": self._epoch,
            "scores": {"error_rate": error, "cer": error, "loss": error},
            "seconds": _EPOCH * self._epoch,
            "rung_score": None,
            "at": time.time(),
        }

    def close(self) -> None:
        """Does nothing: the trial has no files."""


def run(nodes: int, trials: int, epochs: int, root: Path) -> dict[str, Any]:
    """Runs the trials in `root` and returns the figures."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    ray_compat.import_ray(joining=True)
    from ray.cluster_utils import Cluster  # reads its environment when it is imported, as do these

    from sweep.execution import on_ray
    from sweep.execution.ray_cluster import JoinedCluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": trials // nodes, "include_dashboard": False})
    joined = None
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=trials // nodes)
        joined = JoinedCluster(cluster.address)
        joined.wait()
        settings = {
            "training.epochs": epochs,
            "search.searcher": "random",
            "search.trials": trials,
            "search.early_stopping": {"name": "none"},
            "confirm": None,
        }
        config = SweepConfig.model_validate(override(load(QUICKSTART).model_dump(), settings))
        search = Replay(config, root).search
        reported: list[tuple[float, float]] = []  # when, and the seconds until the decision
        decide = search.report

        def timed(number: int, result: Mapping[str, Any]) -> bool:
            goes_on = decide(number, result)
            reported.append((time.time(), time.time() - result["at"]))
            return goes_on

        search.report = timed  # type: ignore[method-assign]
        width = Width(root, search, Terminal(config, root, resume="", verbosity=0), trials)
        workplace, allotment = Workplace(root, root / "pools", threads=1, gpus=0), Allotment(1, 0, trials, trials)
        make_trial: Any = partial(IdleTrial, epochs)
        on_ray.run(search, make_trial, config, workplace, allotment, width, joined, None, print)
    finally:
        if joined is not None:
            joined.close()
        cluster.shutdown()
    middle = sorted(reported)[len(reported) // 4 : -len(reported) // 4]  # when most trials run
    late = sorted(seconds for _, seconds in middle)
    return {
        "completed": [record.state for record in search.records.values()].count("completed"),
        "reports": len(reported),
        "reports_per_second": round(len(middle) / (middle[-1][0] - middle[0][0]), 1),
        "ms_to_decision": {
            "median": round(1000 * statistics.median(late), 1),
            "95 %": round(1000 * late[int(0.95 * len(late))], 1),
        },
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="many-nodes-") as folder:
        print(json.dumps(run(*map(int, sys.argv[1:4]), Path(folder))))
