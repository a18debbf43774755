"""Temporary folders that only this user can enter, and that the next one removes if its process is killed."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_NAME = re.compile("[0-9a-f]{8}")
_MUST_BE = "it must be a folder of yours that nobody else may enter (mode 0700)"


@contextmanager
def private_folder(longest: int | None = None) -> Iterator[Path]:
    """Yields a new temporary folder and removes it at the end, as it does those that killed processes have left.

    The folder lies inside one of mode 0700 that only this user can enter. There each process holds an advisory lock
    (flock) on its own folder while it lives; only folders of such names without a lock are removed. The folder lies in
    /tmp if its path would otherwise have more than `longest` characters. Raises OSError.
    """
    parent = Path(tempfile.gettempdir(), f"crnn-sweep-{os.geteuid()}")
    if longest is not None and len(str(parent / "12345678")) > longest:
        parent = Path("/tmp", parent.name)
    with ExitStack() as closing:
        yield _make(parent, closing)


def _make(parent: Path, closing: ExitStack) -> Path:
    """Creates and locks a folder in `parent`, after removing those of processes that no longer live."""
    while True:
        with suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        own = parent / secrets.token_hex(4)
        try:
            found = parent.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise PermissionError(errno.EPERM, _MUST_BE, str(parent))
            for left in parent.iterdir():
                if _NAME.fullmatch(left.name):
                    with suppress(OSError), _locked(left):
                        shutil.rmtree(left, ignore_errors=True)
            own.mkdir(mode=0o700)
            lock = _locked(own)
            closing.callback(_remove, own)
            closing.enter_context(lock)
            return own
        except (FileNotFoundError, BlockingIOError):
            continue  # a process that started or ended at this moment has removed or locked the folder


def _remove(own: Path) -> None:
    shutil.rmtree(own, ignore_errors=True)
    with suppress(OSError):  # not empty: it holds another process's folder
        own.parent.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds an advisory lock (flock) on the folder, which the kernel releases if this process dies. Raises OSError if
    another process holds the lock, or if the path is not a folder."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()  # raises if it was removed before it was locked
        yield
    finally:
        os.close(file)
