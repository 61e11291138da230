"""What the C library does with freed memory.

By default glibc gives large pieces back to the system, which then clears and maps their pages again for the next batch.
"""

import ctypes
import sys
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h
MOST_PIECES = 65536  # that are mapped one by one: glibc's default


def keep_freed_memory() -> None:
    """Keeps what this process frees for what it allocates next, which makes each pass through a network faster.

    It holds until the process ends, for all of its code. Where there is no glibc, nothing happens.
    """
    if mallopt := _of_libc('mallopt'):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Gives each tensor back to the system when it is freed, which takes longer and leaves no gaps between others.

    By default glibc keeps those below 32 MB for the next ones, which often fit no gap. It holds until the process ends.
    Where there is no glibc, nothing happens.
    """
    if mallopt := _of_libc('mallopt'):
        mallopt(M_MMAP_MAX, MOST_PIECES)
        mallopt(M_MMAP_THRESHOLD, 2**20)
        mallopt(M_TRIM_THRESHOLD, 2**20)


def release_freed_memory() -> None:
    """Gives what is free at this moment back to the system."""
    if trim := _of_libc('malloc_trim'):
        trim(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == 'linux' else None
