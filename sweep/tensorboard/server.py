"""`--tensorboard`: serves a sweep's TensorBoard on 127.0.0.1 for as long as the sweep runs.

Run as a program, this file is the server: TensorBoard in a process that prints its address once it has bound a port,
and that ends when its standard input closes, which the kernel does however the sweep ends.
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
_PATIENCE = 2.0  # seconds that the server has to end


class TensorBoard:
    """Starts the server and returns at once; a thread then calls `up(address)` when the server answers, and
    `lost(reason)` if it ends before `close`."""

    def __init__(self, logdir: Path, up: Callable[[str], None], lost: Callable[[str], None]) -> None:
        self._up, self._lost = up, lost
        self._settled, self._closing = threading.Event(), False
        self._address: str | None = None
        self._process = subprocess.Popen(
            # Without -P, `import tensorboard` in it would find sweep/tensorboard/writers.py.
            [sys.executable, "-P", __file__, str(logdir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A group of its own: Ctrl-C is the sweep's to handle. In the sweep's session: what is left of the group
            # when its leader or the sweep has ended is woken and hung up by the kernel, even if it was stopped.
            process_group=0,
        )
        self._thread = threading.Thread(target=self._watch, name="tensorboard", daemon=True)
        self._thread.start()

    def address(self, seconds: float = 60) -> str | None:
        """Where it answers, once it does; None if it has ended or does not answer in time."""
        self._settled.wait(seconds)
        return self._address

    def ended(self, within: float) -> bool:
        """Whether it has ended, or does within so many seconds."""
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
        """Ends the server, within twice `_PATIENCE`: by closing its input, or by SIGKILL if it does not read it."""
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
    # Copied, so that TensorBoard's data server, a child, does not hold it open.
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
        os.wait()  # for the data server, without which the pages stay empty
        print("its data server has ended", file=told, flush=True)
        sys.exit(1)
    except ChildProcessError:  # it has none on systems for which none is built
        threading.Event().wait()


def _launched(logdir: str) -> str:
    """The address of a TensorBoard that runs in a thread of this process."""
    from tensorboard import program

    def server(app: Any, flags: Any) -> Any:
        try:
            return program.WerkzeugServer(app, flags)
        except (program.TensorBoardPortInUseError, SystemExit):  # Werkzeug's, if the port was taken a moment ago
            flags.port = 0  # any that is free
            return program.WerkzeugServer(app, flags)

    board = program.TensorBoard(server_class=server)
    options = {"--logdir": logdir, "--host": "127.0.0.1", "--port": str(_PORT), "--reload_interval": "5"}
    board.configure(argv=["", *(word for option in options.items() for word in option)])
    return str(board.launch()).rstrip("/")


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)  # lets TensorBoard remove its temporary folder, if it is just starting
    time.sleep(_PATIENCE / 2)
    os._exit(0)


def _open_many_files() -> None:
    """TensorBoard keeps a file open for each run; the usual limit of 1,024 would hide trials without a word."""
    try:
        import resource
    except ImportError:  # not on Windows, where there is no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    _serve(sys.argv[1])
