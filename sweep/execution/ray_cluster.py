"""A Ray of our own on this machine, started, watched and stopped while the sweep does other things."""

import fcntl
import gc
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from sweep.config import ConfigError
from sweep.execution import interrupts, ray_compat

ray_compat.set_environment()

import ray  # noqa: E402, which reads the environment that was set

_PATIENCE = 10.0  # seconds that Ray has to end
_SESSION = re.compile("[0-9a-f]{8}")
_LONGEST_FOLDER = 107 - 64  # Ray's sockets lie 64 characters below, and a socket's path has at most 107


class RayLost(KeyboardInterrupt):
    """Ray did not start, or lost a process that it can't do without. The text is a sentence for the terminal.

    Like Ctrl-C it may be raised anywhere in the main thread, and what catches all exceptions must let it through.
    """


class RayCluster:
    """Starts Ray in a thread; `wait()` returns when it is up. One thread starts and stops Ray, for the kernel ends
    Ray's processes with the thread that started them. Another watches them, and raises RayLost in the main thread if
    they end before `wait()` or while `watched()`. Raises ConfigError where Ray can't run."""

    def __init__(self, cpus: int) -> None:
        _require_loopback()
        self._cpus = cpus
        self._processes: list[subprocess.Popen[bytes]] = []
        self._up: Future[None] = Future()
        self._over = threading.Event()
        self._lost: str | None = None
        self._muted = False
        self._starting, self._watched, self._giving_up = True, False, threading.Lock()
        self._closing = ExitStack()
        self._folder = self._closing.enter_context(_session_folder())
        self._terminated = self._closing.enter_context(_signals_taken_by_a_thread())
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            signal.signal(signal.SIGUSR2, self._interrupt)
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, name="ray's processes", daemon=True).start()

    def wait(self) -> None:
        """Raises RayLost if Ray does not start."""
        self._starting = False
        while not wait([self._up], timeout=0.1).done:
            self._raise_if_lost()
        if (error := self._up.exception()) is not None:
            self._raise_if_lost()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RayLost(f"Ray did not start: {reason}; --local does without Ray") from error

    @property
    def lost(self) -> str | None:
        """Which of the processes that Ray can't do without has ended, before `stop()` ended them all."""
        if self._over.is_set():
            return self._lost
        for process in self._processes:
            name = Path(process.args[0]).name  # type: ignore[arg-type, index]
            if name in ("gcs_server", "raylet") and process.poll() is not None:
                return f"Ray's own process {name} has ended"
        return None

    def is_ending(self, within: float) -> bool:
        """Whether Ray is lost or SIGTERM came, perhaps to all processes, or does `within` so many seconds: a trial that
        loses its own process is then not to blame. A raylet that got SIGTERM ends the trials' processes before itself.
        """
        deadline = time.monotonic() + within
        while not (ending := self._terminated.is_set() or self.lost is not None) and time.monotonic() < deadline:
            time.sleep(0.05)
        return ending

    @contextmanager
    def watched(self, give_up: Callable[[str], None]) -> Iterator[None]:
        """Raises RayLost as soon as Ray is lost (outside of the main thread: when Ray notices), and instead of whatever
        Ray itself raises then. Where Ray's C++ waits for its lost server, nothing can be raised: a thread then calls
        `give_up` with the reason, which has to end the process."""
        self._give_up, self._watched = give_up, True
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self._watched = False
            if self.lost is not None:
                # Ray's objects in the frames of the error: freeing them would wait for the lost server.
                self._kept = error
                gc.freeze()
            self._raise_if_lost()
            raise
        finally:
            self._watched = False
            with self._giving_up:  # if `give_up` was called, it ends the process
                pass
        self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if (lost := self.lost) is not None:
            self._mute()
            raise RayLost(lost)

    def _mute(self) -> None:
        """Gives what Ray's C++ prints about its lost processes to nobody: it writes to file descriptor 2, from which
        Python's `sys.stderr` moves away."""
        stream = sys.stderr
        if self._muted or stream is not sys.__stderr__ or stream is None:
            return
        self._muted = True
        with suppress(OSError):
            stream.flush()
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)

    def _interrupt(self, number: int, frame: object) -> None:
        if self._starting or self._watched:
            self._starting = False
            self._raise_if_lost()

    def stop(self) -> None:
        """Starts shutting Ray down and returns; `close()` waits until it is down."""
        self._starting = False
        if not self._over.is_set():
            self._lost = self.lost
            if self._lost is None:
                # What Ray gave and nobody holds any more: freed while Ray ends or later, it could block or end the
                # process.
                gc.collect()
            self._over.set()

    def close(self) -> None:
        """Ray takes one to four seconds. If it is lost or stuck, its processes are killed."""
        self.stop()
        if self.lost is None:
            self._thread.join(_PATIENCE)
        if self._thread.is_alive() or self.lost is not None:
            self._kill()
        self._closing.close()

    def _live(self) -> None:
        ray_compat.start_processes_with(self._start_process)
        ray_compat.silence_error_thread()
        try:
            ray.init(
                address="local",
                num_cpus=self._cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="CRITICAL",  # a lost process is told in a line of our own
                _temp_dir=self._folder,
            )
            self._up.set_result(None)
        except BaseException as error:
            self._up.set_exception(error)
        self._over.wait()
        if self.lost is None:
            ray.shutdown()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            if (self._starting or self._watched) and (lost := self.lost) is not None:
                self._interrupt_caller(lost)

    def _interrupt_caller(self, lost: str) -> None:
        """Repeats the signal, because what its handler raises may fall into code that drops it."""
        self._mute()
        for _ in range(3):
            if self._in_main_thread:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
            if self._over.wait(1) or not self._watched:
                return
        with self._giving_up:
            if self._watched:
                self._give_up(lost)

    def _start_process(self, *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        """Starts one of Ray's processes.

        Each gets a session of its own: signals to the process group of the sweep then reach only the sweep, which needs
        Ray until it has ended its trials. The kernel still ends them with the thread that started them.
        """
        ask_kernel = options["preexec_fn"]

        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})
            ask_kernel()

        environment = {**options["env"], "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
        options |= {"env": environment, "preexec_fn": prepare, "start_new_session": True}
        process = subprocess.Popen[bytes](*arguments, **options)
        self._processes.append(process)
        return process

    def _kill(self) -> None:
        """Also kills workers and agents, whose own parent may have ended: they are in its session."""
        sessions = {process.pid for process in self._processes}
        for pid in psutil.pids():
            with suppress(OSError):
                if os.getsid(pid) in sessions:
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def _signals_taken_by_a_thread() -> Iterator[threading.Event]:
    """Blocks the signals that raise KeyboardInterrupt in this program, SIGTERM above all: a thread waits for them and
    sends SIGUSR1, which raises it too. Yields an event that is set when one has come.

    When Ray's C++ starts and when it ends, it installs handlers for SIGTERM that end the process. A signal that is
    blocked in all threads runs no handler. For the main thread, before it starts others, which inherit the block.
    """
    came, over = threading.Event(), threading.Event()
    numbers = {number for number in signal.valid_signals() if signal.getsignal(number) is interrupts.interrupt}
    if not numbers or threading.current_thread() is not threading.main_thread():
        yield came
        return

    def take() -> None:
        while True:
            signal.sigwait(numbers)
            if over.is_set():
                return
            came.set()
            os.kill(os.getpid(), signal.SIGUSR1)

    usual = signal.signal(signal.SIGUSR1, interrupts.interrupt)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    thread = threading.Thread(target=take, name="signals", daemon=True)
    thread.start()
    try:
        yield came
    finally:
        over.set()
        signal.pthread_kill(thread.ident or 0, min(numbers))
        thread.join()
        for number in numbers:  # Python's own handlers, instead of those that C++ has left
            signal.signal(number, signal.getsignal(number))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR1, usual)


def _require_loopback() -> None:
    """Raises ConfigError on a machine that can't talk to itself: Ray would try for half a minute."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError([f"Ray needs the address 127.0.0.1: {reason}; use --local, which does without Ray"]) from None


@contextmanager
def _session_folder() -> Iterator[str]:
    """A folder for Ray, removed at the end. What a killed sweep has left is removed by the next.

    Ray opens its folder to everybody (mode 0777), so that folder lies in one that only this user can enter. In it are
    folders that sweeps have made, each locked while its sweep lives; nothing else is ever removed. Raises ConfigError.
    """
    parent = Path(tempfile.gettempdir(), f"crnn-sweep-{os.geteuid()}")
    if len(str(parent / "12345678" / "ray")) > _LONGEST_FOLDER:
        parent = Path("/tmp", parent.name)
    with ExitStack() as closing:
        try:
            own = _make_session(parent, closing)
        except OSError as error:
            raise ConfigError([f"TMPDIR: no folder for Ray in {str(parent)!r}: {error.strerror or error}"]) from None
        yield str(own / "ray")


def _make_session(parent: Path, closing: ExitStack) -> Path:
    """Raises OSError."""
    while True:
        with suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        own = parent / secrets.token_hex(4)
        try:
            found = parent.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise PermissionError("it must be a folder of yours that nobody else may enter (mode 0700)")
            for left in parent.iterdir():
                if _SESSION.fullmatch(left.name):
                    with suppress(OSError), _locked(left):
                        shutil.rmtree(left, ignore_errors=True)
            own.mkdir(mode=0o700)
            lock = _locked(own)
            closing.callback(_remove, own)
            closing.enter_context(lock)
            return own
        except (FileNotFoundError, BlockingIOError):
            continue  # another sweep, which began or ended at this moment, has removed it


def _remove(own: Path) -> None:
    shutil.rmtree(own, ignore_errors=True)
    with suppress(OSError):  # another sweep's folder lies beside it
        own.parent.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Goes with the process that holds it. Raises OSError if another does, and if it is no folder."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()  # raises if it was removed before it was locked
        yield
    finally:
        os.close(file)
