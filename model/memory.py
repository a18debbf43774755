"""Memory that a training step frees, kept for the next one."""

import ctypes
import sys

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
