"""`--tensorboard`: the page, on this machine's own address, for as long as the sweep runs."""

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


class TensorBoard:
    """Raises OSError if the page does not come up within a minute."""

    def __init__(self, logdir: Path, port: int = 6006) -> None:
        self.port = port if _is_free(port) else _any_free()
        self.address = f"http://127.0.0.1:{self.port}"
        _open_many_files()
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), "--reload_interval", "5"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the sweep's to handle
        )

    def wait_until_up(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(self.address, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        self.close()
        raise OSError(f"TensorBoard did not start on {self.address}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _open_many_files() -> None:
    """TensorBoard keeps a file open for each run; the usual limit of 1,024 would hide trials without a word."""
    try:
        import resource
    except ImportError:  # not on Windows, where there is no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
