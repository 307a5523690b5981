"""Stepwise k-means against scikit-learn's `MiniBatchKMeans`: the same rows, start, batch size and number of epochs."""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import parser, start
from sklearn.cluster import MiniBatchKMeans

import daskem
from daskem.algorithms import StepwiseEM

N, D, K = 500_000, 32, 64
BATCHES = (1_024, 4_096, 16_384)
EPOCHS = 1


def draw(n: int, seed: int) -> npt.NDArray[np.float64]:
    """Return (n, d) rows of k overlapping unit Gaussians."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, D)) + rng.standard_normal((K, D))[rng.integers(K, size=n)]


def inertia(rows: npt.NDArray[np.float64], centers: npt.NDArray[np.float64]) -> float:
    """Return the mean squared distance of the rows to their nearest centers."""
    square = (centers * centers).sum(axis=1)
    parts = np.array_split(rows, max(1, len(rows) // 8192))
    nearest = [(square - 2.0 * part @ centers.T).min(axis=1) for part in parts]
    return float((np.concatenate(nearest) + (rows * rows).sum(axis=1)).mean())


def fit(package: str, rows: npt.NDArray[np.float64], batch: int, seed: int) -> tuple[float, float]:
    """Return the seconds of a fit, and the mean squared distance that it reached."""
    centers = rows[np.random.default_rng(seed).choice(len(rows), K, replace=False)]
    estimator: Any
    if package == "daskem":
        estimator = daskem.KMeans(K, algorithm=StepwiseEM(batch_rows=batch))
    else:
        estimator = MiniBatchKMeans(K, batch_size=batch, max_no_improvement=None)
    estimator.set_params(init=centers, n_init=1, max_iter=EPOCHS, tol=0.0, random_state=0)
    clock = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(rows)
    return time.perf_counter() - clock, inertia(rows, estimator.cluster_centers_)


def main(arguments: list[str] | None = None) -> int:
    chosen = parser(__doc__).parse_args(arguments)
    report = start("minibatch: stepwise k-means against MiniBatchKMeans")
    rows = draw(max(int(N * chosen.scale), 2 * max(BATCHES)), chosen.seed)
    report.say(f"n={len(rows):,} d={D} k={K}, {EPOCHS} epoch(s), medians over {chosen.repeats} starts")
    for batch in BATCHES:
        for package in ("scikit-learn", "daskem"):
            # What is done once a process is nobody's.
            fit(package, rows[: 2 * batch], batch, 0)
        found: dict[str, list[tuple[float, float]]] = {"scikit-learn": [], "daskem": []}
        for seed in range(chosen.repeats):
            for package, runs in found.items():
                runs.append(fit(package, rows, batch, seed))
        times, inertias = ({p: statistics.median(run[i] for run in runs) for p, runs in found.items()} for i in (0, 1))
        for package in found:
            report.say(f"  batch {batch:,}: {package} {times[package]:.2f} s, inertia {inertias[package]:.4f} a row")
        report.check(f"batch {batch:,}, seconds relative to it", times["daskem"] / times["scikit-learn"], 1.0)
        report.check(f"batch {batch:,}, inertia relative to it", inertias["daskem"] / inertias["scikit-learn"], 1.0)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
