"""The properties of an algorithm, and a problem small enough to try it on that counts its passes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from daskem import tree
from daskem.core import (
    Algorithm,
    Batch,
    Chunk,
    Expectation,
    Float,
    HasLogPrior,
    HasMemory,
    Int,
    Model,
    Params,
    Part,
    State,
    Stats,
    StepInfo,
)
from daskem.errors import ContractError
from daskem.testing.trial import ADDITIVE_RTOL, Property, bits, run_properties, take

__all__ = [
    "ALGORITHM_PROPERTIES",
    "AlgorithmTrial",
    "CoinStats",
    "CountingProblem",
    "TwoCoins",
    "check_algorithm",
    "toy_problem",
]


@dataclass(frozen=True)
class CoinStats:
    """Expected tosses and heads of each coin, (2,)."""

    tosses: Float
    heads: Float


@dataclass(frozen=True)
class TwoCoins:
    """Two coins, one of which (either with probability 1/2) was tossed `tosses` times for each row.

    Rows are (n, 1) numbers of heads; params are the probabilities of heads, (2,). Both steps have closed forms.
    """

    tosses: int = 10

    def init(self, sample: Chunk, rng: np.random.Generator) -> Float:
        return np.sort(rng.uniform(0.25, 0.75, 2))

    def e_step(self, params: Float, chunk: Chunk) -> Expectation:
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        heads = chunk.rows[:, :1].astype(np.float64)
        choose = [math.log(math.comb(self.tosses, int(h))) for h in heads[:, 0]]
        joint = heads * np.log(params) + (self.tosses - heads) * np.log1p(-params) - math.log(2)
        log_prob = np.logaddexp(joint[:, 0], joint[:, 1])
        resp = weight[:, None] * np.exp(joint - log_prob[:, None])
        stats = CoinStats(self.tosses * resp.sum(axis=0), (resp * heads).sum(axis=0))
        return Expectation(stats, float(weight @ (log_prob + np.array(choose))), chunk.total_weight)

    def m_step(self, stats: CoinStats, params: Float) -> Float:
        return stats.heads / stats.tosses

    def surrogate(self, stats: CoinStats, params: Float) -> float:
        return float(stats.heads @ np.log(params) + (stats.tosses - stats.heads) @ np.log1p(-params))

    def to_vector(self, params: Float) -> Float:
        return np.log(params) - np.log1p(-params)

    def from_vector(self, vector: Float, params: Float) -> Float:
        return 1.0 / (1.0 + np.exp(-vector))


class CountingProblem:
    """A `daskem.core.Problem` over chunks in memory that counts the rows that are read.

    Parameters
    ----------
    model : the model.
    units : the work units.
    scale : rows of the full data that a row here stands for.
    counter : counts the rows read, in its first entry; a sample and the whole it was drawn from share one.
    """

    def __init__(
        self, model: Model, units: Sequence[Chunk], scale: float = 1.0, counter: list[float] | None = None
    ) -> None:
        self.model = model
        self.units = tuple(units)
        self.scale = scale
        self.counter = [0.0] if counter is None else counter
        self.samples: dict[int, CountingProblem] = {}

    @property
    def passes(self) -> float:
        """Passes over the full data so far, each row counting as its share of all."""
        return self.counter[0] / (self.n_rows * self.scale)

    @property
    def n_units(self) -> int:
        return len(self.units)

    @property
    def n_rows(self) -> int:
        return sum(map(len, self.units))

    @property
    def sample_room(self) -> int:
        return self.n_rows

    def expect(self, params: Params, part: Part = None, step: int = 0) -> Expectation:
        return self.expect_each([params], part, step)[0]

    def expect_each(self, members: Sequence[Params], part: Part = None, step: int = 0) -> list[Expectation]:
        # However many members there are, the rows are read once.
        chunks = self._chunks(part)
        rows = sum(map(len, chunks))
        self.counter[0] += rows
        scale = self.scale * (self.n_rows / rows if isinstance(part, Batch) else 1.0)
        return [
            tree.scale(tree.reduce([self.model.e_step(params, take(one, slice(None))) for one in chunks]), scale)
            for params in members
        ]

    def n_batches(self, batch: Batch) -> int:
        return max(1, round(self.n_rows / batch.rows))

    def share(self, batch: Batch) -> float:
        return sum(map(len, self._chunks(batch))) / self.n_rows

    def subsample(self, rows: int) -> CountingProblem:
        if rows == self.n_rows:
            return self
        if rows not in self.samples:
            self.counter[0] += self.sample_passes(rows) * self.n_rows
            drawn = [take(self._whole, self._drawn(rows))]
            self.samples[rows] = CountingProblem(self.model, drawn, self.scale * self.n_rows / rows, self.counter)
        return self.samples[rows]

    def sample_passes(self, rows: int) -> float:
        return 1.0 if self.scale == 1.0 else 0.0

    def precision(self, params: Params) -> float:
        return tree.nbytes(params) / (16.0 * self.n_rows)

    def _drawn(self, rows: int) -> Int:
        return np.random.default_rng(rows).permutation(self.n_rows)[:rows]

    @property
    def _whole(self) -> Chunk:
        def joined(side: str) -> Any:
            parts = [getattr(unit, side) for unit in self.units]
            return None if parts[0] is None else np.concatenate(parts)

        return Chunk(joined("rows"), joined("weight"), joined("labels"))

    def _chunks(self, part: Part) -> list[Chunk]:
        if not isinstance(part, Batch):
            return [self.units[i] for i in (range(self.n_units) if part is None else part)]
        n_batches = self.n_batches(part)
        epoch, place = divmod(part.index, n_batches)
        kept = np.setdiff1d(np.arange(self.n_rows), self._drawn(part.held_out))
        order = np.random.default_rng(epoch).permutation(kept)
        return [take(self._whole, order[place::n_batches])]

    def fits(self, algorithm: HasMemory) -> bool:
        return True

    def moves(self, params: Params) -> Sequence[tuple[str, Params]]:
        return ()

    def maximize(self, stats: Stats, params: Params) -> Params:
        return self.model.m_step(stats, params)

    def objective(self, expectation: Expectation, params: Params) -> float:
        log_prior = self.model.log_prior(params) if isinstance(self.model, HasLogPrior) else 0.0
        return (expectation.objective + log_prior) / expectation.weight

    def change(self, old: Params, new: Params) -> float:
        return tree.max_change(old, new)

    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        return ()


def toy_problem() -> CountingProblem:
    """Return two coins in eight units of five rows, drawn from probabilities 0.3 and 0.8."""
    rng = np.random.default_rng(8)
    heads = rng.binomial(10, rng.choice([0.3, 0.8], size=(40, 1))).astype(np.float64)
    return CountingProblem(TwoCoins(), [Chunk(heads[i : i + 5], start=i) for i in range(0, 40, 5)])


@dataclass(frozen=True, eq=False)
class AlgorithmTrial:
    """An algorithm with a problem to try it on: `problem` makes a fresh one; `params` is where the run starts."""

    algorithm: Algorithm
    problem: Callable[[], CountingProblem]
    params: Params
    steps: int = 10

    @cached_property
    def run(self) -> tuple[list[State], list[StepInfo], list[float]]:
        """States before each step and after the last, log lines, and the passes counted after each step."""
        problem = self.problem()
        states, infos, passes = [self.algorithm.init(problem, self.params)], [], []
        for _ in range(self.steps):
            state, info = self.algorithm.step(problem, states[-1])
            states.append(state)
            infos.append(info)
            passes.append(problem.passes)
        return states, infos, passes

    def fail(self, claim: str, why: str) -> ContractError:
        """Return the error for a property that does not hold."""
        return ContractError(f"{type(self.algorithm).__name__}: {claim}. {why}")


def check_algorithm(
    algorithm: Algorithm,
    *,
    problem: Callable[[], CountingProblem] = toy_problem,
    params: Params = None,
    steps: int = 10,
    skip: Collection[str] = (),
) -> tuple[str, ...]:
    """Check that an algorithm keeps daskem's contract.

    Parameters
    ----------
    algorithm : the algorithm to try.
    problem : makes a fresh problem; two coins by default.
    params : parameters to start from; (0.4, 0.6) by default.
    steps : steps to make.
    skip : names in `ALGORITHM_PROPERTIES` that the algorithm does not keep by design.

    Returns
    -------
    tuple of str
        The properties that were checked.

    Raises
    ------
    ContractError
        Naming each property that does not hold, and what that usually means.
    """
    trial = AlgorithmTrial(algorithm, problem, np.array([0.4, 0.6]) if params is None else params, steps)
    return run_properties(type(algorithm).__name__, ALGORITHM_PROPERTIES, trial, algorithm, skip)


def _state_is_a_record(trial: AlgorithmTrial) -> None:
    for state in trial.run[0]:
        if not hasattr(state, "params"):
            raise trial.fail(
                f"the state, a {type(state).__name__}, has no field params", "Name them so: results need them."
            )
        try:
            bits(state)
        except ContractError as error:
            raise trial.fail(f"the state cannot be a checkpoint ({error})", "Keep arrays and numbers only.") from error


def _step_is_pure(trial: AlgorithmTrial) -> None:
    for state in trial.run[0][:-1]:
        before = bits(state)
        results = [bits(trial.algorithm.step(trial.problem(), state)[0]) for _ in range(2)]
        if bits(state) != before:
            raise trial.fail("step changed the state that it was given", "Return a new state.")
        if results[0] != results[1]:
            raise trial.fail("step gives other bits from the same state", "Draw from (seed, step) kept in the state.")


def _info_is_complete(trial: AlgorithmTrial) -> None:
    for number, info in enumerate(trial.run[1], start=1):
        if not isinstance(info, StepInfo):
            raise trial.fail(f"step returned a {type(info).__name__} to log", "Return a daskem.core.StepInfo.")
        if info.step != number:
            raise trial.fail(f"step {number} calls itself {info.step}", "Count steps in the state, from 1.")
        figures = (info.objective, info.weight, info.passes, info.seconds, info.change)
        if not all(math.isfinite(figure) for figure in figures) or min(figures[1:]) < 0:
            raise trial.fail(f"the log line of step {number} is not finite or negative: {info}", "Measure all of it.")


def _passes_are_counted(trial: AlgorithmTrial) -> None:
    _, infos, passes = trial.run
    for info, counted in zip(infos, passes, strict=True):
        if not math.isclose(info.passes, counted, rel_tol=1e-9):
            why = "A row read counts as its share of a pass; drawing a sample is a whole one."
            raise trial.fail(f"step {info.step} reports {info.passes} passes, {counted} were made", why)


def _objective_is_at_the_start_of_the_step(trial: AlgorithmTrial) -> None:
    states, infos, _ = trial.run
    for state, info in zip(states[:-1], infos, strict=True):
        problem = trial.problem()
        whole = problem.expect(state.params)
        if info.weight != whole.weight or not info.exact:
            continue
        objective = problem.objective(whole, state.params)
        if not math.isclose(info.objective, objective, rel_tol=ADDITIVE_RTOL):
            why = "Report the mean per unit weight, at the params that the step started from."
            raise trial.fail(f"step {info.step} reports objective {info.objective}, it is {objective}", why)


def _run_can_be_resumed(trial: AlgorithmTrial) -> None:
    states = trial.run[0]
    algorithm, state = pickle.loads(pickle.dumps((trial.algorithm, states[trial.steps // 2])))
    problem = trial.problem()
    for _ in range(trial.steps - trial.steps // 2):
        state, _ = algorithm.step(problem, state)
    if bits(state) != bits(states[-1]):
        why = "All that the next step needs must be in the state; the algorithm is a frozen value."
        raise trial.fail("a run that was interrupted and resumed ends with other bits", why)


def _run_improves(trial: AlgorithmTrial) -> None:
    problem, states = trial.problem(), trial.run[0]
    first, last = (problem.objective(problem.expect(params), params) for params in (trial.params, states[-1].params))
    if not last > first:
        raise trial.fail(
            f"{trial.steps} steps led from objective {first} to {last}", "A run must improve on its start."
        )


ALGORITHM_PROPERTIES: Mapping[str, Property] = MappingProxyType(
    {
        "state_is_a_record": Property(_state_is_a_record),
        "step_is_pure": Property(_step_is_pure),
        "info_is_complete": Property(_info_is_complete),
        "passes_are_counted": Property(_passes_are_counted),
        "objective_is_at_the_start_of_the_step": Property(_objective_is_at_the_start_of_the_step),
        "run_can_be_resumed": Property(_run_can_be_resumed),
        "run_improves": Property(_run_improves),
    }
)
