"""One trial, stepped by hand."""

import json
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from sqlalchemy import Engine, event

from model.data.pools import ensure_pools
from sweep.config import load
from sweep.config.workplace import Workplace
from sweep.execution import in_process
from sweep.execution.trial import Trial
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from sweep.tensorboard.event_file import scalars
from sweep.wording.faults import last_error, one_line, surroundings
from tests.conftest import QUICKSTART
from tests.processes import FORKS, TINY, UNCONFIRMED


@pytest.fixture
def trial(tmp_path: Path, cache: Path) -> Trial:
    return make(tmp_path, cache)


def make(root: Path, cache: Path) -> Trial:
    config = load(QUICKSTART, {**TINY, **UNCONFIRMED})
    ensure_pools(config, cache, workers=1)
    return Trial(config, Workplace(root, cache, threads=1, gpus=0), TrialRecord(0, "0000", {}))


def test_a_trial_waits_until_a_process_of_the_old_sweep_lets_go_of_it(trial: Trial) -> None:
    step = threading.Thread(target=trial.step)
    with trial.workplace.lock("0000"):
        step.start()
        step.join(1)
        assert step.is_alive()
        assert not trial.folder.exists()
    step.join(30)
    assert (trial.folder / "epoch_0001.pt").exists()
    trial.close()


def test_a_trial_says_in_what_share_of_the_images_it_reads_nothing(trial: Trial) -> None:
    shares = []
    while not shares or shares[-1][0] == "running":
        result = trial.step()
        shares.append((result["state"], result["blank_share"]))
        if result["best_epoch"] == result["epochs"]:
            readings = torch.load(trial.folder / "best.pt")["readings"]
            assert result["blank_share"] == pytest.approx((readings == 0).all(dim=1).double().mean().item())
    trial.close()
    assert max(share for _, share in shares) > 0


def test_a_trial_computes_with_as_many_threads_as_it_was_allotted(tmp_path: Path, cache: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            (tmp_path / str(threads)).mkdir()
            trial = make(tmp_path / str(threads), cache)
            trial.workplace = replace(trial.workplace, threads=threads)
            torch.set_num_threads(3)
            assert trial.step()["state"] == "running"
            trial.close()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_what_a_trial_left_that_was_killed_as_it_began_is_its_own(trial: Trial) -> None:
    trial.folder.mkdir(parents=True)
    (trial.folder / ".config.yaml.tmp").write_text("cap")
    assert trial.step()["note"] is None
    trial.close()
    assert not (trial.workplace.root / "aside").exists()
    assert not list(trial.folder.glob(".*"))


def step_with_small_files(root: Path, cache: Path) -> None:
    trial = make(root, cache)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write past the limit fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    result = trial.step()
    trial.close()
    (root / "result.json").write_text(json.dumps(result))


@pytest.mark.slow
def test_a_disk_that_is_full_interrupts_a_trial_and_does_not_fail_it(tmp_path: Path, cache: Path) -> None:
    process = FORKS.Process(target=step_with_small_files, args=(tmp_path, cache))
    process.start()
    process.join(60)
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "state": "interrupted",
        "error": "no space is left on the disk",
    }
    trial = make(tmp_path, cache)
    assert trial.step()["epochs"] == 1
    trial.close()


@pytest.mark.slow
@pytest.mark.parametrize("write", range(0, 30, 6))
def test_an_interruption_during_a_write_to_the_study_waits_for_it_and_locks_nothing(trial: Trial, write: int) -> None:
    search = Search(trial.base, trial.workplace.root / "study.db")
    writes = iter(range(1000))

    def interrupt(connection: object) -> None:
        if next(writes) == write:
            signal.raise_signal(signal.SIGINT)

    event.listen(Engine, "commit", interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_process.run(search, lambda record: Trial(trial.base, trial.workplace, record), at_once=lambda: 1)
    finally:
        event.remove(Engine, "commit", interrupt)
    search.interrupt()
    again = Search(trial.base, trial.workplace.root / "study.db")
    assert again.records == search.records


def test_early_stopping_compares_the_averaged_weights_loss_at_rungs_and_nothing_else(trial: Trial) -> None:
    stopping = {"search.early_stopping": {"grace_epochs": 1, "reduction_factor": 2}}
    trial.base = load(QUICKSTART, {**TINY, **UNCONFIRMED, **stopping, "training.epochs": 4})
    results = [trial.step() for _ in range(4)]
    trial.close()
    assert [result["rung_score"] is not None for result in results] == [True, True, False, False]  # 4 is the end
    state = torch.load(trial.folder / "epoch_0003.pt", weights_only=True)
    assert state["average"]["updates"] == 3 * 6
    last = load(QUICKSTART, {**TINY, **UNCONFIRMED, "search.early_stopping": {"grace_epochs": 1, "weights": "last"}})
    other = Trial(last, trial.workplace, TrialRecord(1, "0001", {}))
    result = other.step()
    other.close()
    assert result["rung_score"] == pytest.approx(scalars(trial.workplace.logs("0001"))["epoch/loss"][0][1])
    assert result["rung_score"] != results[0]["rung_score"]


class Failing(torch.utils.data.Dataset[int]):
    def __init__(self, fail: Callable[[], object]) -> None:
        self.fail = fail

    def __getitem__(self, index: int) -> int:
        self.fail()
        return index

    def __len__(self) -> int:
        return 1


def fallen(fail: Callable[[], object]) -> BaseException:
    """What a DataLoader raises in whose worker process `fail` raises or ends the process."""
    with pytest.raises(Exception, match="DataLoader worker") as wrapped:
        next(iter(torch.utils.data.DataLoader(Failing(fail), num_workers=1)))
    return wrapped.value


def fail_with(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def fail_from_another() -> None:
    try:
        fail_with(KeyError("another"))()
    except KeyError as error:
        raise ValueError("the cause\n  in detail\nin three lines") from error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "line"),
    [
        (fail_with(RuntimeError("the cause")), "RuntimeError: the cause"),
        (fail_with(RuntimeError("the cause\nin two lines\n\n")), "RuntimeError: the cause in two lines"),
        (
            fail_with(RuntimeError("Error(s) in loading:\n\tfc.bias is missing")),
            "RuntimeError: Error(s) in loading: fc.bias is missing",
        ),
        (fail_from_another, "ValueError: the cause in detail in three lines"),
        (fail_with(ValueError()), "ValueError"),
        (lambda: eval("("), "SyntaxError: '(' was never closed"),
        (lambda: Image.open(Path(__file__)), "PIL.UnidentifiedImageError: cannot identify image file"),
    ],
)
def test_an_error_in_another_process_is_told_by_its_cause(fail: Callable[[], object], line: str) -> None:
    assert one_line(fallen(fail)).startswith(line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (fail_with(OSError(28, "No space left on device", "/x")), "no space is left on the disk"),
        (fail_with(OSError(5, "Input/output error", "/x")), "the disk answered with an input/output error: /x"),
        (fail_with(FileNotFoundError("/x: the image pool is missing")), "FileNotFoundError: /x: the image pool is"),
        (fail_with(MemoryError()), "memory ran out"),
        (
            fail_with(RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left (28)")),
            "shared memory ran out: a container's --shm-size, or resources.cpus: 1, helps",
        ),
        (
            fail_with(RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")),
            "shared memory ran out: a container's --shm-size, or resources.cpus: 1, helps",
        ),
        (
            lambda: os.kill(os.getpid(), signal.SIGBUS),
            "shared memory ran out: a container's --shm-size, or resources.cpus: 1, helps",
        ),
    ],
)
def test_a_fault_of_the_surroundings_in_another_process_is_told_as_one(fail: Callable[[], object], words: str) -> None:
    assert str(surroundings(fallen(fail))).startswith(words)


@pytest.mark.parametrize("fail", [fail_with(OSError(12, "Cannot allocate memory")), fail_with(RuntimeError("a bug"))])
def test_what_a_trial_itself_asked_for_is_no_fault_of_the_surroundings(fail: Callable[[], object]) -> None:
    assert surroundings(fallen(fail)) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("a bug"), None),
        (ZeroDivisionError(), None),
        (RuntimeError("a library's own error"), "no space is left on the disk"),
    ],
)
def test_a_mistake_while_a_full_disk_is_handled_is_no_full_disk(error: Exception, words: str | None) -> None:
    error.__context__ = OSError(28, "No space left on device")  # as Python sets it in an `except` block
    assert surroundings(error) == words


def test_a_killed_loading_process_is_told_by_its_signal() -> None:
    line = one_line(fallen(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert line.startswith("RuntimeError: DataLoader worker")
    assert line.endswith("is killed by signal: Killed.")


def test_an_error_of_the_trial_itself_is_told_whole() -> None:
    assert one_line(ValueError("first\n  second")) == "ValueError: first second"
    assert one_line(KeyError()) == "KeyError: "
    assert len(one_line(ValueError("x" * 1000))) < 320


def test_a_lost_process_is_told_by_the_last_lines_of_rays_report() -> None:
    report = (
        "The actor died unexpectedly.\n\tclass_name: RayTrial\n\tpid: 7\nThe actor is dead because it was killed.\n"
    )
    assert last_error(report) == "The actor is dead because it was killed."
    stack = 'Traceback (most recent call last):\n  File "x.py", line 7, in f\n    g()\nValueError: the cause\n'
    assert last_error(stack + report) == "The actor is dead because it was killed."
    assert last_error(f"ray::step()\n{stack}  in detail") == "ValueError: the cause in detail"


def test_on_another_machine_a_trial_renders_the_images_that_this_one_lacks(tmp_path: Path) -> None:
    config, images = load(QUICKSTART, {**TINY, **UNCONFIRMED}), tmp_path / "images"
    place = Workplace(tmp_path, images, threads=1, gpus=0)
    alone, elsewhere = (
        Trial(config, each, TrialRecord(0, "0000", {})) for each in (place, replace(place, elsewhere=True))
    )
    assert alone.step()["state"] != "running"
    alone.close()
    assert elsewhere.step()["state"] == "running"
    elsewhere.close()
    assert sorted(path.name.partition("-")[0] for path in images.glob("*.pool")) == ["train", "valid"]
