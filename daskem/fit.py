"""fit(): the one loop of the library."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskem.algorithms import AnyOf, Auto, Gain, MaxPasses, decrease, rounding_of, step_together
from daskem.core import Algorithm, Event, HasMemory, Model, Params, State, StepInfo, StopRule, objective_kind, require
from daskem.data import open_dataset
from daskem.engine import DataProblem, Engine, Plan, one_blas_thread, start_engine
from daskem.errors import DaskEMWarning, OptionError
from daskem.starts import check_init_sample, check_rows, check_side_columns, components_of, draw_start

__all__ = ["FitResult", "fit"]

logger = logging.getLogger("daskem")

Callback = Callable[[StepInfo, Params], None]


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit found, and how.

    Attributes
    ----------
    model, params : what was fitted, and the parameters found.
    trace : log lines of the steps, in order; of the best start, where there were several.
    converged : whether a stop rule that means convergence ended the fit.
    reason : why it ended, in words.
    plan : what the planner computed before the first read.
    seconds : wall-clock seconds, the start included.
    passes : passes over the data that the steps of all starts made, those they shared counted once.
    objectives : last objective of each start.
    """

    model: Model
    params: Params
    trace: tuple[StepInfo, ...]
    converged: bool
    reason: str
    plan: Plan
    seconds: float
    passes: float
    objectives: tuple[float, ...]

    @property
    def objective(self) -> float:
        """Mean objective per unit weight, nats, at the params that the last step started from."""
        return self.trace[-1].objective

    @property
    def n_steps(self) -> int:
        """Number of steps made."""
        return len(self.trace)

    @property
    def events(self) -> tuple[Event, ...]:
        """All that steps had to repair, such as empty components."""
        return tuple(event for info in self.trace for event in info.events)

    def repairs(self) -> list[dict[str, Any]]:
        """Return the events, told once for each component and kind: how often, and at which steps first and last."""
        told: dict[tuple[int, str], dict[str, Any]] = {}
        for event in self.events:
            key = (event.component, event.what)
            first = {"component": event.component, "what": event.what, "first": event.step, "count": 0}
            entry = told.setdefault(key, first)
            entry |= {"last": event.step, "count": entry["count"] + 1}
        return list(told.values())

    def summary(self) -> dict[str, Any]:
        """Return the figures of the fit as plain values, for JSON and model files."""
        return {
            "objective": self.objective,
            "objective_kind": objective_kind(self.model),
            "objective_error": self.trace[-1].error,
            "objectives": [info.objective for info in self.trace],
            "starts": list(self.objectives),
            "steps": self.n_steps,
            "passes": self.passes,
            "weight": self.trace[-1].weight,
            "converged": self.converged,
            "reason": self.reason,
            "seconds": self.seconds,
            "events": self.repairs(),
            "plan": self.plan.as_dict(),
        }


def fit(
    model: Model,
    data: Any,
    *,
    algorithm: Algorithm | None = None,
    stop: StopRule | Sequence[StopRule] | None = None,
    callbacks: Iterable[Callback] = (),
    params: Params | Sequence[Params] | None = None,
    n_init: int = 1,
    init_sample: str | int = "auto",
    sample_weight: Any = None,
    y: Any = None,
    seed: int = 0,
    cache: str = "auto",
    memory_limit: Any = None,
    **source: Any,
) -> FitResult:
    """Fit `model` to `data`, wherever the data are and wherever Dask runs.

    Parameters
    ----------
    model : any object with ``init``, ``e_step`` and ``m_step`` (see `daskem.core.Model`).
    data : anything `daskem.data.open_source` takes: Zarr path, URL or array, Dask array, numpy array, ...
    algorithm : how parameters move; `Auto`, which chooses, by default.
    stop : one or more rules, by default less than 1e-3 nats per row to gain, or 100 passes.
    callbacks : each called with (StepInfo, params) after every round of steps: those of the best start so far.
    params : where to start; a list of several for several starts. By default ``model.init`` on a sample of rows.
    n_init : number of starts. They run side by side and share each pass; the best final objective wins.
    init_sample : rows to draw for the start, ``"auto"`` for as many as cost little, or ``"k-means||"`` for
        a weighted sample that six passes over all data gather where rows are far from those chosen before.
    sample_weight, y : weight and label (-1 = unknown, or (n, k) label probabilities) of each row, from any source.
    seed : seed of everything random.
    cache : ``"auto"``, ``"none"`` or ``"memory"``: whether decoded rows are kept from pass to pass.
    memory_limit : bytes, or text such as ``"2GB"``, that a process may reach; by default 0.6 of what there is.
    **source : ``columns``, ``rows``, ``array``, ``allow_missing``: see `daskem.data.open_source`.

    Returns
    -------
    FitResult

    Raises
    ------
    DataError, OptionError, PlanError
        Before work starts, if the data, an option or the memory needed cannot be right.
    NonFiniteError
        If rows hold NaN or infinity; names the store, the chunk and the rows.
    """
    clock = time.perf_counter()
    algorithm, rules = algorithm or Auto(), _stop_rules(stop)
    for capability in getattr(algorithm, "needs", ()):
        require(model, capability, type(algorithm).__name__)
    starts = _given_starts(params)
    check_init_sample(init_sample)
    dataset = open_dataset(data, sample_weight=sample_weight, y=y, **source)
    n_starts = len(starts) if starts else _positive("n_init", n_init)
    check_rows(dataset, components_of(model))
    check_side_columns(dataset, model, memory_limit)
    engine = start_engine(
        dataset,
        model,
        seed=seed,
        members=n_starts,
        sample_rows=None if isinstance(init_sample, str) else init_sample,
        cache=cache,
        memory_limit=memory_limit,
        memory=algorithm.memory if isinstance(algorithm, HasMemory) else None,
    )
    # Also for this process's own arithmetic: M-steps are many small products, which BLAS threads only slow down.
    with one_blas_thread():
        starts = _starts(model, engine, n_starts, init_sample) if starts is None else starts
        problem = DataProblem(model, engine)
        rules = rules.resolve(problem.precision(starts[0]))
        runs = _run(algorithm, problem, starts, rules, tuple(callbacks))
    best = max(runs, key=_last_objective)
    logger.info("%s after %d steps: %s", "converged" if best.converged else "stopped", len(best.trace), best.reason)
    return FitResult(
        model,
        best.state.params,
        best.trace,
        best.converged,
        best.reason or "",
        engine.plan,
        time.perf_counter() - clock,
        max(run.trace[-1].passes for run in runs),
        tuple(run.trace[-1].objective for run in runs),
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """One start on its way: its state, what it has logged, and why it ended."""

    state: State
    trace: tuple[StepInfo, ...] = ()
    reason: str | None = None
    converged: bool = False


def _run(
    algorithm: Algorithm,
    problem: DataProblem,
    starts: Sequence[Params],
    rules: AnyOf,
    callbacks: tuple[Callback, ...],
) -> list[_Run]:
    runs = [_Run(algorithm.init(problem, params)) for params in starts]
    rounding = rounding_of(problem.engine.data.dtype)
    while active := [i for i, run in enumerate(runs) if run.reason is None]:
        stepped = step_together(algorithm, problem, [runs[i].state for i in active])
        for i, (state, info) in zip(active, stepped, strict=True):
            runs[i] = _advance(runs[i], state, info, rules, rounding)
        best = max(runs, key=_last_objective)
        # A start that has ended may still be the best one, while this step was the others'.
        latest = runs[active[0]].trace[-1]
        info = replace(best.trace[-1], step=latest.step, passes=latest.passes, seconds=latest.seconds)
        for callback in callbacks:
            callback(info, best.state.params)
    return runs


def _last_objective(run: _Run) -> float:
    return run.trace[-1].objective


def _advance(run: _Run, state: State, info: StepInfo, rules: AnyOf, rounding: float) -> _Run:
    trace = (*run.trace, info)
    known = {(event.component, event.what) for before in run.trace for event in before.events}
    for event in info.events:
        if (event.component, event.what) not in known:
            logger.warning("step %d, component %d: %s", event.step, event.component, event.what)
    amount = decrease(trace, rounding)
    if amount and not trace[-2].events:
        warnings.warn(
            f"the objective fell by {amount:.3g} nats per row at step {info.step - 1}, beyond rounding. EM cannot do "
            "that: the M-step does not maximise what the E-step states, or a penalty is left out of the objective.",
            DaskEMWarning,
            stacklevel=4,
        )
    ended = rules.which(trace)
    if ended is None:
        return replace(run, state=state, trace=trace)
    return _Run(state, trace, ended[1], ended[0].converged)


def _starts(model: Model, engine: Engine, n: int, init_sample: str | int) -> list[Params]:
    sample = draw_start(engine, model, init_sample)
    return [
        model.init(sample, np.random.Generator(np.random.Philox(key=engine.seed, counter=[0, 0, 0, i])))
        for i in range(n)
    ]


def _stop_rules(stop: StopRule | Sequence[StopRule] | None) -> AnyOf:
    if stop is None:
        return AnyOf((Gain(), MaxPasses(100)))
    rules = tuple(stop) if isinstance(stop, (list, tuple)) else (stop,)
    if not rules:
        raise OptionError("stop=() never stops. Give at least one rule, such as daskem.MaxPasses(100).")
    return AnyOf(rules)


def _given_starts(params: Params | Sequence[Params] | None) -> list[Params] | None:
    if isinstance(params, list) and not params:
        raise OptionError("params=[] holds no parameters to start from. Leave it out to start from a sample of rows.")
    return None if params is None else (list(params) if isinstance(params, list) else [params])


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise OptionError(f"{name}={value} is not positive.")
    return value
