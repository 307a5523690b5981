"""Gaussian components over rows with holes (NaN), missing at random: exact marginals and conditional expectations.

In units z = (x - mean_k) * scale, with precision L, a row whose features m are missing is set to z_m = 0; then
g = L z tells all that is needed of its holes (Little & Rubin 2020, Statistical Analysis with Missing Data, 3rd edition,
section 11.2, written with precisions):

    z_m | z_o  has mean -C g_m and covariance C = (L_mm)^-1
    log p(z_o) = (log det L - log det L_mm - |o| log 2 pi - z^T g + g_m^T C g_m) / 2

Rows with holes are sorted by the number and the pattern of their holes, so that C is computed once a pattern: by sweeps
over all patterns at a time where holes are few, by LAPACK where they are many. Rows without holes, and blocks without
any, take the arithmetic of `daskem.models.gaussian_kernels`. Features that are independent given the component (diag,
spherical) need no patterns: a hole has the component's own mean and variance.

Rows with holes are computed with in double precision whatever their type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem.core import Array, Chunk, Float, Int
from daskem.models.gaussian_kernels import LOG_2PI, Kernel, Moments, pack
from daskem.models.gaussian_records import GaussianParams

__all__ = ["HolesKernel", "has_holes", "holes_bytes", "over_holes", "without_holes"]

# Holes of a row up to which sweeps over many patterns at a time beat LAPACK's calls for one pattern each (measured).
SWEPT = 8
# Numbers that the conditional covariances of one run of rows may take, and those that are kept until the moments are
# taken rather than computed again.
RUN_NUMBERS, KEPT_NUMBERS = 1 << 18, 1 << 20


def has_holes(chunk: Chunk) -> bool:
    """Return whether a block holds any NaN; looked for once a block."""
    return bool(chunk.scratch.keep("has holes", chunk, lambda: bool(np.isnan(chunk.rows).any())))


def without_holes(rows: Array, share: Float) -> tuple[Array, Float]:
    """Return rows whose mean and variances are those of the values present, and that mean (d,).

    Holes get the mean, and deviations from it grow by the square root of what the holes take from the variance: the
    covariance of these rows is positive semidefinite, which that of pairwise complete rows need not be.

    Parameters
    ----------
    share : (n,) weights of the rows, which sum to one.
    """
    holes = np.isnan(rows)
    if not holes.any():
        return rows, share @ np.asarray(rows, np.float64)
    observed = share @ ~holes
    mean = share @ np.where(holes, 0.0, rows) / observed
    return mean + np.where(holes, 0.0, rows - mean) / np.sqrt(observed), mean


def holes_bytes(rows: int, k: int, d: int) -> int:
    """Return the bytes of scratch that a block with holes takes beside those of one without."""
    return 8 * (rows * (2 * k * d + 2 * k + 6 * d) + 4 * RUN_NUMBERS + KEPT_NUMBERS)


@dataclass(frozen=True, eq=False)
class _Run(ABC):
    """Consecutive rows with holes, sorted by pattern, all with the same number q of holes.

    Attributes
    ----------
    rows : which of the sorted rows. holes : which of the list of all their holes.
    features : (q, patterns) missing features.
    pattern : (rows,) pattern of each row. starts : first row of each pattern, counted from the run's own first.
    """

    rows: slice
    holes: slice
    features: Int
    pattern: Int
    starts: Int

    @abstractmethod
    def invert(self, precision: Float) -> tuple[Float, Float]:
        """Return C for all patterns, and log det L_mm of each row, (k, rows); k is one where components share L."""

    @abstractmethod
    def apply(self, inverse: Float, g: Float) -> Float:
        """Return C g of each row, g being (k, q, rows)."""

    @abstractmethod
    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        """Add the sum over rows of weight (k, rows) times C to `out` (k, d, d)."""


@dataclass(frozen=True, eq=False)
class _FewHoles(_Run):
    """A run whose patterns are worked on together: C is (q, q, k, patterns)."""

    def invert(self, precision: Float) -> tuple[Float, Float]:
        a = np.ascontiguousarray(precision[:, self.features[:, None], self.features[None]].transpose(1, 2, 0, 3))
        log_det = np.zeros(a.shape[2:])
        # Gauss and Jordan's sweeps (Little & Rubin 2020, section 7.4.3); a positive definite matrix needs no pivoting.
        for i in range(len(a)):
            pivot = a[i, i].copy()
            log_det += np.log(pivot)
            row, column = a[i] / pivot, a[:, i].copy()
            row[i], column[i], a[:, i] = 1.0 / pivot, 0.0, 0.0
            a -= column[:, None] * row
            a[i] = row
        return a, log_det[:, self.pattern]

    def apply(self, inverse: Float, g: Float) -> Float:
        return np.asarray(np.einsum("abkn,kbn->kan", inverse[..., self.pattern], g))

    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        d = out.shape[-1]
        place = (self.features[:, None] * d + self.features[None]).ravel()
        for k, each in enumerate(np.add.reduceat(weight, self.starts, axis=1)):
            out[k] += np.bincount(place, (inverse[:, :, k] * each).ravel(), d * d).reshape(d, d)


@dataclass(frozen=True, eq=False)
class _ManyHoles(_Run):
    """A run whose patterns are worked on one by one: C is (patterns, k, q, q)."""

    def invert(self, precision: Float) -> tuple[Float, Float]:
        blocks = precision[:, self.features.T[:, :, None], self.features.T[:, None]].swapaxes(0, 1)
        return np.linalg.inv(blocks), np.linalg.slogdet(blocks)[1].T[:, self.pattern]

    def apply(self, inverse: Float, g: Float) -> Float:
        out = np.empty(g.shape)
        for matrix, rows, _ in self._patterns(inverse):
            np.matmul(matrix, g[..., rows], out=out[..., rows])
        return out

    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        for matrix, rows, features in self._patterns(inverse):
            out[:, features[:, None], features] += weight[:, rows].sum(axis=1)[:, None, None] * matrix

    def _patterns(self, inverse: Float) -> Iterator[tuple[Float, slice, Int]]:
        stops = [*self.starts[1:], len(self.pattern)]
        for matrix, start, stop, features in zip(inverse, self.starts, stops, self.features.T, strict=True):
            yield matrix, slice(start, stop), features


@dataclass(frozen=True, eq=False)
class _Holes:
    """The rows of a block, those with holes apart and sorted.

    Attributes
    ----------
    complete : the rows without holes, whose places in the block are `kept`.
    rows : places of the others in the block, by number and then by pattern of their holes.
    values : (d, m) their values, zero for holes. place : holes as offsets into `values`, run by run.
    feature : the feature of each hole.
    runs : runs of these rows with one number of holes.
    """

    complete: Chunk
    kept: Int
    rows: Int
    values: Float
    place: Int
    feature: Int
    runs: tuple[_Run, ...]

    @classmethod
    def of(cls, chunk: Chunk, k: int) -> _Holes:
        """Take a block apart for k components."""
        missing = np.isnan(chunk.rows)
        words = _words(missing)
        count = missing.sum(axis=1)
        order = np.lexsort((*words, count))
        first = int(np.searchsorted(count[order], 1))
        kept, rows = np.sort(order[:first]), order[first:]
        values = np.ascontiguousarray(np.where(missing[rows], 0.0, chunk.rows[rows]).T, np.float64)
        runs = tuple(_runs(missing[rows], count[rows], [word[rows] for word in words], k))
        features = [run.features[:, run.pattern] for run in runs]
        columns = [np.arange(run.rows.start, run.rows.stop) for run in runs]
        place = [(f * len(rows) + c).ravel() for f, c in zip(features, columns, strict=True)]
        return cls(
            complete=Chunk(np.ascontiguousarray(chunk.rows[kept]), scratch=chunk.scratch),
            kept=kept,
            rows=rows,
            values=values,
            place=np.concatenate(place),
            feature=np.concatenate([f.ravel() for f in features]),
            runs=runs,
        )


def _words(missing: Array) -> list[Int]:
    """Return patterns (n, d) as whole numbers of at most 62 bits, one array (n,) for each 62 features."""
    pieces = [missing[:, i : i + 62] for i in range(0, missing.shape[1], 62)]
    return [piece @ (np.int64(1) << np.arange(piece.shape[1], dtype=np.int64)) for piece in pieces]


def _runs(missing: Array, count: Int, words: list[Int], k: int) -> Iterator[_Run]:
    """Yield runs of sorted rows: one number of holes each, and few enough for `RUN_NUMBERS`."""
    changes = np.zeros(len(count), bool)
    for word in words:
        changes[1:] |= word[1:] != word[:-1]
    hole, start = 0, 0
    while start < len(count):
        q = int(count[start])
        stop = min(int(np.searchsorted(count, q, side="right")), start + max(1, RUN_NUMBERS // (k * q * q)))
        starts = np.flatnonzero(changes[start:stop])
        starts = starts if starts.size and starts[0] == 0 else np.r_[0, starts]
        features = np.nonzero(missing[start + starts])[1].reshape(-1, q).T
        pattern = np.repeat(np.arange(len(starts)), np.diff(starts, append=stop - start))
        kind = _FewHoles if q <= SWEPT else _ManyHoles
        yield kind(slice(start, stop), slice(hole, hole + q * (stop - start)), features, pattern, starts)
        hole, start = hole + q * (stop - start), stop


@dataclass(frozen=True, eq=False)
class _Conditional:
    """What parameters say of the rows with holes: log densities (k, m), and of their holes given the rest.

    Attributes
    ----------
    offset : (k, holes) conditional means less the means, scaled.
    inverses : C of each run, None where it is to be computed again.
    """

    log_prob: Float
    offset: Float
    inverses: tuple[Float | None, ...]


@dataclass(frozen=True, eq=False)
class HolesKernel(ABC):
    """The arithmetic over a block with holes: what `Kernel` does where there are none, and conditional means.

    Attributes
    ----------
    kernel : the arithmetic of rows without holes.
    means : (k, d), data units. scale : (d,).
    precision : scaled: (k, d, d), or (1, d, d) where components share it; for diag and spherical (k, d).
    """

    kernel: Kernel
    means: Float
    scale: Float
    precision: Float

    @abstractmethod
    def log_prob(self, chunk: Chunk) -> Array:
        """Return log p(values present | component) as (k, n), in the scratch of the chunk."""

    @abstractmethod
    def moments(self, chunk: Chunk, resp: Array) -> Moments:
        """Return the expected n (k,), x (k, d) and xx of the rows under `resp` (k, n), as `Kernel.moments` has them."""

    @abstractmethod
    def impute(self, chunk: Chunk, resp: Array) -> Float:
        """Return the rows with sum_k resp_k E[x_m | x_o, k] in the place of holes, (n, d)."""


def over_holes(kernel: Kernel, params: GaussianParams, chunk: Chunk) -> HolesKernel:
    """Return the arithmetic over blocks with holes that goes with a kernel; made once for each kernel and task."""

    def make() -> HolesKernel:
        if kernel.covariance in ("full", "tied"):
            factor = kernel.factor if kernel.factor.ndim == 3 else kernel.factor[None]
            return _MatrixHoles(kernel, params.means, params.scale, factor.swapaxes(-1, -2) @ factor)
        factor = kernel.factor if kernel.factor.ndim == 2 else kernel.factor[:, None]
        return _DiagonalHoles(kernel, params.means, params.scale, np.broadcast_to(factor * factor, params.means.shape))

    made: HolesKernel = chunk.scratch.keep("holes kernel", kernel, make)
    return made


@dataclass(frozen=True, eq=False)
class _MatrixHoles(HolesKernel):
    """Full or tied covariances."""

    def log_prob(self, chunk: Chunk) -> Array:
        holes = self._holes(chunk)
        out = chunk.scratch.empty("log_prob with holes", (len(self.means), len(chunk)))
        if len(holes.kept):
            out[:, holes.kept] = self.kernel.log_prob(holes.complete)
        out[:, holes.rows] = self._conditional(chunk).log_prob
        return out

    def moments(self, chunk: Chunk, resp: Array) -> Moments:
        holes, found = self._holes(chunk), self._conditional(chunk)
        k, d = self.means.shape
        n, x, xx = self.kernel.moments(holes.complete, np.ascontiguousarray(resp[:, holes.kept]))
        share = np.asarray(resp[:, holes.rows], np.float64)
        first, second = np.empty((k, d)), np.zeros((len(self.precision), d, d))
        for component in range(k):
            u = self._about(chunk, component, self.kernel.reference[component])
            u.reshape(-1)[holes.place] = self.kernel.delta[component, holes.feature] + found.offset[component]
            first[component] = u @ share[component]
            u *= np.sqrt(share[component])
            second[component % len(second)] += u @ u.T
        self._spread(holes, found, share, second)
        return n + share.sum(axis=1), x + first, xx + self._shaped(second)

    def impute(self, chunk: Chunk, resp: Array) -> Float:
        holes, found = self._holes(chunk), self._conditional(chunk)
        share = np.asarray(resp[:, holes.rows], np.float64)
        out = np.zeros(holes.values.shape)
        column = holes.place % out.shape[1]
        for component, mean in enumerate(self.means):
            value = mean[holes.feature] + found.offset[component] / self.scale[holes.feature]
            out.reshape(-1)[holes.place] += share[component, column] * value
        rows = np.array(chunk.rows, np.float64)
        rows[holes.rows[column], holes.feature] = out.reshape(-1)[holes.place]
        return rows

    def _holes(self, chunk: Chunk) -> _Holes:
        holes: _Holes = chunk.scratch.keep("holes", chunk, lambda: _Holes.of(chunk, len(self.means)))
        return holes

    def _conditional(self, chunk: Chunk) -> _Conditional:
        """Return what log densities and moments of one block share."""
        cache = chunk.scratch.keep("conditional", chunk, dict)
        if cache.get("owner") is not self:
            cache["owner"], cache["value"] = self, self._condition(chunk)
        return cache["value"]  # type: ignore[no-any-return]

    def _condition(self, chunk: Chunk) -> _Conditional:
        holes, k = self._holes(chunk), len(self.means)
        log_prob = chunk.scratch.empty("log_prob of holes", (k, len(holes.rows)))
        g = chunk.scratch.empty("g", (k, len(holes.place)))
        for component, mean in enumerate(self.means):
            z = self._about(chunk, component, mean)
            z.reshape(-1)[holes.place] = 0.0
            product = chunk.scratch.empty("L z", z.shape)
            np.matmul(self.precision[component % len(self.precision)], z, out=product)
            np.einsum("dn,dn->n", z, product, out=log_prob[component])
            np.take(product, holes.place, out=g[component], mode="clip")
        log_prob *= -0.5
        log_prob += self.kernel.peak[:, None]
        return _Conditional(log_prob, g, tuple(self._condition_runs(holes, log_prob, g)))

    def _condition_runs(self, holes: _Holes, log_prob: Float, g: Float) -> Iterator[Float | None]:
        """Turn g into conditional offsets and complete the log densities, run by run; yield the inverses to keep."""
        constant = 0.5 * LOG_2PI - np.log(self.scale)
        kept = 0
        for run in holes.runs:
            inverse, log_det = run.invert(self.precision)
            gradient = g[:, run.holes].reshape(len(g), len(run.features), -1)
            offset = run.apply(inverse, gradient)
            log_prob[:, run.rows] += 0.5 * (np.einsum("kqn,kqn->kn", offset, gradient) - log_det)
            log_prob[:, run.rows] += constant[run.features].sum(axis=0)[run.pattern]
            np.negative(offset, out=gradient)
            kept += inverse.size
            yield inverse if kept <= KEPT_NUMBERS else None

    def _spread(self, holes: _Holes, found: _Conditional, share: Float, second: Float) -> None:
        """Add the conditional covariances."""
        if len(second) == 1:
            share = share.sum(axis=0, keepdims=True)
        for run, inverse in zip(holes.runs, found.inverses, strict=True):
            run.spread(run.invert(self.precision)[0] if inverse is None else inverse, share[:, run.rows], second)

    def _about(self, chunk: Chunk, component: int, point: Float) -> Float:
        """Return (x - point) * scale of the rows with holes, (d, m); holes hold anything."""
        values = self._holes(chunk).values
        out = chunk.scratch.empty("about", values.shape)
        np.subtract(values, point[:, None], out=out)
        if self.kernel.scale is not None:
            out *= self.scale[:, None]
        return out

    def _shaped(self, second: Float) -> Float:
        if self.kernel.covariance == "tied":
            return np.asarray(second[0])
        return pack(second) if self.kernel.packed else second


@dataclass(frozen=True, eq=False)
class _DiagonalHoles(HolesKernel):
    """Diagonal or spherical covariances: missing features are independent of those present."""

    def log_prob(self, chunk: Chunk) -> Array:
        out = chunk.scratch.empty("log_prob with holes", (len(self.means), len(chunk)))
        peak = np.log(self.scale) + 0.5 * (np.log(self.precision) - LOG_2PI)
        linear = self.precision * self.kernel.delta
        natural = np.hstack([peak - 0.5 * linear * self.kernel.delta, linear, -0.5 * self.precision])
        for point, members in self._points():
            out[members] = natural[members] @ self._features(chunk, point)
        return out

    def moments(self, chunk: Chunk, resp: Array) -> Moments:
        k, d = self.means.shape
        resp = np.asarray(resp, np.float64)
        sums = np.empty((k, 3 * d))
        for point, members in self._points():
            sums[members] = resp[members] @ self._features(chunk, point).T
        n = resp.sum(axis=1)
        seen, x, xx = sums[:, :d], sums[:, d : 2 * d], sums[:, 2 * d :]
        lack, delta = n[:, None] - seen, self.kernel.delta
        xx = xx + lack * (delta * delta + 1.0 / self.precision)
        return n, x + lack * delta, xx if self.kernel.covariance == "diag" else xx.sum(axis=1)

    def impute(self, chunk: Chunk, resp: Array) -> Float:
        return np.where(np.isnan(chunk.rows), resp.T @ self.means, chunk.rows)

    def _points(self) -> Iterator[tuple[Float, Any]]:
        """Yield the reference points and which components are about each."""
        own = self.kernel.own
        home = np.setdiff1d(np.arange(len(self.means)), own)
        if len(home):
            yield self.kernel.shift, home
        for component in own:
            yield self.kernel.reference[component], slice(component, component + 1)

    def _features(self, chunk: Chunk, point: Float) -> Float:
        """Return [1, u, u^2] about a point where there are values and zero where there are none, (3 d, n)."""
        n, d = chunk.rows.shape
        out = chunk.scratch.empty("features with holes", (3 * d, n))
        seen = ~np.isnan(chunk.rows.T)
        out[:d] = seen
        np.subtract(chunk.rows.T, point[:, None], out=out[d : 2 * d])
        out[d : 2 * d] *= self.scale[:, None]
        out[d : 2 * d][~seen] = 0.0
        np.multiply(out[d : 2 * d], out[d : 2 * d], out=out[2 * d :])
        return out
