"""EM accelerated by extrapolation in unconstrained parameters, gated on the objective.

Both algorithms keep a *point*: parameters with the E-step of all rows at them. An extrapolation is tried by the E-step
there; where the objective did not fall it is the next point, so that the check is the next step's E-step and no pass is
lost. Where it fell, a plain step is taken from what is known already; that check was a pass lost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from daskem.algorithms.batch import BatchEM
from daskem.algorithms.points import Point, evaluate, fell, log_step, may_gain, to_vector, try_vector
from daskem.core import Float, HasVector, Params, Problem, StepInfo
from daskem.errors import OptionError

__all__ = ["Anderson", "AndersonState", "EMMap", "Squarem", "SquaremState"]

EMPTY = np.empty(0)


@runtime_checkable
class EMMap(Protocol):
    """A map of parameters that never lowers the objective: what is to be sped up, such as `BatchEM`."""

    def image(self, problem: Problem, point: Point) -> Params:
        """Return where the map leads from a point, of what the E-step of all rows said there: without another one."""


def _check_map(inner: object) -> None:
    if isinstance(inner, type) or not isinstance(inner, EMMap):
        raise OptionError(
            f"inner={inner!r} is no map of parameters: an object with a method image(problem, point) is needed, which "
            "leads on from the E-step of all rows at a point, as BatchEM() is; mini-batches are none."
        )


@dataclass(frozen=True, eq=False)
class SquaremState:
    """State of `Squarem`: the point (None before the first step), the step length allowed, and the last two gains."""

    params: Params
    point: Point | None = None
    longest: float = 1.0
    gain: float = np.inf
    before: float = np.inf
    step: int = 0
    passes: float = 0.0


@dataclass(frozen=True)
class Squarem:
    """SQUAREM: two steps of a map, EM's by default, and a squared extrapolation from them; two passes a step.

    Parameters
    ----------
    inner : the map that is sped up, EM's by default; any object with a method `image` (see `EMMap`).
    growth : factor by which the longest extrapolation allowed grows when it was reached with success, and shrinks when
        it failed.

    Notes
    -----
    With r = M(x) - x and v = M(M(x)) - M(x) - r the step length is a = -|r| / |v| (scheme S3 of [1]_, equation 3.4), at
    least -`longest`, and x' = x - 2 a r + a^2 v. At a = -1 this is the plain second step.

    References
    ----------
    .. [1] Varadhan & Roland (2008), Scandinavian Journal of Statistics 35(2), 335-353.
    """

    inner: EMMap = field(default_factory=BatchEM)
    growth: float = 4.0
    full_passes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_map(self.inner)
        if not self.growth > 1:
            raise OptionError(f"growth={self.growth} must be larger than 1.")

    @property
    def needs(self) -> tuple[type, ...]:
        """Capabilities that the map and extrapolation need."""
        return (HasVector, *getattr(self.inner, "needs", ()))

    def init(self, problem: Problem, params: Params) -> SquaremState:
        return SquaremState(params)

    def step(self, problem: Problem, state: SquaremState) -> tuple[SquaremState, StepInfo]:
        clock, number = time.perf_counter(), state.step + 1
        spent = 0 if state.point else 1
        point = state.point or evaluate(problem, state.params, step=number)
        middle = evaluate(problem, self.inner.image(problem, point), step=number)
        second = self.inner.image(problem, middle)
        tried, longest, reached = self._extrapolate(problem, point, middle, second, state.longest, number)
        if tried is not None and not fell(middle.objective, tried.objective):
            new = tried
            longest = longest * self.growth if reached else longest
        else:
            spent += tried is not None
            new = evaluate(problem, second, step=number)
            longest = max(1.0, longest / self.growth)
        passes = state.passes + spent + 2
        gain = new.objective - point.objective
        info = log_step(
            problem,
            number,
            point,
            new.params,
            passes=passes,
            clock=clock,
            remaining=may_gain(gain, state.gain),
        )
        return SquaremState(new.params, new, longest, gain, state.gain, number, passes), info

    def _extrapolate(
        self, problem: Problem, point: Point, middle: Point, second: Params, longest: float, number: int
    ) -> tuple[Point | None, float, bool]:
        """Return the extrapolated point, the longest step, and whether that was taken."""
        x0, x1, x2 = (to_vector(problem, params) for params in (point.params, middle.params, second))
        if x0 is None or x1 is None or x2 is None:
            return None, longest, False
        r, v = x1 - x0, x2 - 2.0 * x1 + x0
        size = float(np.linalg.norm(v))
        length = float(np.linalg.norm(r)) / size if size > 0 else 1.0
        reached = length >= longest
        length = min(max(length, 1.0), longest)
        if length == 1.0:
            # The plain second step: its E-step is the next point in any case.
            return evaluate(problem, second, step=number), longest, reached
        return try_vector(problem, x0 + 2.0 * length * r + length**2 * v, second, number), longest, reached


@dataclass(frozen=True, eq=False)
class AndersonState:
    """State of `Anderson`.

    Attributes
    ----------
    params, point : the point; None before the first step.
    x, f : vector (p,) of the point before, and what a plain step added to it; empty where there is none.
    dx, df : (m, p) differences between points, and between their plain steps, the oldest first.
    gain : of the last step.
    step, passes : so far.
    """

    params: Params
    x: Float = field(default_factory=lambda: EMPTY)
    f: Float = field(default_factory=lambda: EMPTY)
    dx: Float = field(default_factory=lambda: EMPTY)
    df: Float = field(default_factory=lambda: EMPTY)
    point: Point | None = None
    gain: float = np.inf
    step: int = 0
    passes: float = 0.0


@dataclass(frozen=True)
class Anderson:
    """Anderson-accelerated EM with damping and a gate on the objective; about one pass a step.

    Parameters
    ----------
    inner : the map that is sped up, EM's by default; any object with a method `image` (see `EMMap`).
    depth : most differences that a step looks back at.
    damping : ridge on the least squares that combine them, relative to their size.

    Notes
    -----
    With f_i = M(x_i) - x_i the next point is M(x) less the combination of past differences of x + f whose differences
    of f match f best (least squares with a ridge): equation (3) of [1]_ with its damping. Where the objective falls,
    the plain step M(x) is taken and the differences are forgotten.

    References
    ----------
    .. [1] Henderson & Varadhan (2019), Journal of Computational and Graphical Statistics 28(4), 834-846 (DAAREM).
    """

    inner: EMMap = field(default_factory=BatchEM)
    depth: int = 5
    damping: float = 1e-6
    full_passes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_map(self.inner)
        if self.depth < 1 or not self.damping >= 0:
            raise OptionError(f"depth={self.depth} must be at least 1, and damping={self.damping} not negative.")

    @property
    def needs(self) -> tuple[type, ...]:
        """Capabilities that the map and extrapolation need."""
        return (HasVector, *getattr(self.inner, "needs", ()))

    def init(self, problem: Problem, params: Params) -> AndersonState:
        return AndersonState(params)

    def carry(self, state: AndersonState) -> AndersonState:
        """Return the first state for a larger sample of the same data: what was learnt of how steps shrink is kept."""
        return AndersonState(state.params, dx=state.dx, df=state.df)

    def step(self, problem: Problem, state: AndersonState) -> tuple[AndersonState, StepInfo]:
        clock, number = time.perf_counter(), state.step + 1
        passes = state.passes + (1 if state.point else 2)
        point = state.point or evaluate(problem, state.params, step=number)
        plain = self.inner.image(problem, point)
        x, f, dx, df = self._remember(problem, state, point, plain)
        tried = try_vector(problem, _mix(x, f, dx, df, self.damping), plain, number) if len(df) else None
        if tried is not None and not fell(point.objective, tried.objective):
            new = tried
        else:
            passes += 1 if len(df) else 0
            new = evaluate(problem, plain, step=number)
            dx = df = EMPTY
        gain = new.objective - point.objective
        info = log_step(
            problem, number, point, new.params, passes=passes, clock=clock, remaining=may_gain(gain, state.gain)
        )
        return AndersonState(new.params, x, f, dx, df, new, gain, number, passes), info

    def _remember(
        self, problem: Problem, state: AndersonState, point: Point, plain: Params
    ) -> tuple[Float, Float, Float, Float]:
        """Return the point and its plain step as vectors, and the differences with theirs added."""
        x, new = to_vector(problem, point.params), to_vector(problem, plain)
        if x is None or new is None:
            return EMPTY, EMPTY, EMPTY, EMPTY
        f = new - x
        if not len(state.x):
            return x, f, state.dx, state.df
        return x, f, self._append(state.dx, x - state.x), self._append(state.df, f - state.f)

    def _append(self, table: Float, row: Float) -> Float:
        return np.concatenate([table.reshape(-1, len(row)), row[None]])[-self.depth :]


def _mix(x: Float, f: Float, dx: Float, df: Float, damping: float) -> Float:
    """Return Anderson's next vector from a point x and its plain step f (p,), and earlier differences (m, p)."""
    gram = df @ df.T
    ridge = damping * float(np.trace(gram)) / len(gram)
    weights = np.linalg.lstsq(gram + ridge * np.eye(len(gram)), df @ f, rcond=None)[0]
    return np.asarray(x + f - weights @ (dx + df))
