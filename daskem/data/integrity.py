"""Tells whether a store holds every chunk that its grid asks for.

Zarr reads a chunk that is not there as the fill value, without a word: a store whose copy or computation broke off
looks like good data with zeros in it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from daskem.data.zarr_source import METADATA, ZarrSource
from daskem.errors import DataError

__all__ = ["absent", "check_missing", "describe", "listing", "missing_chunks"]

logger = logging.getLogger("daskem")

# Coordinates that a message lists before it only counts.
LISTED = 20


def missing_chunks(source: ZarrSource) -> list[tuple[int, ...]]:
    """Return the coordinates of the chunks (shards, where there are any) that the store does not list.

    Only chunks that the selected rows and columns touch are looked for. Inner chunks of a shard are not listed by a
    store, so that an empty place inside a shard that exists is not seen here.
    """
    return absent(source.array, _touched(source))


def absent(array: zarr.Array[Any], places: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return those of the chunk coordinates `places` whose key the store of `array` does not list."""
    stored = _stored_keys(array.store, array.path)
    encode = array.metadata.encode_chunk_key
    prefix = f"{array.path}/" if array.path else ""
    return [place for place in places if prefix + encode(place) not in stored]


def check_missing(source: ZarrSource, allow_missing: bool = False) -> None:
    """Refuse a Zarr array with missing chunks, or log how many there are where they are allowed.

    Raises
    ------
    DataError
        With the first coordinates and the number of missing chunks.
    """
    missing = missing_chunks(source)
    if not missing:
        return
    total = sum(1 for _ in _touched(source))
    if not allow_missing and not _lists_itself(source.array):
        raise DataError(
            f"{source.name}: the store does not say what it holds, as web servers do not that show no directories. "
            f"Chunks that it lacks would be read as the fill value, {source.array.fill_value}, unnoticed. Pass "
            "allow_missing=True (--allow-missing) if you know that it is complete."
        )
    if allow_missing:
        logger.warning(
            "%s: %d of %d chunks are not in the store and are read as the fill value %s.",
            *(source.name, len(missing), total, source.array.fill_value),
        )
        return
    raise DataError(
        f"{source.name}: {len(missing)} of {total} chunks are not in the store: {describe(missing)}. "
        f"They would be read as the fill value, {source.array.fill_value}. Either writing or copying the store broke "
        "off: write it again; or these chunks hold the fill value only, and Zarr leaves such chunks out unless "
        "array.write_empty_chunks is set: then pass allow_missing=True (--allow-missing) to read them so."
    )


def _lists_itself(array: zarr.Array[Any]) -> bool:
    """Return whether a store lists the array's own metadata, which was read from it."""
    prefix = f"{array.path}/" if array.path else ""
    return prefix + METADATA[array.metadata.zarr_format] in _stored_keys(array.store, array.path)


def describe(places: list[tuple[int, ...]]) -> str:
    """Return the coordinates as text, the first few of them and how many more there are."""
    more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
    return ", ".join(map(str, places[:LISTED])) + more


def _touched(source: ZarrSource) -> Iterator[tuple[int, ...]]:
    """Yield the coordinates of the stored chunks that the selection touches."""
    rows, selection = source.shard[0], source.selection
    places: list[list[int] | range] = [range(selection.start // rows, -(-selection.stop // rows))]
    if len(source.shard) == 2:
        places.append(sorted({column // source.shard[1] for column in selection.indices}))
    return itertools.product(*places)


def _stored_keys(store: Store, path: str) -> set[str]:
    prefix = f"{path}/" if path else ""
    if isinstance(store, (FsspecStore, ObjectStore)):
        return set(listing(store, prefix))
    if isinstance(store, LocalStore):
        return _local_keys(str(store.root), path)

    async def collect() -> set[str]:
        return {key async for key in store.list_prefix(prefix)}

    # A thread of its own, because the caller (a notebook) may already be running an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, collect()).result()


def _local_keys(root: str, path: str) -> set[str]:
    # Three times as fast as the store's own listing, which makes a path object of every file.
    found: set[str] = set()
    for folder, folders, names in os.walk(os.path.join(root, path), followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(folder, name)]
        found.update(os.path.join(folder, name)[len(root) :].strip("/") for name in names)
    return found


def _leads_back(folder: str, name: str) -> bool:
    """Return whether a directory is a link to one that it is in, whose files would be listed without end."""
    link = os.path.join(folder, name)
    if not os.path.islink(link):
        return False
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(folder)]) == target


def listing(store: FsspecStore | ObjectStore[Any], prefix: str) -> dict[str, dict[str, Any]]:
    """Return what a remote store says of each object under `prefix`, by key."""
    if isinstance(store, ObjectStore):
        return {found["path"]: dict(found) for some in store.store.list(prefix or None) for found in some}
    # An asynchronous filesystem belongs to the event loop that first used it, which is zarr's: list through a
    # synchronous twin instead.
    fs = store.fs
    twin = getattr(fs, "sync_fs", None) or type(fs)(*fs.storage_args, **{**fs.storage_options, "asynchronous": False})
    # What was listed before may have been written since.
    twin.invalidate_cache()
    found = twin.find(f"{store.path.rstrip('/')}/{prefix}".rstrip("/"), detail=True)
    # Filesystems differ in whether their paths begin with a slash.
    root = store.path.strip("/")
    return {name.lstrip("/").removeprefix(root).lstrip("/"): info for name, info in found.items()}
