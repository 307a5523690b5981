"""Tells whether data are still the same, without reading them: by size and time of what is stored.

Where a store has such marks, a chunk that is written anew during a fit, or between a checkpoint and going on from it,
is seen. Rows in this process are hashed. A lazy Dask array shows neither: shape, type and chunks have to do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from zarr.storage import FsspecStore, ObjectStore

from daskem.data.dataset import Dataset
from daskem.data.integrity import listing
from daskem.data.remaining import Remaining
from daskem.data.source import Source
from daskem.data.zarr_source import ZarrSource
from daskem.errors import DataError

__all__ = ["check_unchanged", "fingerprint", "stamps"]

# What filesystems call the mark of an object's content, the best first; a time is better than nothing.
MARKS = ("ETag", "etag", "e_tag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated")
# What describes an array instead of holding its rows: a note may be added to it at any time.
METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
# Rows in memory that are hashed at a time.
HASHED_BYTES = 16 << 20
# Changed objects that a message lists.
LISTED = 5

Stamps = Mapping[str, str]


def fingerprint(data: Dataset) -> dict[str, Any]:
    """Return, as JSON, what tells these data from others; where they are is no part of it."""
    sides = {"rows": data.rows, "sample_weight": data.weight, "y": data.labels}
    return {name: None if source is None else _describe(source) for name, source in sides.items()}


def stamps(data: Dataset) -> dict[str, Stamps]:
    """Return size and mark of each stored object of the sources that have such, by source and key."""
    return {source.name: _stamps(source) for source in data.sources}


def check_unchanged(data: Dataset, before: Mapping[str, Stamps]) -> None:
    """Refuse data of which an object was written, replaced or deleted since `before` (see `stamps`).

    Raises
    ------
    DataError
        Naming the source and the first of its objects.
    """
    for name, now in stamps(data).items():
        changed = sorted(key for key in {**before[name], **now} if before[name].get(key) != now.get(key))
        if changed:
            more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
            raise DataError(
                f"{name} was written to while it was fitted: {', '.join(changed[:LISTED])}{more} changed. Some steps "
                "saw the rows before that, others after. Fit again once the data rest."
            )


def _describe(source: Source) -> dict[str, Any]:
    if isinstance(source, Remaining):
        return {**_describe(source.whole), "kept": [list(run) for run in source.runs]}
    selection = getattr(source, "selection", None)
    return {
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "columns": None if source.columns is None else list(source.columns),
        "chosen": None if selection is None or selection.picked is None else list(selection.picked),
        "from": None if selection is None else selection.start,
        "chunks": [np.ravel(getattr(source, name)).tolist() for name in ("chunk", "shard") if hasattr(source, name)],
        "content": _content(source),
    }


def _content(source: Source) -> str | None:
    """Return a digest of what is stored, or of the rows where these are in this process; None where neither is."""
    digest = hashlib.sha256()
    if found := _stamps(source):
        for key, stamp in sorted(found.items()):
            digest.update(f"{key}\0{stamp}\0".encode())
        return digest.hexdigest()
    if not source.in_process or source.bind(0, 1) is not source:
        return None
    step = max(1, HASHED_BYTES // max(1, source.shape[1] * source.dtype.itemsize))
    for start in range(0, source.shape[0], step):
        digest.update(source.read(start, min(start + step, source.shape[0])).tobytes())
    return digest.hexdigest()


def _stamps(source: Source) -> dict[str, str]:
    stored = source.whole if isinstance(source, Remaining) else source
    return {key: stamp for key, stamp in _objects(stored) if os.path.basename(key) not in METADATA}


def _objects(source: Source) -> Iterator[tuple[str, str]]:
    if isinstance(source, ZarrSource) and isinstance(source.array.store, (FsspecStore, ObjectStore)):
        for key, info in listing(source.array.store, source.array.path).items():
            mark = next((info[name] for name in MARKS if info.get(name) is not None), "")
            yield key, f"{info.get('size')} {mark}"
        return
    location = getattr(source, "location", None)
    if location is None or not os.path.exists(location):
        return
    if os.path.isdir(location):
        yield from _under(location, location)
    else:
        yield os.path.basename(location), _stamp(os.stat(location))


def _under(root: str, directory: str) -> Iterator[tuple[str, str]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _under(root, entry.path)
            else:
                yield os.path.relpath(entry.path, root), _stamp(entry.stat())


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns}"
