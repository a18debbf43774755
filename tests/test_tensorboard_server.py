"""The server of `--tensorboard`: whose it is, how it ends, and what is said when it does."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sweep.tensorboard.server import TensorBoard
from sweep.tensorboard.sweep_writer import SweepWriter
from tests.board import Board
from tests.processes import Start, StartLocal, saved, title, wait_for

SLOW = pytest.mark.slow

HOLDS_A_SERVER = """
import sys, time
from pathlib import Path
from sweep.tensorboard.server import TensorBoard

board = TensorBoard(Path(sys.argv[1]), lambda address: print(address, flush=True), print)
time.sleep(60)
"""


class Told:
    """What a server's owner hears."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.reasons: list[str] = []


Serve = Callable[..., tuple[TensorBoard, Told]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started: list[TensorBoard] = []

    def make(logdir: Path = tmp_path) -> tuple[TensorBoard, Told]:
        told = Told()
        started.append(TensorBoard(logdir, told.addresses.append, told.reasons.append))
        return started[-1], told

    yield make
    for board in started:
        board.close()


def processes(board: TensorBoard) -> list[psutil.Process]:
    """The server and its data server."""
    server = psutil.Process(board._process.pid)
    return [server, *wait_for(server.children)]


def over(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stopped(process: psutil.Process) -> bool:
    return all(psutil.Process(thread.id).status() == psutil.STATUS_STOPPED for thread in process.threads())


def test_servers_that_start_at_once_have_an_address_each_and_show_their_own_runs(serve: Serve, tmp_path: Path) -> None:
    for name in "abc":
        SweepWriter(tmp_path / name / name, {}).best(1, 0.5)
    boards = {name: serve(tmp_path / name)[0] for name in "abc"}
    addresses = {name: board.address() for name, board in boards.items()}
    assert len(set(addresses.values())) == 3
    for name, address in addresses.items():
        assert address is not None
        page = Board(address)
        wait_for(page.runs, seconds=20)
        assert page.runs() == [name]


@pytest.mark.parametrize("seconds", [0.0, 0.7, 1.2, 1.6, None])
def test_a_killed_owner_takes_its_server_along_whenever_it_is_killed(tmp_path: Path, seconds: float | None) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_SERVER, str(tmp_path)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    (server,) = wait_for(psutil.Process(owner.pid).children)
    if seconds is None:
        assert owner.stdout.readline().startswith("http://127.0.0.1:")
        assert len(server.children()) == 1
    else:
        time.sleep(seconds)
    family = [server, *server.children()]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_for(lambda: all(map(over, family)), seconds=10)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("stopped", [[0], [1], [0, 1]], ids=["server", "data server", "both"])
def test_a_server_that_hangs_is_ended_all_the_same_and_soon(serve: Serve, stopped: list[int]) -> None:
    board, told = serve()
    assert board.address()
    family = processes(board)
    for index in stopped:
        family[index].suspend()
    begin = time.monotonic()
    board.close()
    assert time.monotonic() - begin < 15  # without SIGKILL it would wait for ever
    wait_for(lambda: all(map(over, family)), seconds=5)
    assert told.reasons == []  # it was asked to end


def test_a_stopped_server_ends_with_its_killed_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_SERVER, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline()
    owner.stdout.close()
    (server,) = psutil.Process(owner.pid).children()
    family = [server, *server.children()]
    for process in family:
        process.suspend()
    # The kernel wakes what is left of an orphaned group only if a process of it has stopped, with all its threads.
    wait_for(lambda: all(map(stopped, family)))
    owner.kill()
    owner.wait()
    wait_for(lambda: all(map(over, family)), seconds=10)


@pytest.mark.parametrize("index", [0, 1], ids=["server", "data server"])
def test_a_server_that_dies_is_told_and_has_no_address_any_more(serve: Serve, index: int) -> None:
    board, told = serve()
    assert board.address()
    processes(board)[index].kill()
    (reason,) = wait_for(lambda: told.reasons)
    assert reason == ["killed by signal 9", "its data server has ended"][index]
    assert board.address() is None


def test_a_server_that_cannot_start_says_why(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorboard.py").write_text("raise ImportError('broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    board, told = serve()
    assert board.address() is None
    wait_for(lambda: told.reasons)
    assert (told.addresses, told.reasons) == ([], ["ImportError: broken installation"])


def servers(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children()
    return [child for child in children if "tensorboard/server.py" in title(child)]


def test_a_sweep_tells_that_its_tensorboard_was_killed_and_goes_on(local: StartLocal, tmp_path: Path) -> None:
    sweep = local("r", "--tensorboard", training__epochs=2000, search__early_stopping="none", search__trials=1)
    wait_for(lambda: sweep.output.exists() and "TensorBoard is on http://127.0.0.1:" in sweep.output.read_text())
    (server,) = servers(sweep.process.pid)
    server.kill()
    wait_for(lambda: "TensorBoard has ended (killed by signal 9)" in sweep.output.read_text())
    known = set(tmp_path.glob("r/trials/*/epoch_*.pt"))
    wait_for(lambda: set(tmp_path.glob("r/trials/*/epoch_*.pt")) - known)
    os.kill(sweep.process.pid, signal.SIGTERM)
    code, printed = sweep.wait()
    assert code == 130, printed
    assert "then open http://127.0.0.1:6006/?" in printed.splitlines()[-1]  # where the command above it will serve


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_whose_tensorboard_hangs(start: Start, tmp_path: Path) -> None:
    sweep = start("r", "--tensorboard", training__epochs=2000, search__early_stopping="none")
    wait_for(lambda: saved(tmp_path / "r", 1))
    (server,) = servers(sweep.process.pid)
    server.suspend()
    sweep.press_ctrl_c()
    assert sweep.wait(20)[0] == 130
    wait_for(lambda: over(server), seconds=5)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["Ctrl-C", pytest.param("server", marks=SLOW), pytest.param("terminal", marks=SLOW)])
def test_on_a_terminal_the_server_outlasts_the_trials_until_somebody_ends_it(
    arguments: Callable[..., list[str]], tmp_path: Path, end: str
) -> None:
    words = [*arguments("r", search__trials=1, training__epochs=1), "--local", "--tensorboard"]
    ours, its = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-c", 'trap "" HUP; exec "$@"', "bash", sys.executable, "-m", "sweep.run", *words],
        preexec_fn=lambda: os.login_tty(its),
    )
    os.close(its)
    shown = b""
    while not (link := re.search(rb"stays until Ctrl-C on (http://[0-9.:]+)\S*timeseries", shown)):
        shown += os.read(ours, 1 << 16)
    page = Board(link[1].decode())
    wait_for(lambda: len(page.runs()) == 3, seconds=20)  # the sweep's, the trial's and its training set's
    (server,) = servers(process.pid)
    if end == "Ctrl-C":
        os.write(ours, b"\x03")
    elif end == "server":
        server.kill()
    else:
        os.close(ours)
    assert process.wait(20) == 0
    wait_for(lambda: over(server), seconds=5)
