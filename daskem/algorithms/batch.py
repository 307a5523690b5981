"""Batch EM: every step sees all rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from daskem.algorithms.points import Point, evaluate, log_step
from daskem.core import Params, Problem, StepInfo

__all__ = ["BatchEM", "BatchState"]


@dataclass(frozen=True, eq=False)
class BatchState:
    """State of `BatchEM`: the parameters, and the number of steps that led to them."""

    params: Params
    step: int = 0


@dataclass(frozen=True)
class BatchEM:
    """EM as Dempster, Laird & Rubin (1977) state it: one E-step over all rows, one M-step; one pass a step."""

    full_passes: ClassVar[bool] = True

    def init(self, problem: Problem, params: Params) -> BatchState:
        return BatchState(params)

    def step(self, problem: Problem, state: BatchState) -> tuple[BatchState, StepInfo]:
        clock, number = time.perf_counter(), state.step + 1
        start = evaluate(problem, state.params, step=number)
        params = self.image(problem, start)
        info = log_step(problem, number, start, params, passes=float(number), clock=clock)
        return BatchState(params, number), info

    def image(self, problem: Problem, point: Point) -> Params:
        """Return where a step leads from a point (see `daskem.algorithms.EMMap`)."""
        return problem.maximize(point.expectation.stats, point.params)
