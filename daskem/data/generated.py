"""Creates stores of rows that tasks are about to write: Zarr groups with a table of rows and their labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from daskem.data.writers import Output, create_output
from daskem.data.zarr_source import STATUS
from daskem.errors import OptionError

__all__ = ["LABELS", "ROWS", "create_store"]

# Names of the arrays in the group.
ROWS, LABELS = "x", "labels"


def create_store(
    url: str | os.PathLike[str],
    shape: tuple[int, int],
    dtype: npt.DTypeLike,
    chunk_rows: int,
    *,
    shard_rows: int | None = None,
    columns: Sequence[str] | None = None,
    overwrite: bool = False,
    attributes: dict[str, Any] | None = None,
) -> Output:
    """Create a Zarr group with arrays ``x`` (n, d) and ``labels`` (n,) int64, marked incomplete, ready for writing.

    Parameters
    ----------
    shape : (n, d).
    chunk_rows, shard_rows : rows of a chunk, and of a shard of several chunks; no shards where None.
    columns : names of the d features.
    overwrite, attributes : see `daskem.data.create_output`.

    Raises
    ------
    OptionError
        If something is there already, it cannot be written to, or the sizes do not fit together.
    """
    written = _write_rows(shape[0], chunk_rows, shard_rows)
    if columns is not None and len(columns) != shape[1]:
        raise OptionError(f"{len(columns)} column names were given for {shape[1]} features. Give one for each.")
    if columns is not None and len(set(columns)) < len(columns):
        raise OptionError(f"columns={list(columns)} name a feature twice. Give each a name of its own.")
    output = create_output(url, {}, shape[0], written, overwrite=overwrite, attributes=attributes)
    arrays: dict[str, zarr.Array[Any]] = {}
    for name, row, kind in ((ROWS, (shape[1],), dtype), (LABELS, (), np.int64)):
        arrays[name] = output.group.create_array(
            name,
            shape=(shape[0], *row),
            chunks=(min(chunk_rows, written), *row),
            shards=(written, *row) if shard_rows else None,
            dtype=np.dtype(kind),
            compressors=[ZstdCodec(checksum=True)],
            attributes={STATUS: "incomplete"} | ({"columns": list(columns)} if columns and row else {}),
            config={"write_empty_chunks": True},
        )
    return replace(output, arrays=arrays)


def _write_rows(n_rows: int, chunk_rows: int, shard_rows: int | None) -> int:
    """Return the rows that one task writes."""
    if chunk_rows < 1:
        raise OptionError(f"chunk_rows={chunk_rows} is not positive.")
    if shard_rows is None:
        return min(chunk_rows, n_rows)
    if shard_rows < chunk_rows or shard_rows % chunk_rows:
        raise OptionError(
            f"shard_rows={shard_rows} is not a multiple of chunk_rows={chunk_rows}. A shard holds whole chunks."
        )
    return shard_rows
