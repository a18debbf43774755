"""Memory that a training step frees, kept for the next one."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_blocks() -> None:
    """On Linux with glibc, else nothing.

    By default it gives blocks back as soon as they are free, and the next step faults them in again page by page: a
    sixth of a small network's time on a CPU. Blocks over 32 MB, the most that can be kept, still go back; those torch
    asks for in huge pages (see `model/__init__.py`).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
            libc.mallopt(_TRIM_THRESHOLD, -1)
