"""Seconds per EM step against scikit-learn, on the same array, start and number of steps (README.md, "speed")."""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import sklearn.cluster
import sklearn.mixture
from measure import Report, parser, products_seconds, start
from sklearn.exceptions import ConvergenceWarning

import daskem

Array = npt.NDArray[Any]
# float32 halves the bytes and doubles the lanes; what is left of that after all else is done in a step.
FLOAT32_TARGET = 1.5
OBJECTIVE_TARGET = 1e-9
BLOCKS = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Workload:
    """A fit to time: `covariance` is "k-means" for k-means; `steps` are the two step counts whose difference counts."""

    name: str
    n: int
    d: int
    k: int
    covariance: str
    target: float
    steps: tuple[int, int] = (1, 3)

    def __str__(self) -> str:
        return f"{self.name} {self.covariance} n={self.n:,} d={self.d} k={self.k}"

    def estimator(self, package: str, rows: Array, steps: int) -> Any:
        """Return an unfitted estimator of "scikit-learn" or "daskem"; the arguments mean the same to both."""
        # Batch EM: the steps of other algorithms need not see all rows.
        own = {"algorithm": "batch"} if package == "daskem" else {}
        centers = rows[np.random.default_rng(1).choice(len(rows), self.k, replace=False)].astype(np.float64)
        if self.covariance == "k-means":
            cluster = sklearn.cluster.KMeans if package == "scikit-learn" else daskem.KMeans
            return cluster(self.k, init=centers, n_init=1, max_iter=steps, tol=0, random_state=0, **own)
        mixture = sklearn.mixture.GaussianMixture if package == "scikit-learn" else daskem.GaussianMixture
        precision = np.ones((self.k, self.d))
        return mixture(
            self.k,
            covariance_type=self.covariance,
            tol=0,
            max_iter=steps,
            init_params="random_from_data",
            weights_init=np.full(self.k, 1 / self.k),
            means_init=centers,
            precisions_init=np.stack([np.eye(self.d)] * self.k) if self.covariance == "full" else precision,
            random_state=0,
            **own,
        )

    def flops(self) -> float:
        """Return the arithmetic of a step's products, symmetric halves counted once.

        A mixture multiplies the p features of each row by the components' natural parameters and the responsibilities
        by the features; k-means multiplies rows by centers.
        """
        if self.covariance == "k-means":
            return 2.0 * self.n * self.k * self.d
        return 4.0 * self.n * self.k * self.n_features

    @property
    def n_features(self) -> int:
        """p, the features of a row that a mixture is linear in: 1, x and (the upper triangle or diagonal of) x x^T."""
        return 1 + self.d + (self.d * (self.d + 1) // 2 if self.covariance == "full" else self.d)

    def product_seconds(self, dtype: str) -> float:
        """Return the seconds of a step's products alone on all cores: the best block length and the best form."""
        forms = {"k-means": [_distances], "diag": [_features], "full": [_features, _triangular]}[self.covariance]
        times = (
            products_seconds(lambda thread, form=form, block=block: form(self, block, dtype)) / block
            for form in forms
            for block in BLOCKS
        )
        return self.n * min(times)


WORKLOADS = (
    Workload("W1", 1_000_000, 32, 16, "full", 10.0),
    Workload("W2", 2_000_000, 64, 64, "diag", 10.0),
    Workload("W3", 200_000, 128, 8, "full", 5.0),
    Workload("W4", 2_000_000, 32, 64, "k-means", 1.0, (2, 22)),
)


class Timing(NamedTuple):
    """Seconds per step, and the objective after the larger number of steps."""

    seconds: float
    objective: float


def draw(workload: Workload, seed: int) -> Array:
    """Return (n, d) float64 rows of k overlapping unit Gaussians."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((workload.n, workload.d))
    rows += 0.5 * rng.standard_normal((workload.k, workload.d))[rng.integers(workload.k, size=workload.n)]
    return rows


def time_scikit_learn(workload: Workload, rows: Array) -> Timing:
    """Time by difference of two step counts: the start, the copy and the final E-step of a fit cancel."""
    few, many = (_fit(workload, "scikit-learn", rows, steps) for steps in workload.steps)
    # k-means may find that no label has changed, and stop before the number of steps that it was given.
    return Timing((many[1] - few[1]) / (many[0].n_iter_ - few[0].n_iter_), _objective(many[0]))


def time_daskem(workload: Workload, rows: Array) -> Timing:
    """Take the median of the steps' own seconds, but for the first's, which also warms up."""
    fitted, _ = _fit(workload, "daskem", rows, workload.steps[1])
    return Timing(statistics.median(info.seconds for info in fitted.result_.trace[1:]), _objective(fitted))


def compare(workload: Workload, dtypes: list[str], repeats: int, seed: int, report: Report) -> None:
    """Measure a workload and print how it compares."""
    report.say(f"\n{workload}")
    exact = draw(workload, seed)
    arrays = {dtype: exact.astype(dtype, copy=False) for dtype in dtypes}
    for rows in arrays.values():
        for package in ("scikit-learn", "daskem"):
            # What is done once a process (loading, thread pools) is nobody's step.
            _fit(workload, package, rows[: 64 * workload.k], 2)
    # In turn: a machine that slows down meanwhile slows all of them.
    rounds = [
        {dtype: (time_scikit_learn(workload, rows), time_daskem(workload, rows)) for dtype, rows in arrays.items()}
        for _ in range(repeats)
    ]
    own = {dtype: _tell(workload, dtype, [timings[dtype] for timings in rounds], report) for dtype in dtypes}
    if {"float32", "float64"} <= own.keys():
        gain = own["float64"] / own["float32"]
        report.check(f"{workload.name} float32 times as fast as float64", gain, FLOAT32_TARGET, at_least=True)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument(
        "--workloads", nargs="+", choices=[w.name for w in WORKLOADS], default=["W1", "W2", "W3", "W4"]
    )
    options.add_argument("--dtypes", nargs="+", choices=["float64", "float32"], default=["float64", "float32"])
    chosen = options.parse_args(arguments)
    report = start("speed: seconds per EM step against scikit-learn")
    for workload in WORKLOADS:
        if workload.name in chosen.workloads:
            scaled = replace(workload, n=max(int(workload.n * chosen.scale), 2 * workload.k))
            compare(scaled, chosen.dtypes, chosen.repeats, chosen.seed, report)
    return report.close()


def _tell(workload: Workload, dtype: str, timings: list[tuple[Timing, Timing]], report: Report) -> float:
    """Print how scikit-learn and daskem compare in a type of numbers; return daskem's seconds per step."""
    peer, ours = (statistics.median(timing.seconds for timing in pair) for pair in zip(*timings, strict=True))
    report.say(f" {dtype}: scikit-learn {peer:.4g} s, daskem {ours:.4g} s per step, {peer / ours:.2f} times")
    alone = workload.product_seconds(dtype)
    flops = workload.flops() / 1e9
    report.say(
        f"  products: {flops / ours:.1f} GFLOP/s of {flops / alone:.1f} measured for the same shapes: "
        f"{alone / ours:.0%} of a step"
    )
    theirs, mine = timings[-1][0].objective, timings[-1][1].objective
    difference = abs(mine - theirs) / abs(theirs)
    if dtype == "float64":
        report.check(f"{workload.name} times as fast as scikit-learn", peer / ours, workload.target, at_least=True)
        report.check(f"{workload.name} relative difference of the objective", difference, OBJECTIVE_TARGET)
    else:
        report.say(f"  relative difference of the objective {difference:.2g}")
    return ours


def _fit(workload: Workload, package: str, rows: Array, steps: int) -> tuple[Any, float]:
    estimator = workload.estimator(package, rows, steps)
    clock = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(rows)
    return estimator, time.perf_counter() - clock


def _objective(fitted: Any) -> float:
    return float(fitted.inertia_ if hasattr(fitted, "inertia_") else fitted.lower_bound_)


def _features(workload: Workload, block: int, dtype: str) -> Callable[[], object]:
    """Return the two products of a block with its features: (k, p) @ (p, n) and (k, n) @ (n, p)."""
    k, p = workload.k, workload.n_features
    natural, features, resp = np.ones((k, p), dtype), np.ones((p, block), dtype), np.empty((k, block), dtype)
    sums = np.empty((k, p), dtype)

    def multiply() -> None:
        np.matmul(natural, features, out=resp)
        np.matmul(resp, features.T, out=sums)

    return multiply


def _triangular(workload: Workload, block: int, dtype: str) -> Callable[[], object]:
    """Return the products of a block with triangular factors, their zero quarter left out, and k symmetric updates."""
    d, half = workload.d, workload.d // 2
    factor, rows, out = np.ones((d, d), dtype), np.ones((d, block), dtype), np.empty((d, block), dtype)

    def multiply() -> None:
        for _ in range(workload.k):
            np.matmul(factor[:half, :half], rows[:half], out=out[:half])
            np.matmul(factor[half:], rows, out=out[half:])
            np.matmul(rows, rows.T)

    return multiply


def _distances(workload: Workload, block: int, dtype: str) -> Callable[[], object]:
    """Return the product of a block's rows with the centers: (n, d) @ (d, k)."""
    rows, centers = np.ones((block, workload.d), dtype), np.ones((workload.k, workload.d), dtype)
    out = np.empty((block, workload.k), dtype)
    return lambda: np.matmul(rows, centers.T, out=out)


if __name__ == "__main__":
    sys.exit(main())
