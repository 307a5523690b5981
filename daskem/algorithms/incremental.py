"""Incremental EM: one block's statistics replaced at a time, an M-step after each."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from daskem import tree
from daskem.algorithms.points import Point, log_step, may_gain, rebased
from daskem.core import Expectation, HasSurrogate, Params, Problem, Sizes, Stats, StepInfo, require
from daskem.errors import OptionError

__all__ = ["BlockStats", "IncrementalEM", "IncrementalState"]


@dataclass(frozen=True, eq=False)
class BlockStats:
    """Statistics of a block, the parameters that they were made at, and objective less Q there (nats)."""

    stats: Stats
    params: Params
    entropy: float


@dataclass(frozen=True, eq=False)
class IncrementalState:
    """State of `IncrementalEM`.

    Attributes
    ----------
    params : current parameters.
    blocks : what each block said last; empty before the first step.
    weight : weight of all rows.
    energy, gain : free energy after the last pass (mean per unit weight, nats), and what that pass gained.
    step : passes made, one a step.
    """

    params: Params
    blocks: tuple[BlockStats, ...] = ()
    weight: float = 0.0
    energy: float = -math.inf
    gain: float = math.inf
    step: int = 0


@dataclass(frozen=True)
class IncrementalEM:
    """Incremental EM (Neal & Hinton 1998): a step is a pass, with an M-step after each of its blocks.

    The first pass is a batch step. Then each block's statistics replace its older ones in the total, which is summed
    anew in every pass, so that rounding does not build up.

    Parameters
    ----------
    blocks : blocks of a pass, each of work units spread over the data, so that a sorted store does no harm and the
        units of one block run side by side; by default half the number of units, 64 at most.

    Notes
    -----
    The objective is the free energy F(q, params) of [1]_, section 3: Q(params) + entropy of the posteriors q, which
    were computed at older parameters. It never falls, never exceeds the log-likelihood, and meets it at convergence.
    A step reports the one that it started from, the first step the log-likelihood.

    References
    ----------
    .. [1] Neal & Hinton (1998), in Jordan (ed.), Learning in Graphical Models, 355-368.
    """

    blocks: int | None = None
    needs: ClassVar[tuple[type, ...]] = (HasSurrogate,)

    def __post_init__(self) -> None:
        if self.blocks is not None and self.blocks < 2:
            raise OptionError(f"blocks={self.blocks} must be at least 2; with one block this is batch EM.")

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes of all blocks' statistics and of the parameters that these were made at."""
        return self._n_blocks(sizes.n_units) * (sizes.stats + sizes.params)

    def init(self, problem: Problem, params: Params) -> IncrementalState:
        if problem.n_units < 2:
            raise OptionError(
                "incremental EM needs data of at least two work units; these are one. Use algorithm='batch', which "
                "takes no longer on so few rows."
            )
        return IncrementalState(params)

    def step(self, problem: Problem, state: IncrementalState) -> tuple[IncrementalState, StepInfo]:
        clock = time.perf_counter()
        new, start = self._sweep(problem, state) if state.blocks else self._first(problem, state)
        info = log_step(
            problem,
            new.step,
            start,
            new.params,
            passes=float(new.step),
            clock=clock,
            remaining=may_gain(new.gain, state.gain),
        )
        return new, info

    def _first(self, problem: Problem, state: IncrementalState) -> tuple[IncrementalState, Point]:
        """Make a batch step that keeps what each block says."""
        found = [problem.expect(state.params, block, step=1) for block in self._blocks(problem)]
        total = tree.reduce(found)
        start = Point(state.params, total, problem.objective(total, state.params))
        blocks = tuple(_block(problem, expectation, state.params) for expectation in found)
        params = problem.maximize(total.stats, state.params)
        energy = _free_energy(
            problem, blocks, rebased(problem, total.stats, state.params, params), params, total.weight
        )
        return IncrementalState(params, blocks, total.weight, energy, energy - start.objective, 1), start

    def _sweep(self, problem: Problem, state: IncrementalState) -> tuple[IncrementalState, Point]:
        """Visit every block once."""
        params, blocks, number = state.params, list(state.blocks), state.step + 1
        total = tree.reduce(rebased(problem, block.stats, block.params, params) for block in blocks)
        for i, rows in enumerate(self._blocks(problem)):
            old = blocks[i]
            blocks[i] = _block(problem, problem.expect(params, rows, step=number), params)
            total = tree.add(tree.sub(total, rebased(problem, old.stats, old.params, params)), blocks[i].stats)
            before, params = params, problem.maximize(total, params)
            total = rebased(problem, total, before, params)
        energy = _free_energy(problem, blocks, total, params, state.weight)
        start = Point(state.params, Expectation(None, 0.0, state.weight), state.energy)
        return IncrementalState(params, tuple(blocks), state.weight, energy, energy - state.energy, number), start

    def _blocks(self, problem: Problem) -> list[Sequence[int]]:
        n = self._n_blocks(problem.n_units)
        return [range(i, problem.n_units, n) for i in range(n)]

    def _n_blocks(self, n_units: int) -> int:
        return min(n_units, self.blocks or max(2, min(64, n_units // 2)))


def _block(problem: Problem, expectation: Expectation, params: Params) -> BlockStats:
    surrogate = require(problem.model, HasSurrogate, "incremental EM").surrogate(expectation.stats, params)
    return BlockStats(expectation.stats, params, expectation.objective - surrogate)


def _free_energy(problem: Problem, blocks: Sequence[BlockStats], total: Stats, params: Params, weight: float) -> float:
    surrogate = require(problem.model, HasSurrogate, "incremental EM").surrogate(total, params)
    energy = surrogate + math.fsum(block.entropy for block in blocks)
    return problem.objective(Expectation(None, energy, weight), params)
