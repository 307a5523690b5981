"""Stepwise EM: statistics blended with those of one mini-batch after another, streamed from disk."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from daskem import tree
from daskem.algorithms.points import Point, evaluate, log_step, may_gain, rebased
from daskem.core import Batch, Expectation, Params, Problem, Sizes, Stats, StepInfo
from daskem.errors import OptionError

__all__ = ["StepwiseEM", "StepwiseState", "blend", "check_numbers", "check_rates", "usual_rows", "window_bytes"]


@dataclass(frozen=True, eq=False)
class StepwiseState:
    """State of `StepwiseEM`.

    Attributes
    ----------
    params : what to use: those of the averaged statistics where there are any, else the current ones.
    current : parameters that the next mini-batch is seen with.
    stats, averaged : blended statistics, and their average; None before there are any.
    n_averaged : statistics that the average is of.
    objective : on the held-out rows when they were last looked at, nats per unit weight.
    at_epoch, gain, before : their objective when the epoch began, and what the last two epochs gained.
    step : mini-batches seen, one a step.
    passes : so far, looks at the held-out rows included.
    """

    params: Params
    current: Params
    stats: Stats = None
    averaged: Stats = None
    n_averaged: int = 0
    objective: float = -math.inf
    at_epoch: float = -math.inf
    gain: float = math.inf
    before: float = math.inf
    step: int = 0
    passes: float = 0.0


@dataclass(frozen=True)
class StepwiseEM:
    """Stepwise (online, mini-batch) EM (Cappé & Moulines 2009; Liang & Klein 2009); a step is a mini-batch.

    The statistics become (1 - rate) times the old ones plus rate times the mini-batch's, scaled to all rows, and the
    M-step follows. rate = (t + offset)^-decay for the t-th mini-batch, and 1 for the first.

    Parameters
    ----------
    batch_rows : rows of a mini-batch; by default so many that 64 make an epoch, between 1,000 and 100,000.
    decay : exponent in (0.5, 1]; None for a constant `rate`, which goes on forgetting: for data that drift.
    offset : delays the decay, not negative; a large one makes the first steps small.
    rate : the constant rate, in (0, 1].
    warm_up : mini-batches blended before the first M-step.
    window : pieces of the data whose rows are mixed, 16 by default (see `daskem.core.Batch`).
    average : return the parameters of the mean of the statistics in the second half of the epoch (Polyak & Juditsky
        1992), which takes out most of the noise of mini-batches.
    held_out : rows, at most a tenth of all, that no mini-batch holds; the objective is that of these, looked at four
        times an epoch.

    Notes
    -----
    [1]_, equation (16), averaging in section 2.4; [2]_, section 3.2. The objective varies with the held-out rows, and
    may fall. The gain of an epoch on them tells what is still to be gained, hence when to stop.

    References
    ----------
    .. [1] Cappé & Moulines (2009), J. R. Stat. Soc. B 71(3), 593-613.
    .. [2] Liang & Klein (2009), NAACL HLT, 611-619.
    """

    batch_rows: int | None = None
    decay: float | None = 0.7
    offset: float = 2.0
    rate: float = 0.05
    warm_up: int = 1
    window: int | None = None
    average: bool = False
    held_out: int = 10_000

    def __post_init__(self) -> None:
        check_rates(self.decay, self.offset, self.rate)
        check_numbers(self, "batch_rows", "warm_up", "window", "held_out")

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes of the window in use, of the next one, and of putting it together."""
        return window_bytes(self.window, sizes) + 3 * self._held_out(sizes.n_rows) * sizes.row + 2 * sizes.stats

    def init(self, problem: Problem, params: Params) -> StepwiseState:
        problem.n_batches(self._batch(problem, 0))
        return StepwiseState(params, params, passes=problem.sample_passes(self._held_out(problem.n_rows)))

    def step(self, problem: Problem, state: StepwiseState) -> tuple[StepwiseState, StepInfo]:
        clock, number = time.perf_counter(), state.step + 1
        batch = self._batch(problem, state.step)
        n_batches = problem.n_batches(batch)
        epoch, place = divmod(state.step, n_batches)
        state = self._watch(problem, state, place, n_batches)
        found = problem.expect(state.current, batch, step=number)
        rate = self.rate_of(number)
        stats, params = blend(problem, state.stats, found, state.current, rate, wait=number < self.warm_up)
        seen = 1.0 - self._held_out(problem.n_rows) / problem.n_rows
        passes = state.passes + seen / n_batches
        new = replace(state, params=params, current=params, stats=stats, step=number, passes=passes)
        new = self._averaged(problem, state, new, second_half=2 * place >= n_batches)
        start = Point(state.params, Expectation(None, 0.0, found.weight / n_batches), state.objective)
        info = log_step(
            problem,
            number,
            start,
            new.params,
            passes=passes,
            clock=clock,
            exact=False,
            remaining=may_gain(state.gain, state.before) if place == 0 and epoch > 1 else math.inf,
            stage=f"epoch {epoch + 1}",
        )
        return new, info

    def _watch(self, problem: Problem, state: StepwiseState, place: int, n_batches: int) -> StepwiseState:
        """Look at the held-out rows, four times an epoch; the gain is that of whole epochs."""
        if place % max(1, n_batches // 4):
            return state
        held_out = problem.subsample(self._held_out(problem.n_rows))
        objective = evaluate(held_out, state.params, step=state.step + 1).objective
        state = replace(state, passes=state.passes + held_out.n_rows / problem.n_rows)
        if place:
            return replace(state, objective=objective)
        gain = objective - state.at_epoch
        return replace(state, objective=objective, at_epoch=objective, gain=gain, before=state.gain)

    def _averaged(self, problem: Problem, old: StepwiseState, new: StepwiseState, second_half: bool) -> StepwiseState:
        if not (self.average and second_half):
            return replace(new, averaged=None, n_averaged=0)
        count = old.n_averaged + 1
        averaged = new.stats
        if old.averaged is not None:
            moved = rebased(problem, old.averaged, old.current, new.current)
            averaged = tree.lerp(moved, new.stats, 1.0 / count)
        return replace(new, averaged=averaged, n_averaged=count, params=problem.maximize(averaged, new.current))

    def rate_of(self, number: int) -> float:
        """Return the share of the statistics that the mini-batch of a number, from 1, replaces."""
        if number == 1:
            return 1.0
        return self.rate if self.decay is None else float((number + self.offset) ** -self.decay)

    def _batch(self, problem: Problem, index: int) -> Batch:
        n_rows = problem.n_rows
        return Batch(index, self.batch_rows or usual_rows(n_rows), self.window, self._held_out(n_rows))

    def _held_out(self, n_rows: int) -> int:
        return max(1, min(self.held_out, n_rows // 10))


def blend(
    problem: Problem, old: Stats, found: Expectation, params: Params, rate: float, *, wait: bool = False
) -> tuple[Stats, Params]:
    """Return ``(1 - rate) old + rate found``, ready for the next blend, and the parameters that it implies.

    Parameters
    ----------
    old : statistics about the references of `params`, or None.
    found : what a mini-batch says at `params`.
    wait : keep the parameters.
    """
    stats = found.stats if old is None else tree.lerp(old, found.stats, rate)
    if wait:
        return stats, params
    new = problem.maximize(stats, params)
    return rebased(problem, stats, params, new), new


def usual_rows(n_rows: int) -> int:
    """Return the rows of a mini-batch of which 64 make an epoch, between 1,000 and 100,000."""
    return min(max(n_rows // 64, 1_000), 100_000, n_rows)


def window_bytes(window: int | None, sizes: Sizes) -> int:
    """Return the bytes of the window in use, of the next one, and of putting it together."""
    return 3 * min((window or 16) * sizes.piece, sizes.n_rows * sizes.row)


def check_numbers(algorithm: object, *names: str) -> None:
    """Raise OptionError unless these fields are whole numbers, at least 1, or None."""
    for name in names:
        value = getattr(algorithm, name)
        if value is not None and (isinstance(value, bool) or not value >= 1):
            raise OptionError(f"{name}={value!r} must be a whole number, at least 1.")


def check_rates(decay: float | None, offset: float, rate: float) -> None:
    """Raise OptionError unless the step sizes converge, or are a constant share."""
    if decay is not None and not 0.5 < decay <= 1.0:
        raise OptionError(
            f"decay={decay} is not in (0.5, 1]: slower steps never settle, and faster ones stop short. "
            "Use 0.6 to 0.9, or decay=None with a constant rate for data that drift."
        )
    if not (offset >= 0 and math.isfinite(offset)):
        raise OptionError(f"offset={offset} must be a finite number, not negative.")
    if not 0 < rate <= 1:
        raise OptionError(f"rate={rate} must be in (0, 1]: the share of the old statistics that a mini-batch replaces.")
