"""Batch EM: every step sees all rows."""

from __future__ import annotations

import time
from dataclasses import dataclass

from daskem.algorithms.points import evaluate, log_step
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

    def init(self, problem: Problem, params: Params) -> BatchState:
        return BatchState(params)

    def step(self, problem: Problem, state: BatchState) -> tuple[BatchState, StepInfo]:
        clock, number = time.perf_counter(), state.step + 1
        start = evaluate(problem, state.params, step=number)
        params = problem.maximize(start.expectation.stats, state.params)
        info = log_step(problem, number, start, params, passes=float(number), clock=clock)
        return BatchState(params, number), info
