"""Reads safetensors files from anywhere, trusting nothing in them.

Layout: a little-endian uint64 header length, a JSON header, the tensors' bytes. Each check comes before the allocation
that depends on it; no array is ever larger than the file. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from daskem.core import Array
from daskem.errors import FileFormatError
from daskem.persist.paths import Fetched

__all__ = ["MAX_HEADER", "Header", "Place", "read_header", "read_tensor"]

# A header takes about 150 bytes a tensor plus the metadata; the trace of a long fit takes some 100 kB.
MAX_HEADER = 16 << 20
# NumPy 2 allows 64 dimensions; no statistic has more than a few.
MAX_DIMENSIONS = 32
DTYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}


@dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor are: `start` counts from the beginning of the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A header that was checked against the size of its file: `tensors` by name, and free-form `metadata`."""

    tensors: dict[str, Place]
    metadata: dict[str, str]


def read_header(path: Path | Fetched) -> Header:
    """Read and check the header of a safetensors file.

    Raises
    ------
    FileFormatError
        If there is no such file, or if anything in the header contradicts the format or the size of the file.
    """
    raw, data_start, file_size = _read_raw(path)
    try:
        entries = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: the header is not JSON ({error!s:.200}). {_REMEDY}") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "the metadata are not strings")
    places = sorted((_place(path, name, entry, data_start) for name, entry in entries.items()), key=_order)
    end = data_start
    for place in places:
        if place.start != end:
            raise _damaged(path, f"tensor {place.name!r:.80} begins at byte {place.start} instead of {end}")
        end += place.nbytes
    if end != file_size:
        raise _damaged(path, f"the header describes {end} bytes, the file has {file_size}")
    return Header({place.name: place for place in places}, metadata)


def read_tensor(path: Path | Fetched, place: Place) -> Array:
    """Read one tensor, in native byte order.

    Raises
    ------
    FileFormatError
        If the file became shorter since its header was read.
    """
    tensor = np.empty(place.shape, place.dtype)
    with _open(path) as file:
        file.seek(place.start)
        if file.readinto(tensor.reshape(-1).view(np.uint8).data) != place.nbytes:  # type: ignore[attr-defined]
            raise _damaged(path, f"tensor {place.name!r:.80} is cut short")
    if place.dtype.kind == "b" and place.nbytes and int(tensor.view(np.uint8).max()) > 1:
        raise _damaged(path, f"tensor {place.name!r:.80} holds a byte that is neither true nor false")
    return tensor.astype(place.dtype.newbyteorder("="), copy=False)


_REMEDY = "It is damaged, or not a model file at all; restore a copy."


def _damaged(path: Path | Fetched, what: str) -> FileFormatError:
    return FileFormatError(f"{path}: {what}. {_REMEDY}")


def _open(path: Path | Fetched) -> BinaryIO:
    if isinstance(path, Fetched):
        return path.open()
    try:
        # A pipe would wait for ever to be opened.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileFormatError(f"{path} is not a file. Pass the path of a model file.")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} cannot be opened ({error}). Check the path.") from error


def _read_raw(path: Path | Fetched) -> tuple[bytes, int, int]:
    with _open(path) as file:
        file_size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if file_size < 8 or length > file_size - 8:
            raise _damaged(path, f"a header of {length} bytes does not fit into a file of {file_size} bytes")
        if length > MAX_HEADER:
            raise _damaged(path, f"a header of {length} bytes is longer than any model needs ({MAX_HEADER})")
        raw = file.read(length)
    if len(raw) != length:
        raise _damaged(path, "the header is cut short")
    return raw, 8 + length, file_size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _place(path: Path | Fetched, name: str, entry: Any, data_start: int) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor {name!r:.80} lacks type, shape or place")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise _damaged(path, f"tensor {name!r:.80} has type {kind!r:.80}, which no model uses")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damaged(path, f"tensor {name!r:.80} has shape {shape!r:.80}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"tensor {name!r:.80} has place {offsets!r:.80}")
    dtype = np.dtype(DTYPES[kind])
    nbytes = offsets[1] - offsets[0]
    # Python's integers do not overflow, numpy's would.
    if math.prod(shape) * dtype.itemsize != nbytes:
        raise _damaged(path, f"tensor {name!r:.80} of shape {shape!r:.80} and type {kind} does not take {nbytes} bytes")
    return Place(name, dtype, tuple(shape), data_start + offsets[0], nbytes)


def _sizes(values: Any) -> bool:
    # An empty array may have one absurd dimension; 2^48 is beyond any that is not.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= 1 << 48 for value in values)


def _order(place: Place) -> tuple[int, int]:
    return place.start, place.nbytes
