"""Runs: starts on their way, stepped together until each has a reason to stop, and committed as they go."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daskem.algorithms import AnyOf, decrease, rounding_of, step_together
from daskem.core import Algorithm, Model, Params, State, StepInfo, has_floor
from daskem.data import Dataset, fingerprint
from daskem.data.writers import check_apart
from daskem.engine import DataProblem
from daskem.errors import CheckpointError, DaskEMWarning, OptionError
from daskem.persist import Checkpoints, SavedFit, SavedRun, any_path, describe, record_classes

__all__ = ["Unkept", "begin", "last_objective", "open_checkpoints", "reopened", "run_all", "without_budgets"]

logger = logging.getLogger("daskem")

# Among what a run has told: that the objective fell, which a floor may do at each step.
FALLEN = (-1, "the objective fell")

Callback = Callable[[StepInfo, Params], None]


class Unkept:
    """In the place of `daskem.persist.Checkpoints` where none were asked for: keeps nothing."""

    def __enter__(self) -> Unkept:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def load(self) -> None:
        """Return None: there is nothing to go on from."""

    def due(self) -> bool:
        """Return False: it is never time to commit."""
        return False

    def save(self, fit: SavedFit) -> bool:
        """Keep nothing."""
        return False


def open_checkpoints(
    directory: str | os.PathLike[str] | None, interval: float, resume: str, data: Dataset, identity: Mapping[str, Any]
) -> Checkpoints | Unkept:
    """Return the checkpoints of the fit to `data` that all this makes.

    Parameters
    ----------
    identity : what else makes this fit this fit: model, algorithm, rules of convergence, starting parameters, options.

    Raises
    ------
    OptionError
        If an option makes no sense, or the directory lies in the data.
    ContractError
        If model, algorithm or stop rules cannot be told from others, not being dataclasses.
    """
    if directory is None:
        if resume == "must":
            raise OptionError("resume='must' needs a directory to go on from: give checkpoint= (--checkpoint).")
        return Unkept()
    check_apart(str(any_path(directory)), data.sources, replaced=False)
    described = {"data": fingerprint(data), **describe(**identity)}
    return Checkpoints(any_path(directory), described, record_classes(*identity.values()), interval, resume)


def begin(algorithm: Algorithm, problem: DataProblem, starts: Sequence[Params]) -> SavedFit:
    """Return a fit before its first step."""
    runs = tuple(SavedRun(algorithm.init(problem, params), ()) for params in starts)
    return SavedFit(runs, problem.precision(starts[0]), 0.0)


def without_budgets(rules: AnyOf) -> AnyOf:
    """Return the rules that say when a fit has converged: how far one call takes it there is no part of what it is."""
    return AnyOf(tuple(rule for rule in rules.rules if rule.converged))


def reopened(fit: SavedFit | None, rules: AnyOf, model: Model) -> SavedFit | None:
    """Return a fit that was saved, with runs that ended on a budget going on as far as `rules` let them."""
    if fit is None:
        return None
    resolved = rules.resolve(fit.precision, has_floor(model))
    return replace(fit, runs=tuple(_judged(run, resolved) for run in fit.runs))


def _judged(run: SavedRun, rules: AnyOf) -> SavedRun:
    if run.reason is None or run.converged:
        return run
    rule, reason = rules.which(run.trace) or (None, None)
    return replace(run, reason=reason, converged=rule is not None and rule.converged)


def last_objective(run: SavedRun) -> float:
    """Return the objective of a run's last step."""
    return run.trace[-1].objective


def run_all(
    algorithm: Algorithm,
    problem: DataProblem,
    fit: SavedFit,
    rules: AnyOf,
    callbacks: Sequence[Callback],
    kept: Checkpoints | Unkept,
    check: Callable[[], None],
) -> list[SavedRun]:
    """Step the runs of `fit` until each has ended.

    Parameters
    ----------
    check : called after the last step, to raise if what the steps saw cannot be right.
    """
    if fit.finished:
        return list(fit.runs)
    floor = has_floor(problem.model)
    rules = rules.resolve(fit.precision, floor)
    rounding = rounding_of(problem.engine.data.dtype)
    runs = [_Run.of(run) for run in fit.runs]
    keeper = _Keeper(kept, fit)
    if not any(run.n_steps for run in runs):
        # What it took to find a start is kept too, and a state that cannot be stored is found before any work.
        keeper.keep(runs)
    try:
        while active := [i for i, run in enumerate(runs) if run.reason is None]:
            stepped = step_together(algorithm, problem, [runs[i].state for i in active])
            # Not a comprehension, which before Python 3.12 is one more frame between a warning and who called `fit`.
            advanced = list(runs)
            for i, step in zip(active, stepped, strict=True):
                advanced[i] = runs[i].after(*step, rules, rounding, floor)
            # One assignment: whatever interrupts this loop finds the runs before a step or after it.
            runs = advanced
            _call_back(callbacks, runs, active[0])
            if kept.due() and any(run.reason is None for run in runs):
                keeper.keep(runs)
        check()
    except BaseException as error:
        keeper.rescue(runs, error)
        raise
    keeper.keep(runs)
    return [run.saved() for run in runs]


def _call_back(callbacks: Sequence[Callback], runs: Sequence[_Run], stepped: int) -> None:
    best = max(runs, key=lambda run: run.log[-1].objective)
    # A start that has ended may still be the best one, while this step was the others'.
    latest = runs[stepped].log[-1]
    info = replace(best.log[-1], step=latest.step, passes=latest.passes, seconds=latest.seconds)
    for callback in callbacks:
        callback(info, best.state.params)


@dataclass(frozen=True, eq=False)
class _Run:
    """One start on its way.

    Attributes
    ----------
    state, reason, converged : as in `SavedRun`.
    log : log lines, shared with the run's later selves; the first `n_steps` are this one's.
    told : (component, what) of the events that were logged, shared likewise.
    """

    state: State
    log: list[StepInfo]
    told: set[tuple[int, str]] = field(default_factory=set)
    n_steps: int = 0
    reason: str | None = None
    converged: bool = False

    @classmethod
    def of(cls, run: SavedRun) -> _Run:
        told = {(event.component, event.what) for info in run.trace for event in info.events}
        return cls(run.state, list(run.trace), told, len(run.trace), run.reason, run.converged)

    def saved(self) -> SavedRun:
        return SavedRun(self.state, self.log[: self.n_steps], self.reason, self.converged)

    def after(self, state: State, info: StepInfo, rules: AnyOf, rounding: float, floor: bool) -> _Run:
        """Return the run one step later."""
        for event in info.events:
            if (event.component, event.what) not in self.told:
                self.told.add((event.component, event.what))
                logger.warning("step %d, component %d: %s", event.step, event.component, event.what)
        self.log.append(info)
        if not (floor and FALLEN in self.told) and _warn_of_decrease(self.log, rounding, floor):
            self.told.add(FALLEN)
        rule, reason = rules.which(self.log) or (None, None)
        return _Run(state, self.log, self.told, len(self.log), reason, rule is not None and rule.converged)


def _warn_of_decrease(log: Sequence[StepInfo], rounding: float, floor: bool) -> bool:
    amount = decrease(log, rounding)
    if not amount or log[-2].events:
        return False
    why = (
        "reg_covar adds to variances what the likelihood does not know of, and is not small beside them. A fall below "
        "the tolerance counts as convergence; with prior='conjugate' there is none."
        if floor
        else "EM cannot do that: the M-step does not maximise what the E-step states, or a penalty is left out of the "
        "objective."
    )
    told = f"the objective fell by {amount:.3g} nats per row at step {log[-1].step - 1}, beyond rounding. {why}"
    warnings.warn(told, DaskEMWarning, stacklevel=5)
    return True


class _Keeper:
    """Commits runs, each state of them once."""

    def __init__(self, kept: Checkpoints | Unkept, fit: SavedFit) -> None:
        self.kept, self.fit = kept, fit
        self.clock = time.perf_counter()
        self.latest: Sequence[_Run] | None = None

    def keep(self, runs: Sequence[_Run]) -> None:
        if isinstance(self.kept, Unkept):
            return
        saved = tuple(run.saved() for run in runs)
        seconds = self.fit.seconds + time.perf_counter() - self.clock
        if self.kept.save(replace(self.fit, runs=saved, seconds=seconds)):
            self.latest = runs

    def rescue(self, runs: Sequence[_Run], error: BaseException) -> None:
        """Commit what an error or an interrupt would lose, and note there where it is; nothing must hide `error`."""
        if isinstance(self.kept, Unkept):
            return
        try:
            if runs is not self.latest:
                self.keep(runs)
        except (CheckpointError, DaskEMWarning) as fault:
            logger.warning("%s", fault)
        if runs is self.latest:
            steps = max(run.n_steps for run in runs)
            where = f"{self.kept.directory}, after {steps} steps"
            error.add_note(f"The fit is committed to {where}; run the same again to go on.")
