"""Results that are one value, or one row of values, for each row of the data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from daskem.core import Array, Chunk
from daskem.data.dataset import Dataset
from daskem.data.units import apart, walk
from daskem.data.writers import Output
from daskem.engine.passes import Engine
from daskem.engine.planner import Plan
from daskem.engine.tasks import map_unit

__all__ = ["eager_rows", "write_rows", "write_runs", "write_unit"]

logger = logging.getLogger("daskem")


def eager_rows(engine: Engine, function: Callable[[Chunk], Array]) -> Array:
    """Return `function` of all blocks, (n, ...), as one numpy array."""
    return np.concatenate(engine.gather(function))


def write_runs(plan: Plan, chunk_rows: int) -> list[tuple[int, int]]:
    """Return the rows that each task of `write_rows` writes to an output with chunks of `chunk_rows` rows."""
    # A Dask array's units are shorter than segments where there are very many of them.
    rows = min(plan.segment_rows, max(map(len, plan.units)))
    return list(walk(0, plan.n_rows, chunk_rows * max(1, rows // chunk_rows)))


def write_rows(
    engine: Engine,
    function: Callable[[Chunk], Mapping[str, Array]],
    output: Output,
    left_out: Sequence[tuple[int, int]] = (),
) -> None:
    """Write `function` of all blocks to `output`, and mark it complete.

    A task writes whole chunks of the output, one after the other, as many as make a work unit. One that is run twice
    writes the same bytes to the same chunks; the mark comes last. Rows of the runs `left_out` are not read: NaN is
    written there, or -1 in arrays of integers.
    """
    runs = engine.call_runs(write_unit, write_runs(engine.plan, output.chunk_rows), output, function, tuple(left_out))
    written = sum(engine.compute_all(runs))
    if output.there:
        logger.info("%d of %d rows were in %s already", output.n_rows - written, output.n_rows, output.url)
    output.finish()


def write_unit(
    data: Dataset,
    start: int,
    stop: int,
    block_rows: int,
    output: Output,
    function: Callable[[Chunk], Mapping[str, Array]],
    left_out: Sequence[tuple[int, int]] = (),
) -> int:
    """Write `function` of rows ``start:stop`` chunk by chunk, so that one chunk's results are held at a time.

    Returns
    -------
    int
        Rows that were not there from an earlier run.
    """
    written = 0
    for first, last in walk(start, stop, output.chunk_rows):
        if output.holds(first, last):
            continue
        results: list[Mapping[str, Array]] = []
        for begin, end, is_out in apart(first, last, left_out):
            results += [_nothing(output, end - begin)] if is_out else map_unit(data, begin, end, block_rows, function)
        output.write(first, {name: np.concatenate([block[name] for block in results]) for name in results[-1]})
        written += last - first
    return written


def _nothing(output: Output, n_rows: int) -> dict[str, Array]:
    """Return what stands for the results of rows that there are none of."""
    return {
        name: np.full((n_rows, *array.shape[1:]), -1 if array.dtype.kind == "i" else np.nan, array.dtype)
        for name, array in output.arrays.items()
    }
