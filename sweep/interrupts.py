"""When Ctrl-C, SIGTERM and SIGHUP take effect.

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


def listen() -> None:
    """From here on SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, and none is ever lost."""
    if in_main_thread():
        _handle(_TO_END, _interrupt)
        sys.unraisablehook = _once_more


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _once_more(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised in a finaliser or a weak reference's callback: Ctrl-C comes again a moment later."""
    if unraisable.exc_type is KeyboardInterrupt:
        heard = (number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN)
        threading.Timer(0.01, os.kill, (os.getpid(), next(heard, signal.SIGINT))).start()
    else:
        sys.__unraisablehook__(unraisable)


def _handle(numbers: list[signal.Signals], handler: _Handler) -> dict[signal.Signals, Any]:
    """Sets the handler for those that are not ignored; the earlier handlers."""
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


@contextmanager
def _handled_by(handler: _Handler, numbers: list[signal.Signals]) -> Iterator[None]:
    before = _handle(numbers, handler) if in_main_thread() else {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ignored() -> AbstractContextManager[None]:
    """For what must not be left half done."""
    return _handled_by(signal.SIG_IGN, _ENDING)


@contextmanager
def held_back() -> Iterator[None]:
    """What comes meanwhile raises KeyboardInterrupt afterwards: in the middle of a write to the study it would leave
    the database locked."""
    came: list[int] = []
    with _handled_by(lambda number, frame: came.append(number), _ENDING):
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def passed_to_tune() -> Iterator[None]:
    """Tune, which handles SIGINT and SIGUSR1 by saving and returning, gets SIGTERM and SIGHUP as SIGUSR1."""
    # Tune handles SIGINT even if it was ignored, unless it is told not to; SIGUSR1 only after a while.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = str(int(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))
    with (
        _handled_by(_interrupt, [signal.SIGUSR1]),
        _handled_by(lambda number, frame: os.kill(os.getpid(), signal.SIGUSR1), _TO_END),
    ):
        yield
