"""`study.db`: the SQLite file that holds a sweep's Optuna study.

A sweep opens the file for writing. While another program holds a lock on it, the sweep waits for minutes instead of
SQLite's five seconds. On a network file system SQLite's locks may hang or fail: there a sweep works on a copy on its
own disk, which replaces the file after each decision. A report works on a copy in memory: it writes nothing and holds
no lock, so it works on a read-only folder and beside a running sweep.
"""

import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from optuna.storages import RDBStorage
from pydantic import ValidationError
from sqlalchemy.pool import QueuePool, StaticPool

from model.system.files import replace_file
from sweep.config import ConfigError
from sweep.wording import faults

_PATIENCE = 180.0  # seconds that a sweep waits for a program that has locked the file
_READERS_PATIENCE = 20.0  # seconds that a report waits
_QUIET = 5.0  # seconds of waiting before a line on the terminal says so

_JOURNALS = ("-journal", "-wal")  # what SQLite adds to the name

Tell = Callable[[str], None]
Answer = TypeVar("Answer")


class StudyError(OSError):
    """The file can't be read or written, for a reason outside of this program."""


class DamagedStudy(StudyError):
    """The file is not an SQLite database, or is damaged."""


def storage(path: Path, tell: Tell, working: Path | None = None) -> RDBStorage:
    """Optuna's storage in the file, which is created if no trial has begun; with `working`, in a copy of that name.
    Raises ConfigError if the file is damaged, or missing or empty while files of trials exist: a new study would train
    those trials again."""
    file = working or path
    for end in ("", *_JOURNALS):
        if working is not None and (part := path.with_name(path.name + end)).is_file():
            shutil.copyfile(part, working.with_name(working.name + end))
    if not _trials_have_begun(path.parent) and not (file.exists() and file.stat().st_size):
        replace_file(file.resolve(), _tables())
    patience = _Patience(file, _PATIENCE, tell)
    with _refused(path):
        if file.stat().st_size == 0:
            raise DamagedStudy(f"{path}: is empty")
        with closing(_connect(file, "rw", patience)) as connection:
            _require_whole(connection, path)
        engine = {"creator": lambda: _connect(file, "rw", patience), "poolclass": QueuePool}
        return RDBStorage("sqlite://", engine_kwargs=engine, skip_table_creation=True)


def copied(path: Path) -> RDBStorage:
    """Optuna's storage over an in-memory copy of the file. Raises ConfigError if the file is missing or damaged."""
    with _refused(path):
        if path.stat().st_size == 0:
            raise DamagedStudy(f"{path}: is empty")
        memory = _copy(path)
        engine = {"creator": lambda: memory, "poolclass": StaticPool}
        return RDBStorage("sqlite://", engine_kwargs=engine, skip_table_creation=True)


def snapshot(path: Path) -> bytes:
    """The contents of the file at a moment between two changes, also while a sweep writes to it.

    SQLite reads them: a plain `open` and `close` would drop the locks that SQLite holds on the file in this process.
    """
    patience = _Patience(path, _READERS_PATIENCE, lambda _: None)
    with closing(_connect(path, "ro", patience)) as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.execute("SELECT count(*) FROM sqlite_master").fetchall()  # takes the read lock
        return connection.serialize()


def publish(working: Path, path: Path) -> None:
    """Replaces the file by the contents of the copy that the search works on. Raises StudyError."""
    try:
        replace_file(path, snapshot(working))
        for end in _JOURNALS:  # of a killed sweep that worked on the file itself: they belong to its old contents
            path.with_name(path.name + end).unlink(missing_ok=True)
    except StudyError:
        raise
    except OSError as error:
        raise StudyError(faults.surroundings(error)) from error


def _tables() -> bytes:
    """The contents of an SQLite file with Optuna's tables and no study.

    They are made in memory, because Optuna creates each table and each index in a transaction of its own. A sweep that
    is killed between the table of studies and its unique index would have two studies after a resume, since Optuna adds
    no index to a table that exists.
    """
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
        RDBStorage("sqlite://", engine_kwargs={"creator": lambda: memory, "poolclass": StaticPool})
        return memory.serialize()


def _trials_have_begun(root: Path) -> bool:
    """Whether the sweep's folder holds files of trials, which are written only after a trial is in the study."""
    return any(root.glob("trials/[0-9]*")) or any(root.glob("tensorboard/[0-9]*")) or (root / "best.pt").exists()


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turns errors about the file's contents into a ConfigError of one sentence."""
    anew = f"the sweep cannot go on; to start it anew: --config {path.parent / 'sweep.yaml'} and another --name"
    try:
        yield
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file, but there are files of trials; {anew}"]) from None
    except DamagedStudy as error:
        raise ConfigError([f"{error}; {anew}"]) from None
    except RuntimeError as error:  # Optuna's, for the tables of another version
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Wraps code that reads the study: reports missing or invalid records as damage. Raises ConfigError."""
    with _refused(path):
        try:
            yield
        except ConfigError:
            raise
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise DamagedStudy(f"{path}: is damaged: {key}: {first['input']!r:.80}: {first['msg']}") from None
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedStudy(f"{path}: is damaged: {faults.one_line(error)}") from None


def _require_whole(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.cursor().execute("PRAGMA integrity_check").fetchone()
    if found != ("ok",):
        raise DamagedStudy(f"{path}: is damaged: {' '.join(str(found[0]).split())[:200]}")


def _connect(path: Path, mode: str, patience: "_Patience") -> sqlite3.Connection:
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    # A URI takes a mode that keeps SQLite from creating the file. `as_uri` escapes `%`, `?` and `#` in the path.
    uri = f"{path.absolute().as_uri()}?mode={mode}"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=0, factory=_connection_class(patience), check_same_thread=False)

    return patience.run(connect)


def _copy(path: Path) -> sqlite3.Connection:
    patience = _Patience(path, _READERS_PATIENCE, lambda _: None)
    try:
        return _in_memory(path, "ro", patience)
    except DamagedStudy:
        raise
    except StudyError:
        # A sweep that was killed during a write leaves a journal, which SQLite must roll back before it can read. That
        # needs write access, so it is done on a copy.
        journals = [path.with_name(path.name + end) for end in _JOURNALS]
        if not any(journal.is_file() for journal in journals):
            raise
    with tempfile.TemporaryDirectory() as folder:
        for file in (path, *journals):
            if file.is_file():
                shutil.copyfile(file, Path(folder, file.name))
        return _in_memory(Path(folder, path.name), "rw", patience)


def _in_memory(path: Path, mode: str, patience: "_Patience") -> sqlite3.Connection:
    memory = sqlite3.connect(":memory:", factory=_connection_class(patience), check_same_thread=False)
    with closing(_connect(path, mode, patience)) as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.execute(
            "SELECT count(*) FROM sqlite_master"
        ).fetchall()  # takes the read lock now: `backup` would wait for it for ever
        patience.run(lambda: connection.backup(memory))
    _require_whole(memory, path)
    return memory


class _Patience:
    """Runs an action on the file and retries it while another program holds a lock, for at most `seconds`. Raises
    StudyError if it still fails.

    SQLite's own busy timeout waits in C, where Python can neither handle Ctrl-C nor print that it is waiting.
    """

    def __init__(self, path: Path, seconds: float, tell: Tell) -> None:
        self._path, self._seconds, self._tell = path, seconds, tell
        self._told = False

    def run(self, action: Callable[[], Answer]) -> Answer:
        try:
            return action()
        except sqlite3.Error as error:
            if not _is_held(error):
                raise self._explained(error) from error
        with _signals_noticed() as signals:
            begin = time.monotonic()
            while True:
                try:
                    return action()
                except sqlite3.Error as error:
                    waited = time.monotonic() - begin
                    if not _is_held(error) or waited >= self._seconds or signals:
                        self._seconds = 0.0  # later actions must not wait as long once more
                        raise self._explained(error) from error
                if waited >= _QUIET and not self._told:
                    self._told = True
                    self._tell(f"waiting for another program that holds {self._path}")
                time.sleep(0.05)

    def _explained(self, error: sqlite3.Error) -> Exception:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
            return error  # a programming error; Optuna expects some IntegrityErrors
        code = getattr(error, "sqlite_errorname", None) or ""
        match code.split("_")[1:]:
            case ["BUSY" | "LOCKED", *_]:
                return StudyError(f"{self._path}: another program holds it")
            case ["READONLY", "DBMOVED"]:
                return StudyError(f"{self._path}: it was deleted or replaced")
            case ["FULL", *_]:
                return StudyError(faults.NO_SPACE)
            case ["CANTOPEN" | "IOERR" | "READONLY" | "PERM" | "AUTH", *_]:
                # SQLite doesn't say why; writing another file into the same folder meets the same fault.
                reason = _what_the_disk_says(self._path.parent)
                return StudyError(reason or f"{self._path}: cannot be opened or written: {error}")
            case ["NOMEM", *_]:
                return MemoryError()
        return DamagedStudy(f"{self._path}: is damaged: {error}")


def _is_held(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorname", None) or "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _what_the_disk_says(folder: Path) -> str | None:
    """Writes a temporary file into the folder. Returns the reason in words if that fails."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
    except OSError as error:
        return faults.surroundings(error)
    return None


@contextmanager
def _signals_noticed() -> Iterator[list[int]]:
    """Collects the signals that end this process during the block, and raises them again at its end, when the earlier
    handlers are back."""
    came: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    handled = [number for number in numbers if callable(signal.getsignal(number))]
    if threading.current_thread() is not threading.main_thread():
        handled = []  # Python lets only the main thread set handlers
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in handled}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _connection_class(patience: _Patience) -> type[sqlite3.Connection]:
    """A connection class that runs statements, fetches and commits with the retries of `patience`."""

    def patient(name: str) -> Any:
        method = getattr(sqlite3.Cursor, name)
        return lambda cursor, *arguments: patience.run(lambda: method(cursor, *arguments))

    names = ("execute", "executemany", "fetchone", "fetchmany", "fetchall")
    patient_cursor = type("PatientCursor", (sqlite3.Cursor,), {name: patient(name) for name in names})

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = patient_cursor) -> Any:
            return super().cursor(factory)

        def commit(self) -> None:
            patience.run(super().commit)

    return Connection
