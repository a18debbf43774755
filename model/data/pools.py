"""Image pools: images rendered once into memory-mapped files that all trials share.

A pool is one file: a 4,096-byte header (magic, checksums, JSON), then the images, uint8 (N, C, H, W),
then the labels, uint8 (N, L), class indices padded with 0. Its name holds a hash of all that determines its contents.
This module doesn't import torch, so that the processes that render start fast.
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
from model.data.captchas import Split, determinants, render

Progress = Callable[[int, int], None]  # images done, images in all

_MAGIC = b"captcha-pool-2\n"
_HEADER_BYTES = 4096
_CHECKSUM_BYTES = 8  # CRC-32 of images and labels in hexadecimal, at the header's end
_CHUNK = 500  # images that a worker renders per task


@dataclass(frozen=True)
class Pool:
    """Memory-mapped images, uint8 (N, C, H, W), and labels, uint8 (N, L), which `Alphabet.decode` turns into texts."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PoolSpec:
    """Everything that determines a pool's bytes."""

    captcha: CaptchaConfig
    seed: int
    split: Split
    count: int

    @property
    def contents(self) -> dict[str, Any]:
        libraries = {name: version(name) for name in ("captcha", "pillow")}
        config = determinants(self.captcha)
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
    """The pools that a config's trials read. A stream has none for training: its images are rendered when used."""
    splits: dict[Split, bool] = {"valid": True, "train": config.data.source == "pool", "test": test}
    return {split: pool_spec(config, split) for split, wanted in splits.items() if wanted}


def open_pool(spec: PoolSpec, folder: Path, whole: bool = False) -> Pool | None:
    """Opens a pool. Returns None if the file is missing, is truncated or has another header than `spec`.

    With `whole`, verifies the checksum too, which reads the whole file, and returns None if it doesn't fit. Raises
    OSError if this process or the machine has too many open files.
    """
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
            raise  # too many open files, which says nothing about the pool
        return None
    return _map(path, spec, "c")  # copy-on-write: shares the page cache, and torch wants writable memory


def _map(path: Path, spec: PoolSpec, mode: Any) -> Pool:
    images = np.memmap(path, np.uint8, mode, offset=_HEADER_BYTES, shape=spec.image_shape)
    labels = np.memmap(path, np.uint8, mode, offset=_HEADER_BYTES + images.size, shape=spec.label_shape)
    return Pool(images, labels)


def _checksum(file: BinaryIO) -> bytes:
    """CRC-32 of all that follows the header, in hexadecimal."""
    file.seek(_HEADER_BYTES)
    checksum = 0
    while block := file.read(1 << 22):
        checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}".encode()


def ensure_pools(
    config: TrialConfig, folder: Path, workers: int, progress: Progress | None = None, test: bool = False
) -> bool:
    """Renders missing or damaged pools with `workers` processes and returns whether it rendered any. Raises OSError.

    A folder that has all pools is only read, so it may belong to another user. If two sweeps start at the same time,
    the second waits for the lock and then finds the files of the first.
    """
    # Raises RuntimeError in a worker process of a script without `if __name__ == "__main__"`: there the script runs
    # again, and would wait for the lock here.
    spawn._check_not_importing_main()  # type: ignore[attr-defined]
    rendered = False
    # If the folder is deleted meanwhile, create it again, at most twice.
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
    """The pools that a config's trials read but that can't be opened; for `whole` see `open_pool`."""
    return [spec for spec in pool_specs(config, test).values() if open_pool(spec, folder, whole) is None]


def _render_lock(folder: Path) -> AbstractContextManager[object]:
    """Takes the lock that a process holds while it renders images into the folder.

    Another user's lock file may not be writable: in a folder with the sticky bit, such as /tmp, or if an earlier
    version made it. This user then takes a lock of their own, and at worst both users render the same images.
    """
    lock = FileLock(folder / "render.lock", mode=_shared_mode(folder))
    try:
        held = lock.acquire()
    except PermissionError:
        return FileLock(folder / f"render-{os.geteuid()}.lock").acquire()
    _give_to_group(folder / "render.lock", folder)
    return held


def _shared_mode(folder: Path) -> int:
    """Permissions of a new file, taken from the folder: who may write into the folder may use others' files in it."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o666


def _give_to_group(path: Path, folder: Path) -> None:
    with suppress(OSError):  # another user's file, or a group that this user is not in
        os.chown(path, -1, folder.stat().st_gid)


def _render_pools(specs: list[PoolSpec], folder: Path, workers: int, progress: Progress) -> None:
    total, done = sum(spec.count for spec in specs), 0
    progress(0, total)
    for left_by_killed in folder.glob(".*.pool.*"):
        if left_by_killed.lstat().st_uid == os.geteuid():
            left_by_killed.unlink()
    needed, free = sum(spec.file_bytes for spec in specs), shutil.disk_usage(folder).free
    if needed > free:  # checked first: a failing reservation fills the disk for all other programs
        raise OSError(errno.ENOSPC, f"the images need {needed:,} bytes, of which {free:,} are free", str(folder))
    # Random names: workers of a killed process may still write to its files, and nobody can put a symlink at a name
    # that can't be guessed.
    temporary = {spec: folder / f".{spec.name}.{secrets.token_hex(8)}" for spec in specs}
    chunks = [
        (path, spec, start, min(start + _CHUNK, spec.count))
        for spec, path in temporary.items()
        for start in range(0, spec.count, _CHUNK)
    ]
    others = multiprocessing.active_children()
    # Spawned, because the caller may have threads, with which forking is not safe.
    executor = ProcessPoolExecutor(min(workers, len(chunks)), multiprocessing.get_context("spawn"), prepare_process)
    # Starts all workers before the executor's manager thread: CPython fails if that thread notices a killed worker
    # while another is being started.
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
            except PermissionError:  # in a folder with the sticky bit, the file is another user's
                if open_pool(spec, folder, whole=True) is None:
                    raise
    except BrokenProcessPool:
        # A worker was killed. If another was starting at that moment, CPython 3.11 would wait for it for ever.
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        for path in temporary.values():
            path.unlink(missing_ok=True)


# Reserves a file's disk space in advance: writing into a mapped file kills the process (SIGBUS) when the disk is full.
# macOS has no posix_fallocate.
_reserve: Callable[[int, int], None] = (
    (lambda file, size: os.posix_fallocate(file, 0, size)) if hasattr(os, "posix_fallocate") else os.truncate
)


@contextmanager
def another_main_module() -> Iterator[None]:
    """Makes processes spawned in this context import this module as their main module instead of the caller's script.

    For commands that scripts may call: a script without `if __name__ == "__main__"` would run again in each process.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], sys.modules[__name__]
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def prepare_process() -> None:
    """Prepares a worker process: it ignores Ctrl-C, which the caller handles, and exits when the caller dies."""
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
    """Encodes a text as one row of labels: uint8 (length,), padded with 0."""
    indices = alphabet.encode(text)
    return np.array(indices + [0] * (length - len(indices)), np.uint8)
