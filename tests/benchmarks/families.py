"""Seconds per EM step of discrete families against StepMix, and what a product costs beside its parts.

StepMix (``pip install stepmix``) is asked to fit the same array with the same number of steps.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import Report, parser, start
from stepmix.stepmix import StepMix

import daskem
from daskem.algorithms import BatchEM
from daskem.core import Chunk, Family
from daskem.models import Bernoulli, Categorical, Gaussian, Mixture, MixtureParams, Product

Array = npt.NDArray[Any]
STEPMIX_TARGET = 5.0
PRODUCT_TARGET = 1.10
# What StepMix reports as its log-likelihood and what daskem says of the parameters that StepMix found.
OBJECTIVE_TARGET = 1e-6
# Two numbers of steps, whose difference in time is that of the steps between.
STEPS = (1, 4)
PRODUCT_COMPONENTS = 8


@dataclass(frozen=True)
class Workload:
    """Rows of n binary columns or codes below `levels`, from k kinds of row."""

    name: str
    n: int
    d: int
    k: int
    levels: int

    def __str__(self) -> str:
        return f"{self.name} n={self.n:,} d={self.d} k={self.k} levels={self.levels}"

    def draw(self, seed: int) -> Array:
        """Return (n, d) float64 rows."""
        rng = np.random.default_rng(seed)
        share = rng.dirichlet(np.ones(self.levels), (self.k, self.d)).cumsum(axis=2)[:, :, :-1]
        which = rng.integers(self.k, size=self.n)
        place, rows = rng.random((self.n, self.d)), np.zeros((self.n, self.d))
        for level in range(self.levels - 1):
            rows += place >= share[which, :, level]
        return rows

    def family(self) -> Family:
        """Return daskem's family."""
        return Bernoulli() if self.levels == 2 else Categorical(levels=self.levels)

    def stepmix(self, steps: int) -> StepMix:
        """Return StepMix's estimator, to make so many steps."""
        kind = "binary" if self.levels == 2 else "categorical"
        return StepMix(self.k, measurement=kind, max_iter=steps, abs_tol=0, rel_tol=0, random_state=0, progress_bar=0)


WORKLOADS = (
    Workload("bernoulli", 500_000, 100, 10, 2),
    Workload("categorical", 200_000, 30, 10, 4),
)


def per_step(fit: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Return wall-clock and CPU seconds per step: what more steps take, the start not counting; the best of some."""
    few, many = (np.min([_seconds(fit, steps) for _ in range(repeats)], axis=0) for steps in STEPS)
    wall, cpu = (many - few) / (STEPS[1] - STEPS[0])
    return float(wall), float(cpu)


def _seconds(fit: Callable[[int], object], steps: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    fit(steps)
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(workload: Workload, report: Report, repeats: int, seed: int) -> None:
    """Time one workload in both packages."""
    report.say(str(workload))
    rows = workload.draw(seed)
    model = Mixture(workload.family(), workload.k, "random")
    params = model.init(Chunk(rows[:10_000]), np.random.default_rng(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = per_step(lambda steps: workload.stepmix(steps).fit(rows), repeats)
        fitted = workload.stepmix(STEPS[1]).fit(rows)
    report.say(f"  StepMix: {peer[0]:.3f} s per step ({peer[1]:.3f} CPU seconds)")
    for dtype in ("f8", "f4"):
        narrow = rows.astype(dtype)
        own = per_step(lambda steps, x=narrow: _fit(model, x, params, steps), repeats)  # type: ignore[misc]
        report.say(f"  daskem {dtype}: {own[0]:.3f} s per step ({own[1]:.3f} CPU seconds)")
        report.check(f"StepMix / daskem, {dtype}", peer[0] / own[0], STEPMIX_TARGET, at_least=True)
    if workload.levels == 2:
        found = model.log_prob(_from_stepmix(fitted, model, params), Chunk(rows[:50_000]))
        theirs = fitted.score(rows[:50_000])
        report.check("difference in mean log-likelihood", abs(float(found.mean()) - theirs), OBJECTIVE_TARGET)


def _fit(model: Mixture, rows: Array, params: Any, steps: int) -> daskem.FitResult:
    return daskem.fit(model, rows, algorithm=BatchEM(), params=params, stop=daskem.MaxSteps(steps))


def _from_stepmix(fitted: StepMix, model: Mixture, params: MixtureParams) -> MixtureParams:
    """Return StepMix's parameters as daskem's."""
    found = fitted.get_parameters()
    logits = np.log(found["measurement"]["pis"]) - np.log1p(-found["measurement"]["pis"])
    components = model.family.from_vector(np.ravel(logits), params.components)  # type: ignore[attr-defined]
    return MixtureParams(np.asarray(found["weights"]), components)


def measure_product(report: Report, repeats: int, seed: int, n: int) -> None:
    """Time the steps of a mixture of products, and those of mixtures of its parts."""
    rng = np.random.default_rng(seed)
    parts: dict[str, tuple[Family, Array]] = {
        "colour": (Gaussian("diag"), rng.standard_normal((n, 16))),
        "flags": (Bernoulli(), (rng.random((n, 32)) < 0.3).astype(float)),
        "answers": (Categorical(levels=5), rng.integers(5, size=(n, 16)).astype(float)),
    }
    rows = np.concatenate([columns for _, columns in parts.values()], axis=1)
    edges = np.cumsum([0, *(columns.shape[1] for _, columns in parts.values())])
    groups = {name: list(range(a, b)) for name, a, b in zip(parts, edges[:-1], edges[1:], strict=True)}
    whole = Product({name: family for name, (family, _) in parts.items()}, groups)
    report.say(f"product of 16 Gaussian, 32 binary and 16 categorical columns, n={n:,} k={PRODUCT_COMPONENTS}")
    alone = [_steps(family, columns, seed) for family, columns in parts.values()]
    together = _steps(whole, rows, seed)
    # By turns, so that what else the machine does falls on both.
    took = [(sum(steps() for steps in alone), together()) for _ in range(max(7, repeats))]
    apart, product = np.median(took, axis=0)
    report.say(f"  parts {apart:.3f} s, product {product:.3f} s per step")
    report.check("product / sum of its parts", product / apart, PRODUCT_TARGET)


def _steps(family: Family, rows: Array, seed: int) -> Callable[[], float]:
    """Return a function that makes some steps and returns the median seconds of one."""
    model = Mixture(family, PRODUCT_COMPONENTS, "random")
    params = model.init(Chunk(rows[:5000]), np.random.default_rng(seed))
    return lambda: statistics.median(info.seconds for info in _fit(model, rows, params, STEPS[1]).trace[1:])


def main() -> int:
    arguments = parser(__doc__).parse_args()
    report = start("families")
    for workload in WORKLOADS:
        scaled = Workload(workload.name, int(workload.n * arguments.scale), workload.d, workload.k, workload.levels)
        measure(scaled, report, arguments.repeats, arguments.seed)
    measure_product(report, arguments.repeats, arguments.seed, int(200_000 * arguments.scale))
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
