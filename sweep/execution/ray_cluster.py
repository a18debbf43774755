"""The Ray cluster of a sweep, its own or one that it joins: threads start or join, watch and leave it, while the sweep
does other things."""

import gc
import os
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from model.system.streams import mute_libraries
from sweep.config import ConfigError
from sweep.execution import interrupts, ray_compat
from sweep.machine.private_folder import private_folder

ray_compat.import_ray()

import ray  # noqa: E402

from sweep.execution import ray_address  # noqa: E402, which imports Ray

_PATIENCE = 10.0  # seconds that Ray gets to shut down
_REFUSED, _SILENT = 2.0, 30.0  # seconds after which a server that refuses connections, or does not answer, is lost
_LONGEST_FOLDER = 107 - 68  # a Unix socket's path has at most 107 characters, of which Ray's part below takes 68


class RayLost(KeyboardInterrupt):
    """Ray did not start, or one of its essential processes ended. The message is a sentence for the terminal.

    A KeyboardInterrupt, because a signal handler raises it anywhere in the main thread, where `except Exception` must
    not catch it.
    """


class RayCluster(ABC):
    """Connects to Ray in a thread; `wait()` returns when it is up. Raises ConfigError where that can't be.

    One thread connects and disconnects, and lives in between. Another thread watches Ray, and raises RayLost in the
    main thread if it is lost before `wait()` or within `watched()`.
    """

    joined = False  # whether others have started it

    def __init__(self) -> None:
        self._up: Future[None] = Future()
        self._over = threading.Event()
        self._lost: str | None = None
        self._gave_up = threading.Event()  # set when Ray's C++ wanted to end the process
        self._muting = threading.Lock()
        self._unmute: Callable[[], None] | None = None
        self._starting, self._watched, self._giving_up = True, False, threading.Lock()
        with ExitStack() as closing:
            self._terminated = closing.enter_context(_signals_taken_by_a_thread())
            self._prepare(closing)
            self._closing = closing.pop_all()
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            signal.signal(signal.SIGUSR2, self._interrupt)
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, name="ray's processes", daemon=True).start()

    def wait(self) -> None:
        """Blocks until Ray is up. Raises RayLost if it does not start."""
        self._starting = False
        while not wait([self._up], timeout=0.1).done:
            self._raise_if_lost()
        if (error := self._up.exception()) is not None:
            self._raise_if_lost()
            raise self._not_up((str(error).strip().splitlines() or [type(error).__name__])[0]) from error

    @property
    def lost(self) -> str | None:
        """A sentence that says which essential part of Ray has ended, or None. After `stop()` it keeps its last value,
        because then all processes of a cluster of our own end."""
        if self._over.is_set():
            return self._lost
        return self._ended_part() or ("Ray has lost one of its processes" if self._gave_up.is_set() else None)

    def has_lost(self, node_id: str | None) -> bool:
        """Whether a node other than this machine has ended. Ray itself notices the loss of a process at once, but that
        of its node only seconds later, so the node's raylet is knocked at."""
        for node in ray.nodes() if self.joined else []:
            if node["NodeID"] == node_id:
                return not node["Alive"] or not _answers((node["NodeManagerAddress"], node["NodeManagerPort"]))
        return False

    @abstractmethod
    def _prepare(self, closing: ExitStack) -> None:
        """Checks what can be checked without Ray, when signals are already taken by their thread. What must be undone
        at the end is pushed onto `closing`. Raises ConfigError."""

    @abstractmethod
    def _connect(self) -> None:
        """Calls `ray.init`."""

    @abstractmethod
    def _not_up(self, reason: str) -> BaseException:
        """The exception for a `ray.init` that has failed."""

    @abstractmethod
    def _ended_part(self) -> str | None:
        """A sentence that names the essential part of Ray which has ended, or None."""

    @abstractmethod
    def _kill(self) -> None:
        """Kills the processes of a Ray that is lost or does not end, if they are ours."""

    def is_ending(self, within: float) -> bool:
        """Whether Ray is lost or SIGTERM has come, or does within `within` seconds. A trial whose process has died is
        then not to blame: SIGTERM may have been sent to all processes, and a raylet that gets it ends the trials'
        processes before itself.
        """
        deadline = time.monotonic() + within
        while not (ending := self._terminated.is_set() or self.lost is not None) and time.monotonic() < deadline:
            time.sleep(0.05)
        return ending

    @contextmanager
    def watched(self, give_up: Callable[[str], None]) -> Iterator[None]:
        """Raises RayLost in the block as soon as Ray is lost, and in place of Ray's own exceptions about that. If the
        block runs outside of the main thread, RayLost comes only when Ray itself notices. While Ray's C++ blocks the
        main thread to wait for a lost server, no exception can be raised: after three seconds a thread calls
        `give_up(reason)`, which must end the process."""
        self._give_up, self._watched = give_up, True
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self._watched = False
            if self.lost is not None:
                # Keeps Ray's objects in the error's frames alive: freeing them would wait for the lost server.
                self._kept = error
                gc.freeze()
            self._raise_if_lost()
            raise
        finally:
            self._watched = False
            with self._giving_up:  # if `give_up` is running, blocks until it ends the process
                pass
        self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if (lost := self.lost) is not None:
            self._mute()
            raise RayLost(lost)

    def _mute(self) -> None:
        """Discards what Ray's C++ prints: about its lost processes, of which the sweep tells in a sentence."""
        with self._muting:
            if self._unmute is None:
                self._unmute = mute_libraries()

    def _hear(self) -> None:
        """Lets Ray's C++ print again."""
        with self._muting:
            if self._unmute is not None:
                self._unmute()
                self._unmute = None

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
                # Frees unreferenced Ray objects now: freed while Ray shuts down or later, they could block or end
                # the process.
                gc.collect()
            self._over.set()

    def close(self) -> None:
        """Waits until Ray is down, or left, which takes one to four seconds. Kills the processes of a Ray of our own if
        it is lost, or not down after ten seconds."""
        self.stop()
        if self.lost is None:
            self._thread.join(_PATIENCE)
        if self._thread.is_alive() or self.lost is not None:
            self._kill()
        self._closing.close()

    def _live(self) -> None:
        ray_compat.silence_error_thread()
        ray_compat.keep_from_exiting(self._gave_up.set)
        self._mute()
        try:
            self._connect()
            self._up.set_result(None)
        except BaseException as error:
            self._up.set_exception(error)
        if self.lost is None:
            self._hear()
        self._over.wait()
        if self.lost is None:
            ray.shutdown()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            if (self._starting or self._watched) and (lost := self.lost) is not None:
                self._interrupt_caller(lost)

    def _interrupt_caller(self, lost: str) -> None:
        """Sends SIGUSR2, whose handler raises RayLost, up to three times: code may drop the exception, as Python does
        in finalisers. Calls `give_up` if the main thread does not react."""
        self._mute()
        for _ in range(3):
            if self._in_main_thread:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
            if self._over.wait(1) or not self._watched:
                return
        with self._giving_up:
            if self._watched:
                self._give_up(lost)


class OwnCluster(RayCluster):
    """Ray on this machine, started for this sweep.

    The thread that starts Ray lives as long as Ray does, because the kernel kills Ray's processes when the thread that
    started them ends (PR_SET_PDEATHSIG).
    """

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._processes: list[subprocess.Popen[bytes]] = []
        super().__init__()

    def _prepare(self, closing: ExitStack) -> None:
        _require_loopback()
        try:
            private = closing.enter_context(private_folder(_LONGEST_FOLDER))
        except OSError as error:
            place = "" if error.filename is None else f" in {error.filename!r}"
            raise ConfigError([f"TMPDIR: no folder for Ray{place}: {error.strerror or error}"]) from None
        self._folder = str(private / "ray")  # Ray gives it mode 0777

    def _connect(self) -> None:
        ray_compat.start_processes_with(self._start_process)
        ray.init(
            address="local",
            num_cpus=self._cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="CRITICAL",  # the sweep reports a lost process itself, in one line
            _temp_dir=self._folder,
        )

    def _not_up(self, reason: str) -> BaseException:
        return RayLost(f"Ray did not start: {reason}; --local does without Ray")

    def _ended_part(self) -> str | None:
        for process in self._processes:
            name = Path(process.args[0]).name  # type: ignore[arg-type, index]
            if name in ("gcs_server", "raylet") and process.poll() is not None:
                return f"Ray's own process {name} has ended"
        return None

    def _start_process(self, *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        """Starts one of Ray's processes.

        Each gets a session of its own, so that a signal to the sweep's process group (Ctrl-C) does not reach Ray, which
        the sweep needs until its trials have ended. The kernel still kills the process when the thread that started it
        ends.
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
        """Kills Ray's processes and all others in their sessions: also workers and agents whose parent has ended, and
        those that one of them starts meanwhile."""
        killed: set[int] = set()
        while living := self._members() - killed:
            for pid in living:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            killed |= living

    def _members(self) -> set[int]:
        """The processes in the sessions of Ray's own processes."""
        sessions, found = {process.pid for process in self._processes}, set()
        for pid in psutil.pids():
            with suppress(OSError):
                if os.getsid(pid) in sessions:
                    found.add(pid)
        return found


class JoinedCluster(RayCluster):
    """A Ray cluster that others have started, and that goes on when the sweep has ended. Raises ConfigError if it can't
    be joined."""

    joined = True

    def __init__(self, address: str) -> None:
        self.address = address
        self._gone: str | None = None
        super().__init__()

    def _prepare(self, closing: ExitStack) -> None:
        self.address, self._parts = ray_address.require_joinable(self.address)
        threading.Thread(target=self._knock, name="ray's servers", daemon=True).start()

    def _connect(self) -> None:
        ray.init(
            address=self.address,
            log_to_driver=False,
            logging_level="CRITICAL",
            runtime_env={"env_vars": ray_compat.OF_TRIALS},
        )

    def _not_up(self, reason: str) -> BaseException:
        return ConfigError([f"--address: the Ray cluster at {self.address} cannot be joined: {reason}"])

    def _ended_part(self) -> str | None:
        return self._gone

    def _kill(self) -> None:
        """Does nothing: the processes belong to others."""

    def _knock(self) -> None:
        """Connects to the cluster's server (GCS) and to this machine's raylet each second, because Ray's C++ does not
        say that they are gone until it ends the process."""
        answered = dict.fromkeys(self._parts, time.monotonic())
        while not self._over.wait(1):
            for part, name in self._parts.items():
                try:
                    socket.create_connection(part, timeout=5).close()
                    answered[part] = time.monotonic()
                except OSError as error:
                    refused = isinstance(error, ConnectionRefusedError)
                    if time.monotonic() - answered[part] > (_REFUSED if refused else _SILENT):
                        self._gone = f"{name} {'has ended' if refused else 'does not answer any more'}"


@contextmanager
def _signals_taken_by_a_thread() -> Iterator[threading.Event]:
    """Blocks SIGTERM and the other signals that raise KeyboardInterrupt here, and receives them in a thread
    (`sigwait`), which sends SIGUSR1 to raise KeyboardInterrupt. Yields an event that is set when a signal has come.

    The reason: Ray's C++ installs handlers of SIGTERM that end the process, both when it starts and when it ends. A
    signal that is blocked in all threads runs no handler. Must be entered by the main thread before it starts other
    threads, which inherit its signal mask; elsewhere it does nothing.
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
        # Only the main thread can install handlers. Another thread comes here only to end the process.
        if threading.current_thread() is threading.main_thread():
            for number in numbers:  # installs Python's handlers again in place of those that Ray's C++ left
                signal.signal(number, signal.getsignal(number))
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            signal.signal(signal.SIGUSR1, usual)


def _answers(place: tuple[str, int]) -> bool:
    with suppress(OSError):
        socket.create_connection(place, timeout=2).close()
        return True
    return False


def _require_loopback() -> None:
    """Raises ConfigError if connections to 127.0.0.1 fail, for which Ray would retry for half a minute."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError([f"Ray needs the address 127.0.0.1: {reason}; use --local, which does without Ray"]) from None
