"""Files that are there whole or not at all."""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where leftovers of killed writers stay
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a temporary file, syncs and renames it: after a crash there is the old file or the new one.

    The temporary name is drawn anew for each write and must not exist, so two writers never share a file, and a link
    that somebody has put there is never followed. Raises OSError.
    """
    remove_leftovers(path.parent, also=f".{path.name}.tmp")  # the name that version 0.1.0 used
    try:
        _write(path, *parts)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        _write(path, *parts)  # another process took the temporary file for a leftover before it was locked


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


def remove_leftovers(folder: Path, also: str = "") -> None:
    """Removes the temporary files of killed writers: those that no process has locked."""
    for path in folder.glob(".*.tmp"):
        if path.name == also or _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # another process was faster, or it is no file
                descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
                try:
                    if _try_to_lock(descriptor):
                        path.unlink()
                finally:
                    os.close(descriptor)


def _try_to_lock(descriptor: int) -> bool:
    """Whether the file is now this process's. A lock goes with the process that holds it, however that ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, AttributeError):  # another holds it, or this file system or operating system has no such locks
        return False
    return True


def reason(error: Exception) -> str:
    """What an error says, in one line and without the file that it may name."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split()) or type(error).__name__
