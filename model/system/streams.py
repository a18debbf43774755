"""Keeps a program running if its stdout or stderr is closed, is full or can't encode a character."""

import codecs
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

# ValueError: the stream is closed or can't encode a character. AttributeError: another program has replaced it with an
# object that lacks some methods of a stream.
_UNABLE = (OSError, ValueError, AttributeError)


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Makes `sys.stdout` and `sys.stderr` drop what can't be written and print `?` for characters they can't encode.

    Decorates a command, because what a program computes must not depend on who reads its output.
    """
    _open_missing_descriptors()
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    forgiving = {name: _Forgiving(stream) for name, stream in before.items()}
    for name, stream in forgiving.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in forgiving.items():
            stream.finish()
            if getattr(sys, name) is stream:  # another thread may have replaced it meanwhile
                setattr(sys, name, before[name])


def mute_libraries() -> Callable[[], None]:
    """Discards what C and C++ libraries print to stderr: points file descriptor 2 at /dev/null. Until the function that
    it returns is called, `sys.stderr` writes to a duplicate of the old descriptor."""
    before = sys.stderr
    try:
        if before.fileno() != 2:  # a program that has replaced sys.stderr decides about its descriptors itself
            return lambda: None
        before.flush()
        kept = os.dup(2)
    except _UNABLE:
        return lambda: None
    duplicate = _Forgiving(os.fdopen(kept, "w", buffering=1, encoding=before.encoding))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    sys.stderr = duplicate

    def restore() -> None:
        os.dup2(kept, 2)
        if sys.stderr is duplicate:
            sys.stderr = before

    return restore


class _Forgiving(io.TextIOBase):
    def __init__(self, stream: TextIO | None) -> None:
        # Python sets sys.stdout to None if it was started without that descriptor.
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self._errors = self.errors
        self._set_errors("crnn-sweep.replace")

    # mypy does not accept that a property overrides an attribute of the base class.
    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self._stream, "errors", None)

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except _UNABLE:
            return False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with suppress(*_UNABLE):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(*_UNABLE):
            self._stream.flush()

    def finish(self) -> None:
        """Flushes the stream, and redirects it to /dev/null if that fails.

        Otherwise Python would try to flush it again at exit, fail, and exit with code 120.
        """
        self._set_errors(self._errors)
        try:
            self._stream.flush()
        except _UNABLE:
            with suppress(*_UNABLE):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    def _set_errors(self, handler: str | None) -> None:
        if isinstance(self._stream, io.TextIOWrapper):
            with suppress(*_UNABLE):
                self._stream.reconfigure(errors=handler)


def _open_missing_descriptors() -> None:
    """Opens /dev/null as each of the file descriptors 0 to 2 that is closed.

    Otherwise the next file to be opened would get that number, and C libraries, which print to 1 and 2, would write
    into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encodes a character that the encoding lacks: an undecodable byte of a file name as that byte, others as `?`."""
    assert isinstance(error, UnicodeEncodeError)
    escaped = ord(error.object[error.start]) - 0xDC00  # PEP 383 (surrogateescape)
    return bytes([escaped]) if 0x80 <= escaped <= 0xFF else "?", error.start + 1


codecs.register_error("crnn-sweep.replace", _replace)
