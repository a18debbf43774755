"""However a sweep ends, it leaves what there is and the way on; parts of the report fail alone."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.training import checkpoints
from sweep.report import main as report
from sweep.run import main
from sweep.search.search import Search
from sweep.verdict.reporter import Reporter
from tests.conftest import REPOSITORY
from tests.processes import FORKS, PATIENCE, LocalSweep, StartLocal, resume_local, saved, wait_for
from tests.results import assert_curves_without_scars, leaderboard
from tests.test_resume import SmallDisk
from tests.test_trial import make

FEW = {"search__trials": 2, "training__epochs": 1, "search__early_stopping": "none"}
Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def ended(arguments_in: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two trials, to be copied."""
    folder = tmp_path_factory.mktemp("ended")
    sweep = LocalSweep(folder / "printed.txt", *arguments_in(folder, "r", **FEW))
    assert sweep.wait()[0] == 0, sweep.output.read_text()
    return folder / "r"


@pytest.fixture
def root(ended: Path, tmp_path: Path) -> Path:
    shutil.copytree(ended, tmp_path / "r", symlinks=True)
    return tmp_path / "r"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ZeroDivisionError("division by zero"), 70, "an error of this program: ZeroDivisionError: division by zero"),
        (SystemExit(1), 70, "an error of this program: SystemExit: 1"),
        (OSError(5, "Input/output error", "x"), 130, "the disk answered with an input/output error: x"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), 130, "no space is left on the disk"),
        (MemoryError(), 130, "memory ran out"),
    ],
)
def test_an_unexpected_end_leaves_the_winner_the_report_and_the_way_on(
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    ended = Reporter.ended

    def fall(reporter: Reporter, record: Any) -> None:
        ended(reporter, record)
        raise error

    monkeypatch.setattr(Reporter, "ended", fall)
    assert main([*arguments("r", **FEW), "--local"]) == code
    captured = capfd.readouterr()
    assert words in captured.out
    assert "to go on: python -m sweep.run --resume" in captured.out
    assert "Traceback" not in captured.out + captured.err
    root = tmp_path / "r"
    assert type(error).__name__ in (root / "sweep.log").read_text().partition("Traceback")[2]
    assert [row["state"] for row in leaderboard(root)] == ["completed"]
    for name in ("best.pt", "best.yaml", "report.html"):
        assert (root / name).exists()
    monkeypatch.undo()
    assert main(["--resume", str(root), "--local"]) == 0
    assert [row["state"] for row in leaderboard(root)] == ["completed", "completed"]


def test_an_error_before_there_is_a_sweep_is_a_sentence_too(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweep.execution.sweep.allot", lambda *_: 1 / 0)
    assert main([*arguments("r", **FEW), "--local"]) == 70
    message = capfd.readouterr().err
    kept = Path(message.strip().rpartition("its traceback is in ")[2])
    assert "ZeroDivisionError" in kept.read_text()
    kept.unlink()
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_without_symbolic_links_a_sweep_has_its_winner_and_its_report(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert main([*arguments("r", **FEW), "--local"]) == 0
    assert "top/ could not be made: the operation is not permitted" in capfd.readouterr().out
    for name in ("best.pt", "best.yaml", "report.html", "leaderboard.csv"):
        assert (tmp_path / "r" / name).exists()


@pytest.mark.parametrize(
    "part", ["sweep.verdict.verdict.holm", "sweep.verdict.pictures.worst_across", "sweep.verdict.page.Page.facts"]
)
def test_each_part_of_the_report_fails_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], part: str
) -> None:
    for name in ("best.pt", "leaderboard.csv"):
        (root / name).unlink()
    monkeypatch.setattr(part, lambda *_: 1 / 0)
    assert main(["--resume", str(root), "--local"]) == 70
    printed = capfd.readouterr().out
    assert "could not be made: an error of this program: ZeroDivisionError" in printed
    assert "Traceback" not in printed
    assert (root / "best.pt").exists()
    assert leaderboard(root)
    assert sorted((root / "top").iterdir())


def test_one_image_and_one_seed_are_enough_for_a_verdict(local: StartLocal, tmp_path: Path) -> None:
    one = {"data__test_images": 1, "data__valid_images": 1, "confirm": "{top: 2, seeds: 1}"}
    code, printed = local("r", **FEW, **one).wait()
    assert code == 0, printed
    assert "Warning" not in printed
    assert "(95 % interval 0.00 % to 100.00 %)" in printed
    assert (tmp_path / "r" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("deleted", "the image pool is missing or damaged"),
        ("replaced", "the image pool is missing or damaged"),
        ("unreadable", "the image pool is missing or damaged"),
        ("cut", ".pool was cut while it was read"),  # in place, so that reading its map raises SIGBUS
    ],
)
def test_images_that_go_while_a_sweep_runs_halt_it_and_fail_no_trial(
    arguments: Arguments, tmp_path: Path, harm: str, words: str
) -> None:
    cache, root = tmp_path / "cache", tmp_path / "r"
    long = {"search__trials": 2, "training__epochs": 4, "search__early_stopping": "none"}
    sweep = LocalSweep(tmp_path / "printed.txt", *arguments("r", **long), "--cache-dir", str(cache))
    wait_for(lambda: saved(root, 1, "0000*"))
    for pool in cache.glob("*.pool"):
        if harm == "cut":
            os.truncate(pool, 5000)
            continue
        pool.unlink()
        if harm == "replaced":
            pool.write_bytes(b"half")
        elif harm == "unreadable":
            pool.mkdir()
    code, printed = sweep.wait()
    assert code == 130, printed
    assert words in printed
    assert "to go on: python -m sweep.run --resume" in printed
    assert "failed" not in {row["state"] for row in leaderboard(root)}
    assert (root / "report.html").exists()
    for pool in cache.glob("*.pool/"):
        pool.rmdir()
    code, printed = resume_local(root).wait()
    assert code == 0, printed
    assert {(row["state"], row["epochs"]) for row in leaderboard(root)} == {("completed", "4")}
    assert_curves_without_scars(root)


def cut_and_fail_to_tell(arguments: list[str], cache: Path, output: Path) -> None:
    """A sweep whose pools are cut in place while a trial trains, and whose report then fails, too."""

    def cut(search: Search, number: int, result: dict[str, Any]) -> bool:
        for pool in cache.glob("*.pool"):
            os.truncate(pool, 5000)
        return True

    def fail(reporter: Reporter, search: Search) -> Any:
        raise ZeroDivisionError

    Search.report, Reporter.finish = cut, fail  # type: ignore[method-assign]
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        main(arguments)


def test_a_fault_in_the_last_words_of_a_sweep_is_told_too(arguments: Arguments, tmp_path: Path) -> None:
    cache, output = tmp_path / "cache", tmp_path / "printed.txt"
    command = [*arguments("r", **FEW | {"training__epochs": 3}), "--cache-dir", str(cache), "--local"]
    process = FORKS.Process(target=cut_and_fail_to_tell, args=(command, cache, output))
    process.start()
    process.join(PATIENCE * 60)
    assert process.exitcode == 130
    printed = output.read_text()
    assert ".pool was cut while it was read; an error of this program: ZeroDivisionError" in printed
    assert "to go on: python -m sweep.run --resume" in printed
    assert "ZeroDivisionError" in (tmp_path / "r" / "sweep.log").read_text().partition("Traceback")[2]


def step_with_few_descriptors(root: Path, cache: Path) -> None:
    trial = make(root, cache)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1, 4096))
    result = trial.step()
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
    (root / "result.txt").write_text(f"{result['state']}: {result.get('error')}")


def test_a_trial_without_file_descriptors_is_interrupted_and_not_failed(tmp_path: Path, cache: Path) -> None:
    process = FORKS.Process(target=step_with_few_descriptors, args=(tmp_path, cache))
    process.start()
    process.join(60)
    assert (tmp_path / "result.txt").read_text().startswith("interrupted: this process has too many files open")


def test_a_trial_that_asks_for_too_much_memory_is_still_failed(tmp_path: Path, cache: Path) -> None:
    trial = make(tmp_path, cache)
    trial.record = replace(trial.record, values={"network.encoder.size": 10**9})
    result = trial.step()
    trial.close()
    assert (result["state"], result["out_of_memory"]) == ("failed", True)


def test_failed_trials_stay_failed_until_they_are_retried(local: StartLocal, tmp_path: Path) -> None:
    root = tmp_path / "r"
    huge = {"search__space": "{network.encoder.size: {grid: [8, 1000000000]}}", "search__searcher": "grid"}
    assert local("r", **FEW, **huge).wait()[0] == 1
    code, printed = resume_local(root).wait()
    assert (code, "nothing is left to do" in printed) == (1, True), printed
    before = (root / "leaderboard.csv").read_text()
    code, printed = resume_local(root, "--retry-failed").wait()
    assert code == 1, printed
    assert printed.count("0001 failed") == 1 + 1  # in the first run, and again
    assert "0000 completed" not in printed.rpartition("nothing is left to do")[2].partition("rank")[0]
    assert [row["state"] for row in leaderboard(root)] == ["completed", "failed"]
    assert before.splitlines()[1] == (root / "leaderboard.csv").read_text().splitlines()[1]


@pytest.mark.parametrize("left", ["nothing", "the lock", "half of sweep.yaml"])
def test_a_folder_that_a_killed_start_left_does_not_block_its_name(
    local: StartLocal, tmp_path: Path, left: str
) -> None:
    (tmp_path / "r").mkdir()
    if left == "the lock":
        (tmp_path / "r" / "ray").mkdir()
        (tmp_path / "r" / "ray" / "sweep.lock").touch()
    elif left == "half of sweep.yaml":
        (tmp_path / "r" / ".sweep.yaml.0123456789abcdef.tmp").write_text("capt")
    code, printed = local("r", **FEW).wait()
    assert code == 0, printed
    assert not list((tmp_path / "r").glob(".*"))


def test_a_folder_that_holds_anything_keeps_its_name(
    arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for name in ("r", "file"):
        assert main([*arguments(name), "--local"]) == 2
        assert "exists already" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "r", "thesis.txt"]


@pytest.mark.parametrize("change", ["epochs: 1|epochs: 5", "valid_images: 40|valid_images: 41", "trials: 2|trials: 3"])
def test_a_changed_sweep_yaml_is_refused_unless_a_resume_can_honour_it(
    root: Path, capfd: pytest.CaptureFixture[str], change: str
) -> None:
    file = root / "sweep.yaml"
    old, new = change.split("|")
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    code = main(["--resume", str(root), "--local"])
    captured = capfd.readouterr()
    if "trials" in change:
        assert code == 0, captured
        assert len(leaderboard(root)) == 3
    else:
        assert code == 2, captured
        assert new.split(":")[0] in captured.err
        assert new in file.read_text()
        assert report([str(root)]) == 2


def test_a_resume_with_other_versions_says_so_in_a_line(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = root / "machine.json"
    text = file.read_text()
    assert all(f'"{name}"' in text for name in ("python", "torch", "optuna", "ray", "crnn-sweep", "cpus"))
    assert main(["--resume", str(root), "--local"]) == 0
    assert "began with" not in capfd.readouterr().out
    file.write_text(text.replace(torch.__version__.partition("+")[0], "1.0.0"))
    assert main(["--resume", str(root), "--local"]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "began with" in line]
    assert "torch 1.0.0" in line


@pytest.mark.parametrize(
    "name", ["ray", "top", "trials", "tensorboard", "sweep.log", "report.html", "best.pt", "study.db"]
)
def test_a_file_for_a_folder_or_a_folder_for_a_file_is_a_sentence(
    root: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    path = root / name
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    for command in (lambda: main(["--resume", str(root), "--local"]), lambda: report([str(root)])):
        assert command() == 2
        message = capfd.readouterr().err
        assert f"{path} must be a " in message
        assert "Traceback" not in message


def test_a_file_in_place_of_a_trials_folder_is_moved_aside(root: Path) -> None:
    (root / "trials").joinpath("0002_x").touch()
    assert main(["--resume", str(root), "--local", "--trials", "3", "--quiet"]) == 0
    third = max(row["trial"] for row in leaderboard(root))
    shutil.rmtree(root / "trials" / third)
    trial = next((root / "trials").glob("0000*"))
    shutil.rmtree(trial)
    trial.touch()
    assert main(["--resume", str(root), "--local", "--quiet"]) == 0
    assert {row["state"] for row in leaderboard(root)} == {"completed"}


READINGS = {
    "a text": "abc",
    "numbers": [1, 2, 3],
    "of other images": torch.zeros(7, 4, dtype=torch.uint8),
    "too short": torch.zeros(40, 1, dtype=torch.uint8),
    "floats": torch.full((40, 4), float("nan")),
    "no characters": torch.full((40, 4), 200, dtype=torch.uint8),
    "three dimensions": torch.zeros(40, 2, 2, dtype=torch.uint8),
    "none": torch.zeros(0, 0, dtype=torch.uint8),
}


@pytest.mark.parametrize("readings", READINGS)
def test_odd_readings_are_left_out_of_the_report(root: Path, readings: str) -> None:
    path = next(root.glob("trials/0000*/best.pt"))
    checkpoints.save(path, {**checkpoints.load(path), "readings": READINGS[readings]})
    assert report([str(root)]) == 0


@pytest.mark.parametrize("harm", ["log", "no log", "events", "fifo", "checkpoint"])
def test_odd_files_are_no_reason_for_a_traceback(root: Path, capfd: pytest.CaptureFixture[str], harm: str) -> None:
    if harm == "log":
        (root / "sweep.log").write_bytes(bytes(range(256)) * 40)
    elif harm == "no log":
        (root / "sweep.log").unlink()
    elif harm == "events":
        for events in root.glob("tensorboard/0000*/events.*"):
            events.write_bytes(os.urandom(3000))
    elif harm == "fifo":
        path = next(root.glob("trials/0000*/best.pt"))
        path.unlink()
        os.mkfifo(path)
    else:
        next(root.glob("trials/0000*/best.pt")).write_bytes(b"no checkpoint")
    code = report([str(root)])
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert code == 0, captured


@pytest.mark.slow
def test_a_script_without_a_main_guard_renders_once_and_ends_well(arguments: Arguments, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    options = [*arguments("r", **FEW), "--local", "--quiet", "--cache-dir", str(tmp_path / "cache")]
    script.write_text(f"import sys\nfrom sweep.run import main\nsys.exit(main({options!r}))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert done.stderr == ""
    assert done.stdout.count("best 0") == 1


@pytest.mark.slow
def test_a_profiler_around_a_local_sweep_writes_its_profile(arguments: Arguments, tmp_path: Path) -> None:
    import pstats

    profile = tmp_path / "profile"
    command = [sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "sweep.run"]
    subprocess.run([*command, *arguments("r", **FEW), "--local", "--quiet"], check=True, capture_output=True)
    assert any(file.endswith("in_process.py") for file, _, _ in pstats.Stats(str(profile)).stats)  # type: ignore[attr-defined]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    small = SmallDisk(tmp_path / "disk", megabytes=64)
    yield small
    small.close()


def inside(disk: SmallDisk, *command: str) -> None:
    enter = ["nsenter", "-t", str(disk._holder.pid), "-U", "-m", "--preserve-credentials"]
    subprocess.run([*enter, *command], check=True)


@pytest.mark.namespaces
def test_without_inodes_it_stops_with_a_sentence_and_goes_on_when_there_are_some(
    disk: SmallDisk, arguments: Arguments, tmp_path: Path
) -> None:
    place = tmp_path / "disk"
    inside(disk, "mount", "-o", "remount,nr_inodes=300", str(place))
    few = {"search__trials": 2, "training__epochs": 8, "search__early_stopping": "none"}
    sweep = disk.run(*arguments("r", **few), "--output-dir", str(place), "--local")
    root = disk.path / "r"
    wait_for(lambda: saved(root, 2), seconds=180)
    (disk.path / "fillers").mkdir()
    with suppress(OSError):
        for number in range(1000):
            (disk.path / "fillers" / str(number)).touch()
    printed, _ = sweep.communicate(timeout=PATIENCE * 120)
    assert sweep.returncode == 130, printed
    assert "Traceback" not in printed
    assert "no space is left on the disk" in printed
    assert "--resume" in printed
    shutil.rmtree(disk.path / "fillers")
    sweep = disk.run("--resume", str(place / "r"), "--local")
    printed, _ = sweep.communicate(timeout=PATIENCE * 240)
    assert sweep.returncode == 0, printed
    assert {(row["state"], row["epochs"]) for row in leaderboard(root)} == {("completed", "8")}


@pytest.mark.namespaces
def test_a_read_only_sweep_is_reported_and_not_resumed(disk: SmallDisk, ended: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    shutil.copytree(ended, disk.path / "r", symlinks=True)
    inside(disk, "mount", "-o", "remount,ro", str(place))
    sweep = disk.run("--resume", str(place / "r"), "--local")
    printed, _ = sweep.communicate(timeout=PATIENCE * 120)
    assert sweep.returncode == 2, printed
    assert len(printed.strip().splitlines()) == 1
    (tmp_path / "mine").mkdir()
    script = f"cd {tmp_path / 'mine'} && PYTHONPATH={REPOSITORY} {sys.executable} -m sweep.report {place / 'r'}"
    inside(disk, "sh", "-c", script)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["report-of-r.html"]
