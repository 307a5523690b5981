"""Results of rows as Dask arrays. A module of its own: dask.array takes memory for which a fit has no use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from daskem.core import Array, Chunk
from daskem.engine.examination import LeftOut
from daskem.engine.passes import Engine

__all__ = ["lazy_rows", "with_left_out"]


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
