"""Tells faults outside of the program (full disk, permissions, killed processes) from errors of the program itself.

The user can fix the former and then `--resume` the sweep; the latter need a look at the traceback.
"""

import errno
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

INTERRUPTED, INTERNAL = 130, 70  # exit codes

NO_SPACE = "no space is left on the disk"  # also if inodes or a quota are used up
_WORDS = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: NO_SPACE,
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was denied",
    errno.EPERM: "the operation is not permitted",
    errno.EMFILE: "this process has too many files open (`ulimit -n`)",
    errno.ENFILE: "this machine has too many files open",
    errno.EIO: "the disk answered with an input/output error",
    errno.ENOENT: "a file or folder is gone",
}


@dataclass(frozen=True)
class Fault:
    """Why a sweep ended early: a sentence, and the exit code."""

    sentence: str
    code: int

    @classmethod
    def of(cls, error: BaseException) -> "Fault":
        if isinstance(error, KeyboardInterrupt):
            return cls(str(error) or BY_YOU.sentence, INTERRUPTED)  # RayLost has a message
        outside = surroundings(error)
        if outside is not None:
            return cls(outside, INTERRUPTED)
        return cls(f"an error of this program: {one_line(error)}; sweep.log has the traceback", INTERNAL)


BY_YOU = Fault("by you", INTERRUPTED)


def surroundings(error: BaseException) -> str | None:
    """The cause outside of this program in words, such as a full disk; None if the error is the program's own."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno != errno.ENOMEM:
            return _described(one)
        if isinstance(one, BrokenProcessPool):
            return "a process that rendered images was killed"
        if isinstance(one, MemoryError):
            return "memory ran out"
        if "Too many open files" in str(one):  # PyTorch's RuntimeError from shared memory and pipes
            return _WORDS[errno.EMFILE]
    # Last, because Ray wraps errors: one further down the chain names the cause better.
    if any(type(one).__module__ == "ray.exceptions" and type(one).__name__ != "RayTaskError" for one in _chain(error)):
        return f"Ray's own processes were lost: {one_line(error)}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields the error, then its causes (`__cause__`, or `__context__` unless suppressed)."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _described(error: OSError) -> str:
    if error.errno is None:
        lines = str(error).split("\n")
        return lines[-1].strip() or type(error).__name__  # last line: a DataLoader puts its worker's traceback first
    words = _WORDS.get(error.errno, str(error.strerror))
    return words if words == NO_SPACE or error.filename is None else f"{words}: {error.filename}"


def one_line(error: BaseException) -> str:
    """The error's type and message in one line, without a traceback."""
    said = last_error(str(error))
    # The message of an error from another process holds a traceback, whose last line already names the type.
    return said if "Traceback (most recent call last)" in str(error) else f"{type(error).__name__}: {said}"


def last_error(text: str) -> str:
    """The last error message of a text that may hold tracebacks, as one line: the lines after the last (indented)
    stack. However many processes and libraries have wrapped an error, its root cause comes last."""
    lines = [line for line in text.splitlines() if line.strip()]
    start = len(lines)
    while start and lines[start - 1][0].isspace():  # details of the error itself
        start -= 1
    while start and not lines[start - 1][0].isspace():
        start -= 1
    said = " ".join(" ".join(lines[start:]).split())[:300]
    if any(word in text for word in ("(shm)", "/dev/shm", "shared memory")):
        said += "; more shared memory (a container's --shm-size) or resources.cpus: 1 helps"
    return said
