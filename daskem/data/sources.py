"""Opens anything that holds rows: decides what it is, checks what can be checked without reading, returns a source."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import zarr
from upath import UPath
from zarr.abc.store import Store

from daskem.data.array_sources import open_array, open_npy
from daskem.data.dask_source import open_dask, refuse_query_planning
from daskem.data.integrity import check_missing
from daskem.data.selection import check_shape, select
from daskem.data.source import Source, absolute
from daskem.data.table_sources import open_hdf5, open_parquet
from daskem.data.zarr_source import ZarrSource, open_zarr
from daskem.errors import DataError, DataTypeError, OptionError

__all__ = ["open_source", "text_names"]

# What a file begins with says what it is, whatever its name.
MAGIC = {b"\x93NUMPY": "npy", b"PAR1": "parquet", b"\x89HDF\r\n\x1a\n": "hdf5"}
SUFFIXES = {
    ".npy": "npy",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
}


def open_source(
    x: Any,
    *,
    columns: Iterable[int | str] | int | str | None = None,
    rows: slice | None = None,
    array: str | None = None,
    allow_missing: bool | None = False,
    what: str = "data",
    ndim: int | None = 2,
) -> Source:
    """Return a source of the rows of `x`. Nothing is read but metadata, and nothing is copied.

    Parameters
    ----------
    x : path or URL of a Zarr array or group, of a ``.npy`` file, of a Parquet file or directory, or of an HDF5 file;
        or a Zarr array, group or store, dask array, numpy array or memory map, xarray DataArray (one that was
        opened with ``chunks={}`` stays on disk), h5py Dataset, data frame, anything array-like, (n, d), or a `Source`.
    columns : indices, or names where the source has any; all by default. A Zarr array names its columns in its
        attribute ``columns``.
    rows : slice of step 1; all by default.
    array : name of the array in a Zarr group or of the dataset in an HDF5 file.
    allow_missing : read chunks that a Zarr store lacks as its fill value instead of refusing them. None: do not look
        for any; the caller does.
    what : what errors call the data.
    ndim : 1 for weights, (n,) or (n, 1), served as one column; None for labels, (n,) or (n, k).

    Raises
    ------
    DataError
        If there is nothing there, or it is not an (n, d) array of real numbers, or chunks are missing.
    OptionError
        If `columns`, `rows` or `array` does not fit.
    """
    source: Any
    if isinstance(x, Source) and _package(x) != "dask":
        return _whole(x, columns, rows, what, ndim)
    if isinstance(x, UPath):
        x = str(x)
    if isinstance(x, (str, os.PathLike)):
        source = _open_path(os.fspath(x), columns, rows, array, ndim)
    elif isinstance(x, (zarr.Array, zarr.Group, Store)):
        source = open_zarr(x, array, rows, columns, ndim)
    elif _package(x) == "h5py":
        source = open_hdf5(x, array, rows, columns, ndim)
    else:
        if array is not None:
            raise OptionError(f"array={array!r} has a meaning for Zarr groups and HDF5 files only. Leave it out.")
        source = _open_object(x, columns, rows, what, ndim)
    if isinstance(source, ZarrSource) and allow_missing is not None:
        check_missing(source, allow_missing)
    return cast(Source, source)


def _whole(x: Source, columns: Any, rows: slice | None, what: str, ndim: int | None) -> Source:
    if columns is not None or rows is not None:
        raise OptionError(f"{x.name} is a source already. Choose columns and rows where it is made.")
    check_shape(x.shape, f"{what} ({x.name})", ndim)
    return x


def _open_path(path: str, columns: Any, rows: slice | None, array: str | None, ndim: int | None) -> Any:
    given, path = path, absolute(path)
    kind = _kind(path)
    if kind == "hdf5":
        return open_hdf5(path, array, rows, columns, ndim)
    if kind == "zarr":
        return open_zarr(path, array, rows, columns, ndim, label=given)
    if array is not None:
        raise OptionError(f"array={array!r} was given, but {given} holds a single table. Leave `array` out.")
    if kind == "npy":
        return open_npy(path, rows, columns, given, ndim)
    return open_parquet(path, rows, columns, ndim)


def _kind(path: str) -> str:
    suffix = os.path.splitext(path.rstrip("/"))[1].lower()
    if os.path.isfile(path):
        with open(path, "rb") as file:
            head = file.read(8)
        for magic, kind in MAGIC.items():
            if head.startswith(magic):
                return kind
        if suffix != ".zip":
            raise DataError(
                f"{path} is not a file that can be read. Give a Zarr store (a directory or a .zip), or a .npy, Parquet "
                "or HDF5 file; convert text such as CSV to one of these first."
            )
    if os.path.isdir(path) and suffix != ".zarr" and _holds_parquet(path):
        return "parquet"
    if suffix in SUFFIXES and "://" not in path and not os.path.exists(path):
        raise DataError(f"there is no file at {path}. Check the path, and that this machine can see it.")
    return SUFFIXES.get(suffix, "zarr")


def _holds_parquet(path: str) -> bool:
    if any(os.path.exists(os.path.join(path, name)) for name in ("zarr.json", ".zarray", ".zgroup")):
        return False
    return any(name.endswith((".parquet", ".pq")) for _, _, names in os.walk(path) for name in names)


def _open_object(x: Any, columns: Any, rows: slice | None, what: str, ndim: int | None) -> Any:
    names: tuple[str, ...] | None = None
    if _package(x) == "dask":
        refuse_query_planning()
        if not _is_dask_array(x):
            raise DataTypeError(f"{what} is a {type(x).__name__}. Make it an array: x.to_dask_array(lengths=True).")
    elif _package(x) == "xarray":
        if not hasattr(x, "coords") or hasattr(x, "data_vars"):
            raise DataTypeError(f"{what} is an xarray {type(x).__name__}. Choose one DataArray, as in ds['x'].")
        names, x = _coordinate_names(x), x.data
    elif hasattr(x, "columns") and hasattr(x, "to_numpy"):
        names = text_names(x.columns)
        if columns is not None:
            # Before they become one array, which text in a column that nobody asked for would make one of objects.
            chosen = select(x.shape, names, None, columns, what)
            names, columns = chosen.names, None
            x = x.iloc[:, list(chosen.indices)] if hasattr(x, "iloc") else x[:, list(chosen.indices)]
        x = x.to_numpy()
    opener: Callable[..., Any] = open_dask if _is_dask_array(x) else open_array
    return opener(x, names, rows, columns, what, ndim)


def _package(x: Any) -> str:
    # Recognised by name, so that optional packages are imported only by those who use them.
    return type(x).__module__.partition(".")[0]


def _is_dask_array(x: Any) -> bool:
    # Whoever has one has loaded the module, 5 MB for which other data have no use.
    module = sys.modules.get("dask.array")
    return module is not None and isinstance(x, module.Array)


def _coordinate_names(x: Any) -> tuple[str, ...] | None:
    if x.ndim != 2 or x.dims[1] not in x.coords:
        return None
    return text_names(np.asarray(x.coords[x.dims[1]]).tolist())


def text_names(names: Iterable[Any] | None) -> tuple[str, ...] | None:
    """Return the names of columns where all are text: numbers in their place are positions, and no names."""
    listed = () if names is None else tuple(names)
    return listed if listed and all(isinstance(name, str) for name in listed) else None
