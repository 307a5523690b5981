"""Makes a Zarr store of the world's land and sea in binary tiles, and prints the commands that fit it (README.md).

The package global-land-mask (MIT licence) holds a mask of the globe in steps of 1/120 degree, 21,600 x 43,200 cells,
made from the GLOBE elevation model (NOAA). Each row of the store is a tile of 8 x 8 cells: 14,580,000 rows of 64
columns of 0 (land) and 1 (sea), of which 75,519 are distinct.
"""

from __future__ import annotations

import sys
from pathlib import Path

import global_land_mask
import numpy as np
import numpy.typing as npt
import zarr
from measure import parser, seconds, start

MASK = Path(global_land_mask.__file__).with_name("globe_combined_mask_compressed.npz")
SIDE = 8
CHUNK_ROWS = 1 << 18


def read_tiles() -> npt.NDArray[np.uint8]:
    """Return the tiles (n, 64), row by row of the map."""
    with np.load(MASK) as file:
        mask = file["mask"]
    height, width = (size // SIDE for size in mask.shape)
    tiles = mask.reshape(height, SIDE, width, SIDE).transpose(0, 2, 1, 3)
    return tiles.reshape(height * width, SIDE * SIDE).view(np.uint8)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("store", help="Zarr array to make; must not exist, is not deleted")
    options.add_argument("-k", type=int, default=5, help="components in the printed commands")
    chosen = options.parse_args(arguments)
    report = start("land mask: a store of binary rows of which few are distinct")
    tiles = read_tiles()
    # Antarctica has chunks of nothing but land.
    layout = {"chunks": (CHUNK_ROWS, SIDE * SIDE), "config": {"write_empty_chunks": True}}
    took = seconds(lambda: zarr.create_array(chosen.store, data=tiles, **layout))
    report.say(f" {len(tiles):,} tiles, {tiles.nbytes / 1e9:.3g} GB, written in {took:.3g} s. Now:\n")
    for compress in ("auto", "never"):
        command = f"daskem fit bernoulli-mixture {chosen.store} -k {chosen.k} --algorithm batch --compress {compress}"
        report.say(f"{command} -o land-{compress}.safetensors")
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
