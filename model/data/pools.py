"""Images rendered once into files that all trials map. Imports no torch: the processes that render start fast.

A pool is one file: a 4,096-byte header (magic, checksums, JSON), then the images, uint8 (N, C, H, W),
then the labels, uint8 (N, L), class indices padded with 0. Its name is a hash of all that determines it.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import spawn
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from model.config import CaptchaConfig, TrialConfig
from model.data.alphabet import Alphabet
from model.data.captchas import Split, render

Progress = Callable[[int, int], None]  # images done, images in all

_MAGIC = b"captcha-pool-2\n"
_HEADER_BYTES = 4096
_CHECKSUM_BYTES = 8  # of the images and labels, in hexadecimal, at the header's end
_CHUNK = 500  # images a worker renders at a time


@dataclass(frozen=True)
class Pool:
    """images uint8 (N, C, H, W) and labels uint8 (N, L), mapped from a file; texts of any row by `alphabet`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PoolSpec:
    """All that determines a pool's bytes."""

    captcha: CaptchaConfig
    seed: int
    split: Split
    count: int

    @property
    def contents(self) -> dict[str, Any]:
        libraries = {name: version(name) for name in ("captcha", "pillow")}
        config = self.captcha.model_dump(mode="json")
        return {"config": config, "seed": self.seed, "split": self.split, "count": self.count, "libraries": libraries}

    @property
    def name(self) -> str:
        digest = hashlib.sha256(json.dumps(self.contents, sort_keys=True).encode()).hexdigest()
        return f"{self.split}-{self.count}-{digest[:16]}.pool"

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.count, self.captcha.channels, self.captcha.height, self.captcha.width)

    @property
    def label_shape(self) -> tuple[int, int]:
        return (self.count, self.captcha.lengths[1])

    @property
    def file_bytes(self) -> int:
        return _HEADER_BYTES + int(np.prod(self.image_shape)) + int(np.prod(self.label_shape))

    def header(self) -> bytes:
        body = json.dumps(self.contents, sort_keys=True).encode()
        header = _MAGIC + f"{zlib.crc32(body):08x} {len(body):06d}\n".encode() + body
        if len(header) > _HEADER_BYTES - _CHECKSUM_BYTES:
            raise ValueError(f"captcha.characters: a pool's header has no room for {len(self.captcha.characters)}")
        return header.ljust(_HEADER_BYTES - _CHECKSUM_BYTES, b"\0")


def pool_spec(config: TrialConfig, split: Split) -> PoolSpec:
    count: int = getattr(config.data, f"{split}_images")
    return PoolSpec(config.captcha, config.data.seed, split, count)


def pool_specs(config: TrialConfig, test: bool = False) -> dict[Split, PoolSpec]:
    """The pools that a config's trials read; a stream renders its training images itself."""
    splits: dict[Split, bool] = {"valid": True, "train": config.data.source == "pool", "test": test}
    return {split: pool_spec(config, split) for split, wanted in splits.items() if wanted}


def open_pool(spec: PoolSpec, folder: Path, whole: bool = False) -> Pool | None:
    """The pool, or None if the file is missing, cut short or not what its header should be; with `whole`, also if its
    images or labels have changed, for which it reads them all. Raises OSError if no more files can be opened."""
    path = folder / spec.name
    try:
        with path.open("rb") as file:
            header, checksum = file.read(_HEADER_BYTES - _CHECKSUM_BYTES), file.read(_CHECKSUM_BYTES)
            if header != spec.header() or path.stat().st_size != spec.file_bytes:
                return None
            if whole and checksum != _checksum(file):
                return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # this process or machine can open no file, which says nothing of the pool
        return None
    return _map(path, spec, "c")  # copy-on-write: shares the page cache, and torch wants writable memory


def _map(path: Path, spec: PoolSpec, mode: Any) -> Pool:
    images = np.memmap(path, np.uint8, mode, offset=_HEADER_BYTES, shape=spec.image_shape)
    labels = np.memmap(path, np.uint8, mode, offset=_HEADER_BYTES + images.size, shape=spec.label_shape)
    return Pool(images, labels)


def _checksum(file: BinaryIO) -> bytes:
    """Of all that follows the header."""
    file.seek(_HEADER_BYTES)
    checksum = 0
    while block := file.read(1 << 22):
        checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}".encode()


def ensure_pools(
    config: TrialConfig, folder: Path, workers: int, progress: Progress | None = None, test: bool = False
) -> bool:
    """Renders the pools that are missing, with `workers` processes, and says whether any was. Raises OSError.

    A folder that has all pools is only read, so it may belong to somebody else. Two sweeps that start at once render
    once: the second waits for the lock and finds the files.
    """
    # In a script without `if __name__ == "__main__"` each new process would come here again, and wait for the lock.
    spawn._check_not_importing_main()  # type: ignore[attr-defined]
    rendered = False
    # Somebody may delete the folder meanwhile: it is made again, but not for ever.
    for attempts_left in (2, 1, 0):
        missing = missing_pools(config, folder, test, whole=True)
        if not missing:
            break
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _render_lock(folder):
                missing = [spec for spec in missing if open_pool(spec, folder, whole=True) is None]
                if missing:
                    _render_pools(missing, folder, workers, progress or (lambda done, total: None))
                    rendered = True
        except FileNotFoundError:
            if not attempts_left:
                raise
    return rendered


def missing_pools(config: TrialConfig, folder: Path, test: bool = False, whole: bool = False) -> list[PoolSpec]:
    """The pools that a config's trials read and that can't be opened; `whole` as for `open_pool`."""
    return [spec for spec in pool_specs(config, test).values() if open_pool(spec, folder, whole) is None]


def _render_lock(folder: Path) -> AbstractContextManager[object]:
    """Held while images are rendered into the folder.

    Another user's lock may be out of reach: in a folder with the sticky bit, as /tmp, or made by an earlier version.
    Then this user takes one of their own, and at worst both render the same images.
    """
    lock = FileLock(folder / "render.lock", mode=_shared_mode(folder))
    try:
        held = lock.acquire()
    except PermissionError:
        return FileLock(folder / f"render-{os.geteuid()}.lock").acquire()
    _give_to_group(folder / "render.lock", folder)
    return held


def _shared_mode(folder: Path) -> int:
    """Permissions of a new file: those who may write into the folder may use what others have put there."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o666


def _give_to_group(path: Path, folder: Path) -> None:
    with suppress(OSError):  # somebody else's file, or a group that this user is not in
        os.chown(path, -1, folder.stat().st_gid)


def _render_pools(specs: list[PoolSpec], folder: Path, workers: int, progress: Progress) -> None:
    total, done = sum(spec.count for spec in specs), 0
    progress(0, total)
    for left_by_killed in folder.glob(".*.pool.*"):
        if left_by_killed.lstat().st_uid == os.geteuid():
            left_by_killed.unlink()
    needed, free = sum(spec.file_bytes for spec in specs), shutil.disk_usage(folder).free
    if needed > free:  # the reservation would fill the disk before it fails, and everybody else's programs with it
        raise OSError(errno.ENOSPC, f"the images need {needed:,} bytes, of which {free:,} are free", str(folder))
    # New names: a killed process may have left others that still write, and nobody can put a link there in advance.
    temporary = {spec: folder / f".{spec.name}.{secrets.token_hex(8)}" for spec in specs}
    chunks = [
        (path, spec, start, min(start + _CHUNK, spec.count))
        for spec, path in temporary.items()
        for start in range(0, spec.count, _CHUNK)
    ]
    others = multiprocessing.active_children()
    # Spawned, not forked: the caller may hold threads.
    executor = ProcessPoolExecutor(min(workers, len(chunks)), multiprocessing.get_context("spawn"), prepare_process)
    # All before the first is watched: when one is killed, CPython stumbles over its own start of the next.
    executor._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]
    try:
        for spec, path in temporary.items():
            with path.open("xb") as file:
                file.write(spec.header())
                file.flush()
                _reserve(file.fileno(), spec.file_bytes)
        futures = [executor.submit(_render_chunk, *chunk) for chunk in chunks]
        for future in as_completed(futures):
            done += future.result()
            progress(done, total)
        for spec, path in temporary.items():
            with path.open("rb+") as file:
                checksum = _checksum(file)
                file.seek(_HEADER_BYTES - _CHECKSUM_BYTES)
                file.write(checksum)
                file.flush()
                os.fsync(file.fileno())
            _give_to_group(path, folder)
            path.chmod(_shared_mode(folder) & ~stat.S_IWOTH)
            try:
                path.replace(folder / spec.name)
            except PermissionError:  # another user has put it there, and the folder has the sticky bit
                if open_pool(spec, folder, whole=True) is None:
                    raise
    except BrokenProcessPool:
        # One was killed. If that was while the next was starting, CPython 3.11 would wait for the next for ever.
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        for path in temporary.values():
            path.unlink(missing_ok=True)


# Without the reservation, a disk that fills up would kill what writes into the mapped file. macOS has no such call.
_reserve: Callable[[int, int], None] = (
    (lambda file, size: os.posix_fallocate(file, 0, size)) if hasattr(os, "posix_fallocate") else os.truncate
)


@contextmanager
def another_main_module() -> Iterator[None]:
    """Has processes that are spawned meanwhile import this module as their main module, not the caller's script. For a
    command that scripts may call: one without `if __name__ == "__main__"` would start over in each process."""
    main, sys.modules["__main__"] = sys.modules["__main__"], sys.modules[__name__]
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def prepare_process() -> None:
    """Of a process that renders: Ctrl-C is the caller's to handle; a caller that is killed takes it with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    caller = multiprocessing.parent_process()
    assert caller is not None

    def follow() -> None:
        caller.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _render_chunk(path: Path, spec: PoolSpec, start: int, stop: int) -> int:
    pool = _map(path, spec, "r+")
    alphabet = Alphabet(spec.captcha.characters)
    for index in range(start, stop):
        pool.images[index], text = render(spec.captcha, spec.seed, spec.split, index)
        pool.labels[index] = encode_padded(alphabet, text, pool.labels.shape[1])
    return stop - start


def encode_padded(alphabet: Alphabet, text: str, length: int) -> np.ndarray:
    """The text as one row of labels: uint8 (length,), padded with 0."""
    indices = alphabet.encode(text)
    return np.array(indices + [0] * (length - len(indices)), np.uint8)
