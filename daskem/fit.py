"""fit(): the one loop of the library."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np

from daskem.algorithms import AnyOf, Auto, Gain, MaxPasses
from daskem.core import Algorithm, Event, HasMemory, Model, Params, StepInfo, StopRule, objective_kind, require
from daskem.data import Dataset, check_unchanged, open_dataset, stamps
from daskem.engine import (
    CompressedProblem,
    DataProblem,
    Engine,
    LeftOut,
    Plan,
    check_compress,
    check_on_bad_unit,
    compressed,
    one_blas_thread,
    start_engine,
    usable_rows,
    warn_of_unlike_workers,
)
from daskem.errors import OptionError
from daskem.inference import Diagnosis, diagnose
from daskem.persist import SavedFit, SavedRun
from daskem.runs import begin, last_objective, open_checkpoints, reopened, run_all, without_budgets
from daskem.starts import check_features, check_init_sample, check_rows, check_side_columns, components_of, draw_start

__all__ = ["FitResult", "check_whole", "fit"]

logger = logging.getLogger("daskem")

Callback = Callable[[StepInfo, Params], None]


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit found, and how.

    Attributes
    ----------
    model, params : what was fitted, and the parameters found.
    trace : log lines of the steps, in order; of the best start, where there were several; of a stream, the latest.
    converged : whether a stop rule that means convergence ended the fit.
    reason : why it ended, in words.
    plan : what the planner computed before the first read.
    seconds : wall-clock seconds, the start included.
    passes : passes that the steps of all starts made, those they shared counted once: over the data, or over their
        distinct rows where these took their place.
    objectives : last objective of each start.
    patterns : distinct rows that took the place of all, found in one pass over the data; None if all rows were used.
    left_out : rows that could not be used, and that the fit did without (``on_bad_unit="skip"``).
    data : what was fitted to, with weights and labels; None for a stream, of an estimator, and in a copy or pickle.
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
    patterns: int | None = None
    left_out: tuple[LeftOut, ...] = ()
    data: Dataset | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # Rows in memory would be pickled with it.
        return vars(self) | {"data": None}

    @property
    def objective(self) -> float:
        """Mean objective per unit weight, nats, at the params that the last step started from."""
        return self.trace[-1].objective

    @property
    def n_steps(self) -> int:
        """Number of steps made, those among them whose log lines a stream has let go."""
        return self.trace[-1].step

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

    def diagnose(
        self,
        data: Any = None,
        *,
        max_rows: int | str | None = "auto",
        seed: int = 0,
        memory_limit: Any = None,
        **given: Any,
    ) -> Diagnosis:
        """Say what data tell of the parameters, and what they cannot; one pass.

        Parameters
        ----------
        data : by default what was fitted to, with its weights and labels.
        max_rows, seed, memory_limit : as for `daskem.diagnose`.
        **given : what comes with `data`: ``sample_weight``, ``y``, ``columns``, ... (see `daskem.diagnose`).

        Raises
        ------
        OptionError
            If no data are given, and the result has none: those of a stream are gone, and none are copied or pickled.
        """
        if data is None and self.data is None:
            raise OptionError("this result does not hold the data it is of. Give them: result.diagnose(data).")
        if data is None and given:
            raise OptionError(f"{', '.join(given)}: the data of the result have theirs. Give data to say others.")
        dataset = self.data if data is None else data
        return diagnose(self, dataset, max_rows=max_rows, seed=seed, memory_limit=memory_limit, **given)

    def summary(self) -> dict[str, Any]:
        """Return the figures of the fit as plain values, for JSON and model files."""
        return {
            "objective": self.objective,
            "objective_kind": objective_kind(self.model),
            "objective_error": self.trace[-1].error,
            "objectives": [info.objective for info in self.trace],
            "trace": {
                "passes": [info.passes for info in self.trace],
                "seconds": [info.seconds for info in self.trace],
                "stages": [info.stage for info in self.trace],
                "exact": [info.exact for info in self.trace],
            },
            "starts": list(self.objectives),
            "steps": self.n_steps,
            "passes": self.passes,
            "patterns": self.patterns,
            "weight": self.trace[-1].weight,
            "converged": self.converged,
            "reason": self.reason,
            "seconds": self.seconds,
            "events": self.repairs(),
            "left_out": [asdict(run) for run in self.left_out],
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
    compress: str = "auto",
    memory_limit: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_interval: float = 60.0,
    resume: str = "auto",
    on_bad_unit: str = "raise",
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
        Components of a given start keep their meaning: `Auto` makes no moves from it (see `daskem.Progressive`).
    n_init : number of starts. They run side by side and share each pass; the best final objective wins.
    init_sample : rows to draw for the start, ``"auto"`` for as many as cost little, or ``"k-means||"`` for
        a weighted sample that six passes over all data gather where rows are far from those chosen before.
    sample_weight, y : weight and label (-1 = unknown, or (n, k) label probabilities) of each row, from any source.
    seed : seed of everything random.
    cache : ``"auto"``, ``"none"`` or ``"memory"``: whether decoded rows are kept from pass to pass.
    compress : ``"auto"``, ``"never"`` or ``"always"``: whether one pass counts the distinct rows, which then take the
        place of all, with the same result: where the model is of discrete data (a mixture whose family has a true
        attribute `discrete`), the algorithm takes all rows in each step, and a look at some promises few distinct ones;
        or in any case. All rows are kept where more than 262,144, or one in eight, are distinct.
    memory_limit : bytes, or text such as ``"2GB"``, that a process may reach; by default 0.6 of what there is.
    checkpoint : directory to commit the fit to as it goes; the same call goes on from there, to the same bits, and so
        does one with a larger budget (`MaxPasses`, `MaxSteps`, `MaxSeconds`) after that has been used up.
    checkpoint_interval : seconds between commits, 0 for one after every step. There is one more at the beginning, at
        the end, and when the fit is interrupted.
    resume : ``"auto"`` to go on from a checkpoint if there is one, ``"must"`` to insist, ``"never"`` to replace it.
    on_bad_unit : ``"raise"`` to refuse data of which a chunk is missing, damaged or not finite; ``"skip"`` to find such
        chunks in a pass of their own, and to fit what is left: the result says what was left out.
    **source : ``columns``, ``rows``, ``array``, ``allow_missing``: see `daskem.data.open_source`.

    Returns
    -------
    FitResult

    Raises
    ------
    DataError, OptionError, PlanError
        Before work starts, if the data, an option or the memory needed cannot be right.
    CheckpointError
        If a checkpoint is of another fit, is missing or in use, or cannot be written twice in a row.
    NonFiniteError
        If rows hold NaN or infinity; names the store, the chunk and the rows.
    """
    clock = time.perf_counter()
    algorithm, rules = algorithm or Auto(), _stop_rules(stop)
    _check_suited(model, algorithm)
    starts = _given_starts(params)
    _check_numbers(n_init, seed, init_sample)
    check_compress(compress, model)
    check_on_bad_unit(on_bad_unit, source.get("allow_missing"))
    source |= {"sample_weight": sample_weight, "y": y}
    skip = on_bad_unit == "skip"
    dataset = open_dataset(data, **source | ({"allow_missing": None} if skip else {}))
    dataset, left_out = usable_rows(dataset, model, memory_limit) if skip else (dataset, ())
    n_starts = len(starts) if starts else n_init
    dataset = _checked(dataset, model, starts, memory_limit)
    before = stamps(dataset)
    identity = {"model": model, "algorithm": algorithm, "stop": without_budgets(rules), "params": starts}
    identity |= {"n_init": n_starts, "init_sample": init_sample, "seed": seed, "compress": compress}
    kept = open_checkpoints(checkpoint, checkpoint_interval, resume, dataset, identity)
    # Also for this process's own arithmetic: M-steps are many small products, which BLAS threads only slow down.
    with kept, one_blas_thread():
        saved = reopened(kept.load(), rules, model)
        engine = start_engine(
            dataset,
            model,
            seed=seed,
            members=n_starts,
            sample_rows=None if isinstance(init_sample, str) else init_sample,
            cache="none" if saved is not None and saved.finished else cache,
            memory_limit=memory_limit,
            memory=algorithm.memory if isinstance(algorithm, HasMemory) else None,
        )
        warn_of_unlike_workers(engine.executor)
        problem, saved = _begun(model, engine, algorithm, saved, compress, starts or (n_init, init_sample))
        runs = run_all(
            algorithm, problem, saved, rules, tuple(callbacks), kept, partial(check_unchanged, dataset, before)
        )
    result = _result(model, engine.plan, runs, saved.seconds + time.perf_counter() - clock)
    return replace(result, patterns=saved.patterns, left_out=left_out, data=dataset)


def _checked(dataset: Dataset, model: Model, starts: list[Params] | None, memory_limit: Any) -> Dataset:
    """Return the data, which suit the model and the parameters to start from, their rows of positive weight counted."""
    check_rows(dataset, components_of(model))
    for params in starts or ():
        check_features(dataset, model, params)
    return check_side_columns(dataset, model, memory_limit)


def _begun(
    model: Model,
    engine: Engine,
    algorithm: Algorithm,
    saved: SavedFit | None,
    compress: str,
    starts: list[Params] | tuple[int, str | int],
) -> tuple[DataProblem, SavedFit]:
    """Return the problem, of distinct rows where that pays, and the fit: as it was saved, or before its first step.

    `starts` are parameters, or how many to draw from what sample.
    """
    problem = DataProblem(model, engine, movable=not isinstance(starts, list))
    if saved is None or not saved.finished:
        problem = compressed(problem, compress, getattr(algorithm, "full_passes", False))
    if saved is None:
        # Starts are drawn from all rows, distinct or not.
        drawn = starts if isinstance(starts, list) else _starts(model, engine, *starts)
        saved = begin(algorithm, problem, drawn)
    return problem, replace(saved, patterns=problem.n_rows) if isinstance(problem, CompressedProblem) else saved


def _check_numbers(n_init: int, seed: int, init_sample: str | int) -> None:
    check_whole("n_init", n_init)
    check_whole("seed", seed, least=0)
    check_init_sample(init_sample)


def _check_suited(model: Model, algorithm: Algorithm) -> None:
    for name, value in (("model", model), ("algorithm", algorithm)):
        if isinstance(value, type):
            raise OptionError(f"{name}={value.__name__} is a class. Give an object of it: {value.__name__}(...).")
    if hasattr(model, "get_params") and callable(getattr(model, "fit", None)):
        raise OptionError(
            f"model={model!r:.60} is an estimator: call its own fit(X). daskem.fit takes a model, such as "
            "daskem.models.Mixture(daskem.models.Gaussian(), 3)."
        )
    if isinstance(algorithm, str):
        raise OptionError(
            f"algorithm={algorithm!r} is a name, which estimators and the command line take. daskem.fit takes an "
            "algorithm, such as daskem.algorithms.BatchEM()."
        )
    for capability in getattr(algorithm, "needs", ()):
        require(model, capability, type(algorithm).__name__)


def _result(model: Model, plan: Plan, runs: Sequence[SavedRun], seconds: float) -> FitResult:
    best = max(runs, key=last_objective)
    logger.info("%s after %d steps: %s", "converged" if best.converged else "stopped", len(best.trace), best.reason)
    return FitResult(
        model,
        best.state.params,
        tuple(best.trace),
        best.converged,
        best.reason or "",
        plan,
        seconds,
        max(run.trace[-1].passes for run in runs),
        tuple(run.trace[-1].objective for run in runs),
    )


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


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise OptionError unless `value` is a whole number of at least `least`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or value < least:
        raise OptionError(f"{name}={value!r} must be a whole number, at least {least}.")
