"""Variance-reduced EM: many EM steps on a sample, corrected by what all rows said at one point; a pass a step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from daskem import tree
from daskem.algorithms.accelerated import mix, remember
from daskem.algorithms.points import Point, evaluate, log_step, may_gain, rebased, to_vector
from daskem.algorithms.stopping import ROUNDING
from daskem.core import HasVector, Params, Problem, Sizes, Stats, StepInfo
from daskem.errors import NonFiniteError, OptionError

__all__ = ["VarianceReducedEM", "VarianceReducedState"]

# A sample is a sixteenth of all rows (then thirty steps on it are two passes), and no more than so many rows.
SHARE, MOST_ROWS = 16, 2_000_000
# A step that would move parameters more than so many times the shortest before it has gone astray.
ASTRAY = 4.0
MEMORY, DAMPING = 8, 1e-6


@dataclass(frozen=True, eq=False)
class VarianceReducedState:
    """State of `VarianceReducedEM`: the point (None before the first step), its last gain, steps and passes so far."""

    params: Params
    point: Point | None = None
    gain: float = math.inf
    step: int = 0
    passes: float = 0.0


@dataclass(frozen=True)
class VarianceReducedEM:
    """EM on a sample kept in memory, corrected by what all rows said at one point; about one pass a step.

    The E-step of all rows at the current parameters x0 gives the statistics S(x0), that of the sample gives s(x0). Then
    EM steps on s(x) + [S(x0) - s(x0)] are made, which the sample alone can do, until they settle. Their limit differs
    from the maximum over all rows by only about sqrt(p / m) of the distance from x0 to it, for p parameters and m rows:
    each pass gains a digit or more, however slowly EM converges. The E-step of all rows at the new parameters both
    checks them and is the next step's S; where the objective fell, the plain EM step is taken instead.

    Parameters
    ----------
    sample : rows of the sample; by default a sixteenth of all, 2,000,000 at most, and no more than half the memory
        that is left holds.
    most : most EM steps on the sample in a step.
    drawn : the sample has been drawn before, so that it costs no pass.
    settled : the EM steps on the sample end when what one would change is this share of what the first one did.

    References
    ----------
    .. [1] Chen, Zhu, Teh & Zhang (2018), NeurIPS 31, Stochastic EM with variance reduction: the same control variate
       for mini-batches.
    .. [2] Jordan, Lee & Yang (2019), J. Am. Stat. Assoc. 114(526), 668-681: the limit and its rate, for likelihoods.
    """

    sample: int | None = None
    most: int = 30
    settled: float = 1e-2
    drawn: bool = False

    def __post_init__(self) -> None:
        if (self.sample is not None and self.sample < 1) or self.most < 1 or not 0 < self.settled < 1:
            raise OptionError(
                f"sample={self.sample} and most={self.most} must be positive, settled={self.settled} between 0 and 1."
            )

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes of the sample while it is drawn, and of two records of statistics."""
        rows = self.rows(sizes.n_rows, sizes.sample_room)
        return sizes.sample_bytes(rows) + 4 * sizes.stats

    def init(self, problem: Problem, params: Params) -> VarianceReducedState:
        return VarianceReducedState(params)

    def step(self, problem: Problem, state: VarianceReducedState) -> tuple[VarianceReducedState, StepInfo]:
        clock, number = time.perf_counter(), state.step + 1
        rows = self.rows(problem.n_rows, problem.sample_room)
        drawn = 0.0 if state.step or self.drawn else 1.0
        sample = problem.subsample(rows)
        point = state.point or evaluate(problem, state.params, step=number)
        params, steps = self._settle(problem, sample, point, number)
        new, checks = _check(problem, point, params, number)
        passes = state.passes + drawn + checks + (0 if state.point else 1) + steps * rows / problem.n_rows
        gain = new.objective - point.objective
        # Before there are two gains, what the sample's size makes of the first.
        before = state.gain if state.step else gain / max(2.0 * sample.precision(params), 1e-300)
        info = log_step(
            problem, number, point, new.params, passes=passes, clock=clock, remaining=may_gain(gain, before)
        )
        return VarianceReducedState(new.params, new, gain, number, passes), info

    def _settle(self, problem: Problem, sample: Problem, point: Point, number: int) -> tuple[Params, int]:
        """Return where EM on the corrected statistics settles, and the steps that took."""
        params = point.params
        found = sample.expect(params, step=number)
        correction = tree.sub(point.expectation.stats, found.stats)
        path = _Path(problem)
        for i in range(1, self.most + 1):
            total = tree.add(rebased(problem, correction, point.params, params), found.stats)
            plain = _maximize(problem, total, params)
            if plain is None:
                return params, i
            params, moved = path.extend(params, plain)
            if moved <= self.settled or i == self.most:
                return plain, i
            try:
                found = sample.expect(params, step=number)
            except NonFiniteError:
                return plain, i
        return plain, self.most

    def rows(self, n_rows: int, room: int) -> int:
        """Return the rows of the sample, of data of `n_rows` and where there is memory for a sample of `room` rows."""
        return max(1, min(self.sample or min(n_rows // SHARE, MOST_ROWS, room // 2), n_rows))


class _Path:
    """The way of a fixed-point iteration in unconstrained parameters, with Anderson's extrapolation where it helps."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x, self.f = np.empty((0, 0)), np.empty((0, 0))
        self.first = self.shortest = math.inf

    def extend(self, params: Params, plain: Params) -> tuple[Params, float]:
        """Return where to go from `params`, whose plain step is `plain`, and its length relative to the first."""
        model = self.problem.model
        if not isinstance(model, HasVector):
            return plain, self._shrunk(self.problem.change(params, plain))
        x, new = to_vector(self.problem, params), to_vector(self.problem, plain)
        if x is None or new is None:
            return plain, math.inf
        length = float(np.linalg.norm(new - x))
        if length > ASTRAY * self.shortest:
            self.x, self.f = np.empty((0, 0)), np.empty((0, 0))
        self.x, self.f = remember(self.x, x, MEMORY), remember(self.f, new - x, MEMORY)
        relative = self._shrunk(length)
        if len(self.x) == 1:
            return plain, relative
        vector = mix(self.x, self.f, DAMPING)
        return (model.from_vector(vector, plain) if np.isfinite(vector).all() else plain), relative

    def _shrunk(self, length: float) -> float:
        self.first = length if math.isinf(self.first) else self.first
        self.shortest = min(self.shortest, length)
        return length / self.first if self.first > 0 else 0.0


def _maximize(problem: Problem, stats: Stats, params: Params) -> Params | None:
    """Return the M-step, or None where corrected statistics are none of any rows: an empty component, say."""
    try:
        with np.errstate(all="ignore"):
            new = problem.maximize(stats, params)
    except (ArithmeticError, np.linalg.LinAlgError):
        return None
    return new if tree.all_finite(new) and not problem.events(new) else None


def _check(problem: Problem, point: Point, params: Params, number: int) -> tuple[Point, int]:
    """Return the point at `params`, or after a plain EM step where the objective fell; and the passes that took."""
    try:
        new = evaluate(problem, params, step=number)
        if new.objective >= point.objective - ROUNDING * max(1.0, abs(point.objective)):
            return new, 1
    except NonFiniteError:
        # Some row has no density there. Data that are not finite raise again below.
        pass
    plain = problem.maximize(point.expectation.stats, point.params)
    return evaluate(problem, plain, step=number), 2
