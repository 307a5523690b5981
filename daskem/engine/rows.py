"""Results that are one value, or one row of values, for each row of the data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from daskem.core import Array, Chunk
from daskem.data.dataset import Dataset
from daskem.data.units import apart, walk
from daskem.data.writers import Output
from daskem.engine.examination import LeftOut
from daskem.engine.passes import Engine
from daskem.engine.planner import Plan
from daskem.engine.tasks import map_unit

__all__ = ["eager_rows", "lazy_rows", "with_left_out", "write_rows", "write_runs", "write_unit"]

logger = logging.getLogger("daskem")


def eager_rows(engine: Engine, function: Callable[[Chunk], Array]) -> Array:
    """Return `function` of all blocks, (n, ...), as one numpy array."""
    return np.concatenate(engine.gather(function))


def lazy_rows(
    engine: Engine, function: Callable[[Chunk], Array], shape: tuple[int, ...], dtype: npt.DTypeLike
) -> da.Array:
    """Return `function` of all blocks as a lazy Dask array, a block for each unit.

    Parameters
    ----------
    shape : shape of one row's result: () or (k,).
    """
    units = engine.plan.units
    nodes = [delayed(np.concatenate, pure=False)(run) for run in engine.map_units(function)]
    arrays = [
        da.from_delayed(node, (len(unit), *shape), dtype=np.dtype(dtype))
        for node, unit in zip(nodes, units, strict=True)
    ]
    return da.concatenate(arrays)


def with_left_out(results: Any, left_out: Sequence[LeftOut]) -> Any:
    """Return results, an array or a Dask array, with -1 (labels) or NaN in the places of rows that were left out."""
    if not left_out:
        return results
    library: Any = np if isinstance(results, np.ndarray) else da
    fill = -1 if results.dtype.kind == "i" else np.nan
    parts, at, out = [], 0, 0
    for run in left_out:
        before = run.start - out
        parts += [results[at:before], library.full((len(run), *results.shape[1:]), fill, results.dtype)]
        at, out = before, out + len(run)
    return library.concatenate([*parts, results[at:]])


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
