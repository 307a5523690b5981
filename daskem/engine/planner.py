"""What a run will cost, computed before anything is read: units, tasks, bytes per task, bytes on the driver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
from distributed.system import MEMORY_LIMIT

from daskem.core import Footprint, HasFootprint, Sizes
from daskem.data.dataset import Dataset
from daskem.data.units import Unit, nominal_rows
from daskem.engine.allocator import HEAP_BYTES, OWN_THRESHOLD, keeps_freed_blocks
from daskem.engine.executor import Executor
from daskem.errors import OptionError, PlanError

__all__ = ["CACHE_MODES", "Plan", "count_tasks", "make_plan", "parse_bytes", "size"]

CACHE_MODES = ("auto", "none", "memory")
# Of the memory that is there, what daskem takes unless told otherwise; Dask workers begin to spill at 0.6 of theirs.
SHARE = 0.6
# Of the memory it may take, what a cache of decoded rows may fill: the rest absorbs what no plan foresees.
CACHE_SHARE = 0.7
# What allocators keep of freed blocks, thread stacks, imports on first use: measured 20-60 MB on runs of many shapes.
SLACK = 64 << 20
# How many times shorter reads may be than usual: of a MiB at least, so that they still go on while others are used.
FINER = (1, 2, 4, 8, 16)
# Records of statistics larger than this travel one by one rather than eight to a tree task.
LARGE_STATS = 8 << 20
# Rows that a start is made from: enough (a fit corrects the rest), and few enough to be read and clustered in a second
# or two. It depends on the data alone, not on memory: a start should be the same on every machine.
SAMPLE_BYTES = 16 << 20
MIN_SAMPLE_ROWS, MAX_SAMPLE_ROWS = 1_000, 1 << 15
# Copies of the sample that are there at a time while it is drawn and its distinct rows are found (measured).
SAMPLE_COPIES = 4
# Assumed of a model that does not tell its footprint.
DEFAULT_BLOCK_BYTES = 1 << 20
DEFAULT_WORKSPACE_BLOCKS = 8
DEFAULT_STATS = 1 << 20
NO_SIZES = Sizes(0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Plan:
    """Figures of a pass and of the memory it needs. All sizes in bytes.

    Attributes
    ----------
    n_rows, n_features : shape of the data.
    data : decoded size of the data.
    units : the work units, one task each.
    block_rows : rows that a task walks at a time.
    segment_rows : rows whose statistics are added one block after the other; segments are added pairwise.
    arity : records that one task of the reduction tree adds.
    tasks : tasks of a pass.
    members : parameter sets that share each pass (restarts).
    slots : tasks that run at once in a process.
    processes : processes that tasks run in.
    cluster : whether these are a cluster's workers; else tasks are threads of this process.
    reader, workspace, stats, params : bytes of each in a task.
    results : bytes of results for rows that a task holds until it ends; none in an E-step.
    sample_rows : rows that a start is made from.
    start : bytes on the driver while it is made.
    base : resident bytes of a process before work.
    cache : bytes of decoded rows kept per process from pass to pass.
    cached_units : units that are kept.
    limit : bytes a process may reach.
    algorithm : bytes that the algorithm keeps in this process beside the E-step.
    sizes : what that was computed from.
    finer : how many times shorter reads are than usual.
    spent : bytes of blocks that tasks have freed, kept for the next ones (see `daskem.engine.allocator`).
    """

    n_rows: int
    n_features: int
    data: int
    units: tuple[Unit, ...]
    block_rows: int
    segment_rows: int
    arity: int
    tasks: int
    members: int
    slots: int
    processes: int
    cluster: bool
    reader: int
    workspace: int
    stats: int
    params: int
    results: int
    sample_rows: int
    start: int
    base: int
    cache: int
    cached_units: int
    limit: int
    algorithm: int = 0
    sizes: Sizes = NO_SIZES
    finer: int = 1
    spent: int = 0

    @property
    def task(self) -> int:
        """Bytes of one running task: reading, and what its parameter sets need."""
        return self.reader + self.results + self.arithmetic

    @property
    def arithmetic(self) -> int:
        """Bytes of the workspace, and of the statistics of a segment and of a block, of all members."""
        levels = 2 + math.ceil(math.log2(max(1, max(map(len, self.units)) / self.segment_rows)))
        return self.members * (self.workspace + levels * self.stats + 2 * self.params)

    @property
    def tree(self) -> int:
        """Bytes of the records of statistics that wait in the reduction tree of a process."""
        depth = math.ceil(math.log(max(2, len(self.units)), self.arity))
        return self.members * self.stats * min(len(self.units), self.slots + (self.arity - 1) * depth)

    @property
    def driver(self) -> int:
        """Bytes on the driver: one record of statistics, what the M-step makes of it, old and new parameters."""
        return self.members * (3 * self.stats + 6 * self.params)

    @property
    def peak(self) -> int:
        """Resident bytes that a process may reach: this one where threads do the work, else the largest worker."""
        running = self.slots * self.task + self.tree + (0 if self.cluster else self.driver)
        # A sample is read first; what is made of it comes when the readers are gone.
        sample = 8 * self.sample_rows * self.n_features
        starting = (
            self.slots * self.reader + sample if self.cluster else max(self.slots * self.reader + sample, self.start)
        )
        # Nor does a worker hold what the algorithm keeps on the driver.
        algorithm = 0 if self.cluster else self.algorithm
        return self.base + max(running, starting) + self.spent + self.cache + algorithm + SLACK

    def __str__(self) -> str:
        where = f"{self.processes} worker processes" if self.cluster else "threads of this process"
        rows = [
            ("data", f"{self.n_rows:,} rows x {self.n_features} features, {size(self.data)}"),
            ("pass", f"{len(self.units):,} units, {self.tasks:,} tasks, blocks of {self.block_rows:,} rows"),
            ("where", f"{where}, {self.slots} tasks at once in each"),
            ("task", f"{size(self.task)} ({self._parts()})"),
            ("cache", f"{size(self.cache)} per process, {self.cached_units:,} of {len(self.units):,} units"),
            (
                "driver",
                f"{size(self.driver)}, {size(self.start)} to start from {self.sample_rows:,} rows",
            ),
            ("peak", f"{size(self.peak)} of {size(self.limit)} per process ({size(self.base)} before work)"),
        ]
        return "\n".join(f"{name:<9} {text}" for name, text in rows)

    def as_dict(self) -> dict[str, int]:
        """Return the figures as plain numbers, for JSON."""
        names = (
            "n_rows n_features data block_rows tasks members slots processes reader workspace stats params results "
            "sample_rows start base spent cache cached_units limit algorithm task driver peak"
        )
        return {name: int(getattr(self, name)) for name in names.split()} | {"units": len(self.units)}

    def _parts(self) -> str:
        return f"reader {size(self.reader)} + workspace {size(self.workspace)} + statistics {size(self.stats)}"


def make_plan(
    data: Dataset,
    model: object,
    executor: Executor,
    *,
    members: int = 1,
    sample_rows: int | None = None,
    results: int = 0,
    cache: str = "auto",
    memory_limit: Any = None,
    memory: Callable[[Sizes], int] | None = None,
) -> Plan:
    """Plan a pass of `model` over `data`.

    Parameters
    ----------
    members : parameter sets that share each pass.
    sample_rows : rows that a start is made from; by default as many as cost little.
    results : bytes of results for rows that a task holds until it ends.
    cache : ``"auto"`` keeps decoded rows where all of them fit, ``"memory"`` as many as fit, ``"none"`` none.
    memory_limit : bytes (or ``"2GB"``) that a process may reach; by default a share (0.6) of the machine's memory, or
        of the workers' own limits on a cluster.
    memory : tells the bytes that an algorithm keeps beside the E-step.

    Raises
    ------
    PlanError
        If the work cannot fit, even with one task at a time.
    """
    if cache not in CACHE_MODES:
        raise OptionError(f"cache={cache!r} is not one of {', '.join(map(repr, CACHE_MODES))}.")
    limit = parse_bytes(memory_limit) if memory_limit is not None else int(SHARE * executor.memory)
    footprint = _footprint(data, model)
    units = tuple(data.units())
    sample_rows = _sample_rows(data) if sample_rows is None else min(sample_rows, data.n_rows)
    arity = 2 if footprint.stats > LARGE_STATS else 8
    plan = Plan(
        n_rows=data.n_rows,
        n_features=data.n_features,
        data=data.nbytes,
        units=units,
        block_rows=footprint.block_rows,
        segment_rows=nominal_rows(data.n_rows, data.row_bytes),
        arity=arity,
        tasks=count_tasks(len(units), arity),
        members=members,
        slots=executor.slots + (0 if data.in_process else executor.spare),
        processes=executor.processes,
        cluster=executor.cluster,
        reader=data.read_bytes(units),
        workspace=footprint.workspace,
        stats=footprint.stats,
        params=footprint.params,
        results=results,
        sample_rows=sample_rows,
        start=sample_rows * (SAMPLE_COPIES * 8 * data.n_features + footprint.start),
        base=executor.base if executor.cluster else psutil.Process().memory_info().rss,
        cache=0,
        cached_units=0,
        limit=limit,
    )
    plan = _fit_tasks(plan, data)
    _check_driver(plan)
    return _with_spent(_with_cache(_with_algorithm(plan, data, memory), data, cache), data)


def parse_bytes(size: Any) -> int:
    """Return a size in bytes of a number or of text such as ``"2GB"`` (10^9) or ``"2GiB"`` (2^30)."""
    text = str(size).strip().upper().removesuffix("B")
    powers = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
    number, factor = text, 1
    for unit, power in powers.items():
        if text.endswith(unit):
            number, factor = text.removesuffix(unit), power
    try:
        size_in_bytes = float(number) * factor
    except ValueError:
        size_in_bytes = math.nan
    if not (size_in_bytes > 0 and math.isfinite(size_in_bytes)):
        raise OptionError(f"memory_limit={size!r} is not a size. Give a number of bytes, or text such as '2GB'.")
    return int(size_in_bytes)


def count_tasks(leaves: int, arity: int) -> int:
    """Return the tasks of a map over `leaves` units and a reduction tree of `arity` above it."""
    total = level = leaves
    while level > 1:
        level = -(-level // arity)
        total += level
    return total


def _footprint(data: Dataset, model: object) -> Footprint:
    if isinstance(model, HasFootprint):
        return model.footprint(data.n_features, data.dtype)
    row = data.n_features * data.dtype.itemsize
    block_rows = 1 << max(0, min(4096, DEFAULT_BLOCK_BYTES // max(row, 1)).bit_length() - 1)
    workspace = DEFAULT_WORKSPACE_BLOCKS * block_rows * row
    return Footprint(block_rows, workspace, DEFAULT_STATS, DEFAULT_STATS, DEFAULT_WORKSPACE_BLOCKS * row)


def _sample_rows(data: Dataset) -> int:
    rows = SAMPLE_BYTES // (8 * data.n_features)
    return min(data.n_rows, max(MIN_SAMPLE_ROWS, min(MAX_SAMPLE_ROWS, rows)))


def _check_driver(plan: Plan) -> None:
    """Refuse what this process could not hold while a cluster does the passes."""
    needed = psutil.Process().memory_info().rss + max(plan.driver, plan.start) + SLACK
    if plan.cluster and needed > SHARE * MEMORY_LIMIT:
        raise PlanError(
            f"the driver needs {size(needed)} (statistics and parameters {size(plan.driver)}, a start "
            f"{size(plan.start)}), but may use {size(SHARE * MEMORY_LIMIT)} of this machine's memory. Use fewer "
            "components or features, or a simpler covariance, or a driver with more memory. Nothing was read."
        )


def _fit_tasks(plan: Plan, data: Dataset) -> Plan:
    """Run as many tasks at once as memory allows; shorter reads and fewer threads are slower, but not wrong."""
    tried = plan
    for slots in range(plan.slots, (plan.slots if plan.cluster else 1) - 1, -1):
        for finer in FINER:
            reader = replace(data, finer=finer).read_bytes(plan.units)
            tried = replace(plan, slots=slots, finer=finer, reader=reader)
            if tried.peak <= plan.limit:
                return tried
    raise PlanError(_too_large(tried))


def _with_algorithm(plan: Plan, data: Dataset, memory: Callable[[Sizes], int] | None) -> Plan:
    room = plan.limit - plan.peak
    if plan.cluster:
        room = int(SHARE * MEMORY_LIMIT) - psutil.Process().memory_info().rss - max(plan.driver, plan.start) - SLACK
    row = data.memory_row_bytes
    piece = max(map(len, data.piece_units())) * row
    sizes = Sizes(
        n_rows=plan.n_rows,
        n_units=len(plan.units),
        row=row,
        piece=piece,
        stats=plan.members * plan.stats,
        params=plan.members * plan.params,
        # Tasks of a cluster are not in this process.
        member=0 if plan.cluster else plan.slots * plan.arithmetic,
        readers=0 if plan.cluster else plan.slots * plan.reader,
        room=max(room, 0),
    )
    needed = 0 if memory is None else memory(sizes)
    if needed > sizes.room:
        raise PlanError(
            f"the algorithm keeps {size(needed)} beside the E-step, but {size(sizes.room)} are left of the limit of "
            f"{size(plan.limit)}. Raise memory_limit, use smaller mini-batches, windows or samples, or another "
            "algorithm (batch EM keeps nothing). Nothing was read."
        )
    return replace(plan, algorithm=needed, sizes=sizes)


def _with_cache(plan: Plan, data: Dataset, cache: str) -> Plan:
    room = int(CACHE_SHARE * (plan.limit - plan.peak))
    if cache == "none" or data.in_process or room <= 0:
        return plan
    # Whole units, and the weights and labels of their rows, lie in one process or another.
    unit = max(map(len, plan.units)) * (data.row_bytes + sum(s.dtype.itemsize * s.shape[1] for s in data.sources[1:]))
    kept = min(len(plan.units), plan.processes * (room // unit))
    if not kept or (cache == "auto" and kept < len(plan.units)):
        return plan
    return replace(plan, cached_units=kept, cache=-(-kept // plan.processes) * unit)


def _with_spent(plan: Plan, data: Dataset) -> Plan:
    """Have freed blocks kept that the allocator would not keep, if there is memory for them: one a task (measured)."""
    block = replace(data, finer=plan.finer).piece_rows() * data.row_bytes
    reads = not (plan.cluster or data.in_process or plan.cached_units == len(plan.units))
    kept = replace(plan, spent=plan.slots * block)
    useful = reads and OWN_THRESHOLD <= block < HEAP_BYTES and keeps_freed_blocks()
    return kept if useful and kept.peak <= plan.limit else plan


def _too_large(plan: Plan) -> str:
    biggest = max(
        (plan.reader, "reader"),
        (plan.members * plan.workspace, "workspace"),
        (plan.members * plan.stats, "stats"),
        (plan.start, "start"),
        (plan.results, "results"),
    )
    remedy = {
        "reader": "Rechunk the store to fewer rows per chunk, or select fewer columns",
        "workspace": "Use fewer components or features, or a simpler covariance",
        "results": "Rechunk the store to fewer rows per chunk, or ask for labels instead of probabilities",
        "start": "Use fewer components, or give explicit starting values on a machine with more memory",
        "stats": "Use fewer components or features, or a simpler covariance ('diag', 'tied')",
    }[biggest[1]]
    return (
        f"a process needs {size(plan.peak)} ({size(plan.base)} before work, {plan.slots} tasks x {size(plan.task)} "
        f"({plan._parts()}, {plan.members} starts), waiting statistics {size(plan.tree)}, driver "
        f"{size(plan.driver)}), but may use {size(plan.limit)}. {remedy}, or raise memory_limit. Nothing was read."
    )


def size(n_bytes: float) -> str:
    """Return a number of bytes for people, in powers of ten: ``1.23 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.4g} TB"
