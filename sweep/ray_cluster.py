"""A Ray of our own on this machine, started and stopped while the sweep does other things."""

import gc
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

# Ray reads these when it is imported. It listens on all interfaces, so only who has the token may talk to it.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "10"  # noqa: SIM112  # not a minute, when its own server was killed
# Ray's processes look for each other as long as by default, but fifty times as often: they all start at once.
os.environ["RAY_raylet_client_connect_timeout_milliseconds"] = "20"  # noqa: SIM112
os.environ["RAY_raylet_client_num_connect_attempts"] = "500"  # noqa: SIM112
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"

import ray
from filelock import FileLock

_TEMPORARY = "crnn-sweep-"
_PATIENCE = 10.0  # seconds that Ray has to end


class RayCluster:
    """Starts at once; `wait` until it is there. One thread starts Ray, waits and stops it, for the kernel ends Ray's
    processes with the thread that started them. Its sessions lie in a temporary folder that goes with it."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._there: Future[None] = Future()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Raises what kept Ray from starting."""
        self._there.result()

    def stop(self) -> None:
        """Begins to: `close` waits for it."""
        if not self._over.is_set():
            # What Ray gave and nobody holds any more: freed while Ray ends or later, it could block or end the process.
            gc.collect()
            self._over.set()

    def close(self) -> None:
        """Ray takes one to four seconds. Stuck, it ends with this process, its agents within a minute."""
        self.stop()
        self._thread.join(_PATIENCE)

    def _live(self) -> None:
        try:
            with _temporary_folder() as folder:
                try:
                    ray.init(
                        address="local",
                        num_cpus=self._cpus,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level="CRITICAL",  # a lost process is told in a line of our own
                        _temp_dir=folder,
                    )
                    self._there.set_result(None)
                    self._over.wait()
                finally:
                    ray.shutdown()
        except BaseException as error:
            if self._there.done():
                raise
            self._there.set_exception(error)


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """Removed at the end; one that a killed sweep has left, by the next sweep."""
    # Ray's sockets lie below it, and a socket's path has at most 107 characters.
    usual = tempfile.gettempdir()
    place = Path(usual if len(usual) <= 20 else "/tmp")
    for left in place.glob(f"{_TEMPORARY}*/"):
        with suppress(OSError), _removed_with_lock(left):  # one that is in use is locked
            pass
    with _removed_with_lock(place / f"{_TEMPORARY}{secrets.token_hex(4)}") as own:
        own.mkdir(mode=0o700)
        yield str(own)


@contextmanager
def _removed_with_lock(folder: Path) -> Iterator[Path]:
    """Raises TimeoutError if another process holds it."""
    lock = folder.with_suffix(".lock")
    with FileLock(lock, timeout=0):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
