"""Row-aligned outputs: a Zarr group of arrays that tasks fill, each task whole chunks of its own.

An output says in its attribute ``daskem:status`` whether all of it is there, and is never taken for data before that;
in ``daskem:made_from``, what it is made from, so that the same work run again goes on where it was broken off.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.storage import ZipStore

from daskem.core import Array
from daskem.data.integrity import absent, describe
from daskem.data.retry import retrying
from daskem.data.source import Source, absolute, check_there, remedy
from daskem.data.zarr_source import METADATA, STATUS, location_in
from daskem.errors import ContractError, DataError, OptionError

__all__ = ["Output", "Place", "check_apart", "check_new_output", "create_output", "stored_grid"]

logger = logging.getLogger("daskem")

# Names that one kind of storage goes by.
ALIASES = {"": "file", "local": "file", "gcs": "gs", "s3a": "s3", "abfss": "abfs", "az": "abfs"}
MADE_FROM = "daskem:made_from"
# Path or URL, or a store that is open.
Place = str | os.PathLike[str] | Store
# Shape of one row, () or (k,), and type of the numbers.
Layout = Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]


@dataclass(frozen=True, eq=False)
class Output:
    """An output being written; small and picklable, so that workers write by themselves.

    Attributes
    ----------
    url : where it is.
    group : the Zarr group that holds the arrays.
    arrays : the arrays by name, all with `n_rows` rows.
    n_rows : rows of the output.
    chunk_rows : rows of a chunk: writes begin at multiples of it.
    there : numbers of the chunks that an earlier run wrote of every array, as the store lists them.
    """

    url: str
    group: zarr.Group
    arrays: Mapping[str, zarr.Array[Any]]
    n_rows: int
    chunk_rows: int
    there: frozenset[int] = frozenset()

    def holds(self, start: int, stop: int) -> bool:
        """Return whether an earlier run wrote these rows of every array, and they can be read."""
        if not self.there.issuperset(range(start // self.chunk_rows, -(-stop // self.chunk_rows))):
            return False
        for array in self.arrays.values():
            try:
                _ = array[start:stop]
            except Exception as error:
                # Cut short as the machine went down, say: written again, it is whole.
                logger.info("rows %d:%d of %s are written again: %s", start, stop, self.url, error)
                return False
        return True

    def write(self, start: int, values: Mapping[str, Array]) -> None:
        """Write rows from `start` on of every array: whole chunks, or all that is left.

        Whole chunks are what makes writing from many tasks safe: two tasks never touch one stored object.

        Raises
        ------
        ContractError
            If the rows do not begin and end at chunk boundaries, or names or shapes do not fit.
        DataError
            If the store does not take the chunk.
        """
        stop = start + self._check_write(start, values)
        # Zarr would make a directory of its own on a machine that does not see this one.
        check_there(f"output {self.url}", os.path.join(self.url, METADATA[3]))
        for name, value in values.items():
            try:
                retrying(partial(self.arrays[name].__setitem__, slice(start, stop), value), self.url)
            except OSError as error:
                raise DataError(f"cannot write rows {start}:{stop} of {name!r} to {self.url}: {error}") from error

    def finish(self) -> None:
        """Mark the output complete, having seen that the store lists every chunk, or shard where there are any.

        Raises
        ------
        DataError
            If chunks are missing; the output stays incomplete.
        """
        for name, array in self.arrays.items():
            missing = absent(array, itertools.product(*map(range, stored_grid(array))))
            if missing:
                raise DataError(
                    f"output {self.url} lacks {len(missing)} chunks of {name!r}: {describe(missing)}. Tasks that were "
                    "to write them failed or were lost. Run again with --overwrite (overwrite=True)."
                )
        # The group last: while it says incomplete, the arrays may already be what they say.
        nodes: list[zarr.Array[Any] | zarr.Group] = [*self.arrays.values(), self.group]
        for node in nodes:
            node.attrs[STATUS] = "complete"

    def _check_write(self, start: int, values: Mapping[str, Array]) -> int:
        if set(values) != set(self.arrays):
            raise ContractError(f"output {self.url} takes {sorted(self.arrays)}, but {sorted(values)} were given.")
        rows = len(next(iter(values.values())))
        stop = start + rows
        whole = start % self.chunk_rows == 0 and (stop % self.chunk_rows == 0 or stop == self.n_rows)
        if not (whole and 0 <= start < stop <= self.n_rows):
            raise ContractError(
                f"rows {start}:{stop} are not whole chunks of output {self.url}, which has {self.n_rows} rows in "
                f"chunks of {self.chunk_rows}. Two tasks would write one chunk and lose each other's rows."
            )
        for name, value in values.items():
            expected = (rows, *self.arrays[name].shape[1:])
            if value.shape != expected:
                raise ContractError(f"{name!r} has shape {value.shape} for rows {start}:{stop}; expected {expected}.")
        return rows


def check_apart(url: Place, sources: Iterable[Source], *, replaced: bool = True) -> None:
    """Refuse an output that would replace what it is made from, or be written into it.

    Only sources with a `location` (path or URL) can be told apart from an output: stores and files do have one.

    Parameters
    ----------
    replaced : whether what is at `url` is replaced as a whole, so that nothing it is made from may lie in it.

    Raises
    ------
    OptionError
        If a source is at, under or above `url`.
    """
    output = _place(_address(url))
    for source in sources:
        location = getattr(source, "location", None)
        if location is None:
            continue
        place = _place(location)
        if output[: len(place)] == place or (replaced and place[: len(output)] == output):
            raise OptionError(
                f"the output {_address(url)} and {source.name}, which it is made from, are one inside the other, so "
                "that writing would damage the data. Choose another place for the output."
            )


def check_new_output(url: Place, overwrite: bool) -> None:
    """Refuse, before any work, a place that `create_output` would refuse because of what is there."""
    _replaceable(_absolute(url), overwrite)


def stored_grid(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return how many objects a store holds of an array along each axis: shards, where there are any, else chunks."""
    return tuple(-(-n // size) for n, size in zip(array.shape, array.shards or array.chunks, strict=True))


def create_output(
    url: Place,
    arrays: Layout,
    n_rows: int,
    chunk_rows: int,
    *,
    overwrite: bool = False,
    attributes: Mapping[str, Any] | None = None,
    made_from: str | None = None,
) -> Output:
    """Create the store of an output, every array marked incomplete, and return it ready for writing.

    What an earlier run left incomplete that was made from the same is gone on with.

    Chunks carry a checksum (zstd's own, XXH64), so that a flipped bit is an error on reading, not a number; chunks that
    hold only zeros are written like others, so that a missing chunk always means that it was not written.

    Parameters
    ----------
    url : path, URL or open store of the Zarr group (v3) to create.
    arrays : for each name the shape of a row, () or (k,), and the type.
    n_rows : rows of all arrays.
    chunk_rows : rows of a chunk; each task writes whole chunks.
    overwrite : replace an output of daskem that is there. Anything else is never deleted.
    attributes : what else to note on the group.
    made_from : a digest of all that the rows depend on; None where they are not to be gone on with.

    Raises
    ------
    OptionError
        If something is there already, or the place cannot be written to.
    """
    where = _absolute(url)
    begun = _begun(where, made_from)
    old = _fitting(begun, arrays, n_rows, chunk_rows) if begun else {}
    if begun and old:
        return Output(_address(url), begun, old, n_rows, chunk_rows, _chunks_there(old))
    _make_room(where, overwrite or begun is not None)
    marks = {**(attributes or {}), STATUS: "incomplete"} | ({MADE_FROM: made_from} if made_from else {})
    try:
        # Marked as it is made: what is killed between the two would be nobody's.
        group = zarr.open_group(where, mode="a", zarr_format=3, attributes=dict(marks))
        group.attrs.put(marks)
        made = {
            name: group.create_array(
                name,
                shape=(n_rows, *row),
                chunks=(chunk_rows, *row),
                dtype=np.dtype(dtype),
                compressors=[ZstdCodec(checksum=True)],
                attributes={STATUS: "incomplete"},
                config={"write_empty_chunks": True},
            )
            for name, (row, dtype) in arrays.items()
        }
    except OSError as error:
        raise OptionError(
            f"cannot write to {where}: {error}. Choose a place that can be written to.{remedy(where)}"
        ) from error
    return Output(_address(url), group, made, n_rows, chunk_rows)


def _begun(where: str | Store, made_from: str | None) -> zarr.Group | None:
    """Return what an earlier run left at `where` that was to become the same output; None if there is no such."""
    group = _existing(where) if made_from else None
    if group is None or group.attrs.get(STATUS) != "incomplete" or group.attrs.get(MADE_FROM) != made_from:
        return None
    return group


def _fitting(group: zarr.Group, arrays: Layout, n_rows: int, chunk_rows: int) -> dict[str, zarr.Array[Any]]:
    """Return the arrays of a group if they are laid out so; none if not all of them are."""
    found = dict(group.arrays())
    for name, (row, dtype) in arrays.items():
        expected = ((n_rows, *row), (chunk_rows, *row), np.dtype(dtype))
        if name not in found or (found[name].shape, found[name].chunks, found[name].dtype) != expected:
            return {}
    return {name: found[name] for name in arrays}


def _chunks_there(arrays: Mapping[str, zarr.Array[Any]]) -> frozenset[int]:
    """Return the numbers of the chunks that the store lists of every array; one listing each."""
    grids = {name: stored_grid(array) for name, array in arrays.items()}
    lacking = {
        place[0]
        for name, array in arrays.items()
        for place in absent(array, itertools.product(*map(range, grids[name])))
    }
    return frozenset(range(next(iter(grids.values()))[0])) - lacking


def _place(where: str) -> tuple[str, ...]:
    """Return the steps that lead to a path or URL, links followed, the kind of storage first."""
    protocol, _, path = where.rpartition("://")
    protocol = ALIASES.get(protocol, protocol)
    path = os.path.realpath(os.path.expanduser(path)).replace(os.sep, "/") if protocol == "file" else path
    return protocol, *(part for part in path.split("/") if part)


def _make_room(where: str | Store, overwrite: bool) -> None:
    """Refuse what must not be overwritten; take away an old output, its marks first."""
    group = _replaceable(where, overwrite)
    if group is None:
        return
    try:
        # Marked before anything is deleted: a run that is killed here leaves no old mark on what remains.
        nodes: list[zarr.Array[Any] | zarr.Group] = [group, *(array for _, array in group.arrays())]
        for node in nodes:
            node.attrs[STATUS] = "incomplete"
        for name in list(group):
            del group[name]
    except OSError as error:
        raise OptionError(f"cannot overwrite {where}: {error}.") from error


def _replaceable(where: str | Store, overwrite: bool) -> zarr.Group | None:
    """Return the old output at `where`, None where nothing is; refuse what must not be overwritten."""
    group = _existing(where)
    if group is not None and not overwrite:
        raise OptionError(f"{where} exists already. Choose another place, or pass --overwrite (overwrite=True).")
    if group is not None and STATUS not in group.attrs:
        raise OptionError(f"{where} exists and is not an output of daskem, so it is not overwritten. Remove it first.")
    return group


def _address(url: Place) -> str:
    """Return the path or URL that tells a place from others; a store in memory has only its name."""
    where = _absolute(url)
    return where if isinstance(where, str) else location_in(where) or str(where)


def _absolute(url: Place) -> str | Store:
    if isinstance(url, ZipStore):
        raise OptionError(
            f"{url}: blocks of an output are written by many at once, and a zip file is written by one. Give the path "
            "or URL of a directory, and zip it when it is complete."
        )
    if isinstance(url, Store):
        return url
    return absolute(os.fspath(url))


def _existing(where: str | Store) -> zarr.Group | None:
    """Return the group at `where`, or None where nothing is."""
    path = where if isinstance(where, str) and "://" not in where else None
    if path is not None and (not os.path.exists(path) or (os.path.isdir(path) and not os.listdir(path))):
        return None
    try:
        return zarr.open_group(where, mode="r+")
    except FileNotFoundError as error:
        if path is None:
            return None
        raise OptionError(
            f"{where} exists and is not an output of daskem. Choose another place, or remove it first."
        ) from error
    except Exception as error:
        raise OptionError(f"cannot write to {where}: {type(error).__name__}: {error}.{remedy(where)}") from error
