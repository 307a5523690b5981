"""Batch EM: every step sees all rows."""

from __future__ import annotations

import time
from dataclasses import dataclass

from daskem.core import Event, Params, Problem, StepInfo

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
        clock = time.perf_counter()
        number = state.step + 1
        expectation = problem.expect(state.params, step=number)
        params = problem.maximize(expectation.stats, state.params)
        info = StepInfo(
            step=number,
            objective=problem.objective(expectation, state.params),
            weight=expectation.weight,
            passes=float(number),
            seconds=time.perf_counter() - clock,
            change=problem.change(state.params, params),
            events=tuple(Event(number, component, what) for component, what in problem.events(params)),
        )
        return BatchState(params, number), info
