"""Seconds per EM step of a Student-t mixture against the Gaussian mixture on the same rows (README.md, "student")."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import Report, parser, start

from daskem.algorithms import BatchEM, MaxSteps
from daskem.core import Family
from daskem.data import open_dataset
from daskem.fit import fit
from daskem.models import Gaussian, Mixture, StudentT

N, D, K, STEPS = 200_000, 16, 8, 6
TARGET = 1.5


def draw(n: int, seed: int) -> npt.NDArray[np.float64]:
    """Return (n, D) rows of K overlapping components with 8 degrees of freedom."""
    rng = np.random.default_rng(seed)
    tails = np.sqrt(rng.chisquare(8, size=(n, 1)) / 8)
    return 2.0 * rng.standard_normal((K, D))[rng.integers(K, size=n)] + rng.standard_normal((n, D)) / tails


def step_seconds(family: Family, rows: npt.NDArray[Any]) -> float:
    """Return the median of the steps' own seconds, the first left out, which also warms up."""
    # Batch EM: the steps of other algorithms need not see all rows.
    result = fit(Mixture(family, K), open_dataset(rows), algorithm=BatchEM(), stop=MaxSteps(STEPS), seed=0)
    return statistics.median(info.seconds for info in result.trace[1:])


def compare(rows: npt.NDArray[Any], families: Sequence[Family], repeats: int, report: Report) -> None:
    """Measure the families in turn, and print how the second compares with the first."""
    timings = [[step_seconds(family, rows) for family in families] for _ in range(repeats)]
    gaussian, student = (statistics.median(column) for column in zip(*timings, strict=True))
    ratio = statistics.median(mine / theirs for theirs, mine in timings)
    report.say(f" {rows.dtype}: Gaussian {gaussian:.4g} s, Student-t {student:.4g} s per step")
    report.check(f"{rows.dtype} step of Student-t over step of Gaussian", ratio, TARGET)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--dtypes", nargs="+", choices=["float64", "float32"], default=["float64", "float32"])
    chosen = options.parse_args(arguments)
    n = max(int(N * chosen.scale), 2 * K)
    report = start(f"student: {n:,} x {D}, {K} full components")
    for dtype in chosen.dtypes:
        rows = draw(n, chosen.seed).astype(dtype)
        compare(rows, (Gaussian("full"), StudentT("full")), chosen.repeats, report)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
