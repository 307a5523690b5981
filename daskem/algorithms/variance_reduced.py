"""Variance-reduced EM: mini-batches whose chance is corrected by what all rows said before."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from daskem import tree
from daskem.algorithms.points import TOO_FAR, Point, evaluate, fell, log_step, may_gain, rebased
from daskem.algorithms.stepwise import check_numbers, check_rates, usual_rows, window_bytes
from daskem.core import Batch, Expectation, Params, Problem, Sizes, Stats, StepInfo

__all__ = ["VarianceReducedEM", "VarianceReducedState"]

# Records of statistics that a mini-batch holds at a time: of all rows, three of its own, sums, and what leads to them.
STATS_KEPT = 12
# Factor by which each sweep that leads up raises the rate, and to how many times the first one at most (measured).
GROWTH, MOST_GROWTH = 1.25, 2.5
# Share of a sweep, its end, whose mini-batches tell whether it led up.
TOLD_BY = 0.25


@dataclass(frozen=True, eq=False)
class VarianceReducedState:
    """State of `VarianceReducedEM`.

    Attributes
    ----------
    params : current parameters.
    stats : the statistics that they maximize, about them; None before the first step.
    anchor : what all rows say at earlier parameters; None before the first step.
    led : whether mini-batches led to the parameters, rather than a step of batch EM from the anchor.
    rate : share of the statistics that a mini-batch replaces.
    gain : of the anchor over the one before, nats per unit weight.
    batch : mini-batches seen.
    step, passes : so far.
    """

    params: Params
    stats: Stats = None
    anchor: Point | None = None
    led: bool = False
    rate: float = 1.0
    gain: float = math.inf
    batch: int = 0
    step: int = 0
    passes: float = 0.0


@dataclass(frozen=True)
class VarianceReducedEM:
    """Variance-reduced stepwise EM; a step is a pass, and a sweep of mini-batches.

    Chen, Zhu, Teh & Zhang (2018) make a pass over all rows at parameters a, the anchor, for the statistics S(a), and
    then correct each mini-batch by it: what chance does to s(current) does it to s(a), and goes out of s(current) -
    s(a) + S(a). Near the optimum each mini-batch is nearly a step of batch EM, at its share of the price.

    Here the pass for the next anchor is the sweep itself: the mini-batches are also seen at b, the parameters that the
    sweep began with. Their differences so far estimate S(b), better with each mini-batch, and correct the statistics:
    s(current) - s(b) + [S(a) + mean of s(b) - s(a)]. At the end S(b) is known, and b is the next anchor.

    Parameters
    ----------
    batch_rows : rows of a mini-batch; by default so many that 64 make an epoch, between 1,000 and 100,000.
    rate : in (0, 1], share of the statistics that a mini-batch of the first sweep replaces. Sweeps that lead up raise
        it by a quarter each, to at most 2.5 times; others halve it. The fewer rows a mini-batch has for each parameter,
        the smaller it should be.
    window : pieces of the data whose rows are mixed, 16 by default (see `daskem.core.Batch`).

    Notes
    -----
    [1]_, section 3, for the correction by an anchor. The first step is one of batch EM. A sweep whose last mini-batches
    say less at its end than at its beginning is forgotten, the M-step of S(b) taken in its place; and where the next
    pass shows that it fell after all, that of S(a). So the objective, which is that of b, falls where batch EM's does
    only; that the last sweep of all led up is told by its mini-batches alone.

    References
    ----------
    .. [1] Chen, Zhu, Teh & Zhang (2018), Advances in Neural Information Processing Systems 31, 7967-7977.
    """

    batch_rows: int | None = None
    rate: float = 0.5
    window: int | None = None

    def __post_init__(self) -> None:
        check_rates(None, 0.0, self.rate)
        check_numbers(self, "batch_rows", "window")

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes of the windows of mini-batches, of statistics, and of two parameter sets more."""
        more = max(0, 2 * sizes.member - sizes.readers)
        return window_bytes(self.window, sizes) + STATS_KEPT * sizes.stats + more

    def init(self, problem: Problem, params: Params) -> VarianceReducedState:
        problem.n_batches(self._batch(problem, 0))
        return VarianceReducedState(params, rate=self.rate)

    def step(self, problem: Problem, state: VarianceReducedState) -> tuple[VarianceReducedState, StepInfo]:
        if state.anchor is None:
            return self._first(problem, state)
        clock, number = time.perf_counter(), state.step + 1
        n_batches = self._n_batches(problem)
        # A mini-batch of all rows leads where batch EM does.
        params = state.params if n_batches > 1 else None
        sweep = _Sweep(problem, state.anchor, state.rate, number, state.params, params, state.stats)
        start = self._run(problem, state, sweep)
        if start is None or (state.led and fell(state.anchor.objective, start.objective)):
            start, gain, led = state.anchor, math.inf, False
        else:
            gain, led = start.objective - state.anchor.objective, sweep.led_up
        params, stats = (sweep.params, sweep.stats) if led else _plain(problem, start)
        rate = min(state.rate * GROWTH, self.rate * MOST_GROWTH, 1.0) if led else state.rate / 2
        passes = state.passes + sweep.looks / n_batches
        info = log_step(
            problem, number, start, params, passes=passes, clock=clock, remaining=may_gain(gain, state.gain)
        )
        batch = state.batch + n_batches
        return VarianceReducedState(params, stats, start, led, rate, gain, batch, number, passes), info

    def _first(self, problem: Problem, state: VarianceReducedState) -> tuple[VarianceReducedState, StepInfo]:
        clock = time.perf_counter()
        start = evaluate(problem, state.params, step=1)
        params, stats = _plain(problem, start)
        info = log_step(problem, 1, start, params, passes=1.0, clock=clock, remaining=math.inf)
        return VarianceReducedState(params, stats, start, rate=self.rate, step=1, passes=1.0), info

    def _run(self, problem: Problem, state: VarianceReducedState, sweep: _Sweep) -> Point | None:
        """Return what all rows say where a sweep begins; None if mini-batches had led too far there."""
        n_batches = self._n_batches(problem)
        late = n_batches - max(1, round(TOLD_BY * n_batches))
        for i in range(n_batches):
            batch = self._batch(problem, state.batch + i)
            try:
                sweep.see(batch, i >= late)
            except TOO_FAR:
                if not state.led:
                    raise
                # Data that are not finite raise again.
                sweep.looks += 1
                problem.expect(sweep.anchor.params, batch, sweep.number)
                return None
        assert sweep.found is not None  # for the type checker: an epoch has mini-batches
        objective = problem.objective(sweep.found, sweep.begin)
        return Point(sweep.begin, sweep.found, objective) if math.isfinite(objective) or not state.led else None

    def _n_batches(self, problem: Problem) -> int:
        return problem.n_batches(self._batch(problem, 0))

    def _batch(self, problem: Problem, index: int) -> Batch:
        return Batch(index, self.batch_rows or usual_rows(problem.n_rows), self.window)


@dataclass(eq=False)
class _Sweep:
    """Mini-batches seen one after the other: at the anchor, at what the sweep began with, and at where they lead.

    Attributes
    ----------
    problem, anchor, rate, number : of the step.
    begin : parameters that the sweep began with.
    params, stats : where it has led; `params` is None where that was too far.
    found : what the mini-batches so far say at `begin`.
    ahead : sum of how far their statistics at `begin` are ahead of those at the anchor, about `begin`.
    gains : by how much the last mini-batches say more at `params` than at `begin`.
    seen, looks : mini-batches, and E-steps over one.
    """

    problem: Problem
    anchor: Point
    rate: float
    number: int
    begin: Params
    params: Params | None
    stats: Stats
    found: Expectation | None = None
    ahead: Stats = None
    gains: list[float] = field(default_factory=list)
    seen: int = 0
    looks: int = 0

    @cached_property
    def _whole(self) -> Stats:
        """What all rows say at the anchor, about `begin`."""
        return rebased(self.problem, self.anchor.expectation.stats, self.anchor.params, self.begin)

    @property
    def led_up(self) -> bool:
        # There are models without an objective, which is zero.
        return self.params is not None and math.fsum(self.gains) >= 0

    def see(self, batch: Batch, late: bool) -> None:
        """See a mini-batch, one of the last if `late`."""
        here = None if self.params is None else self._follow(batch, late)
        if here is None:
            self.looks += 1
            here = self.problem.expect(self.begin, batch, self.number)
        part = tree.scale(here, self.problem.share(batch))
        self.found = part if self.found is None else tree.accumulate(self.found, part)
        self.seen += 1

    def _follow(self, batch: Batch, late: bool) -> Expectation | None:
        """Go where a mini-batch leads, and return what it says at `begin`; None where it leads too far."""
        self.looks += 1
        # Corrections may add up to statistics that no rows have, negative ones say.
        try:
            with np.errstate(all="ignore"):
                members = [self.begin, self.anchor.params, self.params]
                here, there, now = self.problem.expect_each(members, batch, self.number)
                stats = tree.lerp(self.stats, self._corrected(here.stats, there.stats, now.stats), self.rate)
                following = self.problem.maximize(stats, self.params)
                gain = self._gain(here, now)
        except TOO_FAR:
            gain = math.nan
        if not (math.isfinite(gain) and tree.all_finite(following)):
            self.params = None
            return None
        if late:
            self.gains.append(gain)
        self.params, self.stats = following, rebased(self.problem, stats, self.params, following)
        return here

    def _gain(self, here: Expectation, now: Expectation) -> float:
        """Return by how much a mini-batch says more at `params` than at `begin`: nothing if its rows have no weight."""
        if not here.weight > 0:
            return 0.0
        return self.problem.objective(now, self.params) - self.problem.objective(here, self.begin)

    def _corrected(self, here: Stats, there: Stats, now: Stats) -> Stats:
        """Return what all rows are taken to say at `params`, of what a mini-batch says at all three."""
        anchor = self.anchor
        ahead = tree.sub(here, rebased(self.problem, there, anchor.params, self.begin))
        self.ahead = ahead if self.ahead is None else tree.add(self.ahead, ahead)
        at_begin = tree.add(self._whole, tree.scale(self.ahead, 1.0 / (self.seen + 1)))
        return tree.add(now, rebased(self.problem, tree.sub(at_begin, here), self.begin, self.params))


def _plain(problem: Problem, start: Point) -> tuple[Params, Stats]:
    """Return the parameters that a step of batch EM leads to from a point, and its statistics about these."""
    params = problem.maximize(start.expectation.stats, start.params)
    return params, rebased(problem, start.expectation.stats, start.params, params)
