"""Passes over a data set: which tasks there are, where they run, and the tree that adds what they return."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask.delayed import Delayed

from daskem.core import Chunk, Expectation, Model, Params, Sizes, used_columns
from daskem.data.dataset import PIECE_BYTES, Dataset
from daskem.data.units import Unit
from daskem.engine.allocator import freed_blocks_kept
from daskem.engine.executor import Executor, find_executor
from daskem.engine.graph import calls_on, node, reduction, rows_of
from daskem.engine.planner import Plan, make_plan
from daskem.engine.remote import DeadlyTasksError
from daskem.engine.tasks import (
    ExpectTask,
    Merge,
    Partial,
    combine,
    draw_rows,
    expect_unit,
    fold,
    fold_unit,
    join,
    load_unit,
    map_unit,
)
from daskem.errors import ClusterError, ContractError, DataError

__all__ = ["Engine", "start_engine"]

logger = logging.getLogger("daskem")

# Units that a sample of rows is drawn from: many enough to see sorted data from end to end, few enough to be cheap.
SAMPLE_UNITS = 64
# Bytes of weights or labels that may travel with the graph of each pass.
MAX_SENT = 64 << 20


@dataclass(frozen=True, eq=False)
class Engine:
    """Runs passes over one data set, in one place, within one plan.

    Attributes
    ----------
    data, plan, executor, seed : what, how much, where, and what random E-steps draw from.
    parts : what each unit's task is given to read from: the shared source, a Dask array's blocks, or kept rows.
    """

    data: Dataset
    plan: Plan
    executor: Executor
    seed: int
    parts: tuple[Any, ...]

    def expect(
        self, model: Model, members: Sequence[Params], units: Sequence[int] | None = None, step: int = 0
    ) -> list[Expectation]:
        """Return what one pass (or a part of one) says of each of `members`, in the order of the members.

        Raises
        ------
        NonFiniteError
            If rows hold NaN or infinity, or no component explains a row; names the store, the chunk and the rows.
        ContractError
            If a row was counted twice or not at all.
        """
        chosen = self.plan.units if units is None else [self.plan.units[i] for i in units]
        task = ExpectTask(model, tuple(members), self.plan.block_rows, self.plan.segment_rows, self.seed, step)
        leaves = calls_on(expect_unit, [(*self._run(u), u.index) for u in chosen], node(task))
        work = reduction(leaves, self.plan.arity, combine)
        with self.executor.span(step, work):
            total: Partial = self.compute(work)
        task.derived.clear()
        _check_complete(total, chosen)
        return list(total.expectations)

    def map_units(self, function: Callable[[Chunk], Any]) -> list[Delayed]:
        """Return one delayed list per unit: `function` of each of its blocks."""
        return calls_on(map_unit, [self._run(u) for u in self.plan.units], self.plan.block_rows, node(function))

    def call_runs(self, task: Callable[..., Any], runs: Sequence[tuple[int, int]], *args: Any) -> list[Delayed]:
        """Return one delayed call per run of rows: ``task(data, start, stop, block_rows, *args)``."""
        parts = _bind(self.data, [Unit(i, start, stop) for i, (start, stop) in enumerate(runs)])
        bound = [(part, *run) for part, run in zip(parts, runs, strict=True)]
        return calls_on(task, bound, self.plan.block_rows, *map(node, args))

    def gather(self, function: Callable[[Chunk], Any]) -> list[Any]:
        """Return `function` of every block, in row order. For results that are small beside the rows."""
        return [result for unit in self.compute_all(self.map_units(function)) for result in unit]

    def fold(self, function: Callable[[Chunk], Any], merge: Merge) -> Any:
        """Return `function` of every block, put together by `merge` in the tasks and up a tree; one pass.

        Parameters
        ----------
        merge : takes what two consecutive runs of rows say, and returns what they say together.
        """
        how = node(merge)
        runs = [self._run(u) for u in self.plan.units]
        leaves = calls_on(fold_unit, runs, self.plan.block_rows, node(function), how)
        return self.compute(reduction(leaves, self.plan.arity, fold, how))

    def sample(self, rows: int, rng: np.random.Generator, *, missing: bool = False) -> Chunk:
        """Return about `rows` rows with their weights and labels, without those of weight zero.

        All rows if there are no more; else rows drawn at random from one run of stored chunks in each of many units, so
        that sorted data are seen from end to end while little is read. With `missing` they may hold NaN.
        """
        draws = [(0, self.plan.n_rows, None)] if rows >= self.plan.n_rows else self._draws(rows, rng)
        parts = _bind(self.data, [Unit(i, start, stop) for i, (start, stop, _) in enumerate(draws)])
        seed = int(rng.integers(1 << 62))
        runs = [(part, *draw) for part, draw in zip(parts, draws, strict=True)]
        drawn: list[Chunk] = self.compute_all(calls_on(draw_rows, runs, seed, missing))
        sample = replace(join(drawn), seed=self.seed)
        if len(sample) == 0:
            raise DataError(
                f"none of the rows looked at for a start has a positive weight ({len(draws)} runs of "
                f"{self.data.rows.name}). Leave out rows without weight, or give the starting values."
            )
        return sample

    def compute(self, node: Delayed) -> Any:
        """Return the value of a node."""
        return self.compute_all([node])[0]

    def compute_all(self, nodes: Sequence[Delayed]) -> list[Any]:
        """Return the values of nodes.

        Raises
        ------
        ClusterError
            If a task takes each of its workers with it, or the cluster is lost.
        """
        try:
            with freed_blocks_kept() if self.plan.spent else nullcontext():
                return self.executor.compute_all(nodes, min(self.plan.slots, len(self.plan.units)))
        except DeadlyTasksError as error:
            raise ClusterError(self._fatal(error)) from error

    def _fatal(self, error: DeadlyTasksError) -> str:
        """Return which rows no worker survives, and what to do."""
        source = self.data.rows
        runs = sorted(filter(None, map(rows_of, error.keys)))
        where = "; ".join(f"{source.locate(*run)}, rows {run[0]}:{run[1]}" for run in runs) or ", ".join(error.keys)
        how = "" if len(error.keys) == 1 else "; each alone was no harm"
        return (
            f"{source.name}, {where}: {error.deaths} workers died one after the other while they worked on this{how} "
            f"(the last one: {error.worker}). Their logs say why: most often memory, where a lower memory_limit "
            "(--memory-limit) or fewer threads for each worker help; else a library crashed on these rows."
        )

    def _run(self, unit: Unit) -> tuple[Any, int, int]:
        """Return what a task over a unit is given first: what to read from, and which rows."""
        return self.parts[unit.index], unit.start, unit.stop

    def _draws(self, rows: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        if self.data.rows.in_process:
            return [(0, self.plan.n_rows, rows)]
        n_units = min(len(self.plan.units), SAMPLE_UNITS)
        units = [self.plan.units[i] for i in np.sort(rng.choice(len(self.plan.units), n_units, replace=False))]
        share = -(-rows // n_units)
        return [(*self._part(unit, share, rng), share) for unit in units]

    def _part(self, unit: Unit, share: int, rng: np.random.Generator) -> tuple[int, int]:
        """Return where to draw `share` rows of a unit: all of a small unit, else a random run of its chunks."""
        if len(unit) * self.data.row_bytes <= PIECE_BYTES:
            return unit.start, unit.stop
        start = self.data.rows.piece_boundary(int(rng.integers(unit.start, unit.stop)))
        start = start if unit.start <= start < unit.stop - share else unit.start
        return start, min(self.data.rows.piece_boundary(min(start + 4 * share, unit.stop)), unit.stop)


def start_engine(
    data: Dataset,
    model: object,
    *,
    seed: int = 0,
    members: int = 1,
    sample_rows: int | None = None,
    results: int = 0,
    cache: str = "auto",
    memory_limit: Any = None,
    memory: Callable[[Sizes], int] | None = None,
) -> Engine:
    """Plan passes of `model` over `data` and return the engine that runs them.

    Parameters
    ----------
    members : parameter sets that will share each pass.
    sample_rows, results, cache, memory_limit, memory : see `daskem.engine.planner.make_plan`.

    Raises
    ------
    PlanError
        If the work cannot fit into memory, or the cluster has no workers.
    """
    executor = find_executor(local=data.in_process)
    if executor.cluster:
        _check_sides(data)
    plan = make_plan(
        data,
        model,
        executor,
        members=members,
        sample_rows=sample_rows,
        results=results,
        cache=cache,
        memory_limit=memory_limit,
        memory=memory,
    )
    data = replace(data, finer=plan.finer, used=used_columns(model))
    parts = _bind(data, plan.units)
    if plan.cached_units:
        logger.info(
            "keeping %d of %d units (%.3g GB) decoded in memory; cache='none' streams them instead",
            plan.cached_units,
            len(plan.units),
            plan.cache * plan.processes / 1e9,
        )
        kept = calls_on(load_unit, [(parts[u.index], u.start, u.stop) for u in plan.units[: plan.cached_units]])
        parts = [*executor.keep(kept, plan.slots), *parts[plan.cached_units :]]
    return Engine(data, plan, executor, seed, tuple(parts))


def _check_sides(data: Dataset) -> None:
    """Refuse to send a cluster, in each pass, more weights and labels than a graph should carry."""
    for source in data.sources[1:]:
        if source.in_process and math.prod(source.shape) * source.dtype.itemsize > MAX_SENT:
            raise DataError(
                f"{source.name} has {math.prod(source.shape)} values in this process, which would be sent to the "
                "cluster in each pass. Give them where the workers can read them: a Zarr array, a file or a dask array."
            )


def _bind(data: Dataset, units: Sequence[Unit]) -> list[Any]:
    shared = node(data)
    bound = [data.bind(unit) for unit in units]
    return [shared if part is data else part for part in bound]


def _check_complete(total: Partial, units: Sequence[Unit]) -> None:
    expected_rows = sum(len(unit) for unit in units)
    if total.rows != expected_rows or sorted(total.units) != sorted(unit.index for unit in units):
        raise ContractError(
            f"a pass counted {total.rows} rows of {len(total.units)} units where there are {expected_rows} rows in "
            f"{len(units)} units. Its sums are wrong and were discarded; has the store changed its size during the run?"
        )
