"""Zarr stores to measure on: float32 rows of a Gaussian mixture, the same for a seed whatever their chunks."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from measure import CORES
from zarr.codecs import BloscCodec, ZstdCodec

CODECS: dict[str, list[Any]] = {"none": [], "zstd": [ZstdCodec()], "blosc-lz4": [BloscCodec(cname="lz4")]}
# Rows are drawn in runs of this many, each from its own counter: chunk lengths must be multiples, or divide it.
RUN = 1024
COMPONENTS = 8


def draw_rows(seed: int, start: int, stop: int, n_features: int) -> npt.NDArray[np.float32]:
    """Return rows ``start:stop`` (n, d) of a mixture of `COMPONENTS` unit Gaussians whose centers spread by 0.5.

    Full-precision random floats hardly compress, which is the expensive case for decoding and for the disk.
    """
    centers = 0.5 * np.random.default_rng(seed).standard_normal((COMPONENTS, n_features), np.float32)
    rows = np.empty((stop - start, n_features), np.float32)
    for run in range(start // RUN, -(-stop // RUN)):
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, run]))
        drawn = rng.standard_normal((RUN, n_features), np.float32)
        drawn += centers[rng.integers(COMPONENTS, size=RUN)]
        first, last = max(run * RUN, start), min((run + 1) * RUN, stop)
        rows[first - start : last - start] = drawn[first - run * RUN : last - run * RUN]
    return rows


def make_store(path: Path, n_rows: int, n_features: int, chunk_rows: int, codec: str, seed: int) -> Path:
    """Write a store of mixture rows and return its path."""
    return write_store(
        path,
        (n_rows, n_features),
        chunk_rows,
        codec,
        lambda start, stop: draw_rows(seed, start, stop, n_features),
    )


def write_store(
    path: Path,
    shape: tuple[int, int],
    chunk_rows: int,
    codec: str,
    rows: Callable[[int, int], npt.NDArray[np.float32]],
    attributes: dict[str, Any] | None = None,
) -> Path:
    """Write ``rows(start, stop)`` chunk by chunk, on all cores, as a float32 Zarr array, and return its path."""
    array = zarr.create_array(
        path,
        shape=shape,
        chunks=(chunk_rows, shape[1]),
        dtype="float32",
        compressors=CODECS[codec] or None,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )

    def write(start: int) -> None:
        stop = min(start + chunk_rows, shape[0])
        array[start:stop] = rows(start, stop)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(write, range(0, shape[0], chunk_rows)))
    # Pages that are still to be written can neither be dropped from the cache nor leave the disk in peace.
    os.sync()
    return path
