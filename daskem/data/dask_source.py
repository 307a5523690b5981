"""Rows of a dask array: a task is handed the blocks that hold its rows, and nothing else is kept."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask
import numpy as np

from daskem.core import Array
from daskem.data.selection import (
    Rows,
    Selection,
    check_dtype,
    check_shape,
    finish,
    next_bound,
    select,
)
from daskem.errors import ContractError, DataError, DataTypeError

__all__ = ["DaskBlocks", "DaskSource", "open_dask", "refuse_query_planning"]

logger = logging.getLogger("daskem")


@dataclass(frozen=True, eq=False)
class DaskSource(Rows):
    """Rows of a dask array whose selection is already part of its graph.

    Attributes
    ----------
    array : (n, d), chunk sizes known.
    bounds : (chunks + 1,) int64, first row of each chunk of rows, and n.
    """

    array: Any
    bounds: Array

    def read(self, start: int, stop: int) -> Array:
        """Compute rows ``start:stop`` alone and return them; meant for sampling on the driver."""
        return finish(_dense(self.array[start:stop].compute(), self.name), self.dtype)

    def unit_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a chunk of the dask array."""
        return next_bound(row, self.bounds, self.selection)

    def piece_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a chunk of the dask array."""
        return next_bound(row, self.bounds, self.selection)

    def read_bytes(self, rows: int) -> int:
        """Return the peak memory in bytes of `rows` rows: the chunks that hold them, and one copy.

        The chunks of a whole work unit are in memory together; what computing them needs is the user's graph's affair.
        """
        longest = int(np.diff(self.bounds).max())
        return 2 * min(-(-rows // longest) * longest, self.shape[0]) * self.row_bytes

    def locate(self, start: int, stop: int) -> str:
        """Return the chunks of rows that hold rows ``start:stop``."""
        first, last = self._span(start, stop)
        return f"chunk {first}" if last == first + 1 else f"chunks {first} to {last - 1}"

    def bind(self, start: int, stop: int) -> Any:
        """Return a delayed source of the blocks that hold rows ``start:stop``, under the same row numbers."""
        first, last = self._span(start, stop)
        bounds = tuple(int(bound) for bound in self.bounds[first : last + 1])
        key = f"daskem-rows-{self.array.name}-{start}-{stop}"
        gather = dask.delayed(_gather, pure=True)
        rows = self._delayed[first:last].tolist()
        return gather(rows, self.name, self.dtype, self.selection, bounds, first, dask_key_name=key)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_delayed"}

    @cached_property
    def _delayed(self) -> Array:
        """One delayed value a block; the graph is optimized once, not once for each work unit."""
        blocks: Array = self.array.to_delayed()
        return blocks

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        first = int(np.searchsorted(self.bounds, start, side="right")) - 1
        return first, max(int(np.searchsorted(self.bounds, stop)), first + 1)


@dataclass(frozen=True, eq=False)
class DaskBlocks(Rows):
    """Computed blocks of a dask array, addressed by the row numbers of the whole array.

    Attributes
    ----------
    blocks : arrays (rows of a chunk, d).
    bounds : first row of each block, and the row after the last.
    first : index of the first block in the whole array.
    """

    blocks: tuple[Array, ...]
    bounds: tuple[int, ...]
    first: int

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``, a view where they lie in one block."""
        if not self.bounds[0] <= start <= stop <= self.bounds[-1]:
            raise ContractError(
                f"{self.name}: rows {start}:{stop} were asked of a task that was given {self.bounds[0]}:"
                f"{self.bounds[-1]}. Bind the rows that the task reads."
            )
        parts = [
            block[max(start - low, 0) : stop - low]
            for block, low, high in zip(self.blocks, self.bounds, self.bounds[1:], strict=False)
            if low < stop and start < high
        ]
        if len(parts) == 1:
            return finish(parts[0], self.dtype)
        return np.concatenate([np.empty((0, self.shape[1]), self.dtype), *parts], dtype=self.dtype)

    def unit_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a block."""
        return next_bound(row, np.asarray(self.bounds), self.selection)

    def piece_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a block."""
        return next_bound(row, np.asarray(self.bounds), self.selection)

    def locate(self, start: int, stop: int) -> str:
        """Return the chunks of rows that hold rows ``start:stop``."""
        low = self.first + int(np.searchsorted(self.bounds, start, side="right")) - 1
        high = self.first + int(np.searchsorted(self.bounds, stop)) - 1
        return f"chunk {low}" if high <= low else f"chunks {low} to {high}"


def open_dask(
    x: Any, names: tuple[str, ...] | None, rows: slice | None, columns: Any, what: str, ndim: int | None
) -> DaskSource:
    """Return a source of a dask array; computes nothing but unknown chunk sizes."""
    refuse_query_planning()
    check_dtype(np.dtype(x.dtype), what)
    # The number of dimensions is known even where the sizes are not.
    check_shape(tuple(x.shape), what, ndim)
    x = _with_known_chunks(x, what)
    selection = select(tuple(map(int, x.shape)), names, rows, columns, what)
    table = x if x.ndim == 2 else x[:, None]
    if selection.shape[0] < len(table):
        table = table[selection.start : selection.stop]
    if selection.picked is not None:
        table = table[:, list(selection.picked)]
    bounds = np.cumsum([0, *table.chunks[0]], dtype=np.int64)
    whole = Selection(0, selection.shape[0], selection.shape[1], None, selection.names)
    return DaskSource(f"{what} (dask array)", np.dtype(x.dtype).newbyteorder("="), whole, False, table, bounds)


def refuse_query_planning() -> None:
    """Refuse dask's optional array expressions, which lack the operations that give a task its own blocks."""
    if dask.config.get("array.query-planning", None):
        raise DataError(
            "dask's option array.query-planning is on; its arrays cannot hand single blocks to tasks. "
            "Unset it (dask.config.set({'array.query-planning': False}), or the environment variable "
            "DASK_ARRAY__QUERY_PLANNING) before dask.array is first imported."
        )


def _with_known_chunks(x: Any, what: str) -> Any:
    if not any(math.isnan(size) for sizes in x.chunks for size in sizes):
        return x
    logger.info("%s: chunk sizes are unknown; computing the array once to learn them.", what)
    # The copy keeps the caller's array as it was: dask fills in the sizes in place.
    return x.copy().compute_chunk_sizes()


def _gather(
    rows: list[list[Any]],
    name: str,
    dtype: np.dtype[Any],
    selection: Selection,
    bounds: tuple[int, ...],
    first: int,
) -> DaskBlocks:
    """Put the blocks that dask computed side by side; runs on a worker."""
    blocks = []
    for index, (parts, low, high) in enumerate(zip(rows, bounds, bounds[1:], strict=False)):
        dense = [_dense(part, name) for part in parts]
        block = dense[0] if len(dense) == 1 else np.concatenate(dense, axis=1)
        if block.shape != (high - low, selection.width):
            raise DataError(
                f"{name}: chunk {first + index} has shape {block.shape} where the array promises "
                f"{(high - low, selection.width)}. A function mapped over blocks returned another shape than declared."
            )
        if not np.can_cast(block.dtype, dtype, "safe"):
            raise DataError(
                f"{name}: chunk {first + index} is {block.dtype} where the array promises {dtype}. A function mapped "
                "over blocks returned another type than declared: give its real one as dtype=."
            )
        blocks.append(block)
    return DaskBlocks(name, dtype, selection, True, tuple(blocks), bounds, first)


def _dense(block: Any, name: str) -> Array:
    if isinstance(block, np.ma.MaskedArray) and np.ma.is_masked(block):
        raise DataTypeError(f"{name} has masked values. Fill them first: dask.array.ma.filled(x, value).")
    dense = np.asarray(block)
    if dense.dtype == object:
        raise DataTypeError(
            f"{name}: a block is a {type(block).__name__}, not a dense numpy array. "
            "Convert it, for example with x.map_blocks(lambda b: b.toarray())."
        )
    return dense
