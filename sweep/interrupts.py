"""When Ctrl-C and SIGTERM take effect."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def _numbers() -> tuple[int, ...]:
    """With the two that sweep/ray_cluster.py sends: SIGUSR1 for SIGTERM, SIGUSR2 when Ray is lost."""
    return signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2


def listen() -> None:
    """From here on SIGTERM raises KeyboardInterrupt, as Ctrl-C does, and neither is ever lost."""
    signal.signal(signal.SIGTERM, interrupt)
    sys.unraisablehook = _once_more


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _once_more(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised in a finaliser or a weak reference's callback: Ctrl-C comes again a moment later."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Whatever handlers are installed meanwhile, those of before are back afterwards."""
    before = {number: signal.getsignal(number) for number in _numbers()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, earlier in before.items():
                signal.signal(number, earlier)


@contextmanager
def _handled_by(handler: Callable[[int, Any], Any] | signal.Handlers) -> Iterator[None]:
    with handlers_restored():
        if threading.current_thread() is threading.main_thread():
            for number in _numbers():
                signal.signal(number, handler)
        yield


def ignored() -> AbstractContextManager[None]:
    """For what must not be left half done."""
    return _handled_by(signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """What comes meanwhile takes effect afterwards: in the middle of a write to the study it would leave the database
    locked."""
    came: list[int] = []
    with _handled_by(lambda number, frame: came.append(number)):
        yield
    for number in came:
        signal.raise_signal(number)
