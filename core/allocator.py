"""Memory that a forward frees stays with the process: half of a forward's time was spent on getting it anew.

glibc gives each large block its own mapping and returns it when it is freed, so that every activation of
every batch is mapped, faulted in page by page and zeroed by the kernel again. docs/lab/performance.md.
"""

from __future__ import annotations

import ctypes
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""mallopt's names, of malloc.h."""
LARGEST = 1 << 30
"""Bytes up to which a block comes from the heap; larger ones, such as galleries, are mapped as ever."""
KEPT = 1 << 29
"""Bytes at the end of the heap that stay with the process though nobody uses them."""


@cache
def keep_memory() -> bool:
    """Tells the C library so, once; False where it is not glibc, and nothing changes."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # One heap for all threads: those of other threads are cut into pieces of 64 MiB, and given back at once.
    wanted = ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, KEPT), (ARENA_MAX, 1))
    taken = [mallopt(name, value) for name, value in wanted]
    return all(taken)
