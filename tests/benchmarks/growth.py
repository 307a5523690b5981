"""Memory that grows with the steps of a fit: of the driver with the scheduler, and of a worker (README.md)."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import zarr
from distributed import Client, LocalCluster
from measure import parser, start, temporary

import daskem
from daskem.algorithms import BatchEM, MaxSteps
from daskem.engine.executor import resident_bytes
from daskem.models import Gaussian, Mixture

STEPS = 4_000
EVERY = 100
# Caches, logs of bounded length and the like fill up first.
SETTLED = 0.5


def growth(readings: list[tuple[int, int]]) -> float:
    """Return bytes per 1,000 steps: the slope through the readings, the first of them left out."""
    steps, sizes = np.array(readings[int(SETTLED * len(readings)) :], dtype=float).T
    return 1_000 * float(np.polyfit(steps, sizes, 1)[0])


def main(arguments: list[str] | None = None) -> int:
    chosen = parser(__doc__).parse_args(arguments)
    report = start("growth: memory after thousands of steps")
    steps = int(STEPS * chosen.scale)
    rows = np.random.default_rng(chosen.seed).standard_normal((2_000, 4))
    readings: dict[str, list[tuple[int, int]]] = {}
    with (
        temporary(chosen.directory) as directory,
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        zarr.create_array(directory / "x.zarr", data=rows, chunks=(500, 4))

        def read(info: Any, params: Any) -> None:
            if info.step % EVERY == 0:
                gc.collect()
                sizes = {
                    "driver and scheduler": resident_bytes(),
                    "worker": next(iter(client.run(resident_bytes).values())),
                }
                for name, size in sizes.items():
                    readings.setdefault(name, []).append((info.step, size))

        model = Mixture(Gaussian(), 2)
        daskem.fit(
            *(model, directory / "x.zarr"),
            algorithm=BatchEM(),
            stop=MaxSteps(steps),
            callbacks=[read],
            cache="none",
            checkpoint=directory / "kept",
            checkpoint_interval=1.0,
        )
    for name, found in readings.items():
        report.say("  " + name + ": " + ", ".join(f"{size / 1e6:.4g}" for _, size in found[:: len(found) // 8]) + " MB")
        report.check(f"growth of {name}", growth(found) / 1e6, 1.0, unit=" MB per 1,000 steps")
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
