"""Which of several models to keep: their likelihoods on the same rows, and what their parameters cost."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import entr

from daskem import tree
from daskem.core import (
    Chunk,
    Float,
    Footprint,
    HasFootprint,
    HasLogProb,
    HasNParameters,
    HasPosterior,
    Model,
    Params,
    handles_missing,
    require,
    used_columns,
)
from daskem.data import open_dataset
from daskem.engine import check_on_bad_unit, start_engine, usable_rows
from daskem.errors import OptionError
from daskem.fit import FitResult, fit
from daskem.persist import any_path

__all__ = ["Candidate", "Criterion", "Selection", "select"]

# Assumed of models that do not tell their footprint.
DEFAULT_BLOCK, DEFAULT_BYTES = 4096, 1 << 20

Criterion = Literal["aic", "bic", "icl"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A fitted model and its figures; of the criteria, lower is better.

    Attributes
    ----------
    result : the fit.
    log_prob : sum over rows of log p(x), nats, at the parameters found; without priors.
    n_parameters : p.
    aic : 2 p - 2 log_prob [1]_.
    bic : p log n - 2 log_prob, n the weight of the rows [2]_.
    icl : bic + 2 sum of the entropies of the rows' posteriors [3]_; NaN of a model without a posterior.

    References
    ----------
    .. [1] Akaike (1974), IEEE Transactions on Automatic Control 19(6), 716-723.
    .. [2] Schwarz (1978), Annals of Statistics 6(2), 461-464.
    .. [3] Biernacki, Celeux & Govaert (2000), IEEE Transactions on Pattern Analysis and Machine Intelligence 22(7),
       719-725, in the form of McLachlan & Peel (2000), Finite Mixture Models, section 6.10.3.
    """

    result: FitResult
    log_prob: float
    n_parameters: int
    aic: float
    bic: float
    icl: float


@dataclass(frozen=True, eq=False)
class Selection:
    """Candidates in the order in which they were given, and the criterion that chooses among them."""

    candidates: tuple[Candidate, ...]
    criterion: Criterion

    @property
    def best(self) -> FitResult:
        """The fit with the lowest value of the criterion."""
        values = [getattr(candidate, self.criterion) for candidate in self.candidates]
        return self.candidates[int(np.nanargmin(values))].result

    def table(self) -> list[dict[str, Any]]:
        """Return one row a candidate, for a data frame."""
        return [
            {
                "model": repr(candidate.result.model),
                "n_components": getattr(candidate.result.model, "n_components", None),
                "log_prob": candidate.log_prob,
                "n_parameters": candidate.n_parameters,
                "aic": candidate.aic,
                "bic": candidate.bic,
                "icl": candidate.icl,
                "converged": candidate.result.converged,
            }
            for candidate in self.candidates
        ]


def select(
    models: Sequence[Model],
    data: Any,
    criterion: Criterion = "bic",
    *,
    sample_weight: Any = None,
    y: Any = None,
    memory_limit: Any = None,
    columns: Any = None,
    rows: Any = None,
    array: str | None = None,
    allow_missing: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    on_bad_unit: str = "raise",
    **options: Any,
) -> Selection:
    """Fit several models to the same data and compare them.

    Models are fitted one after the other, each with passes of its own; one more pass, shared, gives the figures.

    Parameters
    ----------
    models : such as ``[Mixture(Gaussian(), k) for k in range(1, 9)]``; each with ``log_prob`` and ``n_parameters``.
    criterion : "aic", "bic" or "icl".
    data, sample_weight, y, memory_limit, columns, rows, array, allow_missing, on_bad_unit, **options : as for
        `daskem.fit`.
    checkpoint : directory in which each fit has one of its own, "0", "1", ... in the order of the models.

    Returns
    -------
    Selection

    Raises
    ------
    OptionError
        If there are no models, or the criterion is unknown.
    MissingCapabilityError
        If a model has no density, or does not tell its number of parameters.
    """
    _check(models, criterion)
    check_on_bad_unit(on_bad_unit, allow_missing)
    skip = on_bad_unit == "skip"
    source = {"columns": columns, "rows": rows, "array": array, "allow_missing": None if skip else allow_missing}
    dataset = open_dataset(data, sample_weight=sample_weight, y=y, **source)
    # All models see the same rows: those that the most demanding of them can use.
    largest = _Largest(tuple(models))
    dataset, left_out = usable_rows(dataset, largest, memory_limit) if skip else (dataset, ())
    places = [None if checkpoint is None else str(any_path(checkpoint) / str(i)) for i in range(len(models))]
    results = [
        replace(fit(model, dataset, memory_limit=memory_limit, checkpoint=place, **options), left_out=left_out)
        for model, place in zip(models, places, strict=True)
    ]
    engine = start_engine(dataset, largest, cache="none", memory_limit=memory_limit)
    sums = engine.fold(_Figures(tuple((result.model, result.params) for result in results)), tree.add)
    every = zip(results, sums.log_prob.tolist(), sums.entropy.tolist(), strict=True)
    return Selection(tuple(_candidate(*one, sums.weight) for one in every), criterion)


def _candidate(result: FitResult, log_prob: float, entropy: float, weight: float) -> Candidate:
    p = require(result.model, HasNParameters, "model selection").n_parameters(result.params)
    bic = p * math.log(weight) - 2 * log_prob
    return Candidate(result, log_prob, p, 2 * p - 2 * log_prob, bic, bic + 2 * entropy)


def _check(models: Sequence[Model], criterion: str) -> None:
    if not models:
        raise OptionError("there are no models to select from. Give a list, such as one for each number of components.")
    if criterion not in ("aic", "bic", "icl"):
        raise OptionError(f"criterion={criterion!r} is not one of 'aic', 'bic', 'icl'.")
    for model in models:
        # An objective that is no log density, such as that of k-means, cannot be weighed against parameters.
        require(model, HasLogProb, "model selection")
        require(model, HasNParameters, "model selection")
    if criterion == "icl":
        for model in models:
            require(model, HasPosterior, "the criterion 'icl'")


@dataclass(frozen=True, eq=False)
class _Figures:
    """Per-block work: log p(x) and the entropy of the posterior of each model, summed over rows, and their weight."""

    fitted: tuple[tuple[Any, Params], ...]

    @property
    def handles_missing(self) -> bool:
        return all(handles_missing(model) for model, _ in self.fitted)

    def __call__(self, chunk: Chunk) -> _Sums:
        chunk = chunk.present()
        said = [model.e_step(params, chunk).objective for model, params in self.fitted]
        entropies = [_entropy(model, params, chunk) for model, params in self.fitted]
        return _Sums(np.array(said), np.array(entropies), chunk.total_weight)


@dataclass(frozen=True, eq=False)
class _Sums:
    log_prob: Float
    entropy: Float
    weight: float


@dataclass(frozen=True)
class _Largest:
    """What the engine is told of several models, looked at one after the other: the most that any needs."""

    models: tuple[Any, ...]

    @property
    def handles_missing(self) -> bool:
        """Whether NaN stands for a missing value to all."""
        return all(map(handles_missing, self.models))

    @property
    def used_columns(self) -> tuple[int, ...] | None:
        """The columns that any looks at, None for all."""
        told = [used_columns(model) for model in self.models]
        return None if None in told else tuple(sorted({column for one in told if one for column in one}))

    def footprint(self, n_features: int, dtype: np.dtype[Any]) -> Footprint:
        """Return the shortest block, and the most bytes."""
        told = [model.footprint(n_features, dtype) for model in self.models if isinstance(model, HasFootprint)]
        told = told or [Footprint(DEFAULT_BLOCK, 8 * DEFAULT_BLOCK * 8 * n_features, DEFAULT_BYTES, DEFAULT_BYTES)]
        rows = min(one.block_rows for one in told)
        return Footprint(rows, *(max(one[i] for one in told) for i in range(1, 4)))


def _entropy(model: Any, params: Params, chunk: Chunk) -> float:
    if not isinstance(model, HasPosterior):
        return math.nan
    resp = np.asarray(model.posterior(params, chunk), np.float64)
    rows = entr(resp).sum(axis=1)
    return float(rows.sum() if chunk.weight is None else chunk.weight @ rows)
