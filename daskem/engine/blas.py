"""One BLAS thread inside every task: the tasks are what runs in parallel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import scipy.linalg  # noqa: F401  scipy brings a BLAS of its own, which must be loaded to be found and limited
from threadpoolctl import ThreadpoolController

from daskem.engine.held import Held

__all__ = ["one_blas_thread"]


@cache
def _controller() -> ThreadpoolController:
    # Looking through the loaded libraries takes milliseconds: once a process, not once a task.
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[None]:
    """Hold this process's BLAS at one thread until the last of the concurrent holders has left.

    BLAS counts threads per process, not per caller: were each task to restore what it found, the first to end would
    set the others loose on all cores.
    """
    return _one_thread.hold()


def _limit() -> Callable[[], None]:
    """Limit BLAS to one thread and return what undoes it, from whichever thread that is called.

    From release 3.8 threadpoolctl obeys the first thread that sets a limit and, silently, no other one while that
    thread lives. The last holder to leave is rarely the first that came, so both are done by threads that end at once.
    """
    limiter = _elsewhere(lambda: _controller().limit(limits=1, user_api="blas"))
    if all(library["num_threads"] == 1 for library in _controller().info() if library["user_api"] == "blas"):
        return lambda: _elsewhere(limiter.restore_original_limits)
    # A limit that the caller has set is still in force: its thread is the one that is obeyed.
    own = _controller().limit(limits=1, user_api="blas").__enter__()
    return lambda: own.__exit__(None, None, None)


def _elsewhere(work: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), name="daskem-blas")
    thread.start()
    thread.join()
    return results[0]


_one_thread = Held(_limit)
