"""Answers SIGBUS, with which the kernel ends a process that reads a memory-mapped file and gets no data.

Image pools are mapped, so that all trials share them and large ones need no memory. This program writes a pool once and
then only replaces or removes it as a whole, which leaves existing maps intact. But another program may truncate the
file, or its disk may fail, between any check and the next read, so only a signal handler can answer that.

A handler of Python's `signal` module is no use: Python runs it after the instruction that was interrupted, which would
fault again for ever. So ctypes makes a C function of it. SIGBUS is delivered to the thread that reads the map, inside a
copy or a computation that holds no lock, so that the function can safely run Python code. It never returns.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model.data.pools import missing_pools
from sweep.config import SweepConfig
from sweep.wording import faults


def cut_pool(config: SweepConfig, folder: Path) -> str | None:
    """A sentence that names a pool whose file is no longer whole, or None."""
    missing = missing_pools(config, folder, test=config.confirm is not None)
    cut = (folder / spec.name for spec in missing if (folder / spec.name).exists())
    return next((f"the image pool {path} was cut while it was read" for path in cut), None)


@contextmanager
def answered(give_up: Callable[[], None]) -> Iterator[None]:
    """At SIGBUS in the block, blocks the thread that got it, calls `give_up` in another and ends the process with exit
    code 130."""
    first = threading.Lock()

    def end() -> None:
        try:
            give_up()
        finally:
            os._exit(faults.INTERRUPTED)

    def handle(number: int) -> None:
        if first.acquire(blocking=False):
            threading.Thread(target=end).start()
        while True:
            try:
                threading.Event().wait()
            except BaseException:  # Ctrl-C, for example; after a return the thread would fault again
                continue

    # Not CPython's PyOS_setsig: it lets the handler run on faulthandler's stack, if there is one, which is too small.
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    before = set_handler(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGBUS, before)
