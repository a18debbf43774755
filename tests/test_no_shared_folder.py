"""Sweeps on a cluster whose nodes share no folder: their trials exchange files with the sweep through a storage."""

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sweep.config.workplace import Workplace
from sweep.execution.collector import Collector
from sweep.execution.mirror import Mirror
from sweep.execution.storage import Storage, Superseded, owned
from sweep.execution.trial_copy import TrialCopy
from sweep.search.records import TrialRecord
from tests.processes import Start, StartLocal, wait_for
from tests.results import assert_curves_without_scars, assert_nothing_left_over, curves, leaderboard
from tests.test_clusters import Cluster, hiding, home, own_cluster, put_into_variable  # noqa: F401, fixtures
from tests.test_storage import Server, assert_equal, server  # noqa: F401, fixtures

FEW = {
    "training__epochs": 8,
    "search__trials": 3,
    "search__searcher": "random",
    "search__early_stopping": "none",
}


@pytest.mark.cluster
@pytest.mark.namespaces
def test_without_a_shared_folder_trials_go_on_elsewhere_and_the_folder_equals_the_storage(
    own_cluster: Cluster,  # noqa: F811
    home: Path,  # noqa: F811
    start: Start,
    local: StartLocal,
    server: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_into_variable(home, monkeypatch)
    lost = own_cluster.add_node(before=hiding(tmp_path))
    root = tmp_path / "apart"
    sweep = start("apart", "--address", own_cluster.address, "--storage", server.uri("apart"), **FEW)
    wait_for(lambda: len({name.split("/")[1] for name in server.names("apart") if "/epoch_" in name}) == 2)
    os.kill(server.process.pid, signal.SIGSTOP)  # as a storage that is away
    time.sleep(3)
    os.kill(server.process.pid, signal.SIGCONT)
    wait_for(lambda: any(re.search("epoch_000[4-8]", name) for name in server.names("apart")))
    assert list(root.glob("tensorboard/0*/events*"))
    own_cluster.end(lost)
    own_cluster.nodes.remove(lost)
    code, printed = sweep.wait()
    assert code == 0, printed
    assert "its node was lost" in printed
    assert {(row["state"], row["epochs"]) for row in leaderboard(root)} == {("completed", "8")}
    assert_curves_without_scars(root)
    assert_nothing_left_over(root)
    assert_equal(server.files("apart"), root)
    code, printed = local("whole", **FEW).wait()
    assert code == 0, printed
    assert curves(root) == curves(tmp_path / "whole")


def copy_of(tmp_path: Path, storage: str) -> TrialCopy:
    return TrialCopy(Workplace(tmp_path, tmp_path, threads=1, gpus=0, storage=storage), "0000")


def test_a_process_whose_trial_goes_on_elsewhere_uploads_nothing_more(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/storage"
    first, second = copy_of(tmp_path, uri), copy_of(tmp_path, uri)
    with first.taken_over([]):
        checkpoint = first.workplace.files("0000") / "epoch_0001.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"first")
        first.upload()
        with second.taken_over([]):
            other = second.workplace.files("0000") / "epoch_0001.pt"
            assert other.read_bytes() == b"first"
            assert other != checkpoint
            other.write_bytes(b"second")
            second.upload()
            checkpoint.write_bytes(b"too late")
            with pytest.raises(Superseded):
                first.upload()
    assert (tmp_path / "storage" / "trials" / "0000" / "epoch_0001.pt").read_bytes() == b"second"
    assert not checkpoint.exists()


class Told:
    """Takes note of lines for the terminal, and of trials that are complete, unless it raises an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.lines: list[str] = []
        self.completed: list[str] = []
        self.error = error

    def ended(self, record: TrialRecord) -> None:
        if self.error is not None:
            raise self.error
        self.completed.append(record.name)


def collected(tmp_path: Path, told: Told, kind: type[Storage] = Storage) -> tuple[Mirror, Collector]:
    storage = kind.open("--storage", f"file://{tmp_path}/storage")
    mirror = Mirror(storage, tmp_path / "root", lambda: b"study", told.lines.append, taken=[])
    return mirror, Collector(storage, tmp_path / "root", told.ended, mirror, told.lines.append, owned(storage))


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_curves_grow_here_while_a_trial_runs_elsewhere_and_all_its_files_are_here_at_its_end(tmp_path: Path) -> None:
    there, here, told = tmp_path / "storage", tmp_path / "root", Told()
    record = TrialRecord(0, "0000", {}, state="completed")
    write(there / "tensorboard" / "0000" / "events", b"one ")
    write(there / "trials" / "0000" / "best.pt", b"weights")
    write(there / "trials" / "0000" / ".owner", b"token")
    write(here / "trials" / "0000" / "epoch_0001.pt", b"of an attempt before")
    mirror, collector = collected(tmp_path, told)
    collector.reported(record)
    wait_for((here / "tensorboard" / "0000" / "events").exists)
    assert not (here / "trials" / "0000" / "best.pt").exists()
    inode = (here / "tensorboard" / "0000" / "events").stat().st_ino
    write(there / "tensorboard" / "0000" / "events", b"one two")
    collector.ended(record)
    assert collector.finish([], 60) is None
    assert mirror.finish(60) is None
    assert (here / "tensorboard" / "0000" / "events").read_bytes() == b"one two"
    assert (here / "tensorboard" / "0000" / "events").stat().st_ino == inode  # TensorBoard may have opened it
    assert (here / "trials" / "0000" / "best.pt").read_bytes() == b"weights"
    assert not (here / "trials" / "0000" / "epoch_0001.pt").exists()
    assert not (there / "trials" / "0000" / ".owner").exists()
    assert told.completed == ["0000"]
    assert told.lines == []


def test_a_storage_that_is_away_is_told_once_and_read_later(tmp_path: Path) -> None:
    class Away(Storage):
        refused = 0

        def names(self, folder: str = "") -> Iterator[str]:
            if folder and Away.refused < 2:
                Away.refused += 1
                raise OSError("no route to host")
            return super().names(folder)

    told, record = Told(), TrialRecord(0, "0000", {}, state="completed")
    mirror, collector = collected(tmp_path, told, Away)
    collector.started(record)
    write(tmp_path / "storage" / "tensorboard" / "0000" / "events", b"one")
    collector.ended(record)
    assert collector.finish([], 60) is None
    assert mirror.finish(60) is None
    assert told.lines == [f"file://{tmp_path}/storage can't be read: no route to host; the sweep goes on and waits"]
    assert told.completed == ["0000"]


def test_an_error_in_completing_a_trial_reaches_the_sweep(tmp_path: Path) -> None:
    mirror, collector = collected(tmp_path, Told(PermissionError(13, "denied")))
    collector.ended(TrialRecord(0, "0000", {}))
    with pytest.raises(PermissionError):
        collector.finish([], 60)
    mirror.close()


def test_the_files_of_a_trial_that_no_process_has_taken_over_are_here_and_stay(tmp_path: Path) -> None:
    """A sweep that begins to use a storage, or whose last command ended in order."""
    here, told, record = tmp_path / "root" / "trials" / "0000" / "best.pt", Told(), TrialRecord(0, "0000", {})
    write(here, b"the newest")
    write(tmp_path / "storage" / "trials" / "0000" / "best.pt", b"older")
    fetched: list[str] = []

    class Recorded(Storage):
        def read(self, name: str) -> bytes:
            fetched.append(name)
            return super().read(name)

    storage = Recorded.open("--storage", f"file://{tmp_path}/storage")
    mirror = Mirror(storage, tmp_path / "root", lambda: b"study", told.lines.append, taken=["0000"])
    collector = Collector(storage, tmp_path / "root", told.ended, mirror, told.lines.append, owned(storage))
    mirror.wait(60)
    collector.ended(replace(record, state="completed"))
    assert collector.finish([record], 60) is None
    assert mirror.finish(60) is None
    assert "trials/0000/best.pt" not in fetched
    assert here.read_bytes() == b"the newest"
    assert (tmp_path / "storage" / "trials" / "0000" / "best.pt").read_bytes() == b"the newest"
    assert told.completed == ["0000"]
