"""A store larger than memory_limit: peak memory, and a pass against what disk and cores allow (README.md)."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from measure import CORES, Report, disk_rate, in_threads, median_seconds, parser, seconds, start, temporary
from one_fit import Spec
from stores import CODECS, make_store

import daskem
from daskem.algorithms import BatchEM
from daskem.data import open_dataset
from daskem.engine import parse_bytes
from daskem.models import Gaussian, Mixture

N_FEATURES = 64
ROW_BYTES = 4 * N_FEATURES
# 32 MiB.
CHUNK_ROWS = (32 << 20) // ROW_BYTES
PASS_TARGET = 1.15
# Of this much the rates of decoding and of arithmetic are measured; it must stay in the page cache and in memory.
SAMPLE_BYTES = 1 << 30


def decode_seconds(store: Path, n_rows: int, repeats: int) -> float:
    """Return the seconds of decoding cached rows ``:n_rows`` by zarr alone, the better of one thread and all cores."""
    array: zarr.Array[Any] = zarr.open_array(store, mode="r")

    def decode(threads: int, thread: int) -> None:
        for first in range(thread * CHUNK_ROWS, n_rows, threads * CHUNK_ROWS):
            np.asarray(array[first : min(first + CHUNK_ROWS, n_rows)])

    def on(threads: int) -> float:
        return median_seconds(lambda: in_threads(lambda thread: decode(threads, thread), threads), repeats)

    decode(1, 0)
    return min(on(threads) for threads in {1, CORES})


def compute_seconds(store: Path, n_rows: int, model: Mixture, repeats: int) -> float:
    """Return the seconds of an E-step over rows ``:n_rows`` held in memory, on all cores."""
    array: zarr.Array[Any] = zarr.open_array(store, mode="r")
    rows = np.asarray(array[:n_rows])
    result = daskem.fit(model, open_dataset(rows), algorithm=BatchEM(), stop=daskem.MaxSteps(repeats + 1))
    return statistics.median(info.seconds for info in result.trace[1:])


def measure(store: Path, n_rows: int, chosen: Any, report: Report) -> None:
    """Fit in a process of its own and compare with the parts measured alone."""
    spec = Spec(str(store), n_rows, chosen.components, chosen.covariance, chosen.repeats, chosen.memory_limit)
    result = spec.run()
    limit = parse_bytes(chosen.memory_limit)
    took = statistics.median(result["seconds"])
    report.say(f" pass {took:.3g} s ({', '.join(f'{s:.3g}' for s in result['seconds'])})")
    report.check("peak resident memory", result["peak"] / 1e9, limit / 1e9, unit=" GB")
    report.check("peak resident memory against the plan", result["peak"] / result["planned"], 1.0)
    stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    sample = min(n_rows, SAMPLE_BYTES // ROW_BYTES)
    share = n_rows / sample
    rate = disk_rate(store, chosen.repeats)
    decode = share * decode_seconds(store, sample, chosen.repeats)
    model = Mixture(Gaussian(chosen.covariance), chosen.components)
    compute = share * compute_seconds(store, sample, model, chosen.repeats)
    disk = stored / rate
    report.say(
        f" alone: disk {disk:.3g} s ({stored / 1e9:.3g} GB at {rate / 1e9:.3g} GB/s), decode {decode:.3g} s "
        f"({n_rows * ROW_BYTES / 1e9 / decode:.3g} GB/s), compute {compute:.3g} s"
    )
    report.check("pass against max(disk, decode + compute)", took / max(disk, decode + compute), PASS_TARGET)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--size", type=parse_bytes, default="8GB", help="size of the store, times --scale")
    options.add_argument("--codec", nargs="+", choices=sorted(CODECS), default=["zstd"], help="of the stored chunks")
    options.add_argument("--memory-limit", default="2GB", help="of the fit")
    options.add_argument("--components", type=int, default=16, help="components of the mixture")
    options.add_argument("--covariance", default="diag", choices=["diag", "full", "tied", "spherical"])
    chosen = options.parse_args(arguments)
    report = start("out of core: a store larger than memory_limit")
    n_chunks = max(1, -(-int(chosen.size * chosen.scale) // (CHUNK_ROWS * ROW_BYTES)))
    n_rows = n_chunks * CHUNK_ROWS
    for codec in chosen.codec:
        with temporary(chosen.directory) as directory:
            store = directory / f"{codec}.zarr"
            took = seconds(lambda: make_store(store, n_rows, N_FEATURES, CHUNK_ROWS, codec, chosen.seed))  # noqa: B023
            report.say(
                f"\n{codec}: {n_rows:,} x {N_FEATURES} float32, {n_rows * ROW_BYTES / 1e9:.3g} GB in {n_chunks} chunks "
                f"of {CHUNK_ROWS:,} rows, written in {took:.3g} s; {chosen.components} components, {chosen.covariance}"
            )
            measure(store, n_rows, chosen, report)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
