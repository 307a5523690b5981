"""Batch EM steps, rules that stop, and several runs that share their passes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from fakes import Balls, Centers, bits, clouds
from hypothesis import given
from hypothesis import strategies as st

from daskem import tree
from daskem.algorithms import AnyOf, BatchEM, BatchState, Change, Gain, MaxSeconds, MaxSteps, decrease, step_together
from daskem.core import Chunk, Event, Expectation, StepInfo
from daskem.errors import OptionError

ROWS = clouds(400)
MODEL = Balls()


class RowsProblem:
    """A problem over rows at hand, that counts passes and may be told to fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Any, int]] = []
        self.fail_pass: BaseException | None = None
        self.fail_m_step: dict[int, BaseException] = {}

    model, n_units = None, 2

    def expect(self, params: Any, blocks: Sequence[int] | None = None, step: int = 0) -> Expectation:
        return self.expect_each([params], blocks, step)[0]

    def expect_each(self, members: Any, blocks: Sequence[int] | None = None, step: int = 0) -> list[Expectation]:
        self.asked.append((len(members), blocks, step))
        if self.fail_pass is not None:
            raise self.fail_pass
        parts = [ROWS[i * 200 : i * 200 + 200] for i in (blocks if blocks is not None else (0, 1))]
        return [tree.reduce(MODEL.e_step(params, Chunk(part)) for part in parts) for params in members]

    def maximize(self, stats: Any, params: Centers) -> Centers:
        error = self.fail_m_step.get(int(params.means[0, 0] == ROWS[1, 0]))
        if error is not None:
            raise error
        return MODEL.m_step(stats, params)

    def objective(self, expectation: Expectation, params: Any) -> float:
        return expectation.objective / expectation.weight

    def change(self, old: Any, new: Any) -> float:
        return tree.max_change(old, new)

    def events(self, params: Any) -> tuple[tuple[int, str], ...]:
        return ((1, "is tired"),)


def start(i: int = 0) -> Centers:
    return Centers(np.full(3, 1 / 3), ROWS[[i, i + 10, i + 20]])


# Batch EM


def test_a_step_is_one_e_step_over_all_rows_and_one_m_step():
    problem = RowsProblem()
    state, info = BatchEM().step(problem, BatchEM().init(problem, start()))
    expectation = MODEL.e_step(start(), Chunk(ROWS))
    assert problem.asked == [(1, None, 1)]
    np.testing.assert_allclose(state.params.means, MODEL.m_step(expectation.stats, start()).means, rtol=1e-13)
    assert state.step == info.step == info.passes == 1
    assert info.objective == pytest.approx(expectation.objective / 400, rel=1e-13)
    assert info.weight == 400
    assert info.change == tree.max_change(start(), state.params)
    assert info.events == (Event(1, 1, "is tired"),)
    assert info.seconds > 0


def test_steps_are_pure_and_number_themselves():
    problem, algorithm = RowsProblem(), BatchEM()
    first = algorithm.init(problem, start())
    before = bits(first.params)
    once, again = (algorithm.step(problem, first)[0] for _ in range(2))
    assert bits(once.params) == bits(again.params) != before == bits(first.params)
    _, info = algorithm.step(problem, once)
    assert (info.step, info.passes) == (2, 2)
    assert problem.asked[-1] == (1, None, 2)


def test_the_state_is_all_that_the_next_step_needs():
    problem, algorithm = RowsProblem(), BatchEM()
    state, _ = algorithm.step(problem, algorithm.init(problem, start()))
    resumed = BatchState(Centers(state.params.weights.copy(), state.params.means.copy()), state.step)
    one, two = (algorithm.step(RowsProblem(), s) for s in (state, resumed))
    assert bits(one[0].params) == bits(two[0].params)
    assert replace(one[1], seconds=0) == replace(two[1], seconds=0)


# Stop rules


def trace(*objectives: float, **fields: Any) -> list[StepInfo]:
    given = {"weight": 1.0, "passes": 1.0, "seconds": 1.0, "change": 1.0, **fields}
    return [StepInfo(i, objective, **given) for i, objective in enumerate(objectives, 1)]


def test_gain_stops_below_its_tolerance():
    rule = Gain(0.1)
    assert rule(trace(-5.0)) is None
    assert rule(trace(-5.0, -4.8)) is None
    assert "the gain of a step, 0.05 nats per row, fell below 0.1" in rule(trace(-5.0, -4.8, -4.75))
    assert rule.converged


def test_a_fall_is_no_convergence_but_rounding_is():
    assert Gain(0.1)(trace(-5.0, -5.01)) is None
    assert Gain(0.1)(trace(-5.0, -5.0 - 1e-12)) is not None
    assert Gain(0.1, rounding=0.01)(trace(-5.0, -5.01)) is not None


def test_a_relative_gain_is_a_share_of_the_objective():
    assert Gain(1e-3, relative=True)(trace(-500.0, -499.6)) is not None
    assert Gain(1e-3, relative=True)(trace(-500.0, -499.4)) is None
    assert Gain(1e-3)(trace(-500.0, -499.6)) is None


def test_no_gain_is_below_a_tolerance_of_zero():
    assert Gain(0.0)(trace(-5.0, -5.0)) is None


def test_change_looks_at_the_parameters():
    assert Change(0.1)(trace(-5.0, change=0.2)) is None
    assert "the parameters moved by 0.05, at most 0.1" in Change(0.1)(trace(-5.0, change=0.05))
    assert Change(0.0)(trace(-5.0, change=0.0)) is not None
    assert Change(0.1).converged


def test_budgets_are_not_convergence():
    assert MaxSteps(2)(trace(-5.0)) is None
    assert MaxSteps(2)(trace(-5.0, -4.0)) == "2 steps were made"
    assert MaxSeconds(2.5)(trace(-5.0, -4.0)) is None
    assert MaxSeconds(2.5)(trace(-5.0, -4.0, -3.0)) == "2.5 seconds were over (after 3)"
    assert not MaxSteps(2).converged
    assert not MaxSeconds(2).converged


def test_the_first_rule_that_says_stop_gives_the_reason():
    rules = AnyOf((Gain(0.1), Change(0.5), MaxSteps(2)))
    assert rules.which(trace(-5.0)) is None
    assert rules.which(trace(-5.0, -4.0)) == (MaxSteps(2), "2 steps were made")
    rule, reason = rules.which(trace(-5.0, -4.0, change=0.1))
    assert rule == Change(0.5)
    assert "moved" in reason
    assert rules.which(trace(-5.0, -4.99))[0] == Gain(0.1)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (Gain, -1e-9),
        (Gain, np.nan),
        (Gain, np.inf),
        (Change, -1.0),
        (MaxSteps, 0),
        (MaxSeconds, 0.0),
        (MaxSeconds, np.nan),
    ],
)
def test_rules_that_make_no_sense_are_refused(make, value):
    with pytest.raises(OptionError):
        make(value)


@given(before=st.floats(-1e6, 1e6), after=st.floats(-1e6, 1e6))
def test_a_decrease_is_the_fall_beyond_rounding(before, after):
    fall = decrease(trace(before, after))
    assert fall in (0.0, before - after)
    assert (fall > 0) == (before - after > 1e-10 * max(1, abs(before)))
    assert decrease(trace(before)) == 0.0


# Lockstep


@dataclass(frozen=True)
class Uneven:
    """Asks for one to three E-steps a step, over units that differ from run to run."""

    def init(self, problem: Any, params: Centers) -> BatchState:
        return BatchState(params)

    def step(self, problem: Any, state: BatchState) -> tuple[BatchState, StepInfo]:
        params = state.params
        for i in range(1 + int(params.means[0, 0] > 0) + int(params.means[0, 1] > 0)):
            blocks = [i % problem.n_units] if params.means[0, 2] > 0 else None
            expectation, _ = problem.expect_each([params, params], blocks, i)
            params = problem.maximize(expectation.stats, params)
        info = StepInfo(1, problem.objective(expectation, params), expectation.weight, 1.0, 0.0, 0.0)
        return BatchState(params, state.step + 1), info


@pytest.mark.parametrize("algorithm", [BatchEM(), Uneven()])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_runs_get_the_bits_that_they_would_get_alone(algorithm, n):
    problem = RowsProblem()
    states = [algorithm.init(problem, start(i)) for i in range(n)]
    together = step_together(algorithm, problem, states)
    for (state, info), alone in zip(together, states, strict=True):
        expected_state, expected_info = algorithm.step(RowsProblem(), alone)
        assert bits(state.params) == bits(expected_state.params)
        assert replace(info, seconds=0) == replace(expected_info, seconds=0)


def test_runs_share_a_pass():
    problem = RowsProblem()
    step_together(BatchEM(), problem, [BatchState(start(i)) for i in range(5)])
    assert problem.asked == [(5, None, 1)]


@pytest.mark.parametrize("error", [ValueError("bad rows"), KeyboardInterrupt()])
def test_an_error_of_the_pass_ends_all_runs(error):
    problem = RowsProblem()
    problem.fail_pass = error
    with pytest.raises(type(error)):
        step_together(BatchEM(), problem, [BatchState(start(i)) for i in range(3)])
    assert no_run_is_left()


@pytest.mark.parametrize("algorithm", [BatchEM(), Uneven()])
@pytest.mark.parametrize("error", [ArithmeticError("component 1 is empty"), KeyboardInterrupt()])
def test_an_error_of_one_m_step_ends_all_runs(algorithm, error):
    problem = RowsProblem()
    problem.fail_m_step[1] = error
    with pytest.raises(type(error)):
        step_together(algorithm, problem, [BatchState(start(i)) for i in range(4)])
    assert no_run_is_left()


def no_run_is_left() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("daskem-run")]
