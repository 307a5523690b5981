"""Rows together with what is known of each: its weight and its label."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from dask.delayed import delayed

from daskem.core import Array, Chunk
from daskem.data.source import Source
from daskem.data.sources import open_source
from daskem.data.units import MAX_UNITS, Unit, plan_units, walk
from daskem.errors import DataError, OptionError

__all__ = ["PIECE_BYTES", "Dataset", "Memory", "blocks", "is_array_like", "open_dataset", "pieces"]

# Long enough a read for its fixed cost not to matter, short enough for two of them to be small beside any worker.
PIECE_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows, and with each of them, where known, a weight and a label.

    Parameters
    ----------
    rows : source of (n, d).
    weight : source of (n, 1) not negative numbers, or None.
    labels : source of (n, 1) integers, -1 = unknown, or of (n, k) label probabilities (see `daskem.core.Chunk`), or
        None.
    finer : how many times shorter reads are than usual, where memory is scarce. No result depends on it.
    present : rows of positive weight, where these were counted.
    used : columns that the model looks at, None for all. Others may hold anything: they are zero in blocks of rows.
    """

    rows: Source
    weight: Source | None = None
    labels: Source | None = None
    finer: int = field(default=1, kw_only=True)
    present: int | None = field(default=None, kw_only=True)
    used: tuple[int, ...] | None = field(default=None, kw_only=True)

    @property
    def n_rows(self) -> int:
        """Rows of the data set, those of weight zero included."""
        return self.rows.shape[0]

    @property
    def n_present(self) -> int:
        """Rows of positive weight; all rows where these were not counted."""
        return self.n_rows if self.present is None else self.present

    @property
    def n_features(self) -> int:
        """Features of a row, d."""
        return self.rows.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type computed in: float32 for float32 and float16 data, float64 for all other."""
        narrow = self.rows.dtype in (np.dtype(np.float16), np.dtype(np.float32))
        return np.dtype(np.float32 if narrow else np.float64)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as stored."""
        return self.n_features * self.rows.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, decoded."""
        return self.n_rows * self.row_bytes

    @property
    def in_process(self) -> bool:
        """Whether the rows live in this process, so that a cluster would need a copy of them for each pass."""
        return self.rows.in_process

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources there are: rows, and weights and labels where known."""
        return tuple(source for source in (self.rows, self.weight, self.labels) if source is not None)

    def units(self) -> list[Unit]:
        """Plan the work units of a pass."""
        # A Dask array's blocks are in memory for a whole unit, and are tasks by themselves: no fewer, larger units.
        most = self.n_rows if self._is_bound else MAX_UNITS
        return plan_units(self.n_rows, self.row_bytes, self.rows.unit_boundary, most)

    def piece_units(self) -> list[Unit]:
        """Return the runs of rows that one read fetches: as `units`, but as short as whole stored chunks allow."""
        if self._is_bound:
            return self.units()
        usual = replace(self, finer=1)
        return [Unit(i, start, stop) for i, (start, stop) in enumerate(usual.cuts(0, self.n_rows))]

    def cuts(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the reads that cover rows ``start:stop``: of whole stored chunks, about `PIECE_BYTES` each."""
        cuts, rows = [], self._nominal_piece
        while start < stop:
            end = min(self.rows.piece_boundary(min(start + rows, stop)), stop)
            cuts.append((start, end))
            start = end
        return cuts

    @property
    def memory_row_bytes(self) -> int:
        """Bytes of a row in memory, in the type computed in, with its weight and label."""
        return self.n_features * self.dtype.itemsize + 8 * sum(source.shape[1] for source in self.sources[1:])

    def piece_rows(self) -> int:
        """Return the rows of the longest read, chunks being as regular as the first one says."""
        return min(self.rows.piece_boundary(self._nominal_piece), self.n_rows)

    def usual_piece_rows(self) -> int:
        """Return the rows of the longest read where memory is not scarce: samples may not depend on whether it is."""
        return replace(self, finer=1).piece_rows()

    def read_bytes(self, units: Sequence[Unit]) -> int:
        """Return the peak bytes of reading in a task over one of `units`.

        A piece in use, the next one waiting and the one after it being read: views of the first are let go when the
        second is handed over, and by then the third has been asked for. But a Dask array's blocks are made for the
        whole unit at once. Weights and labels are read for the whole unit too.
        """
        longest = max(units, key=len)
        side = sum(source.read_bytes(len(longest)) + 8 * len(longest) * source.shape[1] for source in self.sources[1:])
        if self._is_bound:
            return side + self.rows.read_bytes(len(longest))
        rows = self.piece_rows()
        return side + 2 * rows * self.row_bytes + self.rows.read_bytes(rows)

    def bind(self, unit: Unit) -> Any:
        """Return what a task over `unit` must be given: this data set itself, or a delayed part of it.

        Weights and labels that live in this process, while the rows do not, go with the tasks, each its unit's.
        """
        bound = [
            self.rows.bind(unit.start, unit.stop),
            *(source and self._bind_side(source, unit) for source in (self.weight, self.labels)),
        ]
        if all(new is old for new, old in zip(bound, (self.rows, self.weight, self.labels), strict=True)):
            return self
        nodes = [part if part is None else delayed(part, traverse=False) for part in bound]
        return delayed(Dataset, pure=False)(*nodes, finer=self.finer, used=self.used)

    def _bind_side(self, source: Source, unit: Unit) -> Any:
        if not source.in_process or self.in_process:
            return source.bind(unit.start, unit.stop)
        return Memory(source.name, source.read(unit.start, unit.stop), unit.start)

    def load(self, start: int, stop: int) -> Dataset:
        """Return rows ``start:stop`` decoded in memory, addressed by the same row numbers."""
        rows = np.empty((stop - start, self.n_features), self.rows.dtype)
        for at, piece in pieces(self, start, stop):
            rows[at - start : at - start + len(piece)] = piece
        loaded = [None if s is None else Memory(s.name, s.read(start, stop), start) for s in (self.weight, self.labels)]
        # What a task was handed in memory is not kept a second time just to name its chunks.
        stored = None if self.rows.in_process else self.rows
        return Dataset(Memory(self.rows.name, rows, start, stored), *loaded, used=self.used)

    def blanked(self, rows: Array) -> Array:
        """Return rows (n, d), or one (d,), with zero in the columns that the model does not look at."""
        seen = np.ones(self.n_features, bool) if self.used is None else np.isin(np.arange(self.n_features), self.used)
        return rows if seen.all() else np.where(seen, rows, rows.dtype.type(0))

    @property
    def _is_bound(self) -> bool:
        return self.rows.bind(0, 1) is not self.rows

    @property
    def _nominal_piece(self) -> int:
        return min(max(1, PIECE_BYTES // self.finer // max(self.row_bytes, 1)), self.n_rows)


@dataclass(frozen=True, eq=False)
class Memory:
    """Decoded rows that keep the row numbers, and the names of chunks, of the source they were read from."""

    name: str
    values: Array
    origin: int = 0
    stored: Source | None = None
    columns: tuple[str, ...] | None = None
    in_process: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.values), self.values.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def read(self, start: int, stop: int) -> Array:
        return self.values[start - self.origin : stop - self.origin]

    def unit_boundary(self, row: int) -> int:
        return row

    def piece_boundary(self, row: int) -> int:
        return row

    def read_bytes(self, rows: int) -> int:
        return 0

    def locate(self, start: int, stop: int) -> str:
        return f"rows {start}:{stop}" if self.stored is None else self.stored.locate(start, stop)

    def bind(self, start: int, stop: int) -> Memory:
        return self


def open_dataset(x: Any, *, sample_weight: Any = None, y: Any = None, **options: Any) -> Dataset:
    """Open rows, and their weights and labels, from any sources.

    Parameters
    ----------
    x, **options : see `daskem.data.open_source`. A `Dataset` is taken as it is.
    sample_weight : one value per row, from any source; a slice of ``rows`` applies to it too.
    y : one label per row, -1 = unknown, or (n, k) label probabilities, likewise.

    Raises
    ------
    DataError
        If a source cannot be used, or there is not one weight and one label for each row.
    """
    if isinstance(x, Dataset):
        sides = {"sample_weight": sample_weight, "y": y, **options}
        given = [name for name, value in sides.items() if value is not None and value is not False]
        if given:
            raise OptionError(f"{', '.join(given)} cannot be added to a data set that is open. Give it when opening.")
        return x
    aside: dict[str, Any] = {"rows": options.get("rows")}
    if options.get("allow_missing", False) is None:
        aside["allow_missing"] = None
    data = Dataset(
        open_source(x, **options),
        None if sample_weight is None else open_source(sample_weight, what="sample_weight", ndim=1, **aside),
        None if y is None else open_source(y, what="labels (y)", ndim=None, **aside),
    )
    among = "" if aside["rows"] is None else " among the chosen rows (rows= applies to it too)"
    for what, source in (("sample_weight", data.weight), ("labels (y)", data.labels)):
        if source is not None and source.shape[0] != data.n_rows:
            raise DataError(
                f"{what}: {source.name} has {source.shape[0]} values{among}, but {data.rows.name} has {data.n_rows} "
                "rows. Give one value per row, in the order of the rows."
            )
    return data


def is_array_like(x: Any) -> bool:
    """Return whether `x` is rows in memory (an array, a list, a data frame), not a store or a lazy array."""
    if isinstance(x, (str, os.PathLike, np.memmap, Dataset, Source)):
        return False
    # By name, so that packages that were not imported need not be.
    return type(x).__module__.partition(".")[0] not in ("dask", "zarr", "xarray", "h5py")


def pieces(data: Dataset, start: int, stop: int) -> Iterator[tuple[int, Array]]:
    """Yield ``(first row, rows)`` of the reads that cover ``start:stop``; the next read overlaps this one's use."""
    cuts = data.cuts(start, stop)
    if data.rows.in_process:
        yield from ((a, data.rows.read(a, b)) for a, b in cuts)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="daskem-read") as reader:
        ahead = None
        for a, b in cuts:
            current, ahead = ahead, (a, reader.submit(data.rows.read, a, b))
            if current is not None:
                yield current[0], current[1].result()
        if ahead is not None:
            yield ahead[0], ahead[1].result()


def blocks(
    data: Dataset, start: int, stop: int, block_rows: int, seed: int = 0, step: int = 0, *, whole: bool = False
) -> Iterator[Chunk]:
    """Walk rows ``start:stop`` in blocks that end at multiples of `block_rows`, whatever pieces they are read in.

    Blocks at absolute offsets are what makes the bits of a pass independent of where chunks and reads happen to end.
    With `whole` rows have all their columns, for a model that knows at which to look (see `Dataset.used`).
    """
    weight = None if data.weight is None else data.weight.read(start, stop)[:, 0].astype(np.float64, copy=False)
    labels = None if data.labels is None else _labels(data.labels.read(start, stop))
    for at, rows in _row_blocks(data, start, stop, block_rows):
        here = slice(at - start, at - start + len(rows))
        rows = np.ascontiguousarray(rows, data.dtype)
        yield Chunk(
            rows if whole else data.blanked(rows),
            None if weight is None else weight[here],
            None if labels is None else labels[here],
            at,
            seed,
            step,
        )


def _labels(values: Array) -> Array:
    """Return labels (n,) int64 of a single column, label probabilities (n, k) float64 of several."""
    return values[:, 0].astype(np.int64, copy=False) if values.shape[1] == 1 else values.astype(np.float64, copy=False)


def _row_blocks(data: Dataset, start: int, stop: int, block_rows: int) -> Iterator[tuple[int, Array]]:
    pending: list[Array] = []
    first = start
    for at, rows in pieces(data, start, stop):
        for a, b in walk(at, at + len(rows), block_rows):
            pending.append(rows[a - at : b - at])
            if b % block_rows == 0 or b == stop:
                yield first, pending[0] if len(pending) == 1 else np.concatenate(pending)
                pending, first = [], b
