"""Memory that grows with the steps of a fit: of driver, scheduler and a worker (README.md)."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import dask
import numpy as np
import zarr
from dask.utils import key_split
from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster
from measure import parser, start, temporary
from scipy.stats import theilslopes

import daskem
from daskem.algorithms import BatchEM, MaxSteps
from daskem.engine.cluster import LEAN
from daskem.engine.executor import resident_bytes
from daskem.models import Gaussian, Mixture

STEPS = 4_000
EVERY = 100
# Caches, logs of bounded length and the like fill up first.
SETTLED = 0.5
# More than the cache holds, so that it is in the state in which it stays.
NAMES = 450_000


def fill_caches() -> None:
    """Fill Dask's cache of 100,000 names of tasks, which a fit of one unit would fill in its first 50,000 steps."""
    for number in range(NAMES):
        key_split(f"expect_unit-{number}-{number}-{number:032x}")


def growth(readings: list[tuple[int, int]]) -> float:
    """Return bytes per 1,000 steps: the median slope between readings, the first of them left out."""
    # The median: Python's table of interned strings doubles once in such a run, by 2 MB, and tells of no slope.
    steps, sizes = np.array(readings[int(SETTLED * len(readings)) :], dtype=float).T
    return 1_000 * float(theilslopes(sizes, steps).slope)


def main(arguments: list[str] | None = None) -> int:
    chosen = parser(__doc__).parse_args(arguments)
    report = start("growth: memory after thousands of steps")
    steps = int(STEPS * chosen.scale)
    rows = np.random.default_rng(chosen.seed).standard_normal((2_000, 4))
    # Processes of their own read settings from the environment.
    os.environ |= {"DASK_" + key.upper().replace(".", "__").replace("-", "_"): str(LEAN[key]) for key in LEAN}
    readings: dict[str, list[tuple[int, int]]] = {}
    with (
        temporary(chosen.directory) as directory,
        dask.config.set(LEAN),
        SubprocessCluster(n_workers=1, worker_kwargs={"nthreads": 1}, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        zarr.create_array(directory / "x.zarr", data=rows, chunks=(500, 4))
        client.wait_for_workers(1, timeout=60)
        client.run(fill_caches)
        client.run_on_scheduler(fill_caches)
        fill_caches()

        def read(info: Any, params: Any) -> None:
            if info.step % EVERY == 0:
                gc.collect()
                sizes = {
                    "driver": resident_bytes(),
                    "scheduler": client.run_on_scheduler(resident_bytes),
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
