"""Makes the C allocator give freed arrays back to the system, so that resident memory is what is in use."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["return_freed_memory"]

# From glibc's malloc.h; part of its stable interface (man 3 mallopt).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Decoded pieces and work arrays are larger, and are worth a system call each; what is smaller hardly fragments.
THRESHOLD = 1 << 20


def return_freed_memory() -> bool:
    """Have arrays above a megabyte allocated by themselves, for the rest of this process; True where that can be told.

    glibc moves its own threshold up to 32 MB as such arrays are freed, and then keeps them in fragmented heaps: after
    a fit within 455 MB, 412 MB stay resident; with a fixed threshold 240 MB, of which 230 MB are imported packages.
    Fresh pages cost a pass a tenth of its time. So this is for applications that do several jobs in one process, each
    within a limit. Dask's nannies do likewise for their workers (``MALLOC_TRIM_THRESHOLD_``).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, THRESHOLD) and libc.mallopt(M_TRIM_THRESHOLD, THRESHOLD))
