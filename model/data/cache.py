"""The cache folder, in which image pools are written once and then shared, also by several users."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from model.data import pool_file
from model.data.pool_file import PoolSpec, Shape, open_pool


def locked(folder: Path) -> AbstractContextManager[object]:
    """Takes the lock that a process holds while it writes images into the folder.

    Another user's lock file may not be writable: in a folder with the sticky bit, such as /tmp, or if an earlier
    version made it. This user then takes a lock of their own, and at worst both users make the same images.
    """
    lock = FileLock(folder / "render.lock", mode=_shared_mode(folder))
    try:
        held = lock.acquire()
    except PermissionError:
        return FileLock(folder / f"render-{os.geteuid()}.lock").acquire()
    _give_to_group(folder / "render.lock", folder)
    return held


def temporary(folder: Path, name: str) -> Path:
    """A path for a file that is being written.

    The random part is needed because workers of a killed process may still write to its files, and because nobody can
    put a symbolic link at a name that can't be guessed.
    """
    return folder / f".{name}.{secrets.token_hex(8)}"


def remove_leftovers(folder: Path) -> None:
    """Removes this user's temporary files of processes that were killed. Call it with the folder locked."""
    for pattern in (".*.pool.*", ".images-*"):
        for path in folder.glob(pattern):
            if path.lstat().st_uid == os.geteuid():
                path.unlink()


@contextmanager
def written(shapes: Mapping[PoolSpec, Shape], folder: Path) -> Iterator[dict[PoolSpec, Path]]:
    """Creates temporary files of these pools. When the context ends without an error, they get their names.

    Raises OSError, also if the disk has not enough free space.
    """
    needed, free = sum(shape.file_bytes for shape in shapes.values()), shutil.disk_usage(folder).free
    if needed > free:  # checked first: a failing reservation fills the disk for all other programs
        raise OSError(errno.ENOSPC, f"the images need {needed:,} bytes, of which {free:,} are free", str(folder))
    paths = {spec: temporary(folder, spec.name) for spec in shapes}
    try:
        for spec, path in paths.items():
            pool_file.create(path, spec, shapes[spec], _reserve)
        yield paths
        for spec, path in paths.items():
            pool_file.seal(path)
            share(path, folder)
            try:
                path.replace(folder / spec.name)
            except PermissionError:  # in a folder with the sticky bit, the file is another user's
                if open_pool(spec, folder, whole=True) is None:
                    raise
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


def share(path: Path, folder: Path) -> None:
    """Gives a new file the folder's group and permissions, but lets only its owner and the group write to it."""
    _give_to_group(path, folder)
    path.chmod(_shared_mode(folder) & ~stat.S_IWOTH)


def _shared_mode(folder: Path) -> int:
    """Permissions of a new file, taken from the folder: who may write into the folder may use others' files in it."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o666


def _give_to_group(path: Path, folder: Path) -> None:
    with suppress(OSError):  # another user's file, or a group that this user is not in
        os.chown(path, -1, folder.stat().st_gid)


# Reserves a file's disk space in advance: writing into a mapped file kills the process (SIGBUS) when the disk is full.
# macOS has no posix_fallocate.
_reserve: Callable[[int, int], None] = (
    (lambda file, size: os.posix_fallocate(file, 0, size)) if hasattr(os, "posix_fallocate") else os.truncate
)
