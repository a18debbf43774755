"""`--tensorboard`: serves a sweep's TensorBoard on 127.0.0.1 for as long as the sweep runs.

Run as a program, this file is the server process. It prints its address once it has bound a port, and ends when its
standard input closes: the kernel closes that pipe even if the sweep is killed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_PORT = 6006  # TensorBoard's own default
_PATIENCE = 2.0  # seconds that the server gets to shut down


class TensorBoard:
    """Starts the server process and returns at once. A thread calls `up(address)` when the server has bound its port,
    and `lost(reason)` if it ends before `close`."""

    def __init__(self, logdir: Path, up: Callable[[str], None], lost: Callable[[str], None]) -> None:
        self._up, self._lost = up, lost
        self._settled, self._closing = threading.Event(), False
        self._address: str | None = None
        self._process = subprocess.Popen(
            # -P keeps this folder out of sys.path, where its modules could shadow others.
            [sys.executable, "-P", __file__, str(logdir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A process group of its own keeps Ctrl-C from the server. It stays in the sweep's session: when the group
            # is orphaned, the kernel sends its stopped members SIGHUP and SIGCONT, so they end as well.
            process_group=0,
        )
        self._thread = threading.Thread(target=self._watch, name="tensorboard", daemon=True)
        self._thread.start()

    def address(self, seconds: float = 60) -> str | None:
        """Waits for the server's address; None if the server has ended or does not answer in time."""
        self._settled.wait(seconds)
        return self._address

    def ended(self, within: float) -> bool:
        """Whether the server has ended, or does so within `within` seconds."""
        self._thread.join(within)
        return not self._thread.is_alive()

    def _watch(self) -> None:
        assert self._process.stdout is not None
        reason = ""
        for line in self._process.stdout:
            if line.startswith("http://"):
                self._address = line.strip()
                self._settled.set()
                self._up(self._address)
            else:
                reason = line.strip()
        self._address = None
        self._settled.set()
        code = self._process.wait()
        if not self._closing:
            self._lost(reason or (f"killed by signal {-code}" if code < 0 else f"exit code {code}"))

    def close(self) -> None:
        """Ends the server within twice `_PATIENCE`: closes its standard input, then kills it if that has no effect."""
        assert self._process.stdin is not None
        self._closing = True
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._thread.join(_PATIENCE)


def _serve(logdir: str) -> None:
    # A duplicate, which children don't inherit: otherwise TensorBoard's data server would keep the pipe open.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    threading.Thread(target=_end_with_input, daemon=True).start()
    _open_many_files()
    try:
        print(_launched(logdir), file=told, flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=told, flush=True)
        sys.exit(1)
    try:
        os.wait()  # until the data server ends: without it the pages are empty
        print("its data server has ended", file=told, flush=True)
        sys.exit(1)
    except ChildProcessError:  # there is no data server for this platform
        threading.Event().wait()


def _launched(logdir: str) -> str:
    """Starts TensorBoard in a thread of this process and returns its address."""
    from tensorboard import program

    def server(app: Any, flags: Any) -> Any:
        try:
            return program.WerkzeugServer(app, flags)
        except (program.TensorBoardPortInUseError, SystemExit):  # SystemExit: Werkzeug lost a race for the port
            flags.port = 0  # any free port
            return program.WerkzeugServer(app, flags)

    board = program.TensorBoard(server_class=server)
    options = {"--logdir": logdir, "--host": "127.0.0.1", "--port": str(_PORT), "--reload_interval": "5"}
    board.configure(argv=["", *(word for option in options.items() for word in option)])
    return str(board.launch()).rstrip("/")


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)  # the handler's SystemExit lets TensorBoard remove its temporary folder
    time.sleep(_PATIENCE / 2)
    os._exit(0)


def _open_many_files() -> None:
    """Raises the limit of open files to its maximum. TensorBoard keeps one file open per run; at the usual limit of
    1,024 it silently leaves out trials."""
    try:
        import resource
    except ImportError:  # not on Windows, where there is no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    _serve(sys.argv[1])
