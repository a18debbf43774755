"""Tells faults outside of the program (full disk, permissions, killed processes) from errors of the program itself.

The user can fix the former and then `--resume` the sweep; the latter need a look at the traceback.
"""

import errno
import re
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import dropwhile

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
_FRAME = re.compile(r'^\s*File ".*", line \d+.*$', re.MULTILINE)  # of a traceback
_ERRNO = re.compile(r"\[Errno (\d+)\] (.*?)(?:: '(.*)')?")  # an OSError as its traceback ends
_SHARED_MEMORY = re.compile(r"\(shm\)|/dev/shm|shared memory|</torch_")  # PyTorch's RuntimeErrors about it
# Errors of the program itself. What was handled when one was raised is not its cause.
_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
_NO_SHARED_MEMORY = "shared memory ran out: a container's --shm-size, or resources.cpus: 1, helps"


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
        if isinstance(one, OSError) and (own := _unwrapped(one)).errno != errno.ENOMEM:
            return _described(own)
        if isinstance(one, BrokenProcessPool):
            return "a process that rendered images was killed"
        if isinstance(one, MemoryError):
            return "memory ran out"
        if "Too many open files" in str(one):  # PyTorch's RuntimeError from shared memory and pipes
            return _WORDS[errno.EMFILE]
        if isinstance(one, RuntimeError) and _SHARED_MEMORY.search(str(one)):
            return _NO_SHARED_MEMORY
    # Last, because Ray wraps errors: one further down the chain names the cause better.
    if any(type(one).__module__ == "ray.exceptions" and type(one).__name__ != "RayTaskError" for one in _chain(error)):
        return f"Ray's own processes were lost: {one_line(error)}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields the error, then its causes: `__cause__`, or `__context__` unless suppressed or the error is a mistake."""
    while error is not None:
        yield error
        alone = error.__suppress_context__ or isinstance(error, _MISTAKES)
        error = error.__cause__ or (None if alone else error.__context__)


def _unwrapped(error: OSError) -> OSError:
    """The error that a DataLoader's worker process raised: the loader raises one of the same type, which has the
    worker's traceback for a message and no number."""
    said = _message(str(error))
    found = _ERRNO.fullmatch(said.partition(": ")[2]) if error.errno is None else None
    return error if found is None else OSError(int(found[1]), found[2], found[3])


def _described(error: OSError) -> str:
    if error.errno is None:
        return _message(str(error)) or type(error).__name__
    words = _WORDS.get(error.errno, str(error.strerror))
    return words if words == NO_SPACE or error.filename is None else f"{words}: {error.filename}"


def one_line(error: BaseException) -> str:
    """The error's type and message in one line, without a traceback, and the same of what it was raised from."""
    said = _message(str(error))[:300]
    if not _FRAME.search(str(error)):  # else the last line of the traceback in its message names the type
        said = f"{type(error).__name__}: {said}"
    return said if error.__cause__ is None else f"{said}; because of {one_line(error.__cause__)}"


def _message(text: str) -> str:
    """What follows the last traceback in a text, or all of a text without one, as one line. However many processes and
    libraries have wrapped an error, the message of its root cause comes last."""
    *_, after = _FRAME.split(text)
    lines = [line for line in after.splitlines() if line.strip()]
    if after != text:  # the frame's source code, which is indented
        lines = list(dropwhile(lambda line: line[0].isspace(), lines))
    return " ".join(" ".join(lines).split())


def last_error(report: str) -> str:
    """The last error of Ray's report about a lost process, as one line: what follows the last traceback, of that the
    last lines that are not indented, and the details that are indented below them."""
    *_, after = _FRAME.split("\n".join(line for line in report.splitlines() if line.strip()))
    paragraphs = re.findall(r"(?:^\S.*\n?)+(?:^\s.*\n?)*", after, re.MULTILINE)
    return _message(paragraphs[-1] if paragraphs else after)[:300]
