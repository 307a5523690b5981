"""Several runs side by side that share each pass over the data."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from daskem.algorithms.points import TOO_FAR
from daskem.core import Algorithm, Batch, Expectation, HasMemory, Model, Params, Part, Problem, State, Stats, StepInfo

__all__ = ["step_together"]


def step_together(algorithm: Algorithm, problem: Problem, states: Sequence[State]) -> list[tuple[State, StepInfo]]:
    """Return what `algorithm.step` returns for each state; their E-steps over the same units become one pass.

    A step asks for an E-step where it needs one, knowing nothing of other runs. So each run's step is a thread that
    waits at `expect`; when all of them wait or are done, this thread makes one pass for all and hands out the results.
    Every run gets the bits that it would have got alone, and is told of its own parameters only if they go too far.
    """
    if len(states) == 1:
        return [algorithm.step(problem, states[0])]
    meeting = _Meeting(len(states))
    with ThreadPoolExecutor(len(states), thread_name_prefix="daskem-run") as pool:
        runs = [pool.submit(meeting.attend, algorithm, problem, state) for state in states]
        meeting.serve()
        return [run.result() for run in runs]


@dataclass(eq=False)
class _Meeting:
    active: int
    waiting: list[_Asked] = field(default_factory=list)
    broken: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def attend(self, algorithm: Algorithm, problem: Problem, state: State) -> tuple[State, StepInfo]:
        try:
            return algorithm.step(_Seat(self, problem), state)
        finally:
            with self.changed:
                self.active -= 1
                self.changed.notify()

    def ask(self, problem: Problem, members: Sequence[Params], part: Part, step: int) -> list[Expectation]:
        part = part if part is None or isinstance(part, Batch) else tuple(part)
        asked = _Asked(problem, part, step, tuple(members))
        with self.changed:
            if self.broken is not None:
                raise self.broken
            self.waiting.append(asked)
            self.changed.notify()
        return asked.answer.result()

    def serve(self) -> None:
        asked: list[_Asked] = []
        try:
            while self.active:
                with self.changed:
                    self.changed.wait_for(lambda: len(self.waiting) == self.active)
                    asked, self.waiting = self.waiting, []
                for same in _alike(asked):
                    _answer(same)
        except BaseException as error:
            # Also an interrupt must reach the runs, or their threads would wait for ever.
            with self.changed:
                self.broken = error
                for one in asked + self.waiting:
                    if not one.answer.done():
                        one.answer.set_exception(error)
            raise


@dataclass(frozen=True, eq=False)
class _Asked:
    """E-steps that a run waits for."""

    problem: Problem
    part: Part
    step: int
    members: tuple[Params, ...]
    answer: Future[list[Expectation]] = field(default_factory=Future)


def _answer(same: Sequence[_Asked]) -> None:
    """Answer runs by one pass.

    Where parameters of one went too far, each is answered by a pass of its own: the others know nothing of it.
    """
    first = same[0]
    try:
        members = [params for one in same for params in one.members]
        found = iter(first.problem.expect_each(members, first.part, first.step))
    except TOO_FAR as error:
        if len(same) == 1:
            first.answer.set_exception(error)
        else:
            for one in same:
                _answer([one])
        return
    for one in same:
        one.answer.set_result(list(itertools.islice(found, len(one.members))))


def _alike(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """Group what one pass can answer: E-steps of one problem over the same part of its data."""
    groups: dict[Any, list[_Asked]] = {}
    for one in asked:
        # Which step it is matters to an E-step that draws, and to no other.
        step = one.step if getattr(one.problem.model, "draws", False) else None
        groups.setdefault((id(one.problem), one.part, step), []).append(one)
    return list(groups.values())


@dataclass(frozen=True, eq=False)
class _Seat:
    """A problem as one run of a meeting sees it."""

    meeting: _Meeting
    problem: Problem

    @property
    def model(self) -> Model:
        return self.problem.model

    @property
    def n_units(self) -> int:
        return self.problem.n_units

    @property
    def n_rows(self) -> int:
        return self.problem.n_rows

    @property
    def sample_room(self) -> int:
        return self.problem.sample_room

    def expect(self, params: Params, part: Part = None, step: int = 0) -> Expectation:
        return self.expect_each([params], part, step)[0]

    def expect_each(self, members: Sequence[Params], part: Part = None, step: int = 0) -> list[Expectation]:
        return self.meeting.ask(self.problem, members, part, step)

    def n_batches(self, batch: Batch) -> int:
        return self.problem.n_batches(batch)

    def share(self, batch: Batch) -> float:
        return self.problem.share(batch)

    def subsample(self, rows: int) -> Problem:
        return _Seat(self.meeting, self.problem.subsample(rows))

    def sample_passes(self, rows: int) -> float:
        return self.problem.sample_passes(rows)

    def fits(self, algorithm: HasMemory) -> bool:
        return self.problem.fits(algorithm)

    def moves(self, params: Params) -> Sequence[tuple[str, Params]]:
        return self.problem.moves(params)

    def maximize(self, stats: Stats, params: Params) -> Params:
        return self.problem.maximize(stats, params)

    def objective(self, expectation: Expectation, params: Params) -> float:
        return self.problem.objective(expectation, params)

    def precision(self, params: Params) -> float:
        return self.problem.precision(params)

    def change(self, old: Params, new: Params) -> float:
        return self.problem.change(old, new)

    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        return self.problem.events(params)
