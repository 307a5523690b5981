"""Rows of numpy arrays: in this process, or in a flat file that each worker opens for itself."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import issparse

from daskem.core import Array
from daskem.data.selection import Rows, check_dtype, check_shape, finish, select
from daskem.data.source import check_there
from daskem.errors import DataError, DataTypeError

__all__ = ["ArraySource", "FileSource", "open_array", "open_npy", "to_numeric"]


@dataclass(frozen=True, eq=False)
class ArraySource(Rows):
    """Rows of an array in this process; `array` is a view of what the user gave, (n, d)."""

    array: Array

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``, a view where layout and byte order allow."""
        block = self.array[start:stop]
        if self.selection.picked is not None:
            block = np.take(block, self.selection.picked, axis=1)
        return finish(block, self.dtype)


@dataclass(frozen=True, eq=False)
class FileSource(Rows):
    """Rows of a flat file, read with plain reads.

    A memory map would count every page it touched as resident and would read while the E-step computes instead of
    ahead of it.

    Attributes
    ----------
    path : absolute path of the file.
    stored : type of the numbers in the file, which may be of foreign byte order.
    offset : bytes before the first number.
    rows : rows in the file.
    order : "C" (row after row) or "F" (column after column).
    """

    path: str
    stored: np.dtype[Any]
    offset: int
    rows: int
    order: Literal["C", "F"]

    @property
    def location(self) -> str:
        """Path of the file."""
        return self.path

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``."""
        check_there(self.name, self.path)
        first, count = self.selection.start + start, stop - start
        try:
            with open(self.path, "rb", buffering=0) as file:
                block = self._by_row(file, first, count) if self.order == "C" else self._by_column(file, first, count)
        except OSError as error:
            raise DataError(f"{self.name}: cannot read {self.locate(start, stop)}: {error}.") from error
        return finish(block, self.dtype)

    def read_bytes(self, rows: int) -> int:
        """Return the peak memory in bytes: the result, and what it is made from where that differs."""
        swapped = 0 if self.stored == self.dtype else self.row_bytes
        width = self.selection.width if self.order == "C" and self.selection.picked is not None else 0
        column = self.dtype.itemsize if self.order == "F" else 0
        return rows * (self.row_bytes + swapped + width * self.dtype.itemsize + column)

    def _by_row(self, file: Any, first: int, count: int) -> Array:
        width = self.selection.width
        block = np.empty((count, width), self.stored)
        self._fill(file, first * width, block)
        return block if self.selection.picked is None else np.take(block, self.selection.picked, axis=1)

    def _by_column(self, file: Any, first: int, count: int) -> Array:
        block = np.empty((count, self.shape[1]), self.stored)
        column = np.empty(count, self.stored)
        for place, index in enumerate(self.selection.indices):
            self._fill(file, index * self.rows + first, column)
            block[:, place] = column
        return block

    def _fill(self, file: Any, first: int, out: Array) -> None:
        view = memoryview(out.reshape(-1).view(np.uint8).data)
        file.seek(self.offset + first * self.stored.itemsize)
        # One read returns at most 2 GB on Linux, so that a full buffer may take several.
        while view:
            got = file.readinto(view)
            if not got:
                raise DataError(f"{self.name} ends {len(view)} bytes too early: the file was cut or is still written.")
            view = view[got:]


def to_numeric(x: Any, what: str) -> Array:
    """Return anything array-like as a numpy array of numbers; objects that are numbers become float64.

    Raises
    ------
    DataTypeError
        For sparse matrices, masked values and objects that are not numbers.
    """
    if issparse(x):
        raise DataTypeError(
            f"Sparse data was passed as {what}, but only dense arrays can be read. Use x.toarray() if that fits in "
            "memory, or store the data as a dense Zarr array."
        )
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise DataTypeError(f"{what} has masked values, which would be read as numbers. Fill or drop them first.")
    try:
        array = np.asarray(x)
        return array.astype(np.float64) if array.dtype == object else array
    except TypeError as error:
        raise DataTypeError(f"{what} holds objects that are not numbers: {error}") from error
    except ValueError as error:
        raise DataError(f"{what} cannot be made an array of numbers: {error}") from error


def open_array(
    x: Any, names: tuple[str, ...] | None, rows: slice | None, columns: Any, what: str, ndim: int | None
) -> ArraySource | FileSource:
    """Return a source of a numpy array, or of the file behind a memory map."""
    array = x if isinstance(x, np.memmap) else to_numeric(x, what)
    check_dtype(array.dtype, what)
    check_shape(array.shape, what, ndim)
    if isinstance(array, np.memmap):
        source = _open_memmap(array, rows, columns, what)
        if source is not None:
            return source
    selection = select(array.shape, names, rows, columns, what)
    table = np.asarray(array if array.ndim == 2 else array[:, None])[selection.start : selection.stop]
    dtype = array.dtype.newbyteorder("=")
    return ArraySource(f"{what} (numpy array)", dtype, selection, True, table)


def open_npy(path: str, rows: slice | None, columns: Any, what: str, ndim: int | None) -> ArraySource | FileSource:
    """Return a source of the ``.npy`` file at `path`; reads only its header."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable .npy file of numbers: {error}") from error
    return open_array(array, None, rows, columns, what, ndim)


def _open_memmap(array: np.memmap[Any, Any], rows: slice | None, columns: Any, what: str) -> FileSource | None:
    """Return a source of the file, or None where only this process has what the array shows."""
    root = _mapped_root(array)
    order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
    # Mode "c" is copy on write: changes are in this process alone.
    if root is None or root.mode == "c" or not array.flags.forc:
        return None
    if root.filename is None or not os.path.exists(root.filename):
        return None
    offset = root.offset + array.ctypes.data - root.ctypes.data
    selection = select(array.shape, None, rows, columns, what)
    path, dtype = os.path.abspath(root.filename), array.dtype
    return FileSource(
        f"{what} ({path})", dtype.newbyteorder("="), selection, False, path, dtype, offset, len(array), order
    )


def _mapped_root(array: np.memmap[Any, Any]) -> np.memmap[Any, Any] | None:
    # Views inherit the attributes of the map they were cut from, its offset included; only the map itself has its own.
    root: Any = array
    while isinstance(root, np.memmap):
        if isinstance(root.base, mmap.mmap):
            return root
        root = root.base
    return None
