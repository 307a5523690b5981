"""Reads small Zarr chunks in the thread that asks for rows, where handing each to other threads costs more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import zarr

__all__ = ["InlineReads"]

logger = logging.getLogger("daskem")

# Of the time that reads take, the share that a process computes at least; it waits for the store where it does less.
BUSY = 0.8
# Seconds of reading before that is judged.
JUDGED = 0.25

Value = TypeVar("Value")


class InlineReads:
    """A Zarr array whose chunks are read and decoded by the thread that indexes it.

    zarr hands every chunk to one thread to read it and to another to decode it. For 10,000 chunks of 64 KB on two cores
    that is more work than all the rest (measured: 3.4 s of processor time instead of 1.5). But where each chunk keeps
    one waiting, as on many a network file system, zarr's threads wait for several at once: then these are used.

    Parameters
    ----------
    array : in a store that may be read from any thread. Errors are those of the array itself.
    name : how the log calls it.
    """

    def __init__(self, array: zarr.Array[Any], name: str) -> None:
        self.shape = array.shape
        self._array = array
        self._name = name
        self._elapsed = self._computed = 0.0
        self._waits = False

    def __getitem__(self, selection: slice | tuple[slice, ...]) -> Any:
        if self._waits or _inside_loop():
            return self._array[selection]
        began, busy = time.perf_counter(), time.process_time()
        with asyncio.Runner() as runner:
            # zarr gives what may block to its loop's executor.
            runner.get_loop().set_default_executor(_AtOnce())
            rows = runner.run(_get(self._array, selection))
        self._note(time.perf_counter() - began, time.process_time() - busy)
        return rows

    def _note(self, elapsed: float, computed: float) -> None:
        self._elapsed += elapsed
        self._computed += computed
        if self._elapsed >= JUDGED and self._computed < BUSY * self._elapsed:
            self._waits = True
            logger.debug("%s: reads wait for the store: its chunks are read by zarr's threads from here on", self._name)


class _AtOnce(ThreadPoolExecutor):
    """An executor that calls what it is given at once, in the thread that gives it; it starts no thread."""

    def submit(self, fn: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        done: Future[Value] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


async def _get(array: zarr.Array[Any], selection: slice | tuple[slice, ...]) -> Any:
    return await zarr.AsyncArray(array.metadata, array.store_path).getitem(selection)


def _inside_loop() -> bool:
    """Whether an event loop runs in this thread, as in that of a notebook: no second one can."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
