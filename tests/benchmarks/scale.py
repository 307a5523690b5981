"""Seconds of a pass over 1, 2, 4, 8, 16 GB: proportional to the size (README.md)."""

from __future__ import annotations

import statistics
import sys

from measure import CORES, parser, read_seconds, start, temporary
from one_fit import Spec
from out_of_core import CHUNK_ROWS, N_FEATURES, ROW_BYTES
from stores import CODECS, make_store

from daskem.engine import parse_bytes

GB = 10**9
TOLERANCE = 0.10
# A process that has just begun is slower: a small size's passes are as many as read this share of the largest.
LONG = 0.5


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--smallest", type=parse_bytes, default="1GB", help="smallest size, times --scale")
    options.add_argument("--largest", type=parse_bytes, default="16GB", help="largest size, times --scale")
    options.add_argument("--codec", choices=sorted(CODECS), default="zstd", help="of the stored chunks")
    options.add_argument("--memory-limit", default="2GB", help="of the fits")
    options.add_argument("--components", type=int, default=16, help="components of the diagonal mixture")
    chosen = options.parse_args(arguments)
    report = start("scale: seconds of a pass against the size of the data")
    sizes = [int(chosen.smallest * chosen.scale)]
    while 2 * sizes[-1] <= chosen.largest * chosen.scale:
        sizes.append(2 * sizes[-1])
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    disk: dict[int, list[float]] = {size: [] for size in sizes}
    with temporary(chosen.directory) as directory:
        # One store serves all sizes: the smaller ones are its first rows.
        n_rows = sizes[-1] // ROW_BYTES
        store = make_store(directory / "rows.zarr", n_rows, N_FEATURES, CHUNK_ROWS, chosen.codec, chosen.seed)
        # The sizes take turns, so that an hour in which the machine is slow is no size's own.
        for _ in range(chosen.repeats):
            for size in sizes:
                steps = max(1, round(LONG * sizes[-1] / size))
                spec = Spec(str(store), size // ROW_BYTES, chosen.components, "diag", steps, chosen.memory_limit)
                result = spec.run()
                seconds[size].append(statistics.median(result["seconds"]))
                chunks = [store / "c" / str(i) / "0" for i in range(-(-size // (CHUNK_ROWS * ROW_BYTES)))]
                disk[size].append(read_seconds(store, chunks, CORES, 1))
                report.say(
                    f" {size / GB:6.3g} GB: pass {seconds[size][-1]:7.3f} s, disk alone {disk[size][-1]:7.3f} s, "
                    f"peak {result['peak'] / GB:.3f} GB"
                )
    report.say(" disk alone, seconds per GB, medians: " + ", ".join(f"{rate:.4f}" for rate in _rates(disk)))
    rates = _rates(seconds)
    report.say(" seconds per GB, medians: " + ", ".join(f"{rate:.4f}" for rate in rates))
    middle = statistics.median(rates)
    worst = max(abs(rate / middle - 1) for rate in rates)
    report.check("largest deviation from the median seconds per GB", worst, TOLERANCE)
    return report.close()


def _rates(taken: dict[int, list[float]]) -> list[float]:
    return [statistics.median(values) / size * GB for size, values in taken.items()]


if __name__ == "__main__":
    sys.exit(main())
