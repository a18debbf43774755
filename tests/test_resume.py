"""Sweeps that are killed, interrupted, damaged and starved, and go on with one command."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sweep.config import QUICKSTART, load
from sweep.tensorboard.event_file import EventFile
from tests.board import serve
from tests.processes import (
    PATIENCE,
    TINY,
    UNCONFIRMED,
    LocalSweep,
    Start,
    StartLocal,
    Sweep,
    resume,
    resume_local,
    saved,
    sets,
    title,
    wait_for,
)
from tests.results import (
    assert_curves_without_scars,
    assert_nothing_left_over,
    curves,
    decided,
    leaderboard,
    pictures,
    runs,
)


def killed_again_and_again(root: Path, sweep: LocalSweep, draw: random.Random) -> tuple[int, str]:
    """Kills it at random instants, later and later, and resumes it until it ends by itself; says how often, and what
    was printed."""
    wait_for((root / "sweep.yaml").exists)
    kills = 0
    while True:
        sweep.process.join(draw.uniform(0.0, 0.5 * 1.25**kills))
        if (code := sweep.process.exitcode) is not None:
            break
        sweep.kill()
        kills += 1
        sweep = resume_local(root)
    printed = sweep.output.read_text()
    assert code == 0, printed
    assert "Traceback" not in printed
    assert "Warning" not in printed
    return kills, printed


@pytest.mark.slow
@pytest.mark.parametrize(("searcher", "at_once"), [("tpe", 2), ("qmc", 1), ("cmaes", 2)])
def test_a_local_sweep_killed_anywhere_ends_as_if_it_had_not_been(
    local: StartLocal, tmp_path: Path, searcher: str, at_once: int
) -> None:
    settings: dict[str, Any] = {"search__max_concurrent": at_once, "search__searcher": searcher, "search__trials": 6}
    if searcher == "tpe":
        settings["confirm"] = "{top: 1, seeds: 2}"
    else:
        numbers = "{optimizer.lr: {loguniform: [1e-3, 3e-2]}, network.dropout: {uniform: [0, 0.3]}}"
        settings["search__space"] = numbers
    code, printed = local("whole", **settings).wait()
    assert code == 0, printed
    root = tmp_path / "killed"
    kills, _ = killed_again_and_again(root, local("killed", **settings), random.Random(at_once))
    assert kills >= 3
    assert decided(root) == decided(tmp_path / "whole")
    assert curves(root) == curves(tmp_path / "whole")
    assert pictures(root) == pictures(tmp_path / "whole")
    assert_curves_without_scars(root)
    assert_nothing_left_over(root)
    ours, theirs = (
        torch.load(folder / "best.pt", weights_only=True)["network"] for folder in (root, tmp_path / "whole")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["true", "false"], ids=["fast", "slow"])
def test_a_tensorboard_that_stays_open_shows_a_killed_and_resumed_sweep_without_scars(
    local: StartLocal, tmp_path: Path, loader: str
) -> None:
    root = tmp_path / "r"
    sweep = local("r", **WHOLE)
    wait_for(lambda: saved(root, 2, "0000*"))
    with serve(root / "tensorboard", "--load_fast", loader, "--reload_interval", "1") as board:
        wait_for(lambda: len(board.runs()) >= 3)
        sweep.kill()
        code, printed = resume_local(root).wait()
        assert code == 0, printed
        whole = curves(root)
        wait_for(lambda: board.curves() == whole, seconds=20)
        wait_for(lambda: [group["sessions"][0]["status"] for group in board.sessions()] == ["STATUS_SUCCESS"] * 2)
    assert_curves_without_scars(root)


@pytest.mark.slow
def test_a_killed_driver_is_resumed_at_once_beside_its_dying_workers(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "r"
    sweep = start("r", training__epochs=12)
    wait_for(lambda: saved(root, 2))
    workers = sweep.workers()
    assert workers
    sweep.kill()
    code, printed = resume(root)
    assert code == 0, printed
    assert "goes on after epoch" in printed
    assert len(leaderboard(root)) == 5
    assert {row["state"] for row in leaderboard(root)} <= {"completed", "stopped"}
    assert_curves_without_scars(root)
    assert_nothing_left_over(root)
    wait_for(lambda: not [worker for worker in workers if worker.is_running()])
    before = contents(root)
    code, printed = resume(root)
    assert code == 0
    assert "nothing is left to do" in printed
    assert contents(root) == before


def contents(root: Path) -> dict[str, bytes]:
    """All files but the log and Ray's own, by their path."""
    files = [path for path in root.rglob("*") if path.is_file() and "ray" not in path.relative_to(root).parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.name != "sweep.log"}


@pytest.mark.slow
def test_a_killed_worker_costs_its_trial_one_epoch_and_the_others_nothing(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "r"
    sweep = start("r", "--verbose", training__epochs=12, search__early_stopping="none", search__trials=3)
    wait_for(lambda: saved(root, 2, "0000*"))
    sweep.workers()[0].kill()
    code, printed = sweep.wait()
    assert code == 0, printed
    assert printed.count("its process was lost: killed, as for lack of memory, or crashed; will be tried again") == 1
    assert "will be tried again" in printed
    assert {(row["state"], row["epochs"]) for row in leaderboard(root)} == {("completed", "12")}
    assert_curves_without_scars(root)


@pytest.mark.slow
def test_a_trial_that_loses_its_process_too_often_is_failed_and_the_others_complete(
    start: Start, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    once = {"search__max_failures": 0, "search__trials": 3, "search__early_stopping": "none"}
    sweep = start("r", training__epochs=12, **once)
    wait_for(lambda: saved(root, 2, "0000*"))
    sweep.workers()[0].kill()
    code, printed = sweep.wait()
    assert code == 1, printed
    states = sorted(row["state"] for row in leaderboard(root))
    assert states == ["completed", "completed", "failed"]
    assert "process was lost" in next(row["error"] for row in leaderboard(root) if row["state"] == "failed")


def ctrl_c(sweep: Sweep) -> None:
    sweep.press_ctrl_c()


def ctrl_c_twice(sweep: Sweep) -> None:
    sweep.press_ctrl_c()
    time.sleep(0.5)
    sweep.press_ctrl_c()


def sigterm(sweep: Sweep) -> None:
    sweep.process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("interrupt", [ctrl_c, ctrl_c_twice, sigterm])
@pytest.mark.parametrize("mode", [pytest.param("--local", id="local"), pytest.param("--verbose", id="Ray")])
def test_an_interrupted_sweep_says_how_to_go_on_and_does(
    start: Start, tmp_path: Path, mode: str, interrupt: Callable[[Sweep], None]
) -> None:
    root = tmp_path / "r"
    sweep = start("r", mode, training__epochs=8, search__trials=2)
    wait_for(lambda: saved(root, 1))
    interrupt(sweep)
    code, printed = sweep.wait(seconds=15)
    assert code == 130, printed
    assert "Traceback" not in printed
    (command,) = [line.removeprefix("to go on: ") for line in printed.splitlines() if line.startswith("to go on: ")]
    python, module, name, *arguments = command.split()
    assert (python, module, name) == ("python", "-m", "sweep.run")
    quicker = [] if mode == "--local" or interrupt is ctrl_c else ["--local"]  # Ray goes on once, which is enough
    if interrupt is not ctrl_c_twice:
        assert "interrupted" in {row["state"] for row in leaderboard(root)}
        for path in root.glob("tensorboard/*/events.*"):  # each log ends with a whole record
            file = EventFile(path.parent)
            size = file.size
            file.cut_half_record()
            assert file.size == size
    code, printed = Sweep(*arguments, *quicker).wait(180)
    assert code == 0, printed
    assert {row["state"] for row in leaderboard(root)} <= {"completed", "stopped"}
    assert_curves_without_scars(root)


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_long_epoch(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "r"
    long = {"data__source": "stream", "data__train_images": 1_000_000, "training__epochs": 2, "search__trials": 2}
    sweep = start("r", "--verbose", **long)
    wait_for(lambda: list(root.glob("tensorboard/0001*/events.*")))
    time.sleep(1)
    sweep.press_ctrl_c()
    code, printed = sweep.wait(seconds=15)
    assert code == 130, printed
    assert "Traceback" not in printed
    assert "--resume" in printed


@pytest.mark.slow
def test_a_finished_sweep_is_extended(local: StartLocal, tmp_path: Path) -> None:
    root = tmp_path / "r"
    assert local("r", search__trials=2, training__epochs=2).wait()[0] == 0
    before = {row["trial"]: row for row in leaderboard(root)}
    code, printed = resume_local(root, "--trials", "4").wait()
    assert code == 0, printed
    after = {row["trial"]: row for row in leaderboard(root)}
    assert len(after) == 4
    for name, row in before.items():
        assert {**row, "rank": ""} == {**after[name], "rank": ""}
    assert local("whole", search__trials=4, training__epochs=2).wait()[0] == 0
    assert decided(root) == decided(tmp_path / "whole")
    events = runs(root)["_sweep"]
    assert [event.step for event in events.Scalars("sweep/best_error_rate")] == [1, 2, 3, 4]
    code, printed = resume_local(root, "--trials", "3").wait()
    assert code == 0
    assert "nothing is left to do" in printed
    assert len(leaderboard(root)) == 4


def cut_short(local: StartLocal, root: Path) -> Path:
    """A local sweep of two trials killed when its first had three of five epochs; returns that trial's folder."""
    sweep = local(root.name, **WHOLE)
    wait_for(lambda: saved(root, 3, "0000*"))
    sweep.kill()
    (folder,) = root.glob("trials/0000*")
    return folder


WHOLE = {"search__trials": 2, "training__epochs": 5, "search__early_stopping": "none"}
SLOW_DAMAGES = ["flipped", "both", "trial folder", "event files", "half a record", "pools", "half a pool"]


@pytest.fixture(scope="module")
def whole(arguments_in: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs")
    sweep = LocalSweep(folder / "whole.txt", *arguments_in(folder, "whole", **WHOLE))
    assert sweep.wait()[0] == 0
    return folder / "whole"


@pytest.mark.parametrize("damage", ["truncated", *(pytest.param(d, marks=pytest.mark.slow) for d in SLOW_DAMAGES)])
def test_what_was_damaged_meanwhile_is_made_again(
    local: StartLocal, whole: Path, tmp_path: Path, cache: Path, damage: str
) -> None:
    root = tmp_path / "r"
    folder = cut_short(local, root)
    *older, newest = sorted(folder.glob("epoch_*.pt"))  # three if it was killed before it removed the oldest
    data = newest.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    if damage == "truncated":
        newest.write_bytes(data[:middle])
    elif damage in ("flipped", "both"):
        newest.write_bytes(flipped)
        if damage == "both":
            for checkpoint in older:
                checkpoint.write_bytes(b"")
    elif damage == "trial folder":
        shutil.rmtree(folder)
    elif damage == "event files":
        shutil.rmtree(root / "tensorboard" / folder.name)
    elif damage == "half a record":
        for file in root.glob("tensorboard/**/events.*"):
            with file.open("ab") as events:
                events.write(b"\x09\x00\x00")
    elif damage == "pools":
        for pool in cache.glob("*.pool"):
            pool.write_bytes(pool.read_bytes()[:-1])
    else:
        for pool in cache.glob("*.pool"):
            pool.rename(cache / f".{pool.name}.99999999")
    code, printed = resume_local(root).wait()
    assert code == 0, printed
    if damage in ("truncated", "flipped"):
        assert f"{newest.name}; went on from epoch {int(older[-1].stem[-4:])}" in printed
    elif damage in ("both", "event files"):
        assert "started again" in printed
    elif "pool" in damage:
        assert "preparing" in printed
    assert decided(root) == decided(whole)
    assert curves(root) == curves(whole)
    assert [point.step for point in runs(root)["_sweep"].Scalars("sweep/best_error_rate")] == [1, 2]
    assert not list(cache.glob(".*"))


@pytest.mark.slow
def test_files_of_an_unknown_trial_are_moved_aside_and_never_mixed(local: StartLocal, tmp_path: Path) -> None:
    root = tmp_path / "r"
    folder = cut_short(local, root)
    (folder / "config.yaml").write_text("of: another trial\n")
    logs = root / "tensorboard" / folder.name
    stranger = {path.name for path in logs.iterdir()}
    code, printed = resume_local(root).wait()
    assert code == 0, printed
    (aside,) = (root / "aside").iterdir()
    assert aside.name.startswith(folder.name)
    assert f"were moved to aside/{aside.name}" in printed
    assert (aside / "trial" / "config.yaml").read_text() == "of: another trial\n"
    assert {path.name for path in (aside / "tensorboard").iterdir()} == stranger
    assert_curves_without_scars(root)


@pytest.mark.slow
def test_a_cut_trial_goes_on_when_its_sweep_is_extended(local: StartLocal, tmp_path: Path) -> None:
    root = tmp_path / "r"
    cut_short(local, root)
    code, printed = resume_local(root, "--trials", "3").wait()
    assert code == 0, printed
    assert re.search(r"0000 goes on after epoch [23]", printed)  # it tells what the search was told
    assert not (root / "aside").exists()
    assert len(leaderboard(root)) == 3


def test_a_running_sweep_is_not_resumed_a_second_time(local: StartLocal, tmp_path: Path) -> None:
    root = tmp_path / "r"
    sweep = local("r", training__epochs=50, search__early_stopping="none")
    wait_for(lambda: saved(root, 1))
    code, printed = resume_local(root).wait()
    assert code == 2
    assert "this sweep is running" in printed
    sweep.kill()


def test_of_two_sweeps_that_start_with_one_name_one_runs(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    few = arguments("r", search__trials=1, training__epochs=1)
    both = [LocalSweep(tmp_path / f"{number}.txt", *few) for number in range(2)]
    results = sorted((sweep.wait() for sweep in both), key=lambda result: result[0] or 0)
    assert [code for code, _ in results] == [0, 2], results
    assert "exists already" in results[1][1]
    assert len(leaderboard(tmp_path / "r")) == 1


@pytest.mark.slow
def test_out_of_memory_fails_the_trial_that_asks_for_too_much_after_one_more_try_and_no_other(
    local: StartLocal, tmp_path: Path
) -> None:
    huge = "{network.encoder.size: {grid: [8, 1000000000, 16]}}"
    settings = {"search__space": huge, "search__searcher": "grid", "search__max_concurrent": 2}
    code, printed = local("r", **settings).wait()
    assert code == 1, printed
    rows = {row["trial"][:4]: row for row in leaderboard(tmp_path / "r")}
    assert [rows[number]["state"] for number in sorted(rows)] == ["completed", "failed", "completed"]
    assert "can't allocate memory" in rows["0001"]["error"]
    lines = [line.strip() for line in printed.splitlines()]
    tried = next(index for index, line in enumerate(lines) if line.startswith("0001") and "tried again" in line)
    failed = next(index for index, line in enumerate(lines) if line.startswith("0001 failed"))
    completed = [index for index, line in enumerate(lines) if line.startswith(("0000 completed", "0002 completed"))]
    assert tried < min(completed) < max(completed) < failed


@pytest.mark.slow
def test_a_nan_loss_ends_its_trial_also_after_a_resume(local: StartLocal, tmp_path: Path) -> None:
    root = tmp_path / "r"
    settings = {
        "search__space": "{optimizer.lr: {grid: [1e-2, 1e30]}}",
        "search__searcher": "grid",
        "search__early_stopping": "none",
        "optimizer__name": "sgd",
        "optimizer__gradient_clip": "null",
    }
    killed_again_and_again(root, local("r", **settings), random.Random(7))
    assert [row["state"] for row in leaderboard(root)] == ["completed", "diverged"]
    code, printed = resume_local(root).wait()
    assert code == 0
    assert "nothing is left to do" in printed


def renderers(sweep: Sweep | LocalSweep) -> list[psutil.Process]:
    children = psutil.Process(sweep.process.pid).children()
    return [child for child in children if "spawn_main" in title(child)]


@pytest.mark.slow
def test_a_killed_sweep_takes_the_processes_that_render_with_it(tmp_path: Path) -> None:
    many = ["--set", "data.train_images=200000", "--output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]
    sweep = Sweep("--name", "r", *many)
    wait_for(lambda: list((tmp_path / "cache").glob(".train*")))
    wait_for(lambda: renderers(sweep))
    below = sweep.family()
    sweep.kill()
    # Ray is starting meanwhile; two of its agents, so named once they are up, try for a minute to report its death.
    wait_for(lambda: not [child for child in below if child.is_running() and "Agent" not in title(child)], seconds=10)


@pytest.mark.slow
def test_a_killed_rendering_process_ends_the_sweep_with_a_sentence_and_it_goes_on(
    local: StartLocal, tmp_path: Path
) -> None:
    few = {"data__train_images": 4000, "training__epochs": 1, "search__trials": 1, "search__early_stopping": "none"}
    sweep = local("r", "--cache-dir", str(tmp_path / "cache"), **few)
    wait_for(lambda: list((tmp_path / "cache").glob(".train*")))
    wait_for(lambda: renderers(sweep))[-1].kill()
    code, printed = sweep.wait()
    assert code == 130, printed
    assert "a process that rendered images was killed" in printed
    assert "Traceback" not in printed
    code, printed = resume_local(tmp_path / "r").wait()
    assert code == 0, printed
    assert not list((tmp_path / "cache").glob(".*"))


class SmallDisk:
    """A file system of some megabytes in a mount namespace of its own: root, or any user where the kernel lets users
    have namespaces. It goes with the process that holds it."""

    def __init__(self, place: Path, megabytes: int) -> None:
        mount = f"mount -t tmpfs -o size={megabytes}m tmpfs {place} && echo mounted && exec sleep 900"
        self._holder = subprocess.Popen(["unshare", "-rm", "sh", "-c", mount], stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "mounted\n"
        self.path = Path(f"/proc/{self._holder.pid}/root{place}")
        self._place = place

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        """`python -m sweep.run` where the disk is seen at the given place."""
        enter = ["nsenter", "-t", str(self._holder.pid), "-U", "-m", "--preserve-credentials", f"--wd={os.getcwd()}"]
        command = [*enter, sys.executable, "-m", "sweep.run", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def fill(self) -> Path:
        path = self.path / "filler"
        with path.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 65536)
        assert shutil.disk_usage(self.path).free == 0
        return path

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    small = SmallDisk(tmp_path / "disk", megabytes=64)
    yield small
    small.close()


@pytest.mark.namespaces
@pytest.mark.parametrize("mode", ["--local", "--verbose"], ids=["local", "Ray"])
def test_on_a_full_disk_it_stops_with_a_sentence_and_goes_on_when_there_is_room(
    disk: SmallDisk, arguments: Callable[..., list[str]], tmp_path: Path, mode: str
) -> None:
    few = {"search__trials": 2, "training__epochs": 8, "search__early_stopping": "none"}
    sweep = disk.run(*arguments("r", **few), "--output-dir", str(tmp_path / "disk"), mode)
    root = disk.path / "r"
    wait_for(lambda: saved(root, 2))
    filler = disk.fill()
    printed, _ = sweep.communicate(timeout=PATIENCE * 180)
    assert sweep.returncode == 130, printed
    assert "Traceback" not in printed
    assert "no space is left on the disk" in printed
    assert "--resume" in printed
    for events in root.glob("tensorboard/*/events.*"):
        EventAccumulator(str(events)).Reload()
    filler.unlink()
    sweep = disk.run("--resume", str(tmp_path / "disk" / "r"), mode)
    printed, _ = sweep.communicate(timeout=PATIENCE * 120)
    assert sweep.returncode == 0, printed
    assert {(row["state"], row["epochs"]) for row in leaderboard(root)} == {("completed", "8")}
    assert_curves_without_scars(root)


@pytest.mark.namespaces
def test_images_that_do_not_fit_on_the_disk_are_told_in_a_sentence(
    disk: SmallDisk, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    large = arguments("r", data__train_images=30_000)
    sweep = disk.run(*large, "--cache-dir", str(tmp_path / "disk" / "cache"), "--local")
    printed, _ = sweep.communicate(timeout=PATIENCE * 180)
    assert sweep.returncode == 130, printed
    assert "Traceback" not in printed
    assert "no space is left on the disk" in printed
    assert list((disk.path / "cache").glob("*.pool")) == []


def test_wrong_uses_of_resume_are_answered_in_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from sweep.run import main

    (tmp_path / "empty").mkdir()
    for wrong, named in (
        (["--resume", str(tmp_path / "nowhere")], ["--resume", "nowhere", "sweep.yaml"]),
        (["--resume", str(tmp_path / "empty")], ["--resume", "empty", "sweep.yaml"]),
        (["--resume", str(tmp_path), "--set", "optimizer.lr=1"], ["--resume", "--set"]),
        (["--resume", str(tmp_path), "--name", "x"], ["--resume", "--name"]),
        (["--resume", str(tmp_path), "--trials", "0"], ["--resume", "sweep.yaml"]),
    ):
        assert main(wrong) == 2
        message = capfd.readouterr().err
        assert all(part in message for part in named), message
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_dry_run_tells_the_space_that_checkpoints_need(local: StartLocal, tmp_path: Path) -> None:
    code, printed = local("r", "--dry-run", **WHOLE).wait()
    assert code == 0
    told = re.search(r"resume from: ([\d.]+) MB.*\n.*stay: ([\d.]+) MB", printed)
    assert told is not None
    folder = cut_short(local, tmp_path / "s")
    two = sum(path.stat().st_size for path in sorted(folder.glob("epoch_*.pt"))[-2:])
    assert float(told[1]) * 1e6 == pytest.approx(two, rel=0.5, abs=1e5)
    assert float(told[2]) * 1e6 == pytest.approx(2 * (folder / "best.pt").stat().st_size, rel=0.5, abs=1e5)


def test_one_command_starts_a_sweep_and_once_more_says_that_it_has_ended(local: StartLocal, tmp_path: Path) -> None:
    few = {"search__trials": 1, "training__epochs": 1}
    for said in ("0000 completed", "all trials of this sweep have ended"):
        code, printed = local("r", "--resume", **few).wait()
        assert code == 0, printed
        assert said in printed
    assert len(leaderboard(tmp_path / "r")) == 1


@pytest.mark.slow
def test_one_command_starts_a_sweep_goes_on_with_it_after_each_kill_and_says_that_it_has_ended(
    local: StartLocal, whole: Path, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    (root / "ray").mkdir(parents=True)  # what a start leaves that was killed before it wrote sweep.yaml
    (root / ".sweep.yaml.0123").write_text("format:")
    for is_reached in (
        (root / "sweep.yaml").exists,
        lambda: saved(root, 2, "0000*"),
        lambda: saved(root, 1, "0001*"),
    ):
        sweep = local("r", "--resume", **WHOLE)
        wait_for(is_reached)
        sweep.kill()
    code, printed = local("r", "--resume", **WHOLE).wait()
    assert code == 0, printed
    assert decided(root) == decided(whole)
    assert curves(root) == curves(whole)
    code, printed = local("r", "--resume", **WHOLE).wait()
    assert code == 0
    assert "all trials of this sweep have ended" in printed
    code, printed = local("r", "--resume", "--trials", "3", **WHOLE).wait()
    assert code == 0, printed
    assert len(leaderboard(root)) == 3


@pytest.mark.slow
def test_an_ended_sweep_that_is_started_again_has_the_exit_code_of_its_trials(
    local: StartLocal, tmp_path: Path
) -> None:
    settings = {"search__space": "{network.encoder.size: {grid: [8, 1000000000]}}", "search__searcher": "grid"}
    for options in ([], [], ["--retry-failed"]):
        output = (tmp_path / "r.txt").read_text() if (tmp_path / "r.txt").exists() else ""
        code, printed = local("r", "--resume", *options, **settings, training__epochs=1).wait()
        assert code == 1, printed
    assert printed.removeprefix(output).count("0001 failed") == 1  # it ran again, for --retry-failed


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--set", "training.epochs=6"], ["training.epochs"]),
        (["--set", "search.seed=1", "--set", "data.seed=2"], ["search.seed", "data.seed"]),
        (["--trial", "optimizer.lr=1e-3"], ["search.space", "search.searcher"]),
        (["--config", "captcha_break"], [" more "]),
    ],
)
def test_a_name_that_has_begun_with_other_settings_is_refused_with_the_keys_that_differ(
    local: StartLocal, tmp_path: Path, changed: list[str], named: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    from sweep.run import main

    root = tmp_path / "r"
    root.mkdir()
    begun = load(QUICKSTART, {**TINY, **UNCONFIRMED})
    (root / "sweep.yaml").write_text(begun.yaml)
    command = ["--name", "r", "--resume", "--output-dir", str(tmp_path), *sets({**TINY, **UNCONFIRMED})]
    assert main([*command, *changed]) == 2
    message = capfd.readouterr().err
    assert message.startswith("--resume: ")
    assert message.count("\n") == 1
    assert all(key in message for key in [*named, "sweep.yaml"])
    assert "data.cache" not in message
    assert [path.name for path in root.iterdir()] == ["sweep.yaml"]


def test_a_sweep_that_runs_is_not_started_a_second_time_by_its_own_command(
    local: StartLocal, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    long = {"training__epochs": 50, "search__early_stopping": "none"}
    first = local("r", "--resume", **long)
    wait_for(lambda: saved(tmp_path / "r", 1))
    code, printed = LocalSweep(tmp_path / "second.txt", *arguments("r", **long), "--resume").wait()
    assert code == 2
    assert "this sweep is running" in printed
    first.kill()


def test_a_folder_that_holds_no_sweep_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from sweep.run import main

    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("precious", "file"):
        assert main(["--name", name, "--resume", "--output-dir", str(tmp_path)]) == 2
        message = capfd.readouterr().err
        assert message.startswith(f"--name: must be a new one or that of a sweep, got '{name}'")
    assert [path.name for path in (tmp_path / "precious").iterdir()] == ["thesis.tex"]
    assert main(["--resume", "--output-dir", str(tmp_path)]) == 2
    assert "--name" in capfd.readouterr().err
