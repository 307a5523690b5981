"""Reads many small Zarr chunks: by the thread that asks for them, or by those of zarr, whichever is faster."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from functools import lru_cache
from statistics import median
from typing import Any, TypeVar, TypeVarTuple, Unpack

import zarr

__all__ = ["Pace", "SmallChunks"]

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
        if not _may_loop():
            return self._array[selection]
        way = self._pace.choose()
        began = time.perf_counter()
        rows = (_by_this_thread, _by_zarr)[way](self._array, selection)
        self._pace.note(way, (time.perf_counter() - began) / max(1, len(rows)), time.perf_counter() - began)
        return rows


class Pace:
    """Which of two ways is faster, by the median of what each cost lately. The slower one is tried now and then."""

    def __init__(self) -> None:
        self._lately: tuple[deque[float], deque[float]] = (deque(maxlen=LATELY), deque(maxlen=LATELY))
        self._elapsed = self._trials = 0.0
        self._lock = threading.Lock()

    def choose(self) -> int:
        """Return the way to take, 0 or 1."""
        with self._lock:
            fewer = self._fewer_tries()
            if len(self._lately[fewer]) < LATELY:
                return fewer
            faster = self._faster()
            return 1 - faster if self._trials < TRIALS * self._elapsed else faster

    def note(self, way: int, cost: float, seconds: float) -> None:
        """Note what a way cost, in a measure that does not depend on how much was done, and the seconds it took."""
        with self._lock:
            self._lately[way].append(cost)
            self._elapsed += seconds
            if all(self._lately) and way != self._faster():
                self._trials += seconds

    def _fewer_tries(self) -> int:
        return int(len(self._lately[1]) < len(self._lately[0]))

    def _faster(self) -> int:
        return int(median(self._lately[1]) < median(self._lately[0]))


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

    try:
        with asyncio.Runner(loop_factory=_AtOnce) as runner:
            return runner.run(get())
    except Exception:
        # A codec may have a loop of its own; and what is wrong is told in zarr's words.
        return _by_zarr(array, selection)


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
