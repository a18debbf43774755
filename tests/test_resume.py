"""Sweeps that are killed, interrupted, damaged and starved, and go on with one command."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, leaderboard
from tests.test_sweep import decided, runs

SPACE = "{optimizer.lr: {loguniform: [1e-3, 3e-2]}, schedule.name: {choice: [constant, cosine, onecycle]}}"
SETTINGS = {
    **TINY,
    "search.space": SPACE,
    "search.trials": 5,
    "search.early_stopping": "{name: asha, grace_epochs: 1}",
    "training.epochs": 4,
    "data.train_images": 480,
    "network.dropout": 0.1,
}
Start = Callable[..., "Sweep"]


class Sweep:
    """A running `python -m sweep.run`, in a process group of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sweep.run", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Exit code and all that was printed."""
        printed, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, printed

    def workers(self) -> list[psutil.Process]:
        """Ray's processes that train a trial."""
        return [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if (title := " ".join(child.cmdline())).startswith("ray::") and "IDLE" not in title
        ]


@pytest.fixture
def start(cache: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[Sweep] = []

    def make(name: str, *arguments: str, **settings: Any) -> Sweep:
        values = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
        sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        where = ["--name", name, "--output-dir", str(tmp_path), "--cache-dir", str(cache)]
        started.append(Sweep(*where, *sets, *arguments))
        return started[-1]

    yield make
    for sweep in started:
        if sweep.process.poll() is None:
            os.killpg(sweep.process.pid, signal.SIGKILL)
            sweep.process.wait()


def resume(root: Path, *arguments: str) -> tuple[int, str]:
    return Sweep("--resume", str(root), *arguments).wait(180)


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def curves(root: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Every scalar point of every run; the sweep's own run aside, whose order is that of arrival."""
    return {
        (run, tag): [(event.step, event.value) for event in events.Scalars(tag)]
        for run, events in runs(root).items()
        for tag in events.Tags()["scalars"]
        if run != "_sweep"
    }


def pictures(root: Path) -> dict[tuple[str, str], list[tuple[int, bytes]]]:
    return {
        (run, tag): [(event.step, event.encoded_image_string) for event in events.Images(tag)]
        for run, events in runs(root).items()
        for tag in events.Tags()["images"]
        if run != "_sweep"
    }


def assert_curves_without_scars(root: Path) -> None:
    """In each curve every step follows the one before, from 1 to the epochs that the leaderboard names."""
    epochs = {row["trial"]: int(row["epochs"]) for row in leaderboard(root)}
    found = curves(root)
    assert {run.removesuffix("/train") for run, _ in found} == {name for name, count in epochs.items() if count}
    for (run, tag), points in found.items():
        count = epochs[run.removesuffix("/train")]
        per_epoch = 1 if tag.startswith(("epoch/", "best/")) else 30
        assert [step for step, _ in points] == list(range(1, count * per_epoch + 1)), (run, tag)


def assert_nothing_left_over(root: Path) -> None:
    names = [path.name for path in root.rglob("*") if "ray" not in path.relative_to(root).parts]
    assert [
        name for name in names if name.startswith(".") or name.startswith("epoch_") or name.endswith("-journal")
    ] == []


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_local_sweep_killed_anywhere_ends_as_if_it_had_not_been(start: Start, tmp_path: Path, at_once: int) -> None:
    code, printed = start("whole", "--local", search__max_concurrent=at_once).wait()
    assert code == 0, printed
    draw = random.Random(at_once)
    sweep = start("killed", "--local", search__max_concurrent=at_once)
    wait_for((tmp_path / "killed" / "study.db").exists)
    kills = 0
    while True:
        try:
            code, printed = sweep.wait(seconds=draw.uniform(2.0, 5.0))
            break
        except subprocess.TimeoutExpired:
            sweep.send(signal.SIGKILL)
            sweep.wait()
            kills += 1
            sweep = Sweep("--resume", str(tmp_path / "killed"), "--local")
    assert code == 0, printed
    assert kills >= 1
    assert decided(tmp_path / "killed") == decided(tmp_path / "whole")
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")
    assert pictures(tmp_path / "killed") == pictures(tmp_path / "whole")
    assert_curves_without_scars(tmp_path / "killed")
    assert_nothing_left_over(tmp_path / "killed")
    assert (tmp_path / "killed" / "best.yaml").read_text() == (tmp_path / "whole" / "best.yaml").read_text()


def test_a_killed_driver_is_resumed_at_once_beside_its_dying_workers(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "r"
    sweep = start("r", training__epochs=6)
    wait_for(lambda: list(root.glob("trials/*/epoch_0002.pt")))
    workers = sweep.workers()
    assert workers
    sweep.send(signal.SIGKILL)
    sweep.wait()
    code, printed = resume(root)
    assert code == 0, printed
    assert "goes on after epoch" in printed
    assert len(leaderboard(root)) == 5
    assert {row["state"] for row in leaderboard(root)} <= {"completed", "stopped"}
    assert_curves_without_scars(root)
    assert_nothing_left_over(root)
    wait_for(lambda: not [worker for worker in workers if worker.is_running()])
    code, printed = resume(root)
    assert code == 0
    assert "nothing is left to do" in printed
    assert_curves_without_scars(root)
    assert "leaderboard/text_summary" in runs(root)["_sweep"].Tags()["tensors"]


def test_a_killed_worker_costs_its_trial_one_epoch_and_the_others_nothing(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "r"
    sweep = start("r", "--verbose", training__epochs=6, search__early_stopping="none", search__trials=3)
    wait_for(lambda: list(root.glob("trials/0000*/epoch_0002.pt")))
    sweep.workers()[0].send_signal(signal.SIGKILL)
    code, printed = sweep.wait()
    assert code == 0, printed
    assert printed.count("process was lost") == 1
    assert "will be tried again" in printed
    assert {(row["state"], row["epochs"]) for row in leaderboard(root)} == {("completed", "6")}
    assert_curves_without_scars(root)


def test_a_trial_that_loses_its_process_too_often_is_failed_and_the_others_complete(
    start: Start, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    fast = {"search__max_failures": 0, "search__trials": 3, "search__early_stopping": "none"}
    sweep = start("r", training__epochs=6, **fast)
    wait_for(lambda: list(root.glob("trials/0000*/epoch_0002.pt")))
    sweep.workers()[0].send_signal(signal.SIGKILL)
    code, printed = sweep.wait()
    assert code == 1, printed
    states = sorted(row["state"] for row in leaderboard(root))
    assert states == ["completed", "completed", "failed"]
    assert "process was lost" in next(row["error"] for row in leaderboard(root) if row["state"] == "failed")


@pytest.mark.parametrize(
    ("mode", "signals"),
    [
        ("--local", [signal.SIGINT]),
        ("--local", [signal.SIGTERM]),
        ("--verbose", [signal.SIGINT]),
        ("--verbose", [signal.SIGTERM]),
        ("--verbose", [signal.SIGINT, signal.SIGINT]),
    ],
    ids=["local Ctrl-C", "local SIGTERM", "Ray Ctrl-C", "Ray SIGTERM", "Ray Ctrl-C twice"],
)
def test_an_interrupted_sweep_says_how_to_go_on_and_does(
    start: Start, tmp_path: Path, mode: str, signals: list[signal.Signals]
) -> None:
    root = tmp_path / "r"
    sweep = start("r", mode, training__epochs=8, search__trials=3)
    wait_for(lambda: list(root.glob("trials/*/epoch_0001.pt")))
    for number in signals:
        sweep.send(number)
        time.sleep(0.5)
    code, printed = sweep.wait(seconds=15)
    assert code == 130
    assert "Traceback" not in printed
    (command,) = [line.removeprefix("to go on: ") for line in printed.splitlines() if line.startswith("to go on: ")]
    assert "interrupted" in {row["state"] for row in leaderboard(root)}
    python, module, name, *arguments = command.split()
    assert (python, module, name) == ("python", "-m", "sweep.run")
    code, printed = Sweep(*arguments).wait(180)
    assert code == 0, printed
    assert {row["state"] for row in leaderboard(root)} <= {"completed", "stopped"}
    assert_curves_without_scars(root)


def test_a_finished_sweep_is_extended(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "r"
    assert start("r", "--local", search__trials=2, training__epochs=2).wait()[0] == 0
    before = {row["trial"]: row for row in leaderboard(root)}
    code, printed = resume(root, "--trials", "4", "--local")
    assert code == 0, printed
    after = {row["trial"]: row for row in leaderboard(root)}
    assert len(after) == 4
    for name, row in before.items():
        assert {**row, "rank": ""} == {**after[name], "rank": ""}
    assert start("whole", "--local", search__trials=4, training__epochs=2).wait()[0] == 0
    assert decided(root) == decided(tmp_path / "whole")


def interrupted(start: Start, root: Path, epochs: int = 5) -> Path:
    """A local sweep killed when its first trial had three epochs; returns that trial's folder."""
    sweep = start(root.name, "--local", search__trials=2, training__epochs=epochs, search__early_stopping="none")
    wait_for(lambda: list(root.glob("trials/0000*/epoch_0003.pt")))
    sweep.send(signal.SIGKILL)
    sweep.wait()
    (folder,) = root.glob("trials/0000*")
    return folder


@pytest.mark.parametrize("damage", ["truncated", "flipped", "both", "trial folder", "event files", "pools"])
def test_what_was_damaged_meanwhile_is_made_again(start: Start, tmp_path: Path, cache: Path, damage: str) -> None:
    whole = {"search__trials": 2, "training__epochs": 5, "search__early_stopping": "none"}
    assert start("whole", "--local", **whole).wait()[0] == 0
    root = tmp_path / "r"
    folder = interrupted(start, root)
    older, newest = sorted(folder.glob("epoch_*.pt"))[-2:]
    data = newest.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    if damage == "truncated":
        newest.write_bytes(data[:middle])
    elif damage in ("flipped", "both"):
        newest.write_bytes(flipped)
        if damage == "both":
            older.write_bytes(b"")
    elif damage == "trial folder":
        shutil.rmtree(folder)
    elif damage == "event files":
        shutil.rmtree(root / "tensorboard" / folder.name)
    else:
        for pool in cache.glob("*.pool"):
            pool.write_bytes(pool.read_bytes()[:-1])
    code, printed = resume(root, "--local")
    assert code == 0, printed
    if damage in ("truncated", "flipped"):
        assert f"{newest.name}; went on from epoch {int(older.stem[-4:])}" in printed
    elif damage in ("both", "event files"):
        assert "started again" in printed
    elif damage == "pools":
        assert "rendering" in printed
    assert decided(root) == decided(tmp_path / "whole")
    assert curves(root) == curves(tmp_path / "whole")


def test_files_of_an_unknown_trial_are_moved_aside(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "r"
    folder = interrupted(start, root)
    (folder / "config.yaml").write_text("of: another trial\n")
    code, printed = resume(root, "--local")
    assert code == 0, printed
    (aside,) = folder.glob("aside-*")
    assert {"config.yaml", "best.pt", "tensorboard"} <= {path.name for path in aside.iterdir()}
    assert_curves_without_scars(root)


def test_a_running_sweep_is_not_resumed_a_second_time(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "r"
    sweep = start("r", "--local", training__epochs=50, search__early_stopping="none")
    wait_for(lambda: list(root.glob("trials/*/epoch_0001.pt")))
    code, printed = resume(root, "--local")
    assert code == 2
    assert "this sweep is running" in printed
    sweep.send(signal.SIGINT)
    assert sweep.wait(15)[0] == 130


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)


@pytest.mark.parametrize("mode", ["--local", "--verbose"])
def test_on_a_full_disk_it_stops_with_a_sentence_and_goes_on_when_there_is_room(
    start: Start, tmp_path: Path, mode: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        root = disk / "r"
        few = {"search__trials": 2, "training__epochs": 8, "search__early_stopping": "none"}
        sweep = start("r", mode, "--output-dir", str(disk), **few)
        wait_for(lambda: list(root.glob("trials/*/epoch_0002.pt")))
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        code, printed = sweep.wait(seconds=60)
        assert code == 130, printed
        assert "Traceback" not in printed
        assert "o space" in printed
        assert "--resume" in printed
        for events in root.glob("tensorboard/*/events.*"):
            EventAccumulator(str(events)).Reload()
        filler.unlink()
        code, printed = resume(root, mode)
        assert code == 0, printed
        assert {(row["state"], row["epochs"]) for row in leaderboard(root)} == {("completed", "8")}
        assert_curves_without_scars(root)
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if str(disk) in " ".join(process.info["cmdline"] or []):
                process.kill()
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_wrong_uses_of_resume_are_answered_in_a_sentence(tmp_path: Path) -> None:
    code, printed = resume(tmp_path / "nowhere")
    assert code == 2
    assert "--resume" in printed
    assert "nowhere" in printed
    code, printed = resume(tmp_path, "--set", "optimizer.lr=1")
    assert code == 2
    assert "--resume" in printed
    assert "--set" in printed
