"""Finite mixtures of any family, with rows whose component is known, partly or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Self, cast, get_args

import numpy as np

from daskem import compiled
from daskem.core import Array, Chunk, Expectation, Family, Float, Footprint, Params, Stats
from daskem.errors import MissingCapabilityError, OptionError
from daskem.models.at_once import posterior_stats
from daskem.models.initialization import (
    assign,
    best_of_runs,
    certain_labels,
    few_each,
    few_rows,
    fill_holes,
    kmeans_plus_plus,
    lloyd,
    means_present,
    pieces,
    resp_of_labels,
)
from daskem.models.repair import RESEEDED, split_largest
from daskem.models.split_merge import exchanges

__all__ = ["RECORD_BYTES", "Init", "Mixture", "MixtureParams", "MixtureStats", "block_rows", "tells"]

Init = Literal["kmeans", "k-means++", "random", "random_from_data", "short_em"]

# scikit-learn adds this to the weight of a component; no component then gets the weight zero, which none can leave.
N_FLOOR = 10 * float(np.finfo(np.float64).eps)
# Short runs of EM to start from: how many, their steps, and the rows that they see.
SHORT_RUNS, SHORT_STEPS, SHORT_ROWS = 10, 20, 4096
# Bytes of the responsibilities that moves are found by.
MOVES_BYTES = 16 << 20
# A block's arrays should stay within about this many bytes, in double precision. They pass through the caches in order,
# so that short blocks gain nothing there, while skinny products and the calls of each block cost less a row in long
# ones: with 16 MiB a diagonal mixture took 3% longer (measured). Where a row is done in a tenth of
# a microsecond, two threads wait for each other at the calls of short blocks: 4,096 rows took twice as long as 16,384.
BLOCK_BYTES = 32 << 20
MIN_BLOCK, MAX_BLOCK = 1024, 32768
# With very many components or features even MIN_BLOCK rows would take too much memory.
MAX_BLOCK_BYTES = 128 << 20
# Methods of a mixture that its family must have too.
FAMILY_METHODS = frozenset({"from_vector", "impute", "n_parameters", "sample", "surrogate", "to_vector"})
# Assumed of the statistics, and of the parameters, of a family that does not tell their size.
RECORD_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class MixtureParams:
    """Weights (k,), which sum to one, and the family's parameters of the components."""

    weights: Float
    components: Params


@dataclass(frozen=True, eq=False)
class MixtureStats:
    """Weight n (k,) of the rows in each component, and the family's statistics."""

    n: Float
    components: Stats


@dataclass(frozen=True)
class Mixture:
    """A finite mixture: p(x) = sum_k w_k p(x | component k).

    A row whose label is known counts for that component alone and adds log w_y + log p(x | y) to the objective; label
    probabilities (see `daskem.core.Chunk`) multiply the terms of the row's sum over components. A row of weight zero
    counts as absent. A row that no component explains adds -inf, one that holds NaN adds NaN, unless the family handles
    missing values. Then a row without any value or label adds 0, nothing to the statistics, and its weight: expecting
    it would change no maximum, only slow the way there.

    Parameters
    ----------
    family : the components' family, such as ``Gaussian("full")``.
    n_components : number of components, k.
    init_method : how a sample is first shared out: "kmeans" (k-means++, then Lloyd's iterations), "k-means++" or
        "random_from_data" (to the nearest of k chosen rows), "random" (random responsibilities). These names are
        scikit-learn's; it starts the second and third from components of a single row each, daskem from the rows
        nearest to the chosen ones, whose spread means something. Distances are between the family's embeddings of the
        rows, where it has one. "short_em" is the best of several short runs of EM on a part of the sample, each from
        components of few random rows [2]_: discrete data have no centers. By default what the family prefers, or else
        "kmeans".
    weights_init, means_init, precisions_init : starting values that take the place of what `init_method` gives, in
        scikit-learn's shapes. Means and precisions need a family that has them.
    weight_prior : concentration of a symmetric Dirichlet prior on the weights, at least 1, which is none. Larger values
        keep components from running empty.

    References
    ----------
    .. [1] Dempster, Laird & Rubin (1977), J. R. Stat. Soc. B 39(1), 1-38, section 4.3.
    .. [2] Biernacki, Celeux & Govaert (2003), Computational Statistics & Data Analysis 41, 561-575, section 3.
    """

    family: Family
    n_components: int
    init_method: Init | None = None
    weights_init: Array | None = field(default=None, compare=False, repr=False)
    means_init: Array | None = field(default=None, compare=False, repr=False)
    precisions_init: Array | None = field(default=None, compare=False, repr=False)
    weight_prior: float = 1.0

    soft_labels: ClassVar[bool] = True

    @property
    def discrete(self) -> bool:
        """Whether rows are of discrete columns, so that they may repeat each other."""
        return bool(getattr(self.family, "discrete", False))

    def __post_init__(self) -> None:
        if not isinstance(self.n_components, (int, np.integer)) or self.n_components < 1:
            raise OptionError(f"n_components is {self.n_components!r}; it must be a whole number, at least 1.")
        if self.init_method not in (None, *get_args(Init)):
            raise OptionError(
                f"init_method is {self.init_method!r}; "
                f"it must be one of {', '.join(map(repr, get_args(Init)))}, or None for what the family prefers."
            )
        if not (np.isfinite(self.weight_prior) and self.weight_prior >= 1):
            raise OptionError(
                f"weight_prior is {self.weight_prior!r}; it must be a finite number, at least 1: a smaller Dirichlet "
                "concentration has no highest density within the simplex."
            )

    @property
    def handles_missing(self) -> bool:
        return bool(getattr(self.family, "handles_missing", False))

    @property
    def used_columns(self) -> tuple[int, ...] | None:
        """The columns that the family looks at, None for all."""
        return cast(tuple[int, ...] | None, getattr(self.family, "used_columns", None))

    @property
    def has_floor(self) -> bool:
        return bool(getattr(self.family, "has_floor", False))

    def init(self, sample: Chunk, rng: np.random.Generator) -> MixtureParams:
        """Return starting parameters from a sample; rows of the sample with known labels steer them.

        Raises
        ------
        OptionError
            If the sample is empty or an explicit start has a wrong shape or value.
        """
        sample = sample.present()
        if len(sample) == 0:
            raise OptionError("the sample to start from has no rows of positive weight.")
        weights = None if self.weights_init is None else _checked_weights(self.weights_init, self.n_components)
        params = self._from_resp(sample, self._first_resp(sample, rng), weights)
        if self.means_init is None and self.precisions_init is None:
            return params
        start = self._of_family("with_start", "means_init and precisions_init")
        return replace(params, components=start(params.components, self.means_init, self.precisions_init))

    def moves(self, params: MixtureParams, sample: Chunk, rng: np.random.Generator) -> list[tuple[str, MixtureParams]]:
        """Return parameters from which EM may get higher, with what is different there; see `exchanges`.

        There are none for a mixture whose start was given, or whose rows have labels: its components are not any.
        """
        given = (self.weights_init, self.means_init, self.precisions_init, sample.labels)
        if any(one is not None for one in given):
            return []
        sample = few_rows(sample.present(), MOVES_BYTES // (8 * self.n_components), rng)
        calm = self._calm("k-means++")
        with np.errstate(all="ignore"):
            resp = self.posterior(params, sample).astype(np.float64)
            found = exchanges(calm.family, params.components, resp, sample, replace(calm, n_components=2), rng)
            return [(str(one), self._from_resp(sample, one.exchanged(resp))) for one in found]

    def e_step(self, params: MixtureParams, chunk: Chunk) -> Expectation:
        """Return weights and the family's statistics under the posterior of the component, and the log-likelihood.

        Responsibilities are w_k p(x | k) / p(x), in log space relative to the largest term of the row.
        """
        total_weight = chunk.total_weight
        chunk = chunk.present()
        if self.handles_missing and not (telling := tells(chunk, self.used_columns)).all():
            chunk = chunk.select(telling)
        with np.errstate(all="ignore"):
            stats, row_log_prob = self._posterior_stats(params, chunk) or self._resp_and_stats(params, chunk)
            weighted = row_log_prob if chunk.weight is None else row_log_prob * chunk.weight
            return Expectation(stats, float(weighted.sum()), total_weight)

    def m_step(self, stats: MixtureStats, params: MixtureParams) -> MixtureParams:
        """Return weights and the family's parameters; a reseeded component shares the weight of its donor.

        Weights are n_k / N, or (n_k + a - 1) / (N + k (a - 1)) under a Dirichlet(a) prior.
        """
        components = self.family.m_step(stats.components, params.components)
        n = stats.n
        repaired = getattr(components, "repaired", None)
        if repaired is not None and (repaired == RESEEDED).any():
            _, n = split_largest(n, np.flatnonzero(repaired == RESEEDED).tolist())
        n = n + (self.weight_prior - 1.0) + N_FLOOR
        return MixtureParams(n / n.sum(), components)

    def log_prob(self, params: MixtureParams, chunk: Chunk) -> Float:
        """Return log p(x | params) of each row, (n,), nats."""
        with np.errstate(all="ignore"):
            return self._responsibilities(params, chunk)[1]

    def posterior(self, params: MixtureParams, chunk: Chunk) -> Array:
        """Return p(component | x), (n, k), one for the known component of a labelled row.

        It is NaN where no component explains the row: any number would look like an answer.
        """
        with np.errstate(all="ignore"):
            resp, row_log_prob = self._responsibilities(params, chunk)
            resp[:, ~np.isfinite(row_log_prob)] = np.nan
        # Of one row, or one component, the transposed array would be the scratch itself.
        return resp.T.copy()

    def impute(self, params: MixtureParams, chunk: Chunk) -> Float:
        """Return the rows with sum_k p(k | x) E[missing | present, k] in the place of missing values, (n, d)."""
        own = self._of_family("impute", "imputing missing values")
        return cast(Float, own(params.components, chunk, self.posterior(params, chunk)))

    def surrogate(self, stats: MixtureStats, params: MixtureParams) -> float:
        """Return Q = sum_k n_k log w_k + the family's expected log density, nats."""
        expected = self._of_family("surrogate", "the surrogate of a mixture")(stats.components, params.components)
        return float((stats.n * np.log(params.weights)).sum() + expected)

    def rebase(self, stats: MixtureStats, old: MixtureParams, new: MixtureParams) -> MixtureStats:
        """Return `stats`, made at the parameters `old`, as they would be added to statistics made at `new`.

        Only a family whose statistics are about a point of its parameters has anything to move.
        """
        move = getattr(self.family, "rebase", None)
        return (
            stats if move is None else replace(stats, components=move(stats.components, old.components, new.components))
        )

    def log_prior(self, params: MixtureParams) -> float:
        """Return the log prior density of the weights and of the family's parameters, up to a constant of each."""
        prior = getattr(self.family, "log_prior", None)
        of_weights = (self.weight_prior - 1.0) * float(np.log(params.weights).sum()) if self.weight_prior > 1 else 0.0
        return of_weights + (0.0 if prior is None else float(prior(params.components)))

    def unsupported(self, params: MixtureParams | None, rows: Array) -> tuple[int, str] | None:
        """Return the first row that the family gives no density to, and why; None if there is none."""
        ask = getattr(self.family, "unsupported", None)
        found = None if ask is None else ask(None if params is None else params.components, rows)
        return cast(tuple[int, str] | None, found)

    def events(self, params: MixtureParams) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened) of each component that the M-step had to repair."""
        events = getattr(self.family, "events", None)
        return () if events is None else cast(tuple[tuple[int, str], ...], events(params.components))

    def n_features(self, params: MixtureParams) -> int | None:
        """Return the number of features that parameters are of, None where the family does not tell."""
        tell = getattr(self.family, "n_features", None)
        return int(tell(params.components)) if callable(tell) else None

    def n_parameters(self, params: MixtureParams) -> int:
        """Return the number of free parameters: k - 1 weights and the family's."""
        own = self._of_family("n_parameters", "the number of parameters of a mixture")
        return len(params.weights) - 1 + int(own(params.components))

    def to_vector(self, params: MixtureParams) -> Float:
        """Return log(w_k / w_K) for k < K, then the family's vector, (p,)."""
        log_weights = np.log(params.weights)
        own = self._of_family("to_vector", "the vector of a mixture")
        return np.concatenate([log_weights[:-1] - log_weights[-1], own(params.components)])

    def from_vector(self, vector: Float, params: MixtureParams) -> MixtureParams:
        """Return the parameters of a vector of `to_vector`; `params` supplies what is fixed."""
        k = len(params.weights)
        logits = np.append(vector[: k - 1], 0.0)
        weights = np.exp(logits - logits.max())
        own = self._of_family("from_vector", "the vector of a mixture")
        return MixtureParams(weights / weights.sum(), own(vector[k - 1 :], params.components))

    def parameter_names(self, params: MixtureParams) -> list[str]:
        """Return the names of the coordinates of `to_vector`."""
        names = [f"log weight ratio of component {k}" for k in range(len(params.weights) - 1)]
        own = getattr(self.family, "parameter_names", None)
        if own is not None:
            return names + list(own(params.components))
        width = len(self._of_family("to_vector", "the vector of a mixture")(params.components))
        return names + [f"parameter {i} of the components" for i in range(width)]

    def scores(self, params: MixtureParams, chunk: Chunk) -> Float:
        """Return the gradient of log p(x) of each row in the coordinates of `to_vector`, (n, p), by Fisher's identity.

        A family offers ``scores(params, chunk, resp)``, the gradients of sum_k resp_k log p(x | k) in its own vector.
        """
        own = self._of_family("scores", "the scores of a mixture")
        resp = self.posterior(params, chunk).astype(np.float64)
        return np.concatenate([(resp - params.weights)[:, :-1], own(params.components, chunk, resp)], axis=1)

    def at_bound(self, params: MixtureParams) -> tuple[tuple[int, str], ...]:
        """Return (component, which parameter) of all that the family knows to lie on a bound."""
        own = getattr(self.family, "at_bound", None)
        return () if own is None else cast(tuple[tuple[int, str], ...], own(params.components))

    def sample(self, params: MixtureParams, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return (n, d) rows drawn from the mixture, and the component (n,) of each."""
        components = rng.choice(len(params.weights), size=n, p=params.weights / params.weights.sum())
        return self._of_family("draw", "sampling from a mixture")(params.components, components, rng), components

    def footprint(self, n_features: int, dtype: np.dtype[Any]) -> Footprint:
        """Return block length and bytes, by arithmetic alone (see `block_rows`).

        A family may tell ``row_numbers(k, d)``, the numbers that a block's scratch holds for each row,
        ``record_bytes(k, d)``, the bytes of its statistics and of its parameters, and, where it handles missing values,
        ``missing_bytes(rows, k, d)``, what a block with some takes beside; else modest sizes are assumed.
        """
        k, d = self.n_components, n_features
        row_numbers = getattr(self.family, "row_numbers", None)
        record_bytes = getattr(self.family, "record_bytes", None)
        numbers = 8 * d + 4 * k if row_numbers is None else row_numbers(k, d)
        stats, params = (RECORD_BYTES, RECORD_BYTES) if record_bytes is None else record_bytes(k, d)
        missing_bytes = getattr(self.family, "missing_bytes", None) if self.handles_missing else None
        rows = block_rows(8 * (numbers + k))
        # Single precision rows may need double precision arithmetic; log densities have three small row vectors beside.
        workspace = 8 * rows * (numbers + 2 * k + 8) + 3 * params
        if missing_bytes is not None:
            workspace += missing_bytes(rows, k, d)
        return Footprint(rows, workspace, stats + 8 * k, params + 8 * k, 16 * (d + k))

    @property
    def _start(self) -> Init:
        return cast(Init, self.init_method or getattr(self.family, "start", "kmeans"))

    def offers(self, method: str) -> bool:
        """Return whether the family has what a method of the mixture asks of it."""
        asked = {"sample": "draw"}.get(method, method)
        return method not in FAMILY_METHODS or hasattr(self.family, asked)

    def _posterior_stats(self, params: MixtureParams, chunk: Chunk) -> tuple[MixtureStats, Float] | None:
        """Return statistics and log p(x), (n,), if the family finds them in one go."""
        if chunk.labels is not None:
            return None
        found = posterior_stats(self.family, params.components, chunk, self._log_weights(params))
        return None if found is None else (MixtureStats(*found[:2]), found[2])

    def _resp_and_stats(self, params: MixtureParams, chunk: Chunk) -> tuple[MixtureStats, Float]:
        """Return statistics and log p(x), (n,), by way of the responsibilities."""
        resp, row_log_prob = self._responsibilities(params, chunk, chunk.weight)
        components = self.family.stats(params.components, chunk, resp.T)
        n = getattr(components, "n", None)
        n = resp.sum(axis=1, dtype=np.float64) if n is None else np.array(n)
        return MixtureStats(n, components), row_log_prob

    def _responsibilities(
        self, params: MixtureParams, chunk: Chunk, weight: Float | None = None
    ) -> tuple[Array, Float]:
        """Return responsibilities times weight (k, n), in memory that may be overwritten, and log p(x), (n,), nats."""
        log_density = self.family.log_prob(params.components, chunk).T
        if chunk.labels is not None and chunk.labels.ndim == 2:
            log_density += np.log(chunk.labels.T).astype(log_density.dtype)
        elif chunk.labels is not None:
            known = np.flatnonzero(chunk.labels >= 0)
            which = chunk.labels[known]
            values = log_density[which, known]
            log_density[:, known] = -np.inf
            log_density[which, known] = values
        return log_density, _normalise(log_density, self._log_weights(params), weight)

    def _log_weights(self, params: MixtureParams) -> Float:
        """Return log w_k, (k,)."""
        return np.log(params.weights)

    def _of_family(self, name: str, purpose: str) -> Callable[..., Any]:
        method = getattr(self.family, name, None)
        if method is None:
            raise MissingCapabilityError(
                f"{type(self.family).__name__} cannot be used for {purpose}: it has no {name}."
            )
        return cast(Callable[..., Any], method)

    def _first_resp(self, sample: Chunk, rng: np.random.Generator) -> Float:
        """Return the responsibilities (n, k) that a start is estimated from."""
        k = self.n_components
        if all(given is not None for given in (self.weights_init, self.means_init, self.precisions_init)):
            resp = np.full((len(sample), k), 1.0 / k)
        elif self._start == "random":
            resp = rng.random((len(sample), k))
            resp /= resp.sum(axis=1, keepdims=True)
        elif self._start == "short_em":
            resp = self._short_em(sample, rng)
        else:
            labels = self._first_labels(sample, rng)
            resp = np.zeros((len(sample), k))
            resp[np.arange(len(sample)), labels] = 1.0
        return resp if sample.labels is None else resp_of_labels(resp, sample.labels)

    def _short_em(self, sample: Chunk, rng: np.random.Generator) -> Float:
        """Return the responsibilities (n, k) under the best of several short runs of EM."""
        calm = self._calm("random")
        part = few_rows(sample, SHORT_ROWS, rng)
        shares = [few_each(part, self.n_components, rng) for _ in range(SHORT_RUNS)]
        weights = np.full(self.n_components, 1.0 / self.n_components)
        starts = [calm._from_resp(part, resp, weights) for resp in shares]
        best = best_of_runs(calm, part, starts, SHORT_STEPS)
        return np.concatenate([calm.posterior(best, block) for block in pieces(sample, SHORT_ROWS)])

    def _calm(self, init_method: Init) -> Self:
        """Return the mixture for trials: one that runs a component empty is a poor one, and no reason to fail."""
        family = self.family
        if is_dataclass(family) and any(own.name == "on_collapse" and own.init for own in fields(family)):
            family = replace(family, on_collapse="keep")
        return replace(self, family=family, init_method=init_method)

    def _from_resp(self, sample: Chunk, resp: Float, weights: Float | None = None) -> MixtureParams:
        """Return the parameters that a sample implies under responsibilities (n, k); weights (k,) may be given."""
        if weights is None:
            n = (np.ones(len(sample)) if sample.weight is None else sample.weight) @ resp + N_FLOOR
            weights = n / n.sum()
        return MixtureParams(weights, self.family.init(sample, resp))

    def _first_labels(self, sample: Chunk, rng: np.random.Generator) -> Array:
        """Return a component for each row of the sample; components with labelled rows start at those rows' mean."""
        k = self.n_components
        weight = np.ones(len(sample)) if sample.weight is None else sample.weight
        embedding = getattr(self.family, "embedding", None)
        if embedding is None:
            rows = fill_holes(sample.rows, means_present(sample.rows, weight))
        else:
            rows = embedding(sample.rows)
        known = np.zeros(0, np.int64)
        means = None
        labels = None if sample.labels is None else certain_labels(sample.labels)
        if labels is not None and (labels >= 0).any():
            known = np.unique(labels[labels >= 0])
            groups = [labels == j for j in known]
            means = np.stack([weight[rows_of] @ rows[rows_of] / weight[rows_of].sum() for rows_of in groups])
        if self._start == "random_from_data":
            drawn = rows[rng.choice(len(rows), k - len(known), replace=len(rows) < k, p=weight / weight.sum())]
            centers = np.asarray(drawn if means is None else np.concatenate([means, drawn]), np.float64)
        else:
            centers = kmeans_plus_plus(rows, weight, k, rng, means)
        order = np.concatenate([known, np.setdiff1d(np.arange(k), known)])
        centers = centers[np.argsort(order)]
        if self._start == "kmeans":
            return lloyd(rows, weight, centers)[1]
        origin = centers.mean(axis=0)
        return assign(rows - origin, centers - origin)[0]


def block_rows(row_bytes: float) -> int:
    """Return how many rows to walk at a time, a power of two, from the bytes that a row needs in double precision."""
    # The nearest one: a row short of what would fit must not halve the block.
    wanted = round(math.log2(min(max(BLOCK_BYTES / row_bytes, MIN_BLOCK), MAX_BLOCK)))
    most = math.floor(math.log2(max(MAX_BLOCK_BYTES / row_bytes, 1.0)))
    return 1 << min(wanted, most)


def tells(chunk: Chunk, used: tuple[int, ...] | None) -> Array:
    """Return which rows (n,) have a value, in a column that is used, or a label."""
    first, *others = range(chunk.rows.shape[1]) if used is None else used
    silent = np.flatnonzero(np.isnan(chunk.rows[:, first]))
    for column in others:
        silent = silent[np.isnan(chunk.rows[silent, column])]
    telling = np.ones(len(chunk), bool)
    telling[silent] = False
    if chunk.labels is not None:
        telling |= chunk.labels >= 0 if chunk.labels.ndim == 1 else (chunk.labels != 1).any(axis=1)
    return telling


def _normalise(joint: Array, log_weights: Float, weight: Float | None) -> Float:
    """Turn log densities (k, n) into responsibilities times weight, in place, and return log p(x), (n,), nats."""
    if compiled.available(joint):
        largest, total = compiled.normalise(joint, log_weights, weight)
        return np.asarray(np.log(total, dtype=np.float64) + largest)
    joint += log_weights.astype(joint.dtype)[:, None]
    largest = joint.max(axis=0)
    # Where no component explains the row, subtracting -inf would make NaN of what is -inf.
    largest[largest == -np.inf] = 0.0
    joint -= largest
    np.exp(joint, out=joint)
    total = joint.sum(axis=0)
    factor = 1.0 / np.where(total == 0, 1.0, total)
    joint *= factor if weight is None else (factor * weight).astype(joint.dtype)
    return np.asarray(np.log(total, dtype=np.float64) + largest)


def _checked_weights(weights: Array, k: int) -> Float:
    weights = np.asarray(weights, float)
    if weights.shape != (k,):
        raise OptionError(f"weights_init has shape {weights.shape}; it must be ({k},).")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and abs(weights.sum() - 1.0) <= 1e-6):
        raise OptionError(f"weights_init must be numbers from 0 to 1 that sum to 1, got a sum of {weights.sum():.6g}.")
    return np.asarray(weights / weights.sum())
