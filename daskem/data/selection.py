"""Row and column selections: what part of a stored array a source shows, and what all sources share."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem.core import Array
from daskem.errors import DataError, OptionError

__all__ = [
    "ColumnRun",
    "NameOrIndex",
    "Rows",
    "Selection",
    "check_dtype",
    "check_shape",
    "column_runs",
    "finish",
    "gather",
    "is_direct",
    "next_bound",
    "next_multiple",
    "select",
]


class NameOrIndex(str):
    """The digits of a column, typed by a user: the name of one where a column is called so, else an index."""

    __slots__ = ()


@dataclass(frozen=True)
class Selection:
    """Rows ``start:stop`` and columns `picked` (all where None) of a stored array with `width` columns.

    `names` are those of the columns that are shown, where the store names its columns.
    """

    start: int
    stop: int
    width: int
    picked: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that are shown."""
        return self.stop - self.start, self.width if self.picked is None else len(self.picked)

    @property
    def indices(self) -> tuple[int, ...]:
        """Stored index of each column that is shown."""
        return tuple(range(self.width)) if self.picked is None else self.picked


@dataclass(frozen=True)
class ColumnRun:
    """Stored columns ``start:stop`` that one read fetches; `inner` of them go to `outer` of what is shown."""

    start: int
    stop: int
    inner: tuple[int, ...]
    outer: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """What all sources of rows share; see `daskem.data.source.Source` for the contract."""

    name: str
    dtype: np.dtype[Any]
    selection: Selection
    in_process: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return self.selection.shape

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the features where the source has any."""
        return self.selection.names

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as `read` returns it."""
        return self.shape[1] * self.dtype.itemsize

    def unit_boundary(self, row: int) -> int:
        """Return the first row at or after `row` where a work unit may end: any row of an array without chunks."""
        return min(row, self.shape[0])

    def piece_boundary(self, row: int) -> int:
        """Return the first row at or after `row` where a read may end: any row of an array without chunks."""
        return min(row, self.shape[0])

    def read_bytes(self, rows: int) -> int:
        """Return the peak memory in bytes, result included, of reading `rows` rows."""
        return rows * self.row_bytes

    def locate(self, start: int, stop: int) -> str:
        """Return where rows ``start:stop`` are: their numbers in the stored array."""
        return f"rows {self.selection.start + start}:{self.selection.start + stop}"

    def bind(self, start: int, stop: int) -> Any:
        """Return the source itself, which reads by itself wherever it is sent."""
        return self


def select(
    shape: tuple[int, ...], names: Sequence[str] | None, rows: slice | None, columns: Any, what: str
) -> Selection:
    """Return the selection of `rows` and `columns` from a stored array of `shape`, (n,) or (n, d).

    Raises
    ------
    OptionError
        If a column is unknown or named twice, or `rows` is not a slice of step 1.
    DataError
        If nothing is left.
    """
    width = shape[1] if len(shape) == 2 else 1
    start, stop = _row_range(shape[0], rows)
    picked = None if columns is None else tuple(_column_index(c, width, names, what) for c in _listed(columns))
    if picked is not None and len(set(picked)) < len(picked):
        raise OptionError(f"columns={columns!r} of {what} name a column twice. Give each column once.")
    if names is not None and picked is not None:
        names = [names[i] for i in picked]
    selection = Selection(start, stop, width, picked, None if names is None else tuple(names))
    _check_not_empty(selection.shape, what)
    return selection


def check_shape(shape: tuple[int, ...], what: str, ndim: int | None = 2) -> None:
    """Refuse arrays that are not tables of rows. ``ndim=1``: a vector or one column (weights). None: either (labels).

    The wording of the first message is what users of scikit-learn know, and its conformance suite looks for.
    """
    if (len(shape) == 2 and (ndim != 1 or shape[1] == 1)) or (len(shape) == 1 and ndim is None):
        return
    if ndim is None:
        raise DataError(f"{what} must be one number a row, or one a component, but its shape is {shape}.")
    if ndim == 1:
        if len(shape) == 1:
            return
        raise DataError(f"{what} must be one number a row, but its shape is {shape}. Select one column.")
    if len(shape) < 2:
        raise DataError(
            f"Expected 2D array, got {'1D' if shape else 'scalar'} array instead: {what} has shape {shape}, "
            "while rows are on the first axis and features on the second. Reshape your data with reshape(-1, 1) "
            "if there is a single feature, or with reshape(1, -1) if there is a single row."
        )
    raise DataError(
        f"{what} has {len(shape)} dimensions, shape {shape}; 2 are needed, rows first and features second. "
        "Reshape it, for example with x.reshape(len(x), -1)."
    )


def check_dtype(dtype: np.dtype[Any], what: str) -> None:
    """Refuse anything but float16/32/64, integers and booleans."""
    if dtype.kind in "iub" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return
    if dtype.kind == "c":
        raise DataError(f"Complex data not supported: {what} is {dtype}. Split it into real and imaginary features.")
    if dtype.names is not None:
        raise DataError(f"{what} is a structured array with fields {dtype.names}. Choose one plain numeric array.")
    raise DataError(
        f"{what} holds {dtype}, which are not numbers that a model can be fitted to. "
        "Convert to float64, float32, float16, an integer type or bool; encode text and dates as numbers first."
    )


def column_runs(selection: Selection, chunk: int) -> tuple[ColumnRun, ...]:
    """Return the reads that fetch the chosen columns from chunks of `chunk` columns, each chunk in one read only."""
    groups: list[list[int]] = []
    order = sorted(range(len(selection.indices)), key=selection.indices.__getitem__)
    for outer in order:
        column = selection.indices[outer]
        if groups and column // chunk <= selection.indices[groups[-1][-1]] // chunk + 1:
            groups[-1].append(outer)
        else:
            groups.append([outer])
    return tuple(_run(selection.indices, group) for group in groups)


def finish(block: Any, dtype: np.dtype[Any]) -> Array:
    """Return `block` C-contiguous and of native byte order, copied only where it has to be."""
    return np.ascontiguousarray(block, dtype=dtype)


def is_direct(selection: Selection, runs: tuple[ColumnRun, ...]) -> bool:
    """Return whether one read along the columns fetches just the chosen columns, in their order."""
    return len(runs) == 1 and selection.indices == tuple(range(runs[0].start, runs[0].stop))


def gather(
    selection: Selection, runs: tuple[ColumnRun, ...], start: int, stop: int, dtype: np.dtype[Any], stored: Any
) -> Array:
    """Return shown rows ``start:stop`` of `stored`, anything that is indexed as ``stored[rows, columns]``."""
    rows = slice(selection.start + start, selection.start + stop)
    if len(stored.shape) == 1:
        return finish(stored[rows], dtype).reshape(-1, 1)
    if is_direct(selection, runs):
        return finish(stored[rows, runs[0].start : runs[0].stop], dtype)
    block = np.empty((stop - start, selection.shape[1]), dtype)
    for run in runs:
        block[:, run.outer] = stored[rows, run.start : run.stop][:, run.inner]
    return block


def next_multiple(row: int, step: int, selection: Selection) -> int:
    """Return the first shown row at or after `row` that begins a stored chunk of `step` rows."""
    stored = selection.start + row
    return min(-(-stored // step) * step, selection.stop) - selection.start


def next_bound(row: int, bounds: Array, selection: Selection) -> int:
    """Return the first shown row at or after `row` that is one of the sorted stored `bounds`."""
    place = int(np.searchsorted(bounds, selection.start + row))
    bound = int(bounds[place]) if place < len(bounds) else selection.stop
    return min(bound, selection.stop) - selection.start


def _run(indices: tuple[int, ...], outer: list[int]) -> ColumnRun:
    start, stop = indices[outer[0]], indices[outer[-1]] + 1
    return ColumnRun(start, stop, tuple(indices[i] - start for i in outer), tuple(outer))


def _row_range(n: int, rows: slice | None) -> tuple[int, int]:
    if rows is None:
        return 0, n
    if not isinstance(rows, slice) or rows.step not in (None, 1):
        raise OptionError(f"rows={rows!r} must be a slice of step 1, such as slice(0, 1_000_000), or None.")
    try:
        start, stop, _ = rows.indices(n)
    except TypeError as error:
        raise OptionError(f"rows={rows!r} must be a slice between whole numbers, such as slice(0, 1_000).") from error
    return start, max(start, stop)


def _listed(columns: Any) -> Iterable[Any]:
    if isinstance(columns, slice):
        raise OptionError(f"columns={columns!r} must be a list of indices or names, not a slice.")
    if not isinstance(columns, (int, np.integer, Iterable)):
        raise OptionError(f"columns={columns!r} must be an index, a name, or a list of these.")
    return [columns] if isinstance(columns, (str, int, np.integer)) else columns


def _column_index(column: Any, width: int, names: Sequence[str] | None, what: str) -> int:
    if isinstance(column, NameOrIndex) and column not in (names or ()):
        column = int(column)
    if isinstance(column, str):
        return _named_column(column, names, what)
    if isinstance(column, (bool, np.bool_)):
        raise OptionError("columns must be indices or names; turn a mask into indices with numpy.flatnonzero.")
    try:
        index = operator.index(column)
    except TypeError as error:
        raise OptionError(f"column {column!r} of {what} is neither an index nor a name.") from error
    if not -width <= index < width:
        raise OptionError(f"{what} has no column {index}: it has {width}, numbered from 0.")
    return index % width


def _named_column(column: str, names: Sequence[str] | None, what: str) -> int:
    if names is None:
        raise OptionError(f"{what} does not name its columns, so column {column!r} is unknown. Choose it by its index.")
    if column in names:
        return list(names).index(column)
    near = difflib.get_close_matches(column, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"{what} has no column {column!r}; its columns are {_enumerate(names)}.{hint}")


def _enumerate(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _check_not_empty(shape: tuple[int, int], what: str) -> None:
    if shape[1] == 0:
        raise DataError(
            f"{what}: 0 feature(s) (shape=({shape[0]}, 0)) while a minimum of 1 is required. "
            "Select at least one column."
        )
    if shape[0] == 0:
        raise DataError(
            f"{what}: Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required. "
            "The array or the selected rows are empty."
        )
