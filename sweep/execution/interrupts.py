"""Signal handling: turns SIGTERM and SIGHUP into KeyboardInterrupt, and defers or ignores signals for a while.

Python lets only the main thread set signal handlers; in any other thread the functions here do nothing. A signal that
was ignored when the program started stays ignored, as SIGHUP under `nohup` and SIGINT in a script's background jobs.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

_Handler = Callable[[int, Any], Any] | signal.Handlers
_TO_END = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # no SIGHUP on Windows
_ENDING = [signal.SIGINT, *_TO_END]
# sweep/execution/ray_cluster.py sends two more: SIGUSR1 in place of SIGTERM and SIGHUP, SIGUSR2 when Ray is lost.
_ALL = [*_ENDING, *(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))]


def listen() -> None:
    """Makes SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, and raises it again if Python drops it."""
    if in_main_thread():
        _handle(_TO_END, interrupt)
        sys.unraisablehook = _once_more


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _once_more(unraisable: "sys.UnraisableHookArgs") -> None:
    """`sys.unraisablehook` that sends the signal again after 10 ms: Python drops a KeyboardInterrupt that is raised in
    a finaliser or in the callback of a weak reference."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        heard = (number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN)
        threading.Timer(0.01, os.kill, (os.getpid(), next(heard, signal.SIGINT))).start()
    else:
        sys.__unraisablehook__(unraisable)


def _handle(numbers: list[signal.Signals], handler: _Handler) -> None:
    """Sets the handler of each signal that is not ignored."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def _handlers_restored() -> Iterator[None]:
    """Restores the present signal handlers at the end of the block."""
    before = {number: signal.getsignal(number) for number in _ALL}
    try:
        yield
    finally:
        if in_main_thread():
            for number, earlier in before.items():
                signal.signal(number, earlier)


@contextmanager
def _handled_by(handler: _Handler) -> Iterator[None]:
    with _handlers_restored():
        if in_main_thread():
            _handle(_ALL, handler)
        yield


def ignored() -> AbstractContextManager[None]:
    """Ignores the signals during a block that must not be left half done."""
    return _handled_by(signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """Defers signals to the end of the block. A KeyboardInterrupt in the middle of a write to the study would leave the
    database locked."""
    came: list[int] = []
    with _handled_by(lambda number, frame: came.append(number)):
        yield
    for number in came:
        signal.raise_signal(number)


@contextmanager
def passed_to_tune() -> Iterator[None]:
    """Lets Ray Tune install its own handlers of SIGINT and SIGUSR1 during the block, which save Tune's state and make
    `fit()` return."""
    # Tune would also handle a SIGINT that is ignored, unless this variable forbids it.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = str(int(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))
    with _handlers_restored():
        yield
