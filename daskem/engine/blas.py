"""One BLAS thread inside every task: the tasks are what runs in parallel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import scipy.linalg  # noqa: F401  scipy brings a BLAS of its own, which must be loaded to be found and limited
from threadpoolctl import ThreadpoolController

__all__ = ["one_blas_thread"]

_lock = threading.Lock()
_holders = 0
_limiter: Any = None


@cache
def _controller() -> ThreadpoolController:
    # Looking through the loaded libraries takes milliseconds: once a process, not once a task.
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold this process's BLAS at one thread until the last of the concurrent holders has left.

    BLAS counts threads per process, not per caller: were each task to restore what it found, the first to end would
    set the others loose on all cores.
    """
    global _holders, _limiter
    with _lock:
        if _holders == 0:
            _limiter = _controller().limit(limits=1, user_api="blas")
            _limiter.__enter__()
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _limiter.__exit__(None, None, None)
                _limiter = None
