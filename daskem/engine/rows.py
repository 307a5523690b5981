"""Results that are one value, or one row of values, for each row of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from daskem.core import Array, Chunk
from daskem.data.units import walk
from daskem.data.writers import Output
from daskem.engine.passes import Engine

__all__ = ["eager_rows", "lazy_rows", "write_rows"]


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
    nodes = [delayed(np.concatenate, pure=False)(run) for run in engine.map_runs(function)]
    arrays = [
        da.from_delayed(node, (len(unit), *shape), dtype=np.dtype(dtype))
        for node, unit in zip(nodes, units, strict=True)
    ]
    return da.concatenate(arrays)


def write_rows(engine: Engine, function: Callable[[Chunk], Mapping[str, Array]], output: Output) -> None:
    """Write `function` of all blocks to `output`, one task a write unit, and mark it complete.

    A task that is run twice writes the same bytes to the same chunks; the mark comes last.
    """
    runs = list(walk(0, engine.plan.n_rows, output.chunk_rows))
    node = delayed(output, traverse=False)
    written = [
        delayed(_write, pure=False)(node, start, results)
        for (start, _), results in zip(runs, engine.map_runs(function, runs), strict=True)
    ]
    engine.compute_all(written)
    output.finish()


def _write(output: Output, start: int, blocks: list[Mapping[str, Any]]) -> int:
    rows = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    output.write(start, rows)
    return start
