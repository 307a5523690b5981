"""Whether the data can determine the parameters at all; and where they can, how closely."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daskem.core import (
    Array,
    Chunk,
    Float,
    HasLogPrior,
    HasLogProb,
    HasParameterNames,
    HasVector,
    Params,
    handles_missing,
    objective_kind,
    offers,
    require,
)
from daskem.data import open_dataset
from daskem.engine import start_engine
from daskem.errors import DataError, OptionError
from daskem.inference.directions import resolve
from daskem.inference.findings import Finding, find
from daskem.inference.scores import (
    Evidence,
    ScorePass,
    ScoreWork,
    count_components,
    difference_steps,
    has_scores,
    merge,
)
from daskem.starts import check_features, check_side_columns, components_of

__all__ = ["Diagnosis", "diagnose"]

# Rows that scores are taken of unless told otherwise: a covariance of p parameters is known to 1 / sqrt(20) in its
# least known direction from 20 p rows.
MAX_ROWS, ROWS_PER_PARAMETER = 100_000, 20
# Rows that finite differences are adjusted to.
SAMPLE_ROWS = 1024
# Step of the delta method, in standard errors: functions of parameters are nearly linear over so little.
DELTA_STEP = 1e-3
# Coordinates of a direction, and standard errors, that a report shows.
MAX_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What the data say of a model's parameters, and what they do not.

    Attributes
    ----------
    names : (p,) names of the coordinates of the model's unconstrained vector.
    vector : (p,) where they are.
    information : (p, p) covariance of the scores per unit weight, nats per coordinate squared.
    score : (p,) mean score; zero at a maximum of the likelihood.
    weight : weight of the rows.
    rows : weight of the rows whose scores were taken.
    free : (p,) which coordinates can move; others lie at infinity, such as the logit of a probability of 0.
    rank : number of directions in parameter space that the data tell of.
    unseen : (m, p) the other directions: moving along one changes log p(x) of no row.
    covariance : (p, p) of the estimates, over the directions that the data tell of.
    standard_errors : (p,) of the coordinates; NaN of those that an unseen direction moves, and those that cannot move.
    findings : what stands in the way, in words.
    exchangeable : number of components whose order is arbitrary, so that their k! orders are equally good; 0 where rows
        have labels, which fix it.

    Notes
    -----
    With s_i the score, the gradient of log p(x_i | params), the information of a row is estimated by
    I = sum_i w_i s_i s_i^T / W, and standard errors by the diagonal of (W I)^-1 [1]_. Parameters are locally
    identifiable where I has full rank [2]_. Both suppose that the model is right.

    References
    ----------
    .. [1] Berndt, Hall, Hall & Hausman (1974), Annals of Economic and Social Measurement 3(4), 653-665.
    .. [2] Rothenberg (1971), Econometrica 39(3), 577-591, theorem 1.
    """

    names: tuple[str, ...]
    vector: Float
    information: Float
    score: Float
    weight: float
    rows: float
    free: Array
    rank: int
    unseen: Float
    covariance: Float
    standard_errors: Float
    findings: tuple[Finding, ...]
    exchangeable: int
    model: HasVector
    params: Params

    @property
    def identifiable(self) -> bool:
        """Whether the data determine all parameters: full rank, and no component that is empty or a copy."""
        return self.rank == int(self.free.sum()) and not any(finding.fatal for finding in self.findings)

    def directions(self) -> list[dict[str, float]]:
        """Return the directions that the data say nothing about: name of each coordinate moved, and by how much."""
        return [{self.names[j]: float(row[j]) for j in np.flatnonzero(row)} for row in self.unseen]

    def standard_errors_of(self, function: Callable[[Params], npt.ArrayLike]) -> Float:
        """Return standard errors of a function of the parameters, in its own shape, by the delta method.

        Parameters
        ----------
        function : such as ``lambda params: params.weights``.

        Raises
        ------
        OptionError
            If the data do not determine all parameters: the function may depend on the others.
        """
        if self.rank < int(self.free.sum()):
            raise OptionError(
                f"the data determine {self.rank} of {int(self.free.sum())} parameters. Functions of all of them have "
                "no standard errors; see `standard_errors` for the coordinates that have."
            )
        slopes = [self._slope(function, j) for j in range(len(self.vector))]
        jacobian = np.stack(slopes, axis=-1)
        return np.asarray(np.sqrt(np.einsum("...i,ij,...j->...", jacobian, self.covariance, jacobian)))

    def as_dict(self) -> dict[str, Any]:
        """Return the conclusions as plain values, for JSON."""
        return {
            "identifiable": self.identifiable,
            "rank": self.rank,
            "parameters": len(self.names),
            "free": int(self.free.sum()),
            "weight": self.weight,
            "rows": self.rows,
            "exchangeable": self.exchangeable,
            "findings": [{"what": f.what, "components": list(f.components), "text": f.text} for f in self.findings],
            "unseen": self.directions(),
            "estimates": [
                {"name": name, "value": float(value), "standard_error": float(error)}
                for name, value, error in zip(self.names, self.vector, self.standard_errors, strict=True)
            ],
        }

    def __str__(self) -> str:
        verdict = "identifiable" if self.identifiable else "NOT identifiable"
        lines = [f"{verdict}: the data tell of {self.rank} directions of {int(self.free.sum())} free parameters"]
        lines += [f"- {finding.what}: {finding.text}" for finding in self.findings]
        if len(self.unseen):
            lines.append("the data say nothing about")
            lines += [f"- {_in_words(direction)}" for direction in self.directions()[:MAX_SHOWN]]
            lines += _more(len(self.unseen), "directions")
        if self.exchangeable > 1:
            lines.append(f"the {self.exchangeable}! orders of the components are equally good: that is no defect")
        lines.append(f"estimates with standard errors, from {self.rows:,.0f} of {self.weight:,.0f} rows")
        for name, value, error in list(zip(self.names, self.vector, self.standard_errors, strict=True))[:MAX_SHOWN]:
            lines.append(f"- {name}: {value:.6g} +- {error:.3g}" if error == error else f"- {name}: {value:.6g}")
        return "\n".join(lines + _more(len(self.names), "parameters"))

    def _slope(self, function: Callable[[Params], npt.ArrayLike], j: int) -> Float:
        step = DELTA_STEP * self.standard_errors[j]
        values = []
        for sign in (1.0, -1.0):
            moved = self.vector.copy()
            # A coordinate that cannot move has no error either.
            moved[j] += sign * step if self.free[j] else 0.0
            values.append(np.asarray(function(self.model.from_vector(moved, self.params)), np.float64))
        return np.asarray((values[0] - values[1]) / (2 * step) if self.free[j] else 0.0 * values[0])


def diagnose(
    fitted: Any,
    data: Any,
    *,
    params: Params = None,
    sample_weight: Any = None,
    y: Any = None,
    max_rows: int | str | None = "auto",
    seed: int = 0,
    memory_limit: Any = None,
    **source: Any,
) -> Diagnosis:
    """Say what `data` tell of the parameters of a fitted model, and what they cannot; one pass.

    Parameters
    ----------
    fitted : a `FitResult`, a fitted estimator, a loaded model, or a model whose `params` are given. The model must have
        ``to_vector`` and ``from_vector``, and ``scores`` or (at 2 p evaluations a row) ``log_prob``.
    data, sample_weight, y, memory_limit, **source : as for `daskem.fit`; the data that the model was fitted to.
    max_rows : rows whose scores are taken, spread over all the data at random; None for all. By default 100,000, or 20
        for each parameter if that is more. Weights of components and how they overlap are always those of all rows.
    seed : seed of the choice of rows.

    Returns
    -------
    Diagnosis

    Raises
    ------
    MissingCapabilityError
        If the model lacks a method that is needed; the message names it.
    NonFiniteError
        If rows hold NaN or infinity, or the model cannot explain a row.
    PlanError
        If the work cannot fit into memory.
    """
    model, params = _model_and_params(fitted, params)
    if objective_kind(model) == "lower bound":
        raise OptionError(
            f"a {type(model).__name__} has a distribution of parameters, whose spread is in it, and no maximum to "
            "diagnose. Fit the same family by maximum likelihood."
        )
    vector = require(model, HasVector, "a diagnosis").to_vector(params)
    free = np.isfinite(vector)
    dataset = open_dataset(data, sample_weight=sample_weight, y=y, **source)
    check_features(dataset, model, params)
    dataset = check_side_columns(dataset, model, memory_limit)
    work = ScoreWork(model, len(vector), components_of(model) or 1)
    engine = start_engine(dataset, work, seed=seed, sample_rows=SAMPLE_ROWS, cache="none", memory_limit=memory_limit)
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, 0]))
    drawn = engine.sample(SAMPLE_ROWS, rng, missing=handles_missing(model))
    sample = Chunk(np.ascontiguousarray(drawn.rows, np.float64), labels=drawn.labels)
    steps = None
    if not has_scores(model, params, sample):
        require(model, HasLogProb, "a diagnosis")
        steps = difference_steps(model, params, vector, free, sample)
    share = min(1.0, _row_limit(max_rows, len(vector), dataset.n_present) / dataset.n_present)
    k = count_components(model, params, sample)
    scoring = ScorePass(model, params, vector, free, steps, k, share, seed)
    return _conclude(scoring, engine.fold(scoring, merge), scoring.rounding(sample), dataset.labels is not None)


def _conclude(scoring: ScorePass, evidence: Evidence, floor: Float, labelled: bool) -> Diagnosis:
    model, params, vector, free = scoring.model, scoring.params, scoring.vector, scoring.free
    sums = evidence.sums
    if sums.used == 0:
        raise DataError("no row was drawn to take the scores of. Raise max_rows, or leave it out.")
    information = sums.information / sums.used
    score = sums.score / sums.used
    names = _names(model, params, len(vector))
    where = np.flatnonzero(free)
    resolved = resolve(information[np.ix_(where, where)], floor[where])
    covariance = np.zeros_like(information)
    covariance[np.ix_(where, where)] = resolved.inverse / sums.weight
    unseen = np.zeros((len(resolved.unseen), len(vector)))
    unseen[:, where] = resolved.unseen
    errors = np.full(len(vector), np.nan)
    known = where[resolved.determined]
    errors[known] = np.sqrt(np.diagonal(covariance)[known])
    away = math.nan
    if sums.used == sums.weight and not (isinstance(model, HasLogPrior) and model.log_prior(params)):
        away = sums.weight * math.sqrt(max(0.0, float(score @ covariance @ score)))
    return Diagnosis(
        names,
        vector,
        information,
        score,
        sums.weight,
        sums.used,
        free,
        resolved.rank,
        unseen,
        covariance,
        errors,
        find(model, params, names, free, resolved.rank, evidence, away),
        0 if labelled or sums.held is None else len(sums.held),
        model,
        params,
    )


def _model_and_params(fitted: Any, params: Params) -> tuple[Any, Params]:
    if params is not None:
        return fitted, params
    fitted = getattr(fitted, "result_", fitted)
    if not (hasattr(fitted, "model") and hasattr(fitted, "params")):
        raise OptionError(
            f"a {type(fitted).__name__} has no parameters to diagnose. Give the result of a fit, a fitted estimator, "
            "or a model and its params=."
        )
    return fitted.model, fitted.params


def _names(model: Any, params: Params, p: int) -> tuple[str, ...]:
    if offers(model, HasParameterNames):
        return tuple(model.parameter_names(params))
    return tuple(f"parameter {i}" for i in range(p))


def _row_limit(max_rows: int | str | None, p: int, n_rows: int) -> int:
    if max_rows is None:
        return n_rows
    if isinstance(max_rows, str):
        if max_rows != "auto":
            raise OptionError(f"max_rows={max_rows!r} is neither 'auto', None nor a number of rows.")
        return max(MAX_ROWS, ROWS_PER_PARAMETER * p)
    if max_rows < 1:
        raise OptionError(f"max_rows={max_rows} is not positive.")
    return max_rows


def _in_words(direction: dict[str, float]) -> str:
    moves = [f"{name} by {by:.4g}" for name, by in direction.items()]
    rest = f" and {len(moves) - MAX_SHOWN} more" if len(moves) > MAX_SHOWN else ""
    if len(moves) == 1:
        return next(iter(direction))
    return "moving " + ", ".join(moves[:MAX_SHOWN]) + rest


def _more(n: int, what: str) -> list[str]:
    return [f"  and {n - MAX_SHOWN} more {what}"] if n > MAX_SHOWN else []
