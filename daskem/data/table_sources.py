"""Rows of Parquet files (pyarrow) and HDF5 datasets (h5py), each opened anew by whoever reads."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np

from daskem.core import Array
from daskem.data.selection import (
    ColumnRun,
    Rows,
    check_dtype,
    check_shape,
    column_runs,
    gather,
    is_direct,
    next_bound,
    next_multiple,
    select,
)
from daskem.data.source import check_there
from daskem.errors import DataError, OptionError

__all__ = ["Hdf5Source", "ParquetSource", "extra", "open_hdf5", "open_parquet"]


@dataclass(frozen=True, eq=False)
class ParquetSource(Rows):
    """Rows of one Parquet file or of a directory of them, in the order of their paths.

    Attributes
    ----------
    path : path or URL of the file or directory.
    fields : names of the chosen columns.
    groups : (file, row group in it) of each row group of the data set.
    bounds : (groups + 1,) int64, first row of each row group, and the number of rows.
    """

    path: str
    fields: tuple[str, ...]
    groups: tuple[tuple[str, int], ...]
    bounds: Array

    @property
    def location(self) -> str:
        """Path or URL of the file or directory."""
        return self.path

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``; a null of a floating-point column becomes NaN."""
        check_there(self.name, self.path)
        low, high = self.selection.start + start, self.selection.start + stop
        out = np.empty((stop - start, len(self.fields)), self.dtype)
        first, last = self._span(low, high)
        for group in range(first, last):
            base = int(self.bounds[group])
            begin, end = max(low, base), min(high, int(self.bounds[group + 1]))
            try:
                self._read_group(group, begin - base, end - base, out[begin - low : end - low])
            except DataError:
                raise
            except Exception as error:
                raise DataError(f"{self.name}: {self.locate(start, stop)} cannot be read: {error}") from error
        return out

    def unit_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a row group."""
        return next_bound(row, self.bounds, self.selection)

    def piece_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a row group."""
        return next_bound(row, self.bounds, self.selection)

    def read_bytes(self, rows: int) -> int:
        """Return the peak memory in bytes: the result, and one row group decoded and encoded (8 bytes a number)."""
        longest = int(np.diff(self.bounds).max())
        return rows * self.row_bytes + 2 * 8 * longest * len(self.fields)

    def locate(self, start: int, stop: int) -> str:
        """Return the row groups that hold rows ``start:stop``."""
        first, last = self._span(self.selection.start + start, self.selection.start + stop)
        low, high = (f"row group {group} of {file}" for file, group in (self.groups[first], self.groups[last - 1]))
        return low if low == high else f"{low} to {high}"

    def _span(self, low: int, high: int) -> tuple[int, int]:
        first = int(np.searchsorted(self.bounds, low, side="right")) - 1
        return first, max(int(np.searchsorted(self.bounds, high)), first + 1)

    def _read_group(self, group: int, begin: int, end: int, out: Array) -> None:
        file, number = self.groups[group]
        with fsspec.open(file, "rb") as handle:
            parquet = extra("pyarrow.parquet", "parquet").ParquetFile(handle)
            table = parquet.read_row_group(number, columns=list(self.fields), use_threads=False).slice(
                begin, end - begin
            )
        for place, field in enumerate(self.fields):
            column = table.column(field)
            if column.null_count and self.dtype.kind != "f":
                raise DataError(
                    f"{self.name}: column {field!r} has {column.null_count} nulls in row group {number} of {file}, "
                    "and integers have no NaN. Fill or drop them, or store the column as floating point."
                )
            out[:, place] = column.cast("float64").to_numpy() if column.null_count else column.to_numpy()


@dataclass(frozen=True, eq=False)
class Hdf5Source(Rows):
    """Rows of an HDF5 dataset; every read opens the file by its name.

    Attributes
    ----------
    path : absolute path of the file.
    dataset : name of the dataset in it.
    chunk : shape of a stored chunk; ``(1, d)`` where the dataset is contiguous.
    chunked : whether the dataset has chunks.
    runs : the reads along the columns.
    """

    path: str
    dataset: str
    chunk: tuple[int, ...]
    chunked: bool
    runs: tuple[ColumnRun, ...]

    @property
    def location(self) -> str:
        """Path of the file."""
        return self.path

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``."""
        check_there(self.name, self.path)
        try:
            with extra("h5py", "hdf5").File(self.path, "r") as file:
                return gather(self.selection, self.runs, start, stop, self.dtype, file[self.dataset])
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{self.name}: {self.locate(start, stop)} cannot be read: {error}") from error

    def unit_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a chunk."""
        return next_multiple(row, self.chunk[0], self.selection)

    def piece_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a chunk."""
        return next_multiple(row, self.chunk[0], self.selection)

    def read_bytes(self, rows: int) -> int:
        """Return the peak memory in bytes: what is read, copies where columns are picked, one chunk twice."""
        width = sum(run.stop - run.start for run in self.runs)
        copies = 0 if is_direct(self.selection, self.runs) else 2
        chunk = int(np.prod(self.chunk)) * self.dtype.itemsize if self.chunked else 0
        return rows * (width * self.dtype.itemsize + copies * self.row_bytes) + 2 * chunk

    def locate(self, start: int, stop: int) -> str:
        """Return the chunks of rows that hold rows ``start:stop``, or the rows where there are no chunks."""
        if not self.chunked:
            return super().locate(start, stop)
        low, high = ((self.selection.start + row) // self.chunk[0] for row in (start, max(stop - 1, start)))
        return f"chunk {low}" if low == high else f"chunks {low} to {high}"


def extra(module: str, name: str) -> Any:
    """Import a module of an optional extra, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise OptionError(f"reading this needs {package}: pip install 'daskem[{name}]'.") from error


def open_parquet(path: str, rows: slice | None, columns: Any, ndim: int | None) -> ParquetSource:
    """Return a source of a Parquet file or directory; reads footers only."""
    parquet, name = extra("pyarrow.parquet", "parquet"), f"Parquet data {path}"
    files = _parquet_files(path)
    schema, groups, counts = None, [], [0]
    for file in files:
        footer, fields = _footer(parquet, file)
        if schema is not None and not fields.equals(schema):
            raise DataError(f"{name}: the columns of {file} differ from those of {files[0]}. Write them alike.")
        schema = fields
        groups += [(file, group) for group in range(footer.num_row_groups)]
        counts += [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    names = schema.names if schema is not None else []
    bounds = np.cumsum(counts, dtype=np.int64)
    if columns is None and (index := _index_columns(schema)):
        columns = [column for column in names if column not in index]
    selection = select((int(bounds[-1]), len(names)), names, rows, columns, name)
    check_shape(selection.shape, name, ndim)
    fields = tuple(names[i] for i in selection.indices)
    dtype = _common_dtype([schema.field(field) for field in fields], name) if schema is not None else np.dtype(float)
    return ParquetSource(name, dtype, selection, False, path, fields, tuple(groups), bounds)


def open_hdf5(x: Any, array: str | None, rows: slice | None, columns: Any, ndim: int | None) -> Hdf5Source:
    """Return a source of an HDF5 dataset, given as ``h5py.Dataset``, or as a file, group or path and its name there."""
    if isinstance(x, str):
        try:
            with extra("h5py", "hdf5").File(x, "r") as file:
                return _hdf5_source(_dataset(file, array, x), rows, columns, ndim)
        except OSError as error:
            raise DataError(f"cannot open {x} as HDF5: {error}") from error
    if not hasattr(x, "dtype"):
        x = _dataset(x, array, x.file.filename)
    elif array is not None:
        raise OptionError(f"array={array!r} was given with a dataset, {x.name}. Leave `array` out.")
    if x.file.mode != "r":
        raise DataError(
            f"HDF5 file {x.file.filename} is open for writing, so that others cannot read it. "
            "Close it and pass its path, or open it with mode 'r'."
        )
    return _hdf5_source(x, rows, columns, ndim)


def _hdf5_source(dataset: Any, rows: slice | None, columns: Any, ndim: int | None) -> Hdf5Source:
    path = os.path.abspath(dataset.file.filename)
    name = f"HDF5 dataset {path}[{dataset.name.lstrip('/')}]"
    check_dtype(dataset.dtype, name)
    check_shape(dataset.shape, name, ndim)
    selection = select(dataset.shape, None, rows, columns, name)
    chunk = dataset.chunks or (1, *dataset.shape[1:])
    runs = column_runs(selection, chunk[1] if len(chunk) == 2 else 1)
    dtype, chunked = dataset.dtype.newbyteorder("="), dataset.chunks is not None
    return Hdf5Source(name, dtype, selection, False, path, dataset.name, chunk, chunked, runs)


def _dataset(file: Any, array: str | None, path: str) -> Any:
    datasets: dict[str, Any] = {}
    file.visititems(lambda name, node: datasets.update({name: node}) if hasattr(node, "dtype") else None)
    listing = ", ".join(f"{name!r} {node.shape}" for name, node in datasets.items()) or "no datasets"
    if array is not None:
        if array.strip("/") not in datasets:
            raise DataError(f"HDF5 file {path} has no dataset {array!r}; it holds {listing}.")
        return datasets[array.strip("/")]
    tables = [node for node in datasets.values() if len(node.shape) == 2]
    if len(tables) != 1:
        raise DataError(f"HDF5 file {path} holds {listing}. Say which one to read with array=.")
    return tables[0]


def _parquet_files(path: str) -> list[str]:
    fs, root = fsspec.url_to_fs(path)
    try:
        found = [root] if fs.isfile(root) else fs.find(root)
    except OSError as error:
        raise DataError(f"cannot list {path}: {error}") from error
    files = sorted(f for f in found if f == root or (f.endswith((".parquet", ".pq")) and not _is_hidden(f, root)))
    if not files:
        raise DataError(f"there are no Parquet files at {path}. Check the path.")
    return [fs.unstrip_protocol(file) for file in files]


def _is_hidden(file: str, root: str) -> bool:
    """Return whether a file is none of the data: Spark, Dask and pyarrow pass over names that begin with _ or a dot."""
    return any(part.startswith(("_", ".")) for part in file.removeprefix(root).split("/"))


def _index_columns(schema: Any) -> set[str]:
    """Return the columns that hold the index of a data frame, which is a row's name and no feature of it."""
    described = (schema.pandas_metadata if schema is not None else None) or {}
    return {column for column in described.get("index_columns", ()) if isinstance(column, str)}


def _footer(parquet: Any, file: str) -> tuple[Any, Any]:
    try:
        with fsspec.open(file, "rb") as handle:
            opened = parquet.ParquetFile(handle)
            return opened.metadata, opened.schema_arrow
    except Exception as error:
        raise DataError(f"cannot read {file} as Parquet: {error}") from error


def _common_dtype(fields: Sequence[Any], name: str) -> np.dtype[Any]:
    types = extra("pyarrow.types", "parquet")
    for field in fields:
        if not (types.is_integer(field.type) or types.is_floating(field.type) or types.is_boolean(field.type)):
            raise DataError(
                f"{name}: column {field.name!r} is {field.type}, not a number. "
                "Choose numeric columns by name with columns=[...] (--columns)."
            )
    return np.result_type(*(np.dtype(field.type.to_pandas_dtype()) for field in fields))
