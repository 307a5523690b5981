"""Rows of a Zarr array, read by each worker straight from the store."""

from __future__ import annotations

import logging
import os
import platform
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, ZipStore

from daskem.core import Array
from daskem.data.retry import retrying
from daskem.data.selection import (
    ColumnRun,
    Rows,
    check_dtype,
    check_shape,
    column_runs,
    gather,
    is_direct,
    next_multiple,
    select,
)
from daskem.data.small_chunks import SmallChunks
from daskem.data.source import check_there, remedy, without_password
from daskem.errors import DataError, OptionError

__all__ = ["METADATA", "STATUS", "ZarrSource", "location_in", "open_zarr", "resolve"]

logger = logging.getLogger("daskem")

STATUS = "daskem:status"
# Kinds of buckets, as obstore calls them and as URLs do.
BUCKETS = {"S3Store": "s3", "GCSStore": "gs"}
# Stores of this machine, which any thread may read from.
HERE = (LocalStore, MemoryStore, ZipStore)
# Bytes of a decoded chunk up to which the thread that reads may decode, too: handing a chunk over costs as much as
# decoding 64 KB of it.
SMALL_CHUNK = 512 << 10
# Memory in bytes of the objects that zarr makes for each chunk of a read (measured: 2,000 to 2,900) and for each shard
# that it reads at the same time (25,000 to 55,000).
CHUNK_OBJECTS, SHARD_OBJECTS = 3_000, 60_000
# Where Zarr keeps what it must know of an array, by format.
METADATA = {2: ".zarray", 3: "zarr.json"}


@dataclass(frozen=True, eq=False)
class ZarrSource(Rows):
    """Rows of a Zarr array, (n, d) or (n,); v2 or v3, sharded or not.

    Attributes
    ----------
    array : the array; the store inside is pickled as its address.
    chunk : shape of what is decoded at once (an inner chunk, where the store is sharded).
    shard : shape of what is written at once.
    runs : the reads along the columns.
    """

    array: zarr.Array[Any]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    runs: tuple[ColumnRun, ...]

    @property
    def location(self) -> str | None:
        """Path or URL of the array; None where its store has neither."""
        return location_in(self.array.store, self.array.path)

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``; a chunk that cannot be decoded raises DataError with its coordinates."""
        self._check_there()
        try:
            return self._read(start, stop)
        except MemoryError:
            raise
        except Exception as error:
            damage = self._damage(start, stop)
            if damage is not None:
                raise damage from error
            # Every chunk could be read now: the store had not answered for a moment.
            logger.warning("%s: rows %d:%d were read at the second attempt: %s", self.name, start, stop, error)
            return self._read(start, stop)

    def unit_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a shard, or a chunk where there are no shards."""
        return next_multiple(row, self.shard[0], self.selection)

    def piece_boundary(self, row: int) -> int:
        """Return the first row at or after `row` that begins a chunk."""
        return next_multiple(row, self.chunk[0], self.selection)

    def read_bytes(self, rows: int) -> int:
        """Return the peak memory in bytes of reading a run of `rows` rows that begins and ends at chunk boundaries.

        Zarr decodes ``async.concurrency`` chunks at once; each costs its decoded and its encoded size, the latter
        taken as the former plus a sixteenth (incompressible data grow a little). Of as many shards, it holds what
        is asked for encoded, decoded and put together. And it makes objects for each chunk and each shard.
        """
        read_width = sum(run.stop - run.start for run in self.runs)
        result = rows * read_width * self.dtype.itemsize
        columns = sum(self._column_chunks(run) for run in self.runs)
        chunk = int(np.prod(self.chunk)) * self.dtype.itemsize
        chunks = columns * (-(-rows // self.chunk[0]) + (self.selection.start % self.chunk[0] > 0))
        at_once = min(chunks, int(zarr.config.get("async.concurrency")))
        # Chosen columns pass through a temporary on their way into the result.
        copies = 0 if self._direct else 2 * rows * self.row_bytes
        if self.array.shards:
            shard = int(np.prod(self.shard)) * self.dtype.itemsize
            held = min(chunks * chunk, at_once * shard)
            decoding = 3 * held + held // 16 + at_once * SHARD_OBJECTS
        else:
            decoding = at_once * (2 * chunk + chunk // 16)
        return result + copies + decoding + chunks * CHUNK_OBJECTS

    def locate(self, start: int, stop: int) -> str:
        """Return the coordinates of the chunks that hold rows ``start:stop``."""
        return self._named(*self._corners(start, stop))

    @property
    def _direct(self) -> bool:
        """Whether what zarr returns needs no copy to be what `read` returns."""
        return self.array.dtype == self.dtype and self.array.order == "C" and is_direct(self.selection, self.runs)

    def _check_there(self) -> None:
        """Refuse a directory or bucket that this machine does not see: Zarr would give fill values for all its rows."""
        store, path = self.array.store, self.array.path
        if isinstance(store, LocalStore):
            # Beside the chunks, so that an empty directory where nothing is mounted does not pass for the array.
            check_there(self.name, os.path.join(store.root, path, METADATA[self.array.metadata.zarr_format]))
        elif not self._opens:
            raise DataError(
                f"{self.name}: the store has no array there any more, or not for {platform.node()}. Give all workers "
                "the same endpoint and credentials in their environment."
            )

    @cached_property
    def _opens(self) -> bool:
        """Whether this process finds the array in its store; asked once, for it may be a request to a server."""
        try:
            retrying(lambda: zarr.open_array(self.array.store_path, mode="r"), self.name)
        except FileNotFoundError:
            return False
        return True

    def __getstate__(self) -> dict[str, Any]:
        # What this process found need not hold for the one that the source is sent to.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _read(self, start: int, stop: int) -> Array:
        # One call for a whole run: zarr overlaps its chunks, 1.5-2 times as fast as one call a chunk. Its settings are
        # left alone: they belong to the process, and changing them around a read would race with other threads.
        return retrying(lambda: gather(self.selection, self.runs, start, stop, self.dtype, self._indexed), self.name)

    @cached_property
    def _indexed(self) -> SmallChunks | zarr.Array[Any]:
        """What is indexed to read rows."""
        small = int(np.prod(self.chunk)) * self.dtype.itemsize <= SMALL_CHUNK
        return SmallChunks(self.array, self.name) if small and type(self.array.store) in HERE else self.array

    def _column_chunks(self, run: ColumnRun) -> int:
        if len(self.chunk) == 1:
            return 1
        return -(-run.stop // self.chunk[1]) - run.start // self.chunk[1]

    def _corners(self, start: int, stop: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the coordinates of the first and the last chunk of rows ``start:stop``."""
        first, last = self.selection.start + start, self.selection.start + max(stop - 1, start)
        low, high = (first // self.chunk[0],), (last // self.chunk[0],)
        if len(self.chunk) == 1:
            return low, high
        columns = self.selection.indices
        return (*low, min(columns) // self.chunk[1]), (*high, max(columns) // self.chunk[1])

    @staticmethod
    def _named(low: tuple[int, ...], high: tuple[int, ...]) -> str:
        return f"chunk {low}" if low == high else f"chunks {low} to {high}"

    def _damage(self, start: int, stop: int) -> DataError | None:
        """Return what to raise for the first chunk of the run that cannot be read; None where each can."""
        first = start
        while first < stop:
            last = min(self.piece_boundary(first + 1), stop)
            try:
                self._read(first, last)
            except Exception as error:
                return DataError(
                    f"{self.name}: {self.locate(first, last)} ({super().locate(first, last)}) cannot be read: "
                    f"{type(error).__name__}: {error}. The chunk is damaged, or the store does not answer. "
                    "Write the chunk again from its source, or leave out its rows with rows=."
                )
            first = last
        return None


def location_in(store: Store, path: str = "") -> str | None:
    """Return the path or URL of what is at `path` in a store; None where the store has neither."""
    if isinstance(store, ZipStore):
        return os.path.abspath(store.path)
    if isinstance(store, LocalStore):
        return os.path.abspath(os.path.join(store.root, path))
    if isinstance(store, FsspecStore):
        return f"{store.fs.unstrip_protocol(store.path).rstrip('/')}/{path}".rstrip("/")
    if isinstance(store, ObjectStore) and type(store.store).__name__ in BUCKETS:
        parts = (store.store.config["bucket"], store.store.prefix, path)
        return f"{BUCKETS[type(store.store).__name__]}://" + "/".join(str(part).strip("/") for part in parts if part)
    return None


def resolve(x: Any, array: str | None, label: str | None = None) -> tuple[zarr.Array[Any], str]:
    """Return the Zarr array that `x` (path, URL, store, group or array) and the name `array` mean, and its name.

    Raises
    ------
    DataError
        If there is no such store or array, or an output of daskem is incomplete.
    """
    node = _open_node(x) if isinstance(x, (str, os.PathLike, Store)) else x
    label = label or (os.fspath(x) if isinstance(x, (str, os.PathLike)) else _address(node))
    label = without_password(label)
    if isinstance(node, zarr.Array):
        if array is not None:
            raise OptionError(f"array={array!r} was given, but {label} is an array already. Leave `array` out.")
        return _finished(node, f"Zarr array {label}"), f"Zarr array {label}"
    _finished(node, f"Zarr group {label}")
    found = _member(node, array, label)
    name = f"Zarr array {label}[{array or found.basename}]"
    return _finished(found, name), name


def open_zarr(
    x: Any, array: str | None, rows: slice | None, columns: Any, ndim: int | None, label: str | None = None
) -> ZarrSource:
    """Return a source of a Zarr array; reads metadata only."""
    found, name = resolve(x, array, label)
    check_dtype(found.dtype, name)
    check_shape(found.shape, name, ndim)
    chunk, shard = _grid(found, name)
    selection = select(found.shape, _column_names(found), rows, columns, name)
    runs = column_runs(selection, chunk[1] if len(chunk) == 2 else 1)
    dtype = found.dtype.newbyteorder("=")
    return ZarrSource(name, dtype, selection, isinstance(found.store, MemoryStore), found, chunk, shard, runs)


def _address(node: zarr.Array[Any] | zarr.Group) -> str:
    place = location_in(node.store, node.path) if isinstance(node.store, ObjectStore) else None
    return place or str(node.store_path)


def _grid(array: zarr.Array[Any], name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    try:
        return array.chunks, array.shards or array.chunks
    except NotImplementedError as error:
        raise DataError(f"{name} has chunks of irregular sizes. Copy it into an array with one chunk size.") from error


def _column_names(array: zarr.Array[Any]) -> list[str] | None:
    names = array.attrs.get("columns")
    fits = isinstance(names, list) and len(names) == array.shape[-1] and all(isinstance(n, str) for n in names)
    return [str(name) for name in names] if fits and isinstance(names, list) else None


def _open_node(x: str | os.PathLike[str] | Store) -> zarr.Array[Any] | zarr.Group:
    where = os.fspath(x) if isinstance(x, os.PathLike) else x
    try:
        if isinstance(where, str) and where.endswith(".zip") and os.path.isfile(where):
            where = ZipStore(where, mode="r")
        return zarr.open(where, mode="r")
    except FileNotFoundError as error:
        raise _absent(where) from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"cannot open {where} as a Zarr store: {why}.{remedy(where)}") from error


def _absent(where: str | Store) -> DataError:
    """Return what to raise when there is nothing at `where`, having looked for a group just above it."""
    if isinstance(where, str):
        parent, _, name = where.rstrip("/").rpartition("/")
        try:
            group = zarr.open_group(parent, mode="r")
        except Exception:
            return DataError(f"there is no Zarr store at {where}. Check the path, and that this machine can see it.")
        return DataError(f"Zarr group {parent} has no array {name!r}; it holds {_listing(group)}.")
    return DataError(f"the Zarr store {where} holds neither an array nor a group.")


def _member(group: zarr.Group, array: str | None, label: str) -> zarr.Array[Any]:
    if array is None:
        tables = [member for _, member in group.arrays() if member.ndim == 2]
        if len(tables) == 1:
            return tables[0]
        raise DataError(f"Zarr group {label} holds {_listing(group)}. Say which one to read with array=.")
    try:
        member = group[array]
    except KeyError as error:
        raise DataError(f"Zarr group {label} has no array {array!r}; it holds {_listing(group)}.") from error
    if isinstance(member, zarr.Group):
        raise DataError(f"{array!r} in Zarr group {label} is a group; it holds {_listing(member)}.")
    return member


def _listing(group: zarr.Group) -> str:
    arrays = [f"{name!r} {member.shape}" for name, member in sorted(group.arrays())]
    return ", ".join(arrays) if arrays else "no arrays"


def _finished(node: Any, name: str) -> Any:
    status = node.attrs.get(STATUS)
    if status not in (None, "complete"):
        raise DataError(
            f"{name} is an output that was never finished (its attribute {STATUS} is {status!r}), so some of its rows "
            "are missing. Run the prediction that writes it again, with --overwrite (overwrite=True)."
        )
    return node
