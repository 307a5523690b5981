"""Several runs side by side that share each pass over the data."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from daskem.core import Algorithm, Expectation, Params, Problem, State, Stats, StepInfo

__all__ = ["step_together"]


def step_together(algorithm: Algorithm, problem: Problem, states: Sequence[State]) -> list[tuple[State, StepInfo]]:
    """Return what `algorithm.step` returns for each state; their E-steps over the same units become one pass.

    A step asks for an E-step where it needs one, knowing nothing of other runs. So each run's step is a thread that
    waits at `expect`; when all of them wait or are done, this thread makes one pass for all and hands out the results.
    Every run gets the bits that it would have got alone.
    """
    if len(states) == 1:
        return [algorithm.step(problem, states[0])]
    meeting = _Meeting(problem, len(states))
    with ThreadPoolExecutor(len(states), thread_name_prefix="daskem-run") as pool:
        runs = [pool.submit(meeting.attend, algorithm, state) for state in states]
        meeting.serve()
        return [run.result() for run in runs]


@dataclass(eq=False)
class _Meeting:
    problem: Problem
    active: int
    waiting: list[tuple[tuple[Any, ...], Params, Future[Expectation]]] = field(default_factory=list)
    broken: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def attend(self, algorithm: Algorithm, state: State) -> tuple[State, StepInfo]:
        try:
            return algorithm.step(_Seat(self), state)
        finally:
            with self.changed:
                self.active -= 1
                self.changed.notify()

    def ask(self, params: Params, blocks: Sequence[int] | None, step: int) -> Expectation:
        answer: Future[Expectation] = Future()
        with self.changed:
            if self.broken is not None:
                raise self.broken
            self.waiting.append(((None if blocks is None else tuple(blocks), step), params, answer))
            self.changed.notify()
        return answer.result()

    def serve(self) -> None:
        asked: list[tuple[tuple[Any, ...], Params, Future[Expectation]]] = []
        try:
            while self.active:
                with self.changed:
                    self.changed.wait_for(lambda: len(self.waiting) == self.active)
                    asked, self.waiting = self.waiting, []
                for units, step in dict.fromkeys(what for what, _, _ in asked):
                    same = [(params, answer) for what, params, answer in asked if what == (units, step)]
                    expectations = self.problem.expect_each([params for params, _ in same], units, step)
                    for (_, answer), expectation in zip(same, expectations, strict=True):
                        answer.set_result(expectation)
        except BaseException as error:
            # Also an interrupt must reach the runs, or their threads would wait for ever.
            with self.changed:
                self.broken = error
                for _, _, answer in asked + self.waiting:
                    if not answer.done():
                        answer.set_exception(error)
            raise


@dataclass(frozen=True, eq=False)
class _Seat:
    """The problem as one run of a meeting sees it."""

    meeting: _Meeting

    @property
    def n_units(self) -> int:
        return self.meeting.problem.n_units

    def expect(self, params: Params, blocks: Sequence[int] | None = None, step: int = 0) -> Expectation:
        return self.meeting.ask(params, blocks, step)

    def expect_each(
        self, members: Sequence[Params], blocks: Sequence[int] | None = None, step: int = 0
    ) -> list[Expectation]:
        return [self.meeting.ask(params, blocks, step) for params in members]

    def maximize(self, stats: Stats, params: Params) -> Params:
        return self.meeting.problem.maximize(stats, params)

    def objective(self, expectation: Expectation, params: Params) -> float:
        return self.meeting.problem.objective(expectation, params)

    def change(self, old: Params, new: Params) -> float:
        return self.meeting.problem.change(old, new)

    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        return self.meeting.problem.events(params)
