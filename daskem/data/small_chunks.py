"""Reads many small Zarr chunks: by the thread that asks for them, or by those of zarr, whichever is faster."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import lru_cache
from statistics import median
from typing import Any, TypeVar, TypeVarTuple, Unpack

import zarr

__all__ = ["Pace", "SmallChunks"]

# Chunks of a read from which an event loop of its own is worth its cost, that of four chunks.
MANY = 8
# Reads by which a way is judged: the last ones.
LATELY = 3
# Of the time that reads take, the share that trials of the slower way may.
TRIALS = 0.02

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class SmallChunks:
    """A Zarr array that is indexed in whichever of two ways has lately been faster; rows and errors are the same.

    zarr hands every chunk to one thread to read it and to another to decode it. For 10,000 chunks of 64 KB on two cores
    that is more work than all the rest (measured: 3.4 s of processor time instead of 1.5), so the thread that asks
    does it all by itself. But where each chunk keeps one waiting, as on many a network file system, or where cores are
    idle, zarr's way is faster.

    Parameters
    ----------
    array : in a store that any thread may read from.
    name : under which this process remembers how fast reads were.
    """

    def __init__(self, array: zarr.Array[Any], name: str) -> None:
        self.shape = array.shape
        self._array = array
        self._pace = _pace_of(name)

    def __getitem__(self, selection: slice | tuple[slice, ...]) -> Any:
        n_chunks = self._count(selection)
        if n_chunks < MANY or not _may_loop():
            return self._array[selection]
        way = self._pace.choose(n_chunks)
        began = time.perf_counter()
        rows = (_by_this_thread, _by_zarr)[way](self._array, selection)
        self._pace.note(way, n_chunks, time.perf_counter() - began)
        return rows

    def _count(self, selection: slice | tuple[slice, ...]) -> int:
        slices = selection if isinstance(selection, tuple) else (selection,)
        axes = zip(slices, self._array.chunks, strict=True)
        return math.prod(-(-along.stop // size) - along.start // size for along, size in axes)


class Pace:
    """Which of two ways is faster, by the median of what each cost lately. The slower one is tried now and then.

    There is no lock, which a process that is forked could inherit closed: a note that is lost does no harm.
    """

    def __init__(self) -> None:
        self._lately: list[tuple[float, ...]] = [(), ()]
        self._elapsed = self._trials = 0.0

    def choose(self, amount: int) -> int:
        """Return the way, 0 or 1, to do so much."""
        tries = [len(costs) for costs in self._lately]
        if min(tries) < LATELY:
            return tries.index(min(tries))
        costs = [median(costs) for costs in self._lately]
        slower = int(costs[1] >= costs[0])
        # Before it is spent, so that not all threads try at once.
        price = costs[slower] * amount
        if self._trials + price > TRIALS * self._elapsed:
            return 1 - slower
        self._trials += price
        return slower

    def note(self, way: int, amount: int, seconds: float) -> None:
        """Note the seconds that a way took to do so much."""
        self._lately[way] = (*self._lately[way], seconds / amount)[-LATELY:]
        self._elapsed += seconds


class _AtOnce(asyncio.SelectorEventLoop):
    """An event loop that calls what may block at once, in its own thread, where others hand it to an executor."""

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Arguments]], Result], *args: *Arguments
    ) -> asyncio.Future[Result]:
        done: asyncio.Future[Result] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


def _by_this_thread(array: zarr.Array[Any], selection: slice | tuple[slice, ...]) -> Any:
    async def get() -> Any:
        return await array.async_array.getitem(selection)

    with asyncio.Runner(loop_factory=_AtOnce) as runner:
        return runner.run(get())


def _by_zarr(array: zarr.Array[Any], selection: slice | tuple[slice, ...]) -> Any:
    return array[selection]


def _may_loop() -> bool:
    """Whether this thread may run an event loop: not beside another one, nor where signals interrupt it anywhere."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.current_thread() is not threading.main_thread()
    return False


@lru_cache(256)
def _pace_of(name: str) -> Pace:
    return Pace()
