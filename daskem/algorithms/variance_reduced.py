"""Variance-reduced EM: mini-batches correct the statistics of a pass, instead of replacing them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from daskem import tree
from daskem.algorithms.points import TOO_FAR, Point, evaluate, fell, log_step, may_gain, rebased, try_point
from daskem.algorithms.stepwise import check_numbers, check_rates, usual_rows, window_bytes
from daskem.core import Batch, Params, Problem, Sizes, StepInfo

__all__ = ["VarianceReducedEM", "VarianceReducedState"]

# Records of statistics that a mini-batch holds at a time: the pass's, its own, the blend, and what leads to them.
STATS_KEPT = 9


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
        check_rates(None, 0.0, self.rate)
        check_numbers(self, "batch_rows", "batches", "window")

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes of the windows of mini-batches, and of statistics."""
        return window_bytes(self.window, sizes) + STATS_KEPT * sizes.stats

    def init(self, problem: Problem, params: Params) -> VarianceReducedState:
        problem.n_batches(self._batch(problem, 0))
        return VarianceReducedState(params, None, self.rate)

    def step(self, problem: Problem, state: VarianceReducedState) -> tuple[VarianceReducedState, StepInfo]:
        clock, number = time.perf_counter(), state.step + 1
        start = state.point or evaluate(problem, state.params, step=number)
        plain = problem.maximize(start.expectation.stats, start.params)
        swept, seen = self._sweep(problem, state, start, plain)
        passes = state.passes + (1 if state.point else 2) + seen / problem.n_batches(self._batch(problem, 0))
        new, rate = try_point(problem, lambda: swept, number), state.rate
        if new is None or fell(start.objective, new.objective):
            new, passes, rate = evaluate(problem, plain, step=number), passes + 1, rate / 2
        gain = new.objective - start.objective
        info = log_step(
            problem, number, start, new.params, passes=passes, clock=clock, remaining=may_gain(gain, state.gain)
        )
        return VarianceReducedState(new.params, new, rate, gain, state.batch + seen, number, passes), info

    def _sweep(self, problem: Problem, state: VarianceReducedState, start: Point, params: Params) -> tuple[Params, int]:
        """Return where mini-batches lead from `params`, a step of batch EM from the start, and how many were seen."""
        anchor, whole, seen = start.params, start.expectation.stats, 0
        stats = rebased(problem, whole, anchor, params)
        while seen < min(self.batches, problem.n_batches(self._batch(problem, 0))):
            batch, seen = self._batch(problem, state.batch + seen), seen + 1
            # Corrections may add up to statistics that no rows have, negative ones say.
            try:
                with np.errstate(all="ignore"):
                    new, old = problem.expect_each([params, anchor], batch, state.step + 1)
                    change = tree.sub(new.stats, rebased(problem, old.stats, anchor, params))
                    corrected = tree.add(change, rebased(problem, whole, anchor, params))
                    stats = tree.lerp(stats, corrected, state.rate)
                    following = problem.maximize(stats, params)
            except TOO_FAR:
                break
            stats, params = rebased(problem, stats, params, following), following
        return params, seen

    def _batch(self, problem: Problem, index: int) -> Batch:
        return Batch(index, self.batch_rows or usual_rows(problem.n_rows), self.window)
