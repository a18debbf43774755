"""Tells faults of a sweep's surroundings (disk, permissions, killed processes) from errors of this program.

The first can be mended outside, and the sweep then goes on with `--resume`; the second need a look at the traceback.
"""

import errno
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

INTERRUPTED, INTERNAL = 130, 70  # exit codes

NO_SPACE = "no space is left on the disk"  # the same for bytes, for inodes and for a quota
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
    """Why a sweep ended before its time, in words, and with which exit code."""

    sentence: str
    code: int

    @classmethod
    def of(cls, error: BaseException) -> "Fault":
        if isinstance(error, KeyboardInterrupt):
            return cls(str(error) or BY_YOU.sentence, INTERRUPTED)  # RayLost has a text
        outside = surroundings(error)
        if outside is not None:
            return cls(outside, INTERRUPTED)
        return cls(f"an error of this program: {one_line(error)}; sweep.log has the traceback", INTERNAL)


BY_YOU = Fault("by you", INTERRUPTED)


def surroundings(error: BaseException) -> str | None:
    """What outside of this program made it fail, in words; None if it was the program itself."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno != errno.ENOMEM:
            return _described(one)
        if isinstance(one, BrokenProcessPool):
            return "a process that rendered images was killed"
        if isinstance(one, MemoryError):
            return "memory ran out"
        if "Too many open files" in str(one):  # PyTorch's RuntimeError from shared memory and pipes
            return _WORDS[errno.EMFILE]
    # Only if no error has a better reason: Ray wraps what it passes on.
    if any(type(one).__module__ == "ray.exceptions" and type(one).__name__ != "RayTaskError" for one in _chain(error)):
        return f"Ray's own processes were lost: {one_line(error)}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _described(error: OSError) -> str:
    if error.errno is None:
        lines = str(error).split("\n")
        return lines[-1].strip() or type(error).__name__  # the last: a DataLoader puts its worker's traceback before
    words = _WORDS.get(error.errno, str(error.strerror))
    return words if words == NO_SPACE or error.filename is None else f"{words}: {error.filename}"


def one_line(error: BaseException) -> str:
    """What went wrong, without line breaks and without its stack."""
    said = last_error(str(error))
    # An error from another process brings its traceback, at the end of which its type is named.
    return said if "Traceback (most recent call last)" in str(error) else f"{type(error).__name__}: {said}"


def last_error(text: str) -> str:
    """The last error in a text that may hold tracebacks, in one line: the lines below the last stack, which is
    indented. A cause stands at the end, however many processes and libraries have wrapped it."""
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
