"""Atomic file writes: after a crash, a file has its old or its new content, never a part."""

import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where leftovers of killed writers stay
    fcntl = None  # type: ignore[assignment]

_TRIES = 10  # where two threads do nothing but replace files, one try in forty fails
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file atomically: writes a temporary file, syncs it to the disk and renames it. Raises OSError.

    The temporary name is random and must not exist. So two writers never share a file, and a symlink that somebody has
    placed there is not followed.
    """
    remove_leftovers(path.parent, also=f".{path.name}.tmp")  # the name that version 0.1.0 used
    for others in reversed(range(_TRIES)):
        try:
            _write(path, *parts)
            break
        except FileNotFoundError:  # another writer removed the file as a leftover before it was locked
            if not (others and path.parent.is_dir()):
                raise


def _write(path: Path, *parts: bytes | memoryview) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:  # O_CREAT | O_EXCL
            _try_to_lock(file.fileno())
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal. Raises OSError, also for a folder, a FIFO or a device."""
    if path.exists() and not path.is_file():  # reading from a FIFO or a device may never end
        raise OSError("not a regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path, also: str = "") -> None:
    """Removes temporary files of killed writers, i.e. those that no process has locked, and `also` if not locked."""
    for path in folder.glob(".*.tmp"):
        if path.name == also or _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # already removed by another process, or not a file
                descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
                try:
                    if _try_to_lock(descriptor):
                        path.unlink()
                finally:
                    os.close(descriptor)


def _try_to_lock(descriptor: int) -> bool:
    """Tries to lock the file and returns whether it did. The system releases the lock when the process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, AttributeError):  # locked by another process, or the file system or operating system has no locks
        return False
    return True


def reason(error: Exception) -> str:
    """An error's message in one line, without the file name of an OSError."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split()) or type(error).__name__
