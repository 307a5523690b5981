"""What algorithms share: parameters with what the data say of them, log lines, and what may still be gained."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem.algorithms.stopping import ROUNDING
from daskem.core import (
    Event,
    Expectation,
    Float,
    HasObjectiveError,
    HasRebase,
    HasVector,
    Params,
    Part,
    Problem,
    Stats,
    StepInfo,
)

__all__ = [
    "TOO_FAR",
    "Point",
    "evaluate",
    "fell",
    "log_step",
    "may_gain",
    "rebased",
    "to_vector",
    "try_vector",
]

# What models raise at parameters or statistics that no rows could have: a row without density, a number out of domain,
# a matrix that is not positive definite.
TOO_FAR = (ArithmeticError, ValueError)
# Ratio of two gains in a row beyond which an extrapolation of their series is a guess, and below which it is luck.
MOST_RATIO, LEAST_RATIO = 0.99, 0.1


@dataclass(frozen=True, eq=False)
class Point:
    """Parameters, what the E-step says of all rows at them, and the objective there (mean per unit weight, nats)."""

    params: Params
    expectation: Expectation
    objective: float


def evaluate(problem: Problem, params: Params, part: Part = None, step: int = 0) -> Point:
    """Return the point at `params`; one E-step."""
    expectation = problem.expect(params, part, step)
    return Point(params, expectation, problem.objective(expectation, params))


def log_step(
    problem: Problem, number: int, start: Point, new: Params, *, passes: float, clock: float, **more: Any
) -> StepInfo:
    """Return the log line of a step from `start` to the parameters `new`, begun at `clock` (`time.perf_counter`)."""
    given = {"weight": start.expectation.weight, "error": _error(problem, start), **more}
    return StepInfo(
        step=number,
        objective=start.objective,
        passes=passes,
        seconds=time.perf_counter() - clock,
        change=problem.change(start.params, new),
        events=tuple(Event(number, component, what) for component, what in problem.events(new)),
        **given,
    )


def _error(problem: Problem, point: Point) -> float:
    """Return by how much (nats per unit weight) chance may have lowered the objective at a point."""
    found, model = point.expectation, problem.model
    if found.stats is None or not isinstance(model, HasObjectiveError):
        return 0.0
    return model.objective_error(found.stats, point.params) / found.weight


def may_gain(gain: float, before: float) -> float:
    """Return what a series of gains that began with `before`, `gain` is still to bring: its geometric rest.

    A ratio of the two beyond `MOST_RATIO` is taken to be that, as a plateau's first steps up are: what is left is then
    a hundred times the gain. Losses, which rounding or a sample's noise make, count by their size. Infinite where there
    are not two gains yet.
    """
    gain, before = abs(gain), abs(before)
    if not (math.isfinite(gain) and math.isfinite(before)):
        return math.inf
    ratio = min(max(gain / before, LEAST_RATIO), MOST_RATIO) if before > 0 else MOST_RATIO
    return gain * ratio / (1.0 - ratio)


def fell(before: float, after: float) -> bool:
    """Return whether an objective fell beyond rounding."""
    return after < before - ROUNDING * max(1.0, abs(before))


def rebased(problem: Problem, stats: Stats, old: Params, new: Params) -> Stats:
    """Return `stats`, made at `old`, as they are to be added to statistics made at `new`."""
    model = problem.model
    return model.rebase(stats, old, new) if isinstance(model, HasRebase) and old is not new else stats


def to_vector(problem: Problem, params: Params) -> Float | None:
    """Return the unconstrained vector (p,) of `params`; None where it is not finite (a weight of zero, say)."""
    model = problem.model
    assert isinstance(model, HasVector)  # for the type checker: the algorithms that call this need it
    with np.errstate(all="ignore"):
        vector = model.to_vector(params)
    return vector if np.isfinite(vector).all() else None


def try_vector(problem: Problem, vector: Float, like: Params, step: int) -> Point | None:
    """Return the point at a vector that was extrapolated to; None where no parameters, or no rows, make sense there."""
    model = problem.model
    assert isinstance(model, HasVector)  # for the type checker: the algorithms that call this need it
    if not np.isfinite(vector).all():
        return None
    try:
        with np.errstate(all="ignore"):
            point = evaluate(problem, model.from_vector(vector, like), step=step)
    except TOO_FAR:
        # Data that are not finite raise again at the fallback.
        return None
    return point if math.isfinite(point.objective) else None
