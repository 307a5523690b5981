"""Decodes small chunks of local stores by zarrs, where that is installed (extra ``fast``)."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import threading
from functools import cache
from typing import Any

import zarr
from zarr.storage import LocalStore

__all__ = ["advise", "fastest"]

logger = logging.getLogger("daskem")

ZARRS = "zarrs.ZarrsCodecPipeline"
# Beside its bytes, a chunk costs zarr 0.1 ms of threads that wait for each other. Of chunks up to this, zarrs decodes
# those in the page cache a third faster or more, and those on the disk no slower: it tells the system not to read
# ahead, which costs larger ones up to a tenth.
SMALL_BYTES = 2 << 20
# With so many, a pass takes zarr a second or so longer than it need.
MANY_CHUNKS = 10_000
# Settings of zarr belong to the process. Of two threads of ours, none may see or put back what the other one has set.
_settings = threading.Lock()
_forked = False


def fastest(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array as this process decodes its chunks fastest; reads nothing.

    That is `array` itself where chunks are large, where zarrs is not installed or does not know a codec, where the user
    has told zarr which pipeline to take, and in a process that was forked. Nor is zarrs asked for objects in buckets:
    what servers refuse for a moment is told by exceptions of zarr's own stores (see `daskem.data.retry`).
    """
    return _by_zarrs(array) if _gains(array) and _is_installed() and not _forked else array


def advise(array: zarr.Array[Any], name: str) -> None:
    """Say in the log what zarrs would gain, where there are many small chunks and it is not installed."""
    if array.nchunks >= MANY_CHUNKS and _gains(array) and not _is_installed():
        logger.info(
            "%s has %d chunks of %d KB: a pass over so small ones is up to twice as fast with zarrs, pip install "
            "'daskem[fast]'",
            *(name, array.nchunks, max(1, _chunk_bytes(array) // 1000)),
        )


def _gains(array: zarr.Array[Any]) -> bool:
    # zarrs fills native arrays in row order only.
    plain = isinstance(array.store, LocalStore) and array.dtype.isnative and array.order == "C"
    return plain and _chunk_bytes(array) <= SMALL_BYTES


def _chunk_bytes(array: zarr.Array[Any]) -> int:
    return math.prod(array.chunks) * array.dtype.itemsize


def _by_zarrs(array: zarr.Array[Any]) -> zarr.Array[Any]:
    # Strict: what zarrs cannot decode is an error here, and nothing that is read later falls back without a word.
    # No more chunks at once than zarr would decode, which is what is planned for.
    settings = {
        "codec_pipeline.path": ZARRS,
        "codec_pipeline.strict": True,
        "codec_pipeline.chunk_concurrent_maximum": int(zarr.config.get("async.concurrency")),
    }
    with _settings:
        if _is_chosen():
            return array
        with zarr.config.set(settings):
            try:
                return zarr.Array(zarr.AsyncArray(array.metadata, array.store_path, array.config))
            except Exception:
                return array


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("zarrs") is not None


def _forget() -> None:
    """Leave zarrs alone in a process that was forked: it would wait for threads that only the parent has."""
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_forget)


def _is_chosen() -> bool:
    """Return whether the user has set a pipeline."""
    return bool(zarr.config.get("codec_pipeline.path") != zarr.config.defaults[0]["codec_pipeline"]["path"])
