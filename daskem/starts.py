"""Where a fit starts from: a sample of rows, drawn across all data; and what is checked before."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple, cast

import numpy as np

from daskem import tree
from daskem.core import Array, Chunk, Float, HasSupport, Int, Params, handles_missing
from daskem.data import Dataset, Source
from daskem.engine import Engine, start_engine
from daskem.errors import DaskEMWarning, DataError, NonFiniteError, OptionError
from daskem.models import Gaussian, KMeans, Mixture, StudentT
from daskem.models.initialization import assign, fill_holes, means_present, unique_rows

__all__ = [
    "ROUNDS",
    "check_features",
    "check_init_sample",
    "check_rows",
    "check_side_columns",
    "components_of",
    "distinct",
    "draw_start",
    "features_of",
]

# Bahmani et al. (2012), section 5: five rounds with l = 2k bring the cost to that of k-means++.
ROUNDS = 5
OVERSAMPLING = 2
# An estimate of phi may be too large by about this, at least where few rows have weight; rows beyond MAX_DRAWN in a
# round are never among the l kept.
SURPLUS, MAX_DRAWN = 4.0, 1 << 16
# Features that a message names before it only counts.
MAX_NAMED = 10
# Sums of squares of larger values, or of smaller differences than one over it, leave the range of double precision.
LARGEST = 1e152


def draw_start(engine: Engine, model: object, init_sample: str | int) -> Chunk:
    """Return the rows that ``model.init`` gets: a uniform sample, or the weighted candidates of k-means||."""
    rng = np.random.Generator(np.random.Philox(key=engine.seed, counter=[0, 0, 1, 0]))
    k, missing = components_of(model) or 1, handles_missing(model)
    if init_sample == "k-means||":
        sample = _oversample(engine, k, rng, missing)
    else:
        sample = distinct(engine.sample(engine.plan.sample_rows, rng, missing=missing))
    _check_present(engine.data, sample)
    _check_range(engine.data, sample)
    if isinstance(model, HasSupport) and model.unsupported(None, sample.rows):
        # Where such a row lies is known to a pass alone, which fails there.
        engine.fold(_Supported(model), tree.add)
    _check_distinct(engine.data, sample, k)
    family = getattr(model, "family", None)
    if isinstance(family, (Gaussian, StudentT)) and not family.shape.isotropic:
        _warn_of_constants(engine.data, sample, family.reg_covar)
    return sample


def _check_present(data: Dataset, sample: Chunk) -> None:
    """Refuse a feature without any value."""
    empty = np.flatnonzero(np.isnan(sample.rows).all(axis=0)).tolist()
    if empty:
        raise DataError(
            f"{data.rows.name}: feature(s) {_names(data, empty)} are missing (NaN) in all rows drawn for the start. "
            "Nothing can be learnt of a feature without values: leave it out, or, where a few rows have it, draw more "
            "rows with init_sample."
        )


def _check_range(data: Dataset, sample: Chunk) -> None:
    """Refuse features whose values, or whose differences, have squares that double precision cannot hold."""
    low, high = (bound(sample.rows, axis=0).astype(np.float64) for bound in (np.nanmin, np.nanmax))
    spread = high / 2 - low / 2
    vast = np.maximum(-low, high) > LARGEST
    bad = np.flatnonzero(vast | ((spread > 0) & (spread < 1 / LARGEST)))
    if bad.size:
        raise DataError(
            f"{data.rows.name}: feature(s) {_names(data, bad.tolist())} have values from {low[bad[0]]:g} to "
            f"{high[bad[0]]:g}, whose squares are beyond double precision. Look for fill values, or rescale the data."
        )


def _names(data: Dataset, features: list[int]) -> str:
    names = [data.rows.columns[i] if data.rows.columns else i for i in features[:MAX_NAMED]]
    more = f" and {len(features) - MAX_NAMED} more" if len(features) > MAX_NAMED else ""
    return f"{', '.join(map(str, names))}{more}"


def _check_distinct(data: Dataset, sample: Chunk, n_components: int) -> None:
    """Refuse to look for several components in copies of one row; warn where components outnumber distinct rows."""
    # The sample holds a row once for each of its labels, -1 among them.
    few = len(sample) <= n_components * (n_components + 1)
    n_distinct = len(unique_rows(sample.rows)[0]) if few else n_components
    if n_distinct == 1 and n_components > 1:
        raise DataError(
            f"{data.rows.name} has one distinct row: all that were drawn for the start are equal, so that "
            f"{n_components} components cannot be told apart. Look whether the right array and columns were chosen, or "
            "draw more rows with init_sample."
        )
    if 0 < n_distinct < n_components:
        warnings.warn(
            f"{data.rows.name} has {n_distinct} distinct rows among those drawn for the start, fewer than the "
            f"{n_components} components. Some components will share a row or be empty: use fewer.",
            DaskEMWarning,
            stacklevel=2,
        )


def _warn_of_constants(data: Dataset, sample: Chunk, reg_covar: float) -> None:
    constant = np.flatnonzero(np.nanmin(sample.rows, axis=0) == np.nanmax(sample.rows, axis=0)).tolist()
    if not constant:
        return
    warnings.warn(
        f"{data.rows.name}: constant feature(s) {_names(data, constant)} in all rows drawn for the start. "
        f"Their variance is the floor alone (reg_covar={reg_covar:g}), and adds a constant to every log density. "
        "Leave them out if they are constant throughout.",
        DaskEMWarning,
        stacklevel=2,
    )


def components_of(model: object) -> int | None:
    """Return the number of components (or clusters) of a model that has them."""
    k = getattr(model, "n_components", None) or getattr(model, "n_clusters", None)
    return None if k is None else int(k)


def check_init_sample(init_sample: str | int) -> None:
    """Refuse, before anything is read, what says neither how to draw a start nor how many rows to draw."""
    if init_sample in ("auto", "k-means||"):
        return
    if isinstance(init_sample, bool) or not isinstance(init_sample, Integral) or init_sample < 1:
        raise OptionError(f"init_sample={init_sample!r} is neither 'auto', 'k-means||' nor a positive number of rows.")


def distinct(sample: Chunk) -> Chunk:
    """Return the distinct rows (with labels) of a sample in a canonical order, weighted with their multiplicity.

    A start then depends neither on the order of rows nor on whether a row is repeated or weighted.
    """
    n_features = sample.rows.shape[1]
    keys = sample.rows if sample.labels is None else np.column_stack([sample.rows, sample.labels])
    rows, which = unique_rows(keys)
    weight = np.bincount(which, sample.weight, len(rows)).astype(np.float64)
    labels = None
    if sample.labels is not None:
        known = rows[:, n_features] if sample.labels.ndim == 1 else rows[:, n_features:]
        labels = np.ascontiguousarray(known, sample.labels.dtype)
    return Chunk(np.ascontiguousarray(rows[:, :n_features], sample.rows.dtype), weight, labels, seed=sample.seed)


@dataclass(frozen=True, eq=False)
class _Supported:
    """Per-block work that has no answer where a model cannot have a row."""

    model: HasSupport

    @property
    def handles_missing(self) -> bool:
        return handles_missing(self.model)

    def __call__(self, chunk: Chunk) -> float:
        return math.nan if self.why(chunk.rows) else 0.0

    def why(self, rows: Array) -> tuple[int, str] | None:
        return self.model.unsupported(None, rows)


@dataclass(frozen=True, eq=False)
class _OfBlocks:
    """What the passes of k-means|| know: the centres so far, and the values (d,) that stand in for missing ones."""

    centres: Float
    fill: Float
    handles_missing: bool


@dataclass(frozen=True, eq=False)
class _Draw(_OfBlocks):
    """Per-block work of a round of k-means||: the cost of the rows, and rows drawn in proportion to theirs."""

    rate: float
    round: int
    seed: int

    def __call__(self, chunk: Chunk) -> _Drawn:
        cost = _cost(chunk, self.centres, self.fill)[0]
        uniform = Chunk(chunk.rows, start=chunk.start, seed=self.seed).uniform(self.round, 1)[:, 0]
        with np.errstate(over="ignore"):
            drawn = uniform < self.rate * cost
        # A row would be drawn at any rate above this.
        rows = chunk.rows[drawn]
        return _Drawn(float(cost.sum()), fill_holes(rows, self.fill), np.isnan(rows), uniform[drawn] / cost[drawn])


class _Drawn(NamedTuple):
    """Cost of the rows of a block; those drawn, their holes filled; which these are; and what each was drawn by."""

    cost: float
    rows: Array
    holes: Array
    rates: Float


def _join_draws(a: _Drawn, b: _Drawn) -> _Drawn:
    """Put draws together, the likeliest first; those beyond `MAX_DRAWN` cannot be among the few that are kept."""
    rows, holes, rates = (np.concatenate(pair) for pair in zip(a[1:], b[1:], strict=True))
    if len(rows) > MAX_DRAWN:
        first = np.sort(np.argsort(rates, kind="stable")[:MAX_DRAWN])
        rows, holes, rates = rows[first], holes[first], rates[first]
    return _Drawn(a.cost + b.cost, rows, holes, rates)


@dataclass(frozen=True, eq=False)
class _Count(_OfBlocks):
    """Per-block work at the end of k-means||: the weight of the rows nearest to each centre."""

    def __call__(self, chunk: Chunk) -> Float:
        _, nearest, weight = _cost(chunk, self.centres, self.fill)
        return np.bincount(nearest, weight, len(self.centres)).astype(np.float64)


def _oversample(engine: Engine, n_clusters: int, rng: np.random.Generator, missing: bool) -> Chunk:
    """Return candidate centres, weighted with the rows nearest to them; `ROUNDS` + 1 passes.

    Bahmani, Moseley, Vattani, Kumar & Vassilvitskii (2012), Scalable k-means++, PVLDB 5(7), algorithm 2: in each round
    a row is drawn with probability l d^2(x, C) / phi, independently of all others. Their phi, the cost of all rows,
    takes a pass of its own in each round; here it is estimated from a uniform sample, rows are drawn at a rate that is
    rather too high, and those that the true phi, known at the end of the pass, would not have drawn are dropped.
    Missing values count as the feature's mean in the sample. Rows of the sample whose component is known are added.
    """
    drawn = engine.sample(engine.plan.sample_rows, rng, missing=missing)
    _check_present(engine.data, drawn)
    fill = means_present(drawn.rows, np.ones(len(drawn)))
    sample = replace(drawn, rows=fill_holes(drawn.rows, fill))
    rows = drawn.rows[[int(rng.integers(len(drawn)))]]
    centres = fill_holes(rows, fill).astype(np.float64)
    wanted = OVERSAMPLING * n_clusters
    for i in range(ROUNDS):
        phi = float(_cost(sample, centres, fill)[0].mean()) * engine.data.n_present
        rate = SURPLUS * wanted / phi if phi else np.finfo(np.float64).max
        far = engine.fold(_Draw(centres, fill, missing, rate, i + 1, engine.seed), _join_draws)
        if far.cost == 0.0:
            break
        kept = far.rates < wanted / far.cost
        rows = np.concatenate([rows, np.where(far.holes, np.nan, far.rows)[kept]])
        centres = fill_holes(rows, fill).astype(np.float64)
    counts = engine.fold(_Count(centres, fill, missing), tree.add)
    candidates = Chunk(rows[counts > 0].astype(np.float64), counts[counts > 0], seed=engine.seed)
    return candidates if drawn.labels is None else _with_known(candidates, drawn)


def _with_known(candidates: Chunk, sample: Chunk) -> Chunk:
    """Return candidates of unknown component, and the rows of a sample whose component is known, or partly so."""
    labels = cast(Array, sample.labels)
    blank, known = (-1, labels >= 0) if labels.ndim == 1 else (1.0, (labels != 1.0).any(axis=1))
    unknown = np.full((len(candidates), *labels.shape[1:]), blank, labels.dtype)
    weight = np.ones(len(sample)) if sample.weight is None else sample.weight
    return replace(
        candidates,
        rows=np.concatenate([candidates.rows, sample.rows[known]]),
        weight=np.concatenate([cast(Float, candidates.weight), weight[known]]),
        labels=np.concatenate([unknown, labels[known]]),
    )


def _cost(chunk: Chunk, centres: Float, fill: Float) -> tuple[Float, Int, Float]:
    """Return each row's weighted squared distance to its nearest centre, that centre, and the row's weight."""
    rows = fill_holes(chunk.rows, fill)
    # Relative to the first centre: coordinates far from zero would cancel in |x|^2 - 2 x c + |c|^2.
    nearest, distance = assign(rows - centres[0], centres - centres[0])
    weight: Float = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
    return np.where(weight > 0, weight * distance, 0.0), nearest, weight


def check_rows(data: Dataset, n_components: int | None) -> None:
    """Raise `DataError` where there are fewer rows than components."""
    if n_components is not None and data.n_rows < n_components:
        raise DataError(
            f"{data.rows.name} has {data.n_rows} rows (n_samples), fewer than the {n_components} components to fit. "
            "Use fewer components, or look whether the right array was chosen."
        )


def features_of(model: object, params: Params) -> int | None:
    """Return the number of features that parameters are of, None where the model does not tell."""
    return model.n_features(params) if isinstance(model, Mixture | KMeans) else None


def check_features(data: Dataset, model: object, params: Params) -> None:
    """Raise `DataError` where rows have other features than parameters are of."""
    d = features_of(model, params)
    if d is not None and d != data.n_features:
        raise DataError(
            f"{data.rows.name} has {data.n_features} features, but the parameters are of {d}. Choose the columns that "
            "they were fitted to (columns=)."
        )


def check_side_columns(data: Dataset, model: object, memory_limit: Any) -> Dataset:
    """Check weights and labels before any work; return the data, their rows of positive weight counted.

    Raises
    ------
    DataError
        If weights are negative, not finite or all zero; if labels are neither -1 nor the index of a component; if label
        probabilities are not one a component, from 0 to 1, forbid all components of a row, or the model takes none.
    """
    if data.weight is not None:
        weight = _summary(data.weight, memory_limit)
        if not (weight.low >= 0 and math.isfinite(weight.total)):
            raise DataError(f"sample_weight ({data.weight.name}) holds negative, NaN or infinite values.")
        if weight.total == 0:
            raise DataError(f"sample_weight ({data.weight.name}) is zero for all rows: there is nothing to fit.")
        data = replace(data, present=data.n_rows - weight.zero_rows)
    if data.labels is not None and data.labels.shape[1] == 1:
        _check_labels(data.labels, memory_limit, components_of(model))
    elif data.labels is not None:
        _check_label_probabilities(data.labels, memory_limit, model)
    return data


def _check_labels(source: Source, memory_limit: Any, n_components: int | None) -> None:
    labels = _summary(source, memory_limit)
    upper = math.inf if n_components is None else n_components
    if not (labels.whole and labels.low >= -1 and labels.high < upper):
        most = "the number of components" if n_components is None else str(n_components)
        raise DataError(
            f"labels ({source.name}) range from {labels.low:g} to {labels.high:g}"
            f"{'' if labels.whole else ' and are not all whole numbers'}. A label is the index of a component, "
            f"0 to {most} - 1, or -1 where it is not known."
        )


def _check_label_probabilities(source: Source, memory_limit: Any, model: object) -> None:
    width, k = source.shape[1], components_of(model)
    if not getattr(model, "soft_labels", False):
        raise DataError(
            f"labels ({source.name}) have {width} columns, and {type(model).__name__} takes no label probabilities. "
            "Give one label a row, -1 where it is not known."
        )
    if k is not None and width != k:
        raise DataError(
            f"labels ({source.name}) have {width} columns, but the model has {k} components. Give one label a row, or "
            "the probability of each component."
        )
    found = _summary(source, memory_limit)
    if not (found.low >= 0 and found.high <= 1):
        raise DataError(
            f"labels ({source.name}) range from {found.low:g} to {found.high:g}. Label probabilities lie between 0 "
            "(forbidden) and 1; a row of ones says that nothing is known."
        )
    if found.zero_rows:
        raise DataError(
            f"labels ({source.name}) forbid all components of {found.zero_rows} row(s), which are zero throughout. "
            "Where nothing is known, a row holds ones."
        )


@dataclass(frozen=True)
class _Summary:
    low: float
    high: float
    total: float
    whole: bool
    zero_rows: int


def _summary(source: Source, memory_limit: Any) -> _Summary:
    engine = start_engine(Dataset(source), None, cache="none", memory_limit=memory_limit)
    try:
        summary: _Summary = engine.fold(_summarise, _join_summaries)
    except NonFiniteError:
        return _Summary(math.nan, math.nan, math.nan, False, 0)
    return summary


def _join_summaries(a: _Summary, b: _Summary) -> _Summary:
    return _Summary(
        min(a.low, b.low), max(a.high, b.high), a.total + b.total, a.whole and b.whole, a.zero_rows + b.zero_rows
    )


def _summarise(chunk: Chunk) -> _Summary:
    x = chunk.rows
    whole, zero_rows = bool((x == np.floor(x)).all()), int((x == 0).all(axis=1).sum())
    return _Summary(float(x.min()), float(x.max()), float(x.sum(dtype=np.float64)), whole, zero_rows)
