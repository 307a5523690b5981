"""Rows at random: a fixed sample of all rows, and mini-batches in which each row comes by once an epoch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from daskem import tree
from daskem.core import Batch, Chunk, Expectation, Int, Model, Params
from daskem.data.dataset import Dataset, Memory
from daskem.data.units import Unit
from daskem.engine.graph import calls, calls_on, node, reduction
from daskem.engine.passes import Engine
from daskem.engine.planner import Plan, size
from daskem.engine.tasks import ExpectTask, Partial, combine, expect_unit, join, take_rows
from daskem.errors import ContractError, DataError, OptionError, PlanError

__all__ = ["Stream", "draw_sample", "sample_share", "sampled_rows"]

# Rows of a mini-batch below which one task more costs a cluster more than it saves.
GROUP_ROWS = 4096
# Rows of positive weight that a mini-batch must hold on average, unless it is smaller: of fewer, the first M-step makes
# components that no later one brings back.
FEWEST_PRESENT = 25
# Pieces whose rows are mixed, unless told otherwise: 256 MiB of rows.
WINDOW = 16
# Rows of a small sample that are drawn near each other.
CLUSTER = 64
# Last words of the counters that random numbers are drawn from: no other draw uses them.
SAMPLE_WORD, ORDER_WORD, SHUFFLE_WORD = ((1 << 62) + i for i in range(3))


def sampled_rows(start: int, stop: int, n_rows: int, rows: int, reach: int, seed: int) -> Int:
    """Return which of the rows ``start:stop`` belong to a uniform sample of `rows` among `n_rows`, in order.

    One row is drawn in each of `rows` runs of equal length, so that sorted data are seen evenly. Where these are long,
    64 rows are drawn near each other, within `reach`, so that a small sample does not read all of a large store. Which
    rows these are depends on the totals and the seed alone: not on chunks, units or workers.
    """
    clusters, reach = -(-rows // CLUSTER), max(reach, CLUSTER)
    if n_rows // clusters <= reach:
        return _drawn(start, stop, _Strata(0, n_rows, rows), seed)
    first, last = max(start * clusters // n_rows - 1, 0), min(-(-stop * clusters // n_rows) + 1, clusters)
    places = _drawn(first * n_rows // clusters, last * n_rows // clusters, _Strata(0, n_rows, clusters), seed)
    parts = []
    for i, place in zip(range(first, last), places, strict=True):
        low, high = i * n_rows // clusters, (i + 1) * n_rows // clusters
        begin = min(max(int(place) - reach // 2, low), high - reach)
        share = (i + 1) * rows // clusters - i * rows // clusters
        parts.append(_drawn(start, stop, _Strata(begin, begin + reach, share), seed))
    return np.concatenate(parts)


class _Strata(NamedTuple):
    """Rows ``low:high`` in `runs` of about equal length."""

    low: int
    high: int
    runs: int


def _drawn(start: int, stop: int, strata: _Strata, seed: int) -> Int:
    """Return the rows drawn, one in each stratum, that lie in ``start:stop``."""
    low, length, count = strata.low, strata.high - strata.low, strata.runs
    first = min(max((start - low) * count // length - 1, 0), count)
    last = max(min(-(-(stop - low) * count // length) + 1, count), first)
    bits = np.random.Philox(key=seed, counter=[0, low, count, SAMPLE_WORD])
    # Philox makes four numbers a count.
    bits.advance(first // 4)
    uniform = np.random.Generator(bits).random(last - first + first % 4)[first % 4 :]
    # Exact up to 10^12 rows and a sample of 10^6.
    bounds = low + np.arange(first, last + 1, dtype=np.int64) * length // count
    rows = bounds[:-1] + (uniform * np.diff(bounds)).astype(np.int64)
    return np.asarray(rows[(rows >= start) & (rows < stop)])


def sample_share(data: Dataset, rows: int) -> float:
    """Return the share of the data that is read, at most, to draw a sample of `rows`."""
    return min(1.0, 2.0 * data.usual_piece_rows() * -(-rows // CLUSTER) / data.n_rows)


def draw_sample(engine: Engine, rows: int, missing: bool) -> Dataset:
    """Return a uniform sample of `rows` rows, in memory, with their weights and labels; one pass over the data.

    With `missing` they may hold NaN.

    Raises
    ------
    PlanError
        If there is no memory for so many rows.
    """
    data, plan = engine.data, engine.plan
    if not 0 < rows <= data.n_rows:
        raise OptionError(f"a sample of {rows:,} rows was asked for; {data.rows.name} has {data.n_rows:,}.")
    if rows > plan.sizes.sample_room:
        raise PlanError(
            f"a sample of {rows:,} rows needs {size(plan.sizes.sample_bytes(rows))}, but {size(plan.sizes.room)} are "
            "left of the memory limit. "
            "Raise memory_limit, or use a smaller sample. Nothing was read."
        )
    shared = node((data.n_rows, rows, data.usual_piece_rows(), engine.seed))
    runs = [(engine.parts[u.index], u.start, u.stop) for u in plan.units]
    drawn: list[Chunk] = []
    for first in range(0, len(runs), together := _units_together(plan, rows)):
        drawn += engine.compute_all(calls_on(_sample_unit, runs[first : first + together], shared, missing))
    return _in_memory(f"a sample of {data.rows.name}", join(drawn))


def _units_together(plan: Plan, rows: int) -> int:
    """Return of how many units workers may hold the rows drawn, until the driver takes these from all of them."""
    if not plan.cluster:
        return len(plan.units)
    share = plan.sizes.sample_bytes(rows) * max(map(len, plan.units)) / plan.n_rows
    room = plan.processes * max(plan.limit - plan.peak, 0)
    return max(plan.processes * plan.slots, int(room / share))


@dataclass(eq=False)
class Stream:
    """Mini-batches of one data set, read by windows of pieces; the next window is read while this one is used.

    In each epoch the pieces come in another order, `batch.window` at a time; the rows of a window are permuted within
    groups of pieces, and each mini-batch takes the next share of every group. Where a mini-batch is large enough for
    several tasks there are as many groups, so that several workers take part. All that matters depends on the seed and
    the mini-batch's number alone; what is kept here is only a cache. With `missing` rows may hold NaN.
    """

    engine: Engine
    batch: Batch
    missing: bool

    def __post_init__(self) -> None:
        self._windows: dict[int, Future[list[Any]]] = {}
        self._group_rows: dict[int, list[int]] = {}
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="daskem-window")
        if self.batch.rows > self.engine.data.n_rows:
            raise OptionError(
                f"a mini-batch of {self.batch.rows:,} rows is larger than the data, {self.engine.data.n_rows:,} rows. "
                "Use a smaller one, or batch EM."
            )
        self._check_weight()
        if self.batch.window is not None and self.batch.window > len(self.pieces):
            raise OptionError(
                f"a window of {self.batch.window:,} pieces is larger than the data: {self.engine.data.rows.name} has "
                f"{len(self.pieces):,} pieces. Use a smaller one, or leave it out."
            )

    def _check_weight(self) -> None:
        data, rows = self.engine.data, self.batch.rows
        expected = rows * data.n_present / data.n_rows
        if expected < min(rows, FEWEST_PRESENT):
            raise DataError(
                f"{data.rows.name}: {data.n_present:,} of {data.n_rows:,} rows have a positive weight, so that a "
                f"mini-batch of {rows:,} rows would hold about {expected:.2g} of them. Fit the rows that have weight "
                "alone, use larger mini-batches, or batch EM."
            )

    @cached_property
    def pieces(self) -> list[Unit]:
        """The runs of stored chunks that are read at a time."""
        return self.engine.data.piece_units()

    @property
    def n_windows(self) -> int:
        """Windows of an epoch."""
        return -(-len(self.pieces) // (self.batch.window or WINDOW))

    @cached_property
    def n_batches(self) -> int:
        """Mini-batches of an epoch."""
        rows = self.engine.data.n_rows - self.batch.held_out
        return self.n_windows * max(1, round(rows / self.batch.rows / self.n_windows))

    def expect(self, model: Model, members: Sequence[Params], index: int, step: int) -> list[Expectation]:
        """Return what the `index`-th mini-batch says, scaled to all rows."""
        shares, plan = self.shares(index), self.engine.plan
        task = ExpectTask(model, tuple(members), plan.block_rows, plan.segment_rows, self.engine.seed, step)
        partial = self._run(self._loaded(index // self._per_window), shares, task)
        task.derived.clear()
        rows = self.n_rows_of(index)
        if partial.rows != rows:
            raise ContractError(f"mini-batch {index} counted {partial.rows} rows where there are {rows}.")
        return [tree.scale(expectation, self.engine.data.n_rows / rows) for expectation in partial.expectations]

    def n_rows_of(self, index: int) -> int:
        """Return the rows of a mini-batch."""
        return sum(stop - start for start, stop in self.shares(index))

    def shares(self, index: int) -> list[tuple[int, int]]:
        """Return the rows that a mini-batch takes of each group of its window; groups are numbered apart."""
        window, place = divmod(index, self._per_window)
        counted = self._group_rows.get(window)
        if counted is None:
            counted = [self._rows_of(group) for group in self._groups(window)]
            # What was counted for the windows before is of no use any more; runs side by side may be at others.
            self._group_rows = {window: counted}
        firsts = (group * self.engine.data.n_rows for group in range(len(counted)))
        return [
            (first + place * rows // self._per_window, first + (place + 1) * rows // self._per_window)
            for first, rows in zip(firsts, counted, strict=True)
        ]

    @property
    def _per_window(self) -> int:
        return self.n_batches // self.n_windows

    def _run(self, loaded: list[Any], shares: list[tuple[int, int]], task: ExpectTask) -> Partial:
        runs = [(i, data, *share) for i, (data, share) in enumerate(zip(loaded, shares, strict=True))]
        runs = [run for run in runs if run[3] > run[2]]
        if len(runs) == 1 and isinstance(runs[0][1], Dataset):
            index, data, start, stop = runs[0]
            return expect_unit(data, start, stop, index, task)
        shared = node(task)
        leaves = calls(expect_unit, [(data, start, stop, index, shared) for index, data, start, stop in runs])
        total: Partial = self.engine.compute(reduction(leaves, self.engine.plan.arity, combine))
        return total

    def _loaded(self, window: int) -> list[Any]:
        """Return the groups of a window where they were read, and have the next window read."""
        with self._lock:
            for number in (window, window + 1):
                if number not in self._windows:
                    # A client may be the caller's own, known in its context alone.
                    self._windows[number] = self._reader.submit(copy_context().run, self._load, number)
            for number in set(self._windows) - {window, window + 1}:
                del self._windows[number]
            loading = self._windows[window]
        return loading.result()

    def _load(self, window: int) -> list[Any]:
        data, epoch = self.engine.data, window // self.n_windows
        shared, sample = node(data), node(self._sample)
        shuffles = []
        for i, group in enumerate(self._groups(window)):
            given = [shared if part is data else part for part in map(data.bind, group)]
            shuffles.append((given, node(group), sample, i * data.n_rows, epoch, self.missing))
        return self.engine.executor.load(calls(_shuffle, shuffles), self.engine.plan.slots)

    def _groups(self, window: int) -> list[list[Unit]]:
        epoch, place = divmod(window, self.n_windows)
        bits = np.random.Philox(key=self.engine.seed, counter=[0, 0, epoch, ORDER_WORD])
        order = np.random.Generator(bits).permutation(len(self.pieces))
        chosen = [self.pieces[i] for i in np.sort(order[place :: self.n_windows])]
        n_groups = max(1, min(len(chosen), self.batch.rows // GROUP_ROWS))
        return [chosen[i::n_groups] for i in range(n_groups)]

    def _rows_of(self, group: Sequence[Unit]) -> int:
        held = sum(len(self._held_out(unit)) for unit in group)
        return sum(map(len, group)) - held

    def _held_out(self, unit: Unit) -> Int:
        return _held_out(unit, *self._sample)

    @property
    def _sample(self) -> tuple[int, int, int, int]:
        """What tells the rows that are held out: all rows, those held out, their reach, the seed."""
        data = self.engine.data
        return data.n_rows, self.batch.held_out, data.usual_piece_rows(), self.engine.seed


def _held_out(unit: Unit, n_rows: int, held_out: int, reach: int, seed: int) -> Int:
    if not held_out:
        return np.zeros(0, np.int64)
    return sampled_rows(unit.start, unit.stop, n_rows, held_out, reach, seed)


def _sample_unit(data: Dataset, start: int, stop: int, sample: tuple[int, int, int, int], missing: bool) -> Chunk:
    return join(take_rows(data, start, stop, sampled_rows(start, stop, *sample) - start, missing))


def _shuffle(
    parts: list[Dataset], units: list[Unit], sample: tuple[int, int, int, int], first: int, epoch: int, missing: bool
) -> Dataset:
    """Return the rows of some pieces, but for those held out, in an order of their own in each epoch.

    They are numbered from `first`: what a random E-step draws for a row depends on its number and the step.
    """
    drawn: list[Chunk] = []
    for data, unit in zip(parts, units, strict=True):
        kept = np.ones(len(unit), bool)
        kept[_held_out(unit, *sample) - unit.start] = False
        drawn += take_rows(data, unit.start, unit.stop, np.flatnonzero(kept), missing)
    bits = np.random.Philox(key=sample[-1], counter=[0, units[0].start, epoch, SHUFFLE_WORD])
    order = np.random.Generator(bits).permutation(sum(map(len, drawn)))
    return _in_memory(f"shuffled rows of {parts[0].rows.name}", join(drawn, order), first)


def _in_memory(name: str, chunk: Chunk, first: int = 0) -> Dataset:
    sides = (
        None if side is None else Memory(name, side.reshape(len(side), -1), first)
        for side in (chunk.weight, chunk.labels)
    )
    present = None if chunk.weight is None else int(np.count_nonzero(chunk.weight))
    return Dataset(Memory(name, chunk.rows, first), *sides, present=present)
