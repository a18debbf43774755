"""When Ctrl-C and SIGTERM take effect."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def listen() -> None:
    """From here on SIGTERM raises KeyboardInterrupt, as Ctrl-C does, and neither is ever lost."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _once_more


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _once_more(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised in a finaliser or a weak reference's callback: Ctrl-C comes again a moment later."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


@contextmanager
def _handled_by(handler: Callable[[int, Any], Any] | signal.Handlers) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ignored() -> AbstractContextManager[None]:
    """For the main thread, and what must not be left half done."""
    return _handled_by(signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """What comes meanwhile raises KeyboardInterrupt afterwards: in the middle of a write to the study it would leave
    the database locked. For the main thread."""
    came: list[int] = []
    with _handled_by(lambda number, frame: came.append(number)):
        yield
    if came:
        raise KeyboardInterrupt
