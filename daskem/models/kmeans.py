"""K-means: hard assignment to the nearest center, on the same engine as every other model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from scipy.sparse import csc_array

from daskem import compiled, tree
from daskem.core import Array, Chunk, Expectation, Float, Footprint, Int
from daskem.errors import OptionError
from daskem.models.initialization import few_rows, kmeans_plus_plus, lloyd, unit_scaled
from daskem.models.repair import EMPTY_KEPT, RESEEDED, Policy, check_policy, describe, raise_degenerate

__all__ = ["KMeans", "KMeansParams", "KMeansStats"]

# Distance of a center from the common shift, in units of the root mean squared distance of a row to its center, up to
# which |c|^2 - 2 u c orders centers well enough: the error, in that unit squared, is the ratio's square times the
# rounding unit of the type, here 6e-5 at worst in single precision and 1e-8 in double precision.
SINGLE_RATIO, DOUBLE_RATIO = 32.0, 1e4
# The same ratio up to which sums of squares may be expanded (about the shift) without losing more than 1e-5 in single
# precision ("f") and 1e-11 in double precision ("d"); beyond, residuals are formed, at 20% more time.
EXPANSION_RATIO = {"f": 8.0, "d": 256.0}
# Rows that numpy takes at a time. Whole blocks took two threads half as long again (measured), and much memory.
TABLE_ROWS = 2048
# Bytes of a block of rows: those of a small unit, since compiled code takes tiles of it. And rows at most: what is said
# of each one, such as k distances, is as long as the block.
BLOCK_BYTES, BLOCK_ROWS = 8 << 20, 1 << 16
# Rows that tell about how far rows are from the first centers: it only decides between forms.
SPREAD_ROWS = 4096
# A replacement for an empty center is put this share of a root mean squared distance away from the center it relieves.
STEP = 0.5


@dataclass(frozen=True, eq=False)
class KMeansParams:
    """Parameters of k clusters.

    Attributes
    ----------
    centers : (k, d), data units.
    shift : (d,) point that sums are taken about, the mean of the sample.
    scale : (1,) power of two that sums are taken in.
    variance : (1,) variance of a feature, averaged over the features, data units squared, in the sample.
    spread : (1,) mean squared distance of a row to its center, scaled units, where the last E-step measured it.
    repaired : (k,) int8, zero or what the M-step did to the center (see `daskem.models.repair`).
    """

    centers: Float
    shift: Float
    scale: Float
    variance: Float
    spread: Float
    repaired: Array


@dataclass(frozen=True, eq=False)
class KMeansStats:
    """Weight n (k,), sums x (k, d) of u = (row - shift) * scale, and inertia (k,), the same unit squared."""

    n: Float
    x: Float
    inertia: Float


@dataclass(frozen=True)
class KMeans:
    """K-means by Lloyd's iterations. The objective is minus the weighted sum of squared distances.

    Parameters
    ----------
    n_clusters : number of clusters, k.
    init_method : how a sample gives the first centers: "kmeans" (k-means++, then Lloyd's iterations on the sample),
        "k-means++", or "random" (rows of the sample).
    centers_init : (k, d) explicit first centers, in place of `init_method`.
    on_collapse : what to do with a cluster that has lost all rows: "keep" its center where it is, "reseed" it beside
        the center with the largest sum of squared distances, or "raise".

    References
    ----------
    .. [1] Lloyd (1982), IEEE Transactions on Information Theory 28(2), 129-137.
    """

    n_clusters: int
    init_method: Literal["kmeans", "k-means++", "random"] = "kmeans"
    centers_init: Array | None = field(default=None, compare=False, repr=False)
    on_collapse: Policy = "keep"

    def __post_init__(self) -> None:
        if not isinstance(self.n_clusters, (int, np.integer)) or self.n_clusters < 1:
            raise OptionError(f"n_clusters is {self.n_clusters!r}; it must be a whole number, at least 1.")
        if self.init_method not in ("kmeans", "k-means++", "random"):
            raise OptionError(f"init_method is {self.init_method!r}; it must be 'kmeans', 'k-means++' or 'random'.")
        check_policy(self.on_collapse)

    def init(self, sample: Chunk, rng: np.random.Generator) -> KMeansParams:
        """Return the first centers.

        Raises
        ------
        OptionError
            If the sample has no rows of positive weight or the explicit centers have a wrong shape.
        """
        sample = sample.present()
        if len(sample) == 0:
            raise OptionError("the sample to start from has no rows of positive weight.")
        _, shift, factor = unit_scaled(sample.rows)
        if sample.rows.dtype == np.float32:
            # Single precision rows less a single precision shift lose nothing.
            shift = shift.astype(np.float32).astype(np.float64)
        # Within this range even single precision squares and sums safely.
        factor = factor if not 2.0**-16 <= factor <= 2.0**16 else 1.0
        centers = self._first_centers(sample, rng)
        codes = np.zeros(len(centers), np.int8)
        params = KMeansParams(centers, shift, np.array([factor]), _mean_variance(sample), np.zeros(1), codes)
        some = few_rows(sample, SPREAD_ROWS, rng)
        some = Chunk(np.ascontiguousarray(some.rows, np.float64), some.weight)
        return replace(params, spread=np.array([_sums(params, some).inertia.sum() / some.total_weight]))

    def e_step(self, params: KMeansParams, chunk: Chunk) -> Expectation:
        """Return weight, sums and inertia of the rows nearest to each center, or known to belong to it."""
        chunk = chunk.present()
        with np.errstate(all="ignore"):
            stats = _sums(params, chunk)
            objective = -float(stats.inertia.sum()) / float(params.scale[0]) / float(params.scale[0])
        return Expectation(stats, objective, chunk.total_weight)

    def m_step(self, stats: KMeansStats, params: KMeansParams) -> KMeansParams:
        """Return the means of the clusters; empty ones by the policy.

        Raises
        ------
        DegenerateComponentError
            If a cluster is empty and the policy is to raise.
        """
        empty = stats.n <= 0
        n = np.where(empty, 1.0, stats.n)[:, None]
        moved = params.shift + stats.x / n / params.scale
        centers = np.where(empty[:, None], params.centers, moved)
        if empty.any():
            self._refill(centers, stats, params)
        code = RESEEDED if self.on_collapse == "reseed" else EMPTY_KEPT
        spread = np.array([stats.inertia.sum() / max(float(stats.n.sum()), np.finfo(float).tiny)])
        return replace(params, centers=centers, spread=spread, repaired=np.where(empty, code, 0).astype(np.int8))

    def distance(self, old: KMeansParams, new: KMeansParams) -> float:
        """Return the sum of the squared shifts of the centers over the mean variance of the features.

        This is the measure that scikit-learn's `tol` is stated in.
        """
        shifts = float(((new.centers - old.centers) ** 2).sum())
        variance = float(old.variance[0])
        return shifts / variance if variance > 0 else (math.inf if shifts else 0.0)

    def assign(self, params: KMeansParams, chunk: Chunk) -> Int:
        """Return the nearest center of each row (n,), or the known one; -1 where values are too large to square."""
        with np.errstate(all="ignore"):
            return _assigned(params, chunk)

    def posterior(self, params: KMeansParams, chunk: Chunk) -> Array:
        """Return one for the nearest center of each row and zero elsewhere, (n, k); NaN where there is none."""
        labels = self.assign(params, chunk)
        out = np.zeros((len(chunk), self.n_clusters))
        out[np.arange(len(chunk)), labels] = 1.0
        out[labels < 0] = np.nan
        return out

    def transform(self, params: KMeansParams, chunk: Chunk) -> Float:
        """Return the distances to all centers (n, k), by differences, accurate wherever the centers lie."""
        out = np.empty((len(chunk), self.n_clusters))
        for some, into in zip(_short(chunk), _short(Chunk(out)), strict=True):
            block = _prepare(params, replace(some, rows=np.asarray(some.rows, np.float64)))
            np.divide(np.sqrt(_distances(block.u, block.centers, some)).T, params.scale, out=into.rows)
        return out

    def events(self, params: KMeansParams) -> tuple[tuple[int, str], ...]:
        """Return (cluster, what happened) of each cluster that the M-step had to repair."""
        return describe(params.repaired)

    def n_features(self, params: KMeansParams) -> int:
        """Return the number of features that parameters are of."""
        return int(params.centers.shape[1])

    def n_parameters(self, params: KMeansParams) -> int:
        """Return the number of coordinates of the centers."""
        return int(params.centers.size)

    def footprint(self, n_features: int, dtype: np.dtype[Any]) -> Footprint:
        """Return block length and bytes, by arithmetic alone."""
        k, d = self.n_clusters, n_features
        row = d * dtype.itemsize
        rows = 1 << min(max(1, BLOCK_BYTES // row), BLOCK_ROWS).bit_length() - 1
        # Rows of positive weight are copied; labels are there in two types, with the numbers of their rows. Compiled
        # code has tiles of rows, and centers turned and rounded.
        workspace = rows * (row + 48) + 8 * min(rows, TABLE_ROWS) * (2 * (d + k) + 10) + 32 * k * d + 1000 * d
        return Footprint(rows, workspace, 8 * k * (d + 2), 8 * (k * d + d + 3) + k, 32 * d)

    def _first_centers(self, sample: Chunk, rng: np.random.Generator) -> Float:
        shape = (self.n_clusters, sample.rows.shape[1])
        if self.centers_init is not None:
            centers = np.array(self.centers_init, float)
            if centers.shape != shape or not np.isfinite(centers).all():
                raise OptionError(f"centers_init must be finite and {shape}; its shape is {centers.shape}.")
            return centers
        if self.init_method == "random":
            few = len(sample) < self.n_clusters
            share = None if sample.weight is None else sample.weight / sample.weight.sum()
            return np.array(sample.rows[rng.choice(len(sample), self.n_clusters, replace=few, p=share)], float)
        centers = kmeans_plus_plus(sample.rows, sample.weight, self.n_clusters, rng)
        return centers if self.init_method == "k-means++" else lloyd(sample.rows, sample.weight, centers)[0]

    def _refill(self, centers: Float, stats: KMeansStats, params: KMeansParams) -> None:
        """Put empty clusters beside those with most to gain; no other center moves, so the objective cannot fall."""
        inertia = np.array(stats.inertia)
        for k in np.flatnonzero(stats.n <= 0):
            if self.on_collapse == "raise":
                raise_degenerate(int(k), stats.n, None, "other starting centers")
            donor = int(inertia.argmax())
            if self.on_collapse == "keep" or stats.n[donor] <= 0:
                continue
            radius = np.sqrt(inertia[donor] / stats.n[donor] / centers.shape[1]) / float(params.scale[0])
            centers[k] = centers[donor] + STEP * radius
            inertia[donor] /= 2


@dataclass(frozen=True, eq=False)
class _Form:
    """How accurate the arithmetic has to be: the centers (k, d) in scaled units, of the type to compute in.

    `product` says whether one product orders the distances well enough, `exact` whether sums of squares must be those
    of residuals.
    """

    centers: Array
    product: bool
    exact: bool

    @functools.cached_property
    def half_squares(self) -> Array:
        """Return |c|^2 / 2 of each center, (k,)."""
        return np.asarray(0.5 * np.einsum("kd,kd->k", self.centers, self.centers))


@dataclass(frozen=True, eq=False)
class _Block:
    """One block ready for arithmetic: `table` (n, d + 2) holds u = (row - shift) * scale, then 1 and |u|^2."""

    table: Array
    form: _Form

    @property
    def u(self) -> Array:
        return self.table[:, :-2]

    @property
    def centers(self) -> Array:
        return self.form.centers


def _form(params: KMeansParams, chunk: Chunk) -> _Form:
    dtype = chunk.rows.dtype
    return cast(_Form, chunk.scratch.derived(("form", dtype.char), params, lambda: _make_form(params, dtype)))


def _make_form(params: KMeansParams, rows_dtype: np.dtype[Any]) -> _Form:
    centers = (params.centers - params.shift) * params.scale
    spread = float(params.spread[0])
    ratio = np.sqrt((centers * centers).sum(axis=1).max() / spread) if spread > 0 else np.inf
    dtype = np.dtype(np.float32 if rows_dtype == np.float32 and ratio <= SINGLE_RATIO else np.float64)
    return _Form(centers.astype(dtype), bool(ratio <= DOUBLE_RATIO), bool(ratio > EXPANSION_RATIO[dtype.char]))


def _prepare(params: KMeansParams, chunk: Chunk) -> _Block:
    form = _form(params, chunk)
    dtype = form.centers.dtype
    n, d = chunk.rows.shape
    table = chunk.scratch.empty("table", (n, d + 2), dtype)
    u = table[:, :d]
    # The shift of a single precision sample is exact in single precision; any other is subtracted in double.
    same = dtype == chunk.rows.dtype and bool((params.shift.astype(dtype) == params.shift).all())
    np.subtract(chunk.rows, params.shift, out=u, dtype=dtype if same else np.float64, casting="same_kind")
    if params.scale[0] != 1.0:
        u *= dtype.type(params.scale[0])
    table[:, d] = 1.0
    table[:, d + 1] = np.einsum("nd,nd->n", u, u)
    return _Block(table, form)


def _short(chunk: Chunk) -> Iterator[Chunk]:
    """Walk a chunk by as many rows at a time as tables should have; an empty one is one walk too."""
    for start in range(0, max(1, len(chunk)), TABLE_ROWS):
        yield chunk.select(slice(start, start + TABLE_ROWS))


def _assigned(params: KMeansParams, chunk: Chunk) -> Int:
    form = _form(params, chunk)
    if not _compiles(form, chunk):
        return np.concatenate([_assigned_by_tables(params, some) for some in _short(chunk)])
    labels = np.empty(len(chunk), np.int32)
    _nearest(params, chunk, form, labels)
    return labels.astype(np.int64)


def _assigned_by_tables(params: KMeansParams, chunk: Chunk) -> Int:
    block = _prepare(params, chunk)
    return np.where(np.isfinite(block.table[:, -1]), _labels(block, chunk), -1)


def _labels(block: _Block, chunk: Chunk) -> Int:
    """Return the nearest center of each row, the first of equals; a known label stands."""
    if block.form.product:
        # One product for u c - |c|^2 / 2, which is largest for the nearest center: the ones take up the second term.
        half = block.form.half_squares
        factor = np.column_stack([block.centers, -half, np.zeros_like(half)])
        scores = chunk.scratch.empty("scores", (len(block.table), len(half)), block.table.dtype)
        labels = np.matmul(block.table, factor.T, out=scores).argmax(axis=1)
    else:
        labels = _distances(block.u, block.centers, chunk).argmin(axis=0)
    return labels if chunk.labels is None else np.where(chunk.labels >= 0, chunk.labels, labels)


def _distances(u: Array, centers: Array, chunk: Chunk) -> Array:
    """Return squared distances (k, n) by differences."""
    out = chunk.scratch.empty("distances", (len(centers), len(u)), u.dtype)
    difference = chunk.scratch.empty("difference", u.shape, u.dtype)
    for k, center in enumerate(centers):
        np.subtract(u, center, out=difference)
        np.einsum("nd,nd->n", difference, difference, out=out[k])
    return out


def _sums(params: KMeansParams, chunk: Chunk) -> KMeansStats:
    """Return weight, sums and inertia of the clusters, float64."""
    form = _form(params, chunk)
    if form.exact or not _compiles(form, chunk):
        return tree.reduce(_sums_by_tables(params, some, form) for some in _short(chunk))
    return _expanded(_nearest(params, chunk, form), form)


def _compiles(form: _Form, chunk: Chunk) -> bool:
    """Return whether compiled code finds the nearest centers, and well enough."""
    return form.product and compiled.available(chunk.rows, form.centers)


def _nearest(params: KMeansParams, chunk: Chunk, form: _Form, found: Array | None = None) -> Float:
    """Return what `daskem.compiled.nearest` does."""
    scale, half = float(params.scale[0]), form.half_squares
    known = chunk.weight, chunk.labels
    return compiled.nearest(chunk.rows, params.shift, scale, form.centers, half, *known, found)


def _sums_by_tables(params: KMeansParams, chunk: Chunk, form: _Form) -> KMeansStats:
    k, d = form.centers.shape
    block = _prepare(params, chunk)
    labels = _labels(block, chunk)
    sums = np.asarray(_membership(params, chunk, labels, block) @ block.table, np.float64)
    if not form.exact:
        return _expanded(sums, form)
    squared = _squared_residuals(block, chunk, labels)
    n, x = np.ascontiguousarray(sums[:, d]), np.ascontiguousarray(sums[:, :d])
    return KMeansStats(n, x, np.bincount(labels, squared, k).astype(np.float64))


def _expanded(sums: Float, form: _Form) -> KMeansStats:
    """Return the statistics of sums (k, d + 2) of u, 1 and |u|^2 over the rows of each cluster."""
    n, x = np.ascontiguousarray(sums[:, -2]), np.ascontiguousarray(sums[:, :-2])
    centers = form.centers.astype(np.float64)
    cross, square = np.einsum("kd,kd->k", x, centers), np.einsum("kd,kd->k", centers, centers)
    # Rounding takes it below zero where all rows are at their center.
    return KMeansStats(n, x, np.maximum(sums[:, -1] - 2.0 * cross + n * square, 0.0))


def _membership(params: KMeansParams, chunk: Chunk, labels: Int, block: _Block) -> csc_array:
    """Return the sparse matrix (k, n) with the weight of each row in the place of its cluster.

    Its product with the rows adds each row to one sum and does nothing else; it runs without the interpreter's lock.
    """
    n, k, dtype = len(labels), len(block.centers), block.table.dtype

    def make() -> csc_array:
        index = np.arange(n + 1, dtype=np.int32)
        return csc_array((np.ones(n, dtype), np.zeros(n, np.int32), index), shape=(k, n))

    # Making one costs as much as a fifth of the block; its arrays are filled again instead.
    matrix = cast(csc_array, chunk.scratch.keep(("membership", n, dtype.char), params, make))
    matrix.indices[:] = labels
    matrix.data[:] = 1.0 if chunk.weight is None else chunk.weight
    return matrix


def _squared_residuals(block: _Block, chunk: Chunk, labels: Int) -> Float:
    """Return weight times squared distance of each row to its center, (n,), by differences."""
    difference = chunk.scratch.empty("difference", block.u.shape, block.table.dtype)
    np.take(block.centers, labels, axis=0, out=difference, mode="clip")
    np.subtract(block.u, difference, out=difference)
    squared = np.einsum("nd,nd->n", difference, difference, dtype=np.float64)
    return np.asarray(squared if chunk.weight is None else squared * chunk.weight)


def _mean_variance(sample: Chunk) -> Float:
    rows = np.asarray(sample.rows, np.float64)
    about_mean = rows - np.average(rows, axis=0, weights=sample.weight)
    return np.array([np.average(about_mean**2, axis=0, weights=sample.weight).mean()])
