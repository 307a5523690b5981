"""Seconds per EM step over rows with holes against the same rows complete: Gaussian components, full covariances.

Holes are at random, the expensive case: nearly every row has a pattern of its own.
"""

from __future__ import annotations

import statistics
import sys

import numpy as np
from measure import parser, start

import daskem
from daskem.algorithms import BatchEM
from daskem.core import Chunk
from daskem.models import Gaussian, Mixture

D, K, HOLES, STEPS = 16, 8, 0.1, 4
TARGET = 3.0


def main() -> int:
    arguments = parser(__doc__).parse_args()
    report, rng = start("missing"), np.random.default_rng(arguments.seed)
    n = int(200_000 * arguments.scale)
    complete = rng.standard_normal((n, D)) + 3.0 * rng.integers(2, size=(n, D))
    holed = np.where(rng.random((n, D)) < HOLES, np.nan, complete)
    model = Mixture(Gaussian("full", missing=True), K)
    params = model.init(Chunk(complete[:10_000]), np.random.default_rng(arguments.seed))
    report.say(f"full covariances, n={n:,} d={D} k={K}, {HOLES:.0%} of the values missing at random")
    for dtype in ("f8", "f4"):
        took = []
        for rows in (complete.astype(dtype), holed.astype(dtype)):
            fits = (
                daskem.fit(model, rows, algorithm=BatchEM(), params=params, stop=daskem.MaxSteps(STEPS))
                for _ in range(arguments.repeats)
            )
            took.append(statistics.median([info.seconds for result in fits for info in result.trace[1:]]))
        report.say(f"  {dtype}: complete {took[0]:.3f} s, with holes {took[1]:.3f} s")
        report.check(f"holes / complete, {dtype}", took[1] / took[0], TARGET)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
