"""Progressive EM: fit a small sample first, then larger ones that contain it, and all rows last."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from daskem.algorithms.accelerated import Anderson, AndersonState
from daskem.algorithms.batch import BatchEM
from daskem.algorithms.points import TOO_FAR, may_gain
from daskem.algorithms.variance_reduced import VarianceReducedEM, VarianceReducedState
from daskem.core import (
    Algorithm,
    HasLogProb,
    HasMemory,
    HasMoves,
    HasVector,
    Params,
    Problem,
    Sizes,
    State,
    StepInfo,
    offers,
)
from daskem.errors import OptionError

__all__ = ["Auto", "Progressive", "ProgressiveState"]

logger = logging.getLogger("daskem")

# Most rows of a sample: with a thousand for each parameter, hardly any model's maximum moves when there are more.
MOST_ROWS = 4_000_000
# Rows of the first stage for each free parameter: fewer leave components without rows.
FIRST_ROWS = 10
# Rows for each free parameter that the largest sample should have for `Auto` to use samples at all.
ENOUGH_ROWS = 20
# Batch EM that settles on a small sample in so few steps needs as few passes over all rows: larger ones save none. Of
# fewer rows than these the steps say little, however few parameters there are.
QUICK_STEPS, QUICK_ROWS = 5, 1_000
# A stage ends when the gain that seems left is this share of its precision. Steps on samples are cheap, and those that
# lead off a plateau, where little seems left, need not be made on all rows.
STAGE_SHARE = 0.01
# Steps after which a stage ends in any case, and passes: the next one goes on from there.
STAGE_STEPS, STAGE_PASSES = 100, 2.0
# Share of a stage's precision that a move must gain: chance lifts both maxima alike, being those of the same rows.
MOVE_SHARE = 0.1
# Rows of a sample for each free parameter, and at most, that moves out of a local maximum are tried on.
MOVE_ROWS, MOST_MOVE_ROWS = 50, 1 << 18
# Passes over all rows after which no other trial is begun, and after which the one that runs ends; moves at most, and
# rows by which they are found.
TRIAL_PASSES, MOST_TRIAL_PASSES, MOST_MOVES, FIND_ROWS = 1.0, 2.0, 20, 1 << 15
# Steps of a trial at most, usually (measured), before it may be given up, and by which its pace is told.
TRIAL_STEPS, USUAL_STEPS, FIRST_STEPS, PACE_STEPS = 40, 15, 5, 3
# Rate of `Auto`'s first mini-batches, which have few rows for each parameter: with 0.3 chance emptied components
# (measured). And the rows that there must be for an epoch to have 64 of them.
RATE, NOISY_ROWS = 0.2, 1 << 17


@dataclass(frozen=True, eq=False)
class ProgressiveState:
    """State of `Progressive`.

    Attributes
    ----------
    params, inner : parameters, and the state of the stage's algorithm.
    sizes : rows of the stages, the last one all.
    stage, stage_step : index of the stage, and the steps that it has made.
    step : steps so far.
    before, passes : passes before the stage's algorithm began, and so far.
    objective, gain : of the stage's last step, and what that had gained over the one before.
    moves : out of local maxima, so far.
    """

    params: Params
    inner: State
    sizes: tuple[int, ...]
    stage: int = 0
    stage_step: int = 0
    step: int = 0
    before: float = 0.0
    passes: float = 0.0
    objective: float = -math.inf
    gain: float = math.inf
    moves: int = 0


@dataclass(frozen=True)
class Progressive:
    """EM on nested samples drawn across all data, each fitted to its own precision and then enlarged.

    A sample of n rows tells the maximum to p / (2 n) nats per row at best: a stage ends when what it may still gain is
    less. The largest sample is drawn in one pass and kept in memory; the smaller ones are parts of it. The last stage
    works on all rows: the result is a maximum over these, whatever the samples were.

    EM climbs to the next maximum, which may be a poor one. Where the model knows moves (`daskem.core.HasMoves`; a
    mixture merges two components and splits a third), those that promise most are tried on a sample where that costs
    little, and kept where they lead higher.

    Parameters
    ----------
    inner : algorithm of the sample stages; by default `Anderson`, or `BatchEM` for a model that has no vectors.
    final : algorithm of the last stage; by default `inner`.
    growth : factor from one sample to the next.
    first : rows of the first sample; by default ten for each free parameter.
    moves : whether moves out of local maxima are tried.
    """

    inner: Algorithm | None = None
    final: Algorithm | None = None
    growth: int = 4
    first: int | None = None
    moves: bool = True

    def __post_init__(self) -> None:
        for name in ("inner", "final"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, type) or not hasattr(value, "step")):
                raise OptionError(f"{name}={value!r} is not an algorithm: give an object such as Anderson().")
        if self.growth < 2 or (self.first is not None and self.first < 1):
            raise OptionError(f"growth={self.growth} must be at least 2, and first={self.first} positive.")

    @property
    def needs(self) -> tuple[type, ...]:
        """Capabilities that the stages need."""
        return (*getattr(self.inner, "needs", ()), *getattr(self.final, "needs", ()))

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes of the largest sample, and of what the last stage keeps."""
        kept = self.final.memory(sizes) if isinstance(self.final, HasMemory) else 0
        return sizes.sample_bytes(self.largest(sizes.n_rows, sizes.sample_room)) + kept

    def largest(self, n_rows: int, room: int) -> int:
        """Return the rows of the largest sample, of data of `n_rows` and where there is memory for `room` rows."""
        return max(1, min(n_rows // self.growth, MOST_ROWS, room // 2))

    def init(self, problem: Problem, params: Params) -> ProgressiveState:
        first = self.first or round(FIRST_ROWS * _n_free(problem, params))
        sizes = [problem.n_rows, self.largest(problem.n_rows, problem.sample_room)]
        while sizes[-1] // self.growth >= first:
            sizes.append(sizes[-1] // self.growth)
        return self._begin(problem, ProgressiveState(params, None, tuple(sizes[::-1])), stage=0)

    def step(self, problem: Problem, state: ProgressiveState) -> tuple[ProgressiveState, StepInfo]:
        clock = time.perf_counter()
        here, algorithm = self._stage(problem, state.sizes, state.stage)
        inner, info = algorithm.step(here, state.inner)
        share = here.n_rows / problem.n_rows
        new = replace(
            state,
            params=inner.params,
            inner=inner,
            stage_step=state.stage_step + 1,
            step=state.step + 1,
            passes=state.before + share * info.passes,
            objective=info.objective,
            gain=info.objective - state.objective,
        )
        if here is problem:
            return new, replace(info, step=new.step, passes=new.passes, stage=f"all rows: {info.stage}".rstrip(": "))
        remaining = may_gain(new.gain, state.gain) if info.remaining is None else info.remaining
        settled = remaining <= STAGE_SHARE * _precision(here, new.params, info.objective)
        info = replace(
            info,
            step=new.step,
            passes=new.passes,
            weight=share * info.weight,
            exact=False,
            remaining=math.inf,
            stage=f"{here.n_rows:,} rows",
        )
        if settled or new.stage_step >= min(STAGE_STEPS, STAGE_PASSES / share):
            new = self._move(problem, new)
        return new, replace(info, passes=new.passes, seconds=time.perf_counter() - clock)

    def _move(self, problem: Problem, state: ProgressiveState) -> ProgressiveState:
        """Return the state after the first move that leads higher; else the next stage's first."""
        here, algorithm = self._stage(problem, state.sizes, state.stage)
        share, passes = here.n_rows / problem.n_rows, state.passes
        bar = state.objective + MOVE_SHARE * _precision(here, state.params, state.objective)
        for what, params in self._moves(here, state):
            if passes >= state.passes + TRIAL_PASSES:
                break
            most = (state.passes + MOST_TRIAL_PASSES - passes) / share
            inner, objective, spent = _climb(algorithm, here, params, bar, most)
            before, passes = passes, passes + share * spent
            if objective > bar:
                told = (f"{here.n_rows:,}", what, objective - state.objective)
                logger.info("%s rows: %s, %.3g nats per row more", *told)
                moved = ProgressiveState(inner.params, inner, state.sizes, state.stage, step=state.step)
                return replace(moved, before=before, passes=passes, objective=objective, moves=state.moves + 1)
        return self._begin(problem, replace(state, passes=passes), state.stage + 1)

    def _moves(self, here: Problem, state: ProgressiveState) -> Sequence[tuple[str, Params]]:
        """Return the moves to try on a sample: none where they would cost too much, or could be chance."""
        few = here.n_rows < MOVE_ROWS * _n_free(here, state.params)
        dear = here.n_rows > min(MOST_MOVE_ROWS, TRIAL_PASSES / USUAL_STEPS * state.sizes[-1])
        if not self.moves or few or dear or state.moves >= MOST_MOVES:
            return ()
        return here.subsample(min(here.n_rows, FIND_ROWS)).moves(state.params)

    def _begin(self, problem: Problem, state: ProgressiveState, stage: int) -> ProgressiveState:
        here, algorithm = self._stage(problem, state.sizes, stage)
        before = state.passes if stage else problem.sample_passes(state.sizes[-2])
        if isinstance(algorithm, Anderson) and isinstance(state.inner, AndersonState):
            inner: State = algorithm.carry(state.inner)
        else:
            inner = algorithm.init(here, state.params)
        new = ProgressiveState(state.params, inner, state.sizes, stage, step=state.step, before=before, passes=before)
        return replace(new, moves=state.moves)

    def _stage(self, problem: Problem, sizes: tuple[int, ...], stage: int) -> tuple[Problem, Algorithm]:
        """Return the problem of a stage, a sample of a sample of ... all rows, and its algorithm."""
        inner = self.inner or (Anderson() if offers(problem.model, HasVector) else BatchEM())
        if stage == len(sizes) - 1:
            return problem, self.final or inner
        for rows in sizes[-2 : stage - 1 if stage else None : -1]:
            problem = problem.subsample(rows)
        return problem, inner


@dataclass(frozen=True)
class Auto:
    """Chooses the algorithm from the number of rows, the memory there is, and what the model can do.

    Data of one work unit, and models or data that samples do not suit, are fitted by `BatchEM` (with `Anderson`'s
    acceleration where there are several units and the model has vectors); all other by `Progressive`. Samples do not
    suit data so clear that a few steps on a small one settle it: as few on all rows are cheaper than larger samples.
    Where a sample on which moves can be tried is too large a part of the data, `VarianceReducedEM` is what finds out of
    local maxima by itself.
    """

    full_passes: ClassVar[bool] = True
    noisy: ClassVar[VarianceReducedEM] = VarianceReducedEM(rate=RATE)

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes of the largest sample that might be drawn and the small one before, or of mini-batches."""
        if sizes.n_units == 1:
            return 0
        noisy = self.noisy.memory(sizes)
        return max(2 * Progressive().memory(sizes), noisy if noisy <= sizes.room else 0)

    def choose(self, problem: Problem, params: Params) -> Algorithm:
        """Return the algorithm for a problem."""
        if problem.n_units == 1:
            return BatchEM()
        progressive, free = Progressive(), _n_free(problem, params)
        largest = progressive.largest(problem.n_rows, problem.sample_room)
        if largest >= ENOUGH_ROWS * free:
            look = min(largest, max(QUICK_ROWS, round(FIRST_ROWS * free)))
            if _settles(problem.subsample(look), params):
                return BatchEM()
            few = NOISY_ROWS <= problem.n_rows < USUAL_STEPS * MOVE_ROWS / TRIAL_PASSES * free
            noisy = few and offers(problem.model, HasMoves) and problem.fits(self.noisy)
            return self.noisy if noisy else progressive
        return Anderson() if offers(problem.model, HasVector) else BatchEM()

    def init(self, problem: Problem, params: Params) -> State:
        chosen = self.choose(problem, params)
        logger.info("%d rows in %d units: %s", problem.n_rows, problem.n_units, type(chosen).__name__)
        return chosen.init(problem, params)

    def step(self, problem: Problem, state: State) -> tuple[State, StepInfo]:
        # What was chosen is to be seen from its state: a fit that goes on elsewhere may have other memory to choose by.
        chosen: Algorithm = BatchEM()
        if isinstance(state, ProgressiveState):
            chosen = Progressive()
        elif isinstance(state, AndersonState):
            chosen = Anderson()
        elif isinstance(state, VarianceReducedState):
            chosen = self.noisy
        return chosen.step(problem, state)


def _climb(
    algorithm: Algorithm, problem: Problem, params: Params, bar: float, most: float
) -> tuple[State, float, float]:
    """Return the state after some steps, the objective that the last began at, and passes, about `most` at most.

    They end where the objective is above `bar`, or would not get there in `TRIAL_STEPS` at the pace of the last steps.
    """
    state, objectives, passes = None, [-math.inf], 0.0
    try:
        state = algorithm.init(problem, params)
        while len(objectives) <= TRIAL_STEPS and objectives[-1] <= bar and passes < most:
            state, info = algorithm.step(problem, state)
            objectives.append(info.objective)
            passes = info.passes
            if len(objectives) > FIRST_STEPS:
                pace = (objectives[-1] - objectives[-1 - PACE_STEPS]) / PACE_STEPS
                if objectives[-1] + pace * (TRIAL_STEPS - len(objectives) + 1) < bar:
                    break
    except TOO_FAR:
        return state, -math.inf, passes
    return state, objectives[-1], passes


def _settles(sample: Problem, params: Params) -> bool:
    """Return whether `QUICK_STEPS` steps on a sample leave no more to gain than its precision asks for."""
    state, objectives = BatchEM().init(sample, params), []
    for _ in range(QUICK_STEPS + 1):
        state, info = BatchEM().step(sample, state)
        objectives.append(info.objective)
    before, gain = np.diff(objectives)[-2:]
    return may_gain(float(gain), float(before)) <= STAGE_SHARE * _precision(sample, state.params, objectives[-1])


def _precision(problem: Problem, params: Params, objective: float) -> float:
    # What is no log-likelihood, such as a sum of squares, varies in proportion to itself.
    return problem.precision(params) * (1.0 if offers(problem.model, HasLogProb) else abs(objective))


def _n_free(problem: Problem, params: Params) -> float:
    """Return the number of free parameters, times the rows to draw for one of positive weight."""
    return 2.0 * problem.n_rows * problem.precision(params)
