"""Variance-reduced EM: mini-batches correct the statistics of a pass, instead of replacing them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from daskem import tree
from daskem.algorithms.points import Point, evaluate, log_step, may_gain, rebased
from daskem.algorithms.stopping import ROUNDING
from daskem.core import Batch, Params, Problem, Sizes, StepInfo
from daskem.errors import DegenerateComponentError, NonFiniteError, OptionError

__all__ = ["VarianceReducedEM", "VarianceReducedState"]

# What parameters that a sweep has led too far make of an E-step or an M-step.
TOO_FAR = (DegenerateComponentError, NonFiniteError, np.linalg.LinAlgError)


@dataclass(frozen=True, eq=False)
class VarianceReducedState:
    """State of `VarianceReducedEM`.

    Attributes
    ----------
    params : current parameters.
    point : what all rows say at them; None before the first step.
    rate : share of the statistics that a mini-batch replaces, halved by each sweep that was of no use.
    gain : what the last step gained, nats per unit weight.
    batch : mini-batches seen.
    step, passes : so far.
    """

    params: Params
    point: Point | None
    rate: float
    gain: float = math.inf
    batch: int = 0
    step: int = 0
    passes: float = 0.0


@dataclass(frozen=True)
class VarianceReducedEM:
    """Variance-reduced stepwise EM (Chen, Zhu, Teh & Zhang 2018); a step is a sweep of mini-batches and a pass.

    A pass over all rows, at parameters a, gives the statistics S(a). Then each mini-batch is seen with the current
    parameters and with a, side by side, and the statistics become (1 - rate) times the old ones plus rate times
    s(current) - s(a) + S(a); the M-step follows. What chance does to a mini-batch is the same in s(current) and s(a),
    and goes out: near the optimum each mini-batch is nearly a step of batch EM, at its share of the price.

    Parameters
    ----------
    batch_rows : rows of a mini-batch; by default so many that 64 make an epoch, between 1,000 and 100,000.
    batches : mini-batches of a sweep, an epoch at most.
    rate : in (0, 1]; of 0.2, 0.5 and 1 the last needed fewest passes (measured, `tests/benchmarks/passes.py`).
    window : pieces of the data whose rows are mixed, 16 by default (see `daskem.core.Batch`).

    Notes
    -----
    [1]_, section 3. The pass that begins the next step tells the objective of all rows. Where it fell, the sweep is
    forgotten, the step of batch EM taken in its place, and the rate halved, so that the objective never falls.

    References
    ----------
    .. [1] Chen, Zhu, Teh & Zhang (2018), Advances in Neural Information Processing Systems 31, 7967-7977.
    """

    batch_rows: int | None = None
    batches: int = 64
    rate: float = 1.0
    window: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_rows", "batches", "window"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not value >= 1):
                raise OptionError(f"{name}={value!r} must be a whole number, at least 1.")
        if not 0 < self.rate <= 1:
            raise OptionError(
                f"rate={self.rate} must be in (0, 1]: the share of the old statistics that a mini-batch replaces."
            )

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes of the window in use, of the next one, of putting it together, and of statistics."""
        window = min((self.window or 16) * sizes.piece, sizes.n_rows * sizes.row)
        return 3 * window + 5 * sizes.stats

    def init(self, problem: Problem, params: Params) -> VarianceReducedState:
        problem.n_batches(self._batch(problem, 0))
        return VarianceReducedState(params, None, self.rate)

    def step(self, problem: Problem, state: VarianceReducedState) -> tuple[VarianceReducedState, StepInfo]:
        clock, number = time.perf_counter(), state.step + 1
        start = state.point or evaluate(problem, state.params, step=number)
        n_batches = problem.n_batches(self._batch(problem, 0))
        seen = min(self.batches, n_batches)
        passes = state.passes + (1 if state.point else 2) + seen / n_batches
        plain = problem.maximize(start.expectation.stats, start.params)
        new = _try(problem, self._sweep(problem, state, start, plain, seen), number)
        rate = state.rate
        if new is None or new.objective < start.objective - ROUNDING * max(1.0, abs(start.objective)):
            new, passes, rate = evaluate(problem, plain, step=number), passes + 1, rate / 2
        gain = new.objective - start.objective
        info = log_step(
            problem, number, start, new.params, passes=passes, clock=clock, remaining=may_gain(gain, state.gain)
        )
        return VarianceReducedState(new.params, new, rate, gain, state.batch + seen, number, passes), info

    def _sweep(self, problem: Problem, state: VarianceReducedState, start: Point, params: Params, seen: int) -> Params:
        """Return where `seen` mini-batches lead from `params`, a step of batch EM from the start."""
        anchor, whole = start.params, start.expectation.stats
        stats, first = rebased(problem, whole, anchor, params), self._batch(problem, state.batch)
        for i in range(seen):
            batch = replace(first, index=first.index + i)
            try:
                new, old = problem.expect_each([params, anchor], batch, state.step + 1)
                change = tree.sub(new.stats, rebased(problem, old.stats, anchor, params))
                corrected = tree.add(change, rebased(problem, whole, anchor, params))
                stats = tree.lerp(stats, corrected, state.rate)
                # Corrected statistics may be none that rows could have, negative ones say.
                with np.errstate(all="ignore"):
                    before, params = params, problem.maximize(stats, params)
                    stats = rebased(problem, stats, before, params)
            except TOO_FAR:
                break
        return params

    def _batch(self, problem: Problem, index: int) -> Batch:
        n_rows = problem.n_rows
        return Batch(index, self.batch_rows or min(max(n_rows // 64, 1_000), 100_000, n_rows), self.window)


def _try(problem: Problem, params: Params, step: int) -> Point | None:
    """Return the point at parameters that a sweep led to; None where no component explains some row there."""
    try:
        with np.errstate(all="ignore"):
            point = evaluate(problem, params, step=step)
    except TOO_FAR:
        return None
    return point if math.isfinite(point.objective) else None
