"""What a process does with memory that is free again."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_blocks() -> None:
    """On Linux with glibc, else nothing.

    By default it gives blocks back as soon as they are free, and the next step faults them in again page by page: a
    sixth of a small network's time on a CPU. From here on this process stays as large as it once was.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, -1)


@contextmanager
def collector_paused() -> Iterator[None]:
    """For large imports: Python would search all that torch or Ray has made so far for garbage again and again, a fifth
    of the time, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
