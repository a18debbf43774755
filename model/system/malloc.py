"""Settings of two memory managers: glibc's malloc and Python's garbage collector."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of mallopt(3)


def keep_freed_blocks() -> None:
    """Makes glibc keep freed memory for reuse instead of returning it to the kernel. Does nothing without glibc.

    By default, glibc unmaps large blocks and trims the heap when memory is freed, and the next training step faults it
    in again page by page: a sixth of a small network's time on a CPU. The price is that the process never shrinks.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, -1)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses Python's cyclic garbage collector, for large imports such as torch and Ray.

    While they create objects, the collector would scan all of them again and again, which takes a fifth of the time,
    and would find no garbage.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
