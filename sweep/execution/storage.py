"""A sweep's copy in a storage: S3, Google Cloud Storage, Azure, another disk. All that a sweep knows of storages.

pyarrow has the file systems; fsspec, where it is installed, has those that pyarrow lacks.
"""

import hashlib
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from sweep.config import ConfigError, SweepConfig

STUDY = "study.db"
TRIALS = ("trials", "tensorboard")  # folders with a folder for each trial
OWN_RUN = "_sweep"  # in `tensorboard`: the sweep's own run
THREAD = "storage"  # name of the threads that wait for a storage
PATIENCE = 600.0  # seconds without an answer of the storage after which a sweep or a trial gives up
LONGEST_PAUSE = 30.0  # seconds between two attempts to reach a storage, at most

_PATIENCE_AT_START = 7.0  # seconds that a storage gets to answer before a sweep starts
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.+", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]{0,99}")
_PASSWORD = re.compile(r"(://[^/@]*:)[^/@]*@")
_ATOMIC = {"s3", "gcs", "abfs"}  # an object is there when it is whole; other file systems need a temporary name
_DEFAULTS = {"gs": "?retry_limit_seconds=30", "gcs": "?retry_limit_seconds=30"}  # 15 minutes otherwise
_BOARD_NEEDS = {"s3": "boto3", "gs": "gcsfs"}  # packages with which TensorBoard reads URIs, without options
_AWS_ERROR = re.compile(r".*AWS Error \w+ during \w+ operation: (?:curlCode: \d+, )?", re.DOTALL)

Answer = TypeVar("Answer")


class Superseded(OSError):
    """Another process writes to the storage instead of this one: a sweep or a trial goes on elsewhere."""


class StorageAway(OSError):
    """A storage did not answer for minutes."""


Stamp = tuple[int, int, int]  # a file's size, time of modification and inode: another one means other contents


@dataclass
class Storage:
    """A folder in a storage. `there` has the names of its files when it was opened, relative to it."""

    uri: str
    files: Any  # pyarrow.fs.FileSystem
    base: str
    there: set[str] = field(default_factory=set)
    fetched: dict[str, Stamp] = field(default_factory=dict)  # local files with the same contents
    study: str | None = None  # digest of the study in it

    @classmethod
    def open(cls, option: str, uri: str) -> "Storage":
        """Opens the storage and lists its files. Raises ConfigError if it can't be reached within seconds."""
        if not is_uri(uri):
            raise ConfigError([f"{option}: must be a URI such as s3://bucket/NAME or file:///folder, got {uri!r}"])

        def connect() -> Storage:
            found = cls.unread(uri)
            found.there = set(found.names())
            return found

        return answered(option, uri, connect)

    @classmethod
    def unread(cls, uri: str) -> "Storage":
        """The storage, whose files are not listed. Raises whatever pyarrow and fsspec raise."""
        return cls(uri, *_file_system(uri))

    @property
    def shown(self) -> str:
        return shown(self.uri)

    @property
    def notes(self) -> list[str]:
        """Lines for the terminal: where the copy is, and the command for TensorBoard if that can read it."""
        lines = [f"  copied to    {self.shown}"]
        package = _BOARD_NEEDS.get(self.uri.partition("://")[0])
        if package is not None and not set(self.uri) & set("?@'"):
            lines.append(f"               tensorboard --logdir {self.uri.rstrip('/')}/tensorboard (with {package})")
        return lines

    def names(self, folder: str = "") -> Iterator[str]:
        """The files in the storage, or in a folder of it."""
        from pyarrow.fs import FileSelector, FileType

        root, place = self.base.lstrip("/"), f"{self.base}/{folder}".rstrip("/")
        for info in self.files.get_file_info(FileSelector(place, recursive=True, allow_not_found=True)):
            if info.type == FileType.File:
                yield info.path.lstrip("/").removeprefix(root).lstrip("/")

    def stamp(self, name: str) -> tuple[int, int] | None:
        """The size and time of modification of a file; None if there is no such file."""
        from pyarrow.fs import FileType

        info = self.files.get_file_info(f"{self.base}/{name}")
        return None if info.type == FileType.NotFound else (info.size, info.mtime_ns or 0)

    def read(self, name: str) -> bytes:
        with self.files.open_input_stream(f"{self.base}/{name}") as stream:
            return bytes(stream.read())

    def put(self, name: str, data: bytes) -> None:
        """Writes a file, which is there with its old or its new contents at any time, never with a part."""
        path = PurePosixPath(self.base, name)
        atomic = self.files.type_name in _ATOMIC
        target = path if atomic else path.with_name(f".{path.name}.tmp")
        try:
            self._write(str(target), data)
        except FileNotFoundError:  # object stores have no folders, others need them
            self.files.create_dir(str(path.parent), recursive=True)
            self._write(str(target), data)
        if not atomic:
            self.files.move(str(target), str(path))

    def _write(self, path: str, data: bytes) -> None:
        with self.files.open_output_stream(path) as stream:
            stream.write(data)

    def begin(self, option: str, settings: bytes) -> None:
        """Writes the sweep's settings, which shows whether the storage can be written. Raises ConfigError."""
        answered(option, self.uri, lambda: self.put("sweep.yaml", settings))
        self.there.add("sweep.yaml")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.files.delete_file(f"{self.base}/{name}")


def owner_file(name: str) -> str:
    """The file in a storage that says which process writes the trial's files there. It is there as long as these files
    are newer than those in the sweep's folder."""
    return f"{TRIALS[0]}/{name}/.owner"


def owned(storage: Storage) -> set[str]:
    """The names of the trials whose newest files were in the storage when it was opened, see `owner_file`."""
    paths = [PurePosixPath(name) for name in storage.there]
    return {path.parent.name for path in paths if str(path) == owner_file(path.parent.name)}


def files_of_trial(root: Path, name: str) -> dict[str, Stamp]:
    """The files of one trial in the sweep's folder `root`; names and stamps are those of `files_of`."""
    folders = [f"{folder}/{name}" for folder in TRIALS]
    return {f"{folder}/{each}": stamp for folder in folders for each, stamp in files_of(root / folder).items()}


def in_order(name: str) -> tuple[bool, str]:
    """Sorts files for an upload: checkpoints last, because they promise the other files of their trial."""
    return is_checkpoint(name), name


def is_checkpoint(name: str) -> bool:
    return name.rpartition("/")[2].startswith("epoch_")


def is_uri(text: object) -> bool:
    return isinstance(text, str) and _URI.fullmatch(text) is not None


def shown(uri: str) -> str:
    """A URI, or a text with one, without the password in it."""
    return _PASSWORD.sub(r"\1***@", uri)


def _file_system(uri: str) -> tuple[Any, str]:
    """pyarrow's file system for the URI, and the path in it."""
    from pyarrow import ArrowInvalid, fs

    default = "" if "?" in uri else _DEFAULTS.get(uri.partition("://")[0], "")
    try:
        files, base = fs.FileSystem.from_uri(uri + default)
    except ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        import fsspec  # torch brings it

        found, base = fsspec.core.url_to_fs(uri)
        files = fs.PyFileSystem(fs.FSSpecHandler(found))
    if not (base := base.rstrip("/")):
        raise ValueError("it names no folder")
    return files, base


def reason(error: BaseException) -> str:
    """What a storage's error says, in one line, without AWS's account of the operation."""
    if isinstance(error, ImportError):
        return f"a package is missing: {error}"
    text = _AWS_ERROR.sub("", shown(str(error))).partition("; Details:")[0]
    text = re.sub(r"\(Request ID: .*?\)", "", text)
    return " ".join(text.split()).rstrip(" .")[:300] or type(error).__name__


def answered(option: str, uri: str, ask: Callable[[], Answer]) -> Answer:
    """The answer of a storage, which is asked in a thread: a request to a server that does not answer blocks for
    minutes. Raises ConfigError."""
    future: Future[Answer] = Future()

    def wait() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=wait, name=THREAD, daemon=True).start()
    try:
        return future.result(_PATIENCE_AT_START)
    except TimeoutError:
        why = f"it does not answer within {_PATIENCE_AT_START:g} seconds"
    except ConfigError:
        raise
    except Exception as error:
        why = reason(error)
    raise ConfigError([f"{option}: must be a storage that can be read and written, got {shown(uri)!r}: {why}"])


def files_of(root: Path, trials: Collection[str] | None = None) -> dict[str, Stamp]:
    """The files in a sweep's folder that a storage gets: all but the study, links, temporary files, and `ray/` with its
    locks. With `trials`, of the trials only these."""
    found: dict[str, Stamp] = {}
    folders = [root]
    while folders:
        folder = folders.pop()
        of_trials = trials is not None and folder.parent == root and folder.name in TRIALS
        try:
            entries = [folder / name for name in [OWN_RUN, *(trials or ())]] if of_trials else list(folder.iterdir())
        except FileNotFoundError:
            continue
        for path in entries:
            if path.is_symlink() or path.name.startswith(".") or path == root / "ray":
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if path.is_dir():
                folders.append(path)
            elif not (path.parent == root and path.name.startswith(STUDY)):
                found[path.relative_to(root).as_posix()] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def require_free(option: str, storage: Storage) -> None:
    """Raises ConfigError if the storage holds files, other than those of a sweep that was refused at its start."""
    others = sorted(name for name in storage.there if name != "sweep.yaml" and not is_hidden(name))
    if others:
        what = f"it holds {len(others):,} files, such as {others[0]}"
        if STUDY in storage.there:
            what = "it holds a sweep; to go on with that: --resume and this URI"
        raise ConfigError([f"{option}: must be a place without files for a new sweep, got {storage.shown!r}: {what}"])


def require_apart(option: str, storage: Storage, root: Path) -> None:
    """Raises ConfigError if the storage is the sweep's own folder, around it or in it."""
    if storage.files.type_name == "local":
        base, own = Path(storage.base).resolve(), root.resolve()
        if base.is_relative_to(own) or own.is_relative_to(base):
            raise ConfigError([f"{option}: must be apart from the sweep's folder {root}, got {storage.shown!r}"])


def require_older(option: str, storage: Storage, root: Path, config: SweepConfig) -> None:
    """Raises ConfigError unless the storage holds an earlier state of the sweep in `root`, or nothing."""
    if STUDY not in storage.there:
        settings = (root / "sweep.yaml").read_bytes()
        if "sweep.yaml" not in storage.there or settings != answered(
            option, storage.uri, lambda: storage.read("sweep.yaml")
        ):
            require_free(option, storage)
        return  # nothing, or what a first upload that was cut has left
    from sweep.search.search import Search  # imports Optuna, which takes a second

    study = answered(option, storage.uri, lambda: storage.read(STUDY))
    storage.study = digest(study)
    place = f"{option}: must be the storage of the sweep in {root}, got {storage.shown!r}"
    if not (root / STUDY).is_file():
        raise ConfigError([f"{place}: it is further than that; to go on with it: --resume and this URI"])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, STUDY)
        copy.write_bytes(study)
        try:
            there = Search(config, copy, read_only=True).records
        except ConfigError:
            raise ConfigError([f"{place}: it holds another sweep, or a damaged one"]) from None
    here = Search(config, root / STUDY, read_only=True).records
    for number, record in there.items():
        own = here.get(number)
        if own is not None and (own.name, own.values) != (record.name, record.values):
            raise ConfigError([f"{place}: it holds another sweep"])
        if record.state != "failed" and (own is None or own.epochs < record.epochs):
            raise ConfigError(
                [f"{place}: trial {record.name} is further there; to go on with it: --resume and this URI"]
            )


def fetch(option: str, storage: Storage, outputs: Path, name: str | None = None) -> Path:
    """Fetches the sweep in the storage into a folder of `outputs`, by default under the last name of the URI. Returns
    the folder. Raises ConfigError, also if there is one whose files differ."""
    name = name or PurePosixPath(storage.base).name
    root = outputs / name
    if not _NAME.fullmatch(name):
        raise ConfigError([f"{option}: must end with a sweep's name, got {storage.shown!r}"])
    require_apart(option, storage, root)
    if "sweep.yaml" not in storage.there:
        raise ConfigError([f"{option}: must be a sweep's storage, got {storage.shown!r}: there is no sweep.yaml in it"])
    names = sorted(each for each in storage.there if not is_hidden(each))
    for each in storage.there:
        if not is_safe(each):
            raise ConfigError([f"{option}: must be a sweep's storage, got {storage.shown!r}: it holds {each!r}"])
    copy = outputs / f".{name}.{secrets.token_hex(8)}.tmp"
    try:
        for each in names:
            path = copy / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(storage.read(each))
        if root.exists() and not _is_unused(root):
            if differing := _differing(copy, root):
                raise ConfigError(
                    [
                        f"{option}: {root} is there and differs from the storage in {_listed(differing)}; to go on "
                        f"with the folder, give it to --resume and the URI to --sync-to; else move it away"
                    ]
                )
        else:
            shutil.rmtree(root, ignore_errors=True)
            copy.rename(root)
    except OSError as error:
        raise ConfigError([f"{option}: {storage.shown!r} could not be fetched to {root}: {reason(error)}"]) from None
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    storage.fetched = files_of(root)
    if STUDY in storage.there:
        storage.study = digest((root / STUDY).read_bytes())
    return root


def is_safe(name: str) -> bool:
    """Whether a file of this name lies in the folder to which it is relative, on any system."""
    return ".." not in name.split("/") and "\\" not in name


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_unused(root: Path) -> bool:
    return root.is_dir() and all(path.name == "ray" for path in root.iterdir())


def _differing(copy: Path, root: Path) -> list[str]:
    """The names of the files that differ between two copies of a sweep."""
    names = {*files_of(copy), *files_of(root), *(STUDY for folder in (copy, root) if (folder / STUDY).exists())}

    def contents(path: Path) -> bytes | None:
        return path.read_bytes() if path.is_file() else None

    return sorted(name for name in names if contents(copy / name) != contents(root / name))


def _listed(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"])
