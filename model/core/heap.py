"""Memory that arrays gave back, kept for those that come next.

glibc returns to the system what is freed of large arrays, and the system clears each page again when it is next asked
for: an eighth of the time of a large batch of plans, of which numpy makes and drops thousands of arrays of the same few
sizes. So the process keeps some of it (mallopt(3)): arrays up to `_MAPPED_B` come from memory that it has, and of that
it returns what is free beyond `_KEPT_B`. Where another library allocates, and where the environment already says how
much to keep, nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # their numbers in glibc's malloc.h
_MAPPED_B = 32 * 2**20  # the most that glibc takes
_KEPT_B = 256 * 2**20  # what a batch of 50,000 plans holds at once, and some more
_SAID_ELSEWHERE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Keep it from here on, in all of the process; whether that was done."""
    if sys.platform != "linux" or any(name in os.environ for name in _SAID_ELSEWHERE):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:  # not glibc
        return False
    options = ((_MMAP_THRESHOLD, _MAPPED_B), (_TRIM_THRESHOLD, _KEPT_B))
    return all(set_option(option, value) == 1 for option, value in options)
