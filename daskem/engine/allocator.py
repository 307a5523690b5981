"""Has the C allocator keep freed arrays for the next ones, or give them back to the system."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

from daskem.engine.held import Held

__all__ = ["HEAP_BYTES", "OWN_THRESHOLD", "freed_blocks_kept", "keeps_freed_blocks", "return_freed_memory", "trim"]

# From glibc's malloc.h; part of its stable interface (man 3 mallopt).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# What its own threshold grows to as larger and larger arrays are freed, and what a heap of a thread holds.
OWN_THRESHOLD, HEAP_BYTES = 32 << 20, 64 << 20
# Decoded pieces and work arrays are larger, and are worth a system call each; what is smaller hardly fragments.
RETURNED = 1 << 20
# Settings of the user's own. They are read when a process begins: those that Dask's nannies add later, for the workers
# that they start, are not in force here.
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
SET_BY_USER = any(name in os.environ for name in SETTINGS)

# What is in force while nobody holds.
_usual = OWN_THRESHOLD


def keeps_freed_blocks() -> bool:
    """Return whether `freed_blocks_kept` can do anything: on glibc, where the user has not set such things."""
    return not SET_BY_USER and _settable()


def freed_blocks_kept() -> AbstractContextManager[None]:
    """Have freed blocks of up to `HEAP_BYTES` used again, until the last of the concurrent holders has left.

    glibc takes blocks above `OWN_THRESHOLD` from the system, zeroed page by page, and gives them back when they are
    freed. Where chunks are of that size this is a third of a pass (measured: 3.6 and 2.3 s for 4 GB). Afterwards all
    that is free is given back, and that threshold, or what `return_freed_memory` has set, stands.
    """
    return _kept.hold() if keeps_freed_blocks() else nullcontext()


def return_freed_memory() -> bool:
    """Have arrays above a megabyte allocated by themselves, for the rest of this process; True where that can be told.

    glibc moves its own threshold up to 32 MB as such arrays are freed, and then keeps them in fragmented heaps: after
    a fit within 455 MB, 412 MB stay resident; with a fixed threshold 240 MB, of which 230 MB are imported packages.
    Fresh pages cost a pass a tenth of its time. So this is for applications that do several jobs in one process, each
    within a limit. Dask's nannies do likewise for their workers (``MALLOC_TRIM_THRESHOLD_``).
    """
    global _usual
    if platform.libc_ver()[0] != "glibc":
        return False
    _usual = RETURNED
    return _set(RETURNED)


def trim() -> None:
    """Give back to the system what is free in the heaps of this process, where that can be told."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _settable() -> bool:
    # Releases before 2.35 or so refuse thresholds above half of a heap.
    return platform.libc_ver()[0] == "glibc" and _set(HEAP_BYTES) and _set(_usual)


def _keep() -> Callable[[], None]:
    _set(HEAP_BYTES)
    return _give_back


def _give_back() -> None:
    _set(_usual)
    trim()


def _set(threshold: int) -> bool:
    """Set above which size blocks are the system's, and how much free memory a heap ends with at most."""
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, threshold) and libc.mallopt(M_TRIM_THRESHOLD, 2 * threshold))


_kept = Held(_keep)
