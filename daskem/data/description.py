"""Says what a Zarr store holds, also one that cannot be used as data: unfinished outputs, other shapes and types."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import zarr

from daskem.data.integrity import absent
from daskem.data.writers import stored_grid
from daskem.data.zarr_source import STATUS
from daskem.errors import DataError

__all__ = ["describe_store"]


def describe_store(url: str, array: str | None = None) -> dict[str, Any]:
    """Return what the metadata and the listing of a Zarr array or group say. No chunk is read.

    Parameters
    ----------
    url : path or URL.
    array : the one array of a group to describe; all by default.

    Returns
    -------
    dict
        ``kind``, ``url``, ``attributes`` (daskem's own: status, model, data, ...), and ``arrays``, for each: ``name``,
        ``shape``, ``dtype``, ``chunks``, ``shards``, ``zarr_format``, ``bytes`` (decoded), ``stored_bytes``,
        ``objects`` (chunks or shards of the grid), ``missing`` (of these, not in the store), ``status``, ``columns``.

    Raises
    ------
    DataError
        If there is no such store or array.
    """
    where = url if "://" in url else os.path.abspath(os.path.expanduser(url))
    try:
        node = zarr.open(where, mode="r")
    except FileNotFoundError as error:
        raise DataError(f"there is nothing at {url} that daskem can read. Check the path.") from error
    except Exception as error:
        raise DataError(f"cannot open {url} as a Zarr store: {type(error).__name__}: {error}") from error
    if isinstance(node, zarr.Array):
        members, kind = {"": node}, "Zarr array"
    else:
        members, kind = dict(sorted(node.arrays())), "Zarr group"
    if array is not None and array not in members:
        raise DataError(f"{kind} {url} has no array {array!r}; it holds {', '.join(map(repr, members)) or 'none'}.")
    return {
        "kind": kind,
        "url": url,
        "attributes": {name: value for name, value in node.attrs.items() if name.startswith("daskem:")},
        "arrays": [_describe_array(name, member) for name, member in members.items() if array in (None, name)],
    }


def _describe_array(name: str, array: zarr.Array[Any]) -> dict[str, Any]:
    grid = stored_grid(array)
    return {
        "name": name or array.basename,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "chunks": list(array.chunks),
        "shards": list(array.shards) if array.shards else None,
        "zarr_format": array.metadata.zarr_format,
        "bytes": array.nbytes,
        "stored_bytes": array.nbytes_stored(),
        "objects": math.prod(grid),
        "missing": len(absent(array, itertools.product(*map(range, grid)))),
        "status": array.attrs.get(STATUS),
        "columns": array.attrs.get("columns"),
    }
