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

# Patterns are worked on one by one where their holes are many, or where q^2 numbers for each of their rows are: there
# BLAS gains more than its calls cost (measured).
MAX_SWEPT, MANY_NUMBERS = 8, 4096
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
    # Of differences, so that a constant is its own mean exactly: no rounding error looks like a spread.
    least = np.nanmin(rows, axis=0).astype(np.float64)
    if not holes.any():
        return rows, least + share @ (rows - least)
    observed = share @ ~holes
    mean = least + share @ np.where(holes, 0.0, rows - least) / observed
    return mean + np.where(holes, 0.0, rows - mean) / np.sqrt(observed), mean


def holes_bytes(rows: int, k: int, d: int) -> int:
    """Return the bytes of scratch that a block with holes takes beside those of one without."""
    return 8 * (rows * (2 * k * d + 2 * k + 6 * d) + 4 * RUN_NUMBERS + KEPT_NUMBERS)


@dataclass(frozen=True, eq=False)
class _Run(ABC):
    """Consecutive rows with holes, sorted by pattern, all with the same number q of holes.

    Components are the last axis of what is said of holes, so that picking a row's numbers copies a few in one piece.
    The last axis of C has length one where components share the precision.

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
        """Return C of all patterns, in a layout of its own, and log det L_mm (patterns, k), L being (d, d, k)."""

    @abstractmethod
    def apply(self, inverse: Float, g: Float) -> Float:
        """Return C g of each row, g being (q, rows, k)."""

    @abstractmethod
    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        """Add the sum over patterns of weight (patterns, k) times C to `out` (d, d, k)."""


@dataclass(frozen=True, eq=False)
class _Together(_Run):
    """A run whose patterns are worked on together: C is (q, q, patterns, k)."""

    def invert(self, precision: Float) -> tuple[Float, Float]:
        a = np.take(precision.reshape(-1, precision.shape[-1]), self._places(len(precision)), axis=0)
        pivots = np.empty(a.shape[1:])
        # Gauss and Jordan's sweeps (Little & Rubin 2020, section 7.4.3); a positive definite matrix needs no pivoting.
        for i in range(len(a)):
            pivots[i] = a[i, i]
            row = a[i] / pivots[i]
            a -= a[:, i, None] * row
            a[i] = a[:, i] = row
            a[i, i] = -1.0 / pivots[i]
        return np.negative(a, out=a), np.asarray(np.log(pivots).sum(axis=0), np.float64)

    def apply(self, inverse: Float, g: Float) -> Float:
        return np.asarray(np.einsum("abnk,bnk->ank", np.take(inverse, self.pattern, axis=2), g))

    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        k = out.shape[-1]
        places = self._places(len(out))[..., None] * k + np.arange(k)
        out += np.bincount(places.ravel(), (inverse * weight).ravel(), out.size).reshape(out.shape)

    def _places(self, d: int) -> Int:
        return self.features[:, None] * d + self.features


@dataclass(frozen=True, eq=False)
class _OneByOne(_Run):
    """A run whose patterns are worked on one by one: C is (patterns, k, q, q)."""

    def invert(self, precision: Float) -> tuple[Float, Float]:
        features = self.features.T
        blocks = np.ascontiguousarray(precision[features[:, :, None], features[:, None]].transpose(0, 3, 1, 2))
        return np.asarray(np.linalg.inv(blocks), np.float64), np.asarray(np.linalg.slogdet(blocks)[1], np.float64)

    def apply(self, inverse: Float, g: Float) -> Float:
        out = np.empty(g.shape)
        for matrix, start, stop in zip(inverse, self.starts, [*self.starts[1:], g.shape[1]], strict=True):
            product = matrix @ np.ascontiguousarray(g[:, start:stop].transpose(2, 0, 1))
            out[:, start:stop] = product.transpose(1, 2, 0)
        return out

    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        for matrix, each, features in zip(inverse, weight, self.features.T, strict=True):
            out[features[:, None], features] += each * matrix.transpose(1, 2, 0)


@dataclass(frozen=True, eq=False)
class _Holes:
    """The rows of a block, those with holes apart and sorted.

    Attributes
    ----------
    complete : the rows without holes, whose places in the block are `kept`.
    rows : places of the others in the block, by number and then by pattern of their holes.
    values : (d, m) their values, zero for holes. place : holes as offsets into `values`, run by run.
    feature, row : the feature of each hole, and which of the sorted rows has it.
    runs : runs of these rows with one number of holes.
    """

    complete: Chunk
    kept: Int
    rows: Int
    values: Float
    place: Int
    feature: Int
    row: Int
    runs: tuple[_Run, ...]

    @classmethod
    def of(cls, chunk: Chunk, k: int) -> _Holes:
        """Take a block apart for k components."""
        missing = np.isnan(chunk.rows)
        codes = _codes(missing)
        order = np.lexsort(codes)
        codes = codes[:, order]
        first = int(np.searchsorted(codes[-1], 1.0))
        kept, rows = np.sort(order[:first]), order[first:]
        runs = tuple(_runs(missing, rows, codes[:, first:], k))
        features = [np.take(run.features, run.pattern, axis=1) for run in runs]
        row = np.concatenate([np.tile(np.arange(run.rows.start, run.rows.stop), len(run.features)) for run in runs])
        feature = np.concatenate([f.ravel() for f in features])
        place = feature * len(rows) + row
        values = np.ascontiguousarray(np.take(chunk.rows, rows, axis=0).T, np.float64)
        values.reshape(-1)[place] = 0.0
        complete = Chunk(np.take(chunk.rows, kept, axis=0), scratch=chunk.scratch)
        return cls(complete, kept, rows, values, place, feature, row, runs)


def _codes(missing: Array) -> Float:
    """Return whole numbers that tell patterns (n, d) apart, a row for each 52 features, and the numbers of holes."""
    d = missing.shape[1]
    columns = np.zeros((d, -(-d // 52) + 1))
    columns[np.arange(d), np.arange(d) // 52] = 2.0 ** (np.arange(d) % 52)
    columns[:, -1] = 1.0
    return np.ascontiguousarray((missing.astype(np.float64) @ columns).T)


def _runs(missing: Array, rows: Int, codes: Float, k: int) -> Iterator[_Run]:
    """Yield runs of sorted rows: one number of holes each, and few enough for `RUN_NUMBERS`."""
    count = codes[-1]
    new = np.ones(len(rows), bool)
    new[1:] = (codes[:, 1:] != codes[:, :-1]).any(axis=0)
    hole, start = 0, 0
    while start < len(rows):
        q = int(count[start])
        stop = min(int(np.searchsorted(count, q, side="right")), start + max(1, RUN_NUMBERS // (k * q * q)))
        new[start] = True
        starts = np.flatnonzero(new[start:stop])
        features = np.nonzero(missing[rows[start + starts]])[1].reshape(-1, q).T
        one_by_one = q > MAX_SWEPT or q * q * (stop - start) > MANY_NUMBERS * len(starts)
        kind = _OneByOne if one_by_one else _Together
        holes = slice(hole, hole + q * (stop - start))
        yield kind(slice(start, stop), holes, features, np.cumsum(new[start:stop]) - 1, starts)
        hole, start = holes.stop, stop


@dataclass(frozen=True, eq=False)
class _Conditional:
    """What parameters say of the rows with holes: log densities (k, m), and of their holes given the rest.

    Attributes
    ----------
    about : (d, m) values about the reference that components share, scaled; holes hold anything.
    offset : (holes, k) conditional means less the means, scaled.
    inverses : C of each run, None where it is to be computed again.
    peaks : (patterns, k) of each run, what log densities at the mean are more than those of rows without holes.
    """

    log_prob: Float
    about: Float
    offset: Float
    inverses: tuple[Float | None, ...]
    peaks: tuple[Float, ...]


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
    def log_peak(self, chunk: Chunk) -> Float:
        """Return the log densities that the rows would have if all that is present were at the mean, (k, n)."""

    def squared_distances(self, chunk: Chunk) -> Array:
        """Return Mahalanobis' distances squared of the values present, (k, n), in the scratch of the chunk."""
        out = self.log_prob(chunk)
        out -= self.log_peak(chunk)
        out *= -2
        # Rounding takes rows near a mean below zero.
        return np.maximum(out, 0, out=out)

    @abstractmethod
    def moments(self, chunk: Chunk, resp: Array, spread: Array | None = None) -> Moments:
        """Return the expected n (k,), x (k, d) and xx of the rows under `resp` (k, n), as `Kernel.moments` has them.

        `spread` (k, n) are the weights of the conditional covariances, where these are others: in a scale mixture the
        weight that a row has in `resp` divides its covariance, and leaves the product as it was.
        """

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

    def log_peak(self, chunk: Chunk) -> Float:
        holes, found = self._holes(chunk), self._conditional(chunk)
        out = np.repeat(self.kernel.peak[:, None], len(chunk), axis=1)
        for run, peak in zip(holes.runs, found.peaks, strict=True):
            out[:, holes.rows[run.rows]] += np.take(peak, run.pattern, axis=0).T
        return out

    def moments(self, chunk: Chunk, resp: Array, spread: Array | None = None) -> Moments:
        holes, found = self._holes(chunk), self._conditional(chunk)
        n, x, xx = self.kernel.moments(holes.complete, np.take(resp, holes.kept, axis=1))
        share = np.asarray(np.take(resp, holes.rows, axis=1), np.float64)
        loose = share if spread is None else np.asarray(np.take(spread, holes.rows, axis=1), np.float64)
        first, second = np.empty(self.means.shape), self._covariance(holes, found, loose)
        expected = found.offset.T + np.take(self.kernel.delta, holes.feature, axis=1)
        u = chunk.scratch.empty("weighted", holes.values.shape)
        for component, root in enumerate(np.sqrt(share)):
            np.multiply(self._about(chunk, component, found.about), root, out=u)
            u.reshape(-1)[holes.place] = expected[component] * np.take(root, holes.row)
            first[component] = u @ root
            second[component % len(second)] += u @ u.T
        return n + share.sum(axis=1), x + first, xx + self._shaped(second)

    def impute(self, chunk: Chunk, resp: Array) -> Float:
        holes, found = self._holes(chunk), self._conditional(chunk)
        expected = self.means[:, holes.feature] + found.offset.T / self.scale[holes.feature]
        row = holes.rows[holes.row]
        out = np.array(chunk.rows, np.float64)
        out[row, holes.feature] = (np.take(resp, row, axis=1) * expected).sum(axis=0)
        return out

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
        g = chunk.scratch.empty("g", (len(holes.place), k))
        z, product = (chunk.scratch.empty(name, holes.values.shape) for name in ("z", "L z"))
        about = self._scaled(chunk, self.kernel.shift, "about")
        for component, delta in enumerate(self.kernel.delta):
            np.subtract(self._about(chunk, component, about), delta[:, None], out=z)
            z.reshape(-1)[holes.place] = 0.0
            np.matmul(self.precision[component % len(self.precision)], z, out=product)
            np.einsum("dn,dn->n", z, product, out=log_prob[component])
            g[:, component] = np.take(product, holes.place)
        log_prob *= -0.5
        log_prob += self.kernel.peak[:, None]
        runs = list(self._condition_runs(holes, log_prob, g))
        return _Conditional(log_prob, about, g, tuple(inverse for inverse, _ in runs), tuple(peak for _, peak in runs))

    def _condition_runs(self, holes: _Holes, log_prob: Float, g: Float) -> Iterator[tuple[Float | None, Float]]:
        """Turn g into conditional offsets and complete the log densities, run by run; yield inverses and peaks."""
        precision = self._component_last()
        constant = 0.5 * LOG_2PI - np.log(self.scale)
        kept = 0
        for run in holes.runs:
            inverse, log_det = run.invert(precision)
            peak = constant[run.features].sum(axis=0)[:, None] - 0.5 * log_det
            gradient = g[run.holes].reshape(len(run.features), -1, g.shape[1])
            offset = run.apply(inverse, gradient)
            gain = np.take(peak, run.pattern, axis=0) + 0.5 * np.einsum("qnk,qnk->nk", offset, gradient)
            log_prob[:, run.rows] += gain.T
            np.negative(offset, out=gradient)
            kept += inverse.size
            yield (inverse if kept <= KEPT_NUMBERS else None), peak

    def _covariance(self, holes: _Holes, found: _Conditional, share: Float) -> Float:
        """Return the sum over rows of share (k, m) times the conditional covariance, shaped as the precision."""
        precision = self._component_last()
        out = np.zeros(precision.shape)
        weight = np.ascontiguousarray(share.T) if len(self.precision) > 1 else share.sum(axis=0)[:, None]
        for run, inverse in zip(holes.runs, found.inverses, strict=True):
            each = np.add.reduceat(weight[run.rows], run.starts, axis=0)
            run.spread(run.invert(precision)[0] if inverse is None else inverse, each, out)
        return np.ascontiguousarray(out.transpose(2, 0, 1))

    def _component_last(self) -> Float:
        return np.ascontiguousarray(self.precision.transpose(1, 2, 0))

    def _about(self, chunk: Chunk, component: int, shared: Float) -> Float:
        """Return the values about a component's reference, which is most often the one that components share."""
        if component not in self.kernel.own:
            return shared
        return self._scaled(chunk, self.kernel.reference[component], "about own")

    def _scaled(self, chunk: Chunk, point: Float, name: str) -> Float:
        """Return (x - point) * scale of the rows with holes, (d, m), in the scratch; holes hold anything."""
        values = self._holes(chunk).values
        out = chunk.scratch.empty(name, values.shape)
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
        linear = self.precision * self.kernel.delta
        natural = np.hstack([self._peak - 0.5 * linear * self.kernel.delta, linear, -0.5 * self.precision])
        for point, members in self._points():
            out[members] = natural[members] @ self._features(chunk, point)
        return out

    def log_peak(self, chunk: Chunk) -> Float:
        return np.asarray(self._peak @ ~np.isnan(chunk.rows.T), np.float64)

    def moments(self, chunk: Chunk, resp: Array, spread: Array | None = None) -> Moments:
        k, d = self.means.shape
        resp = np.asarray(resp, np.float64)
        sums = np.empty((k, 3 * d))
        for point, members in self._points():
            sums[members] = resp[members] @ self._features(chunk, point).T
        n = resp.sum(axis=1)
        seen, x, xx = sums[:, :d], sums[:, d : 2 * d], sums[:, 2 * d :]
        lack, delta = n[:, None] - seen, self.kernel.delta
        loose = lack if spread is None else np.asarray(spread, np.float64) @ np.isnan(chunk.rows)
        xx = xx + lack * delta * delta + loose / self.precision
        return n, x + lack * delta, xx if self.kernel.covariance == "diag" else xx.sum(axis=1)

    def impute(self, chunk: Chunk, resp: Array) -> Float:
        return np.where(np.isnan(chunk.rows), resp.T @ self.means, chunk.rows)

    @property
    def _peak(self) -> Float:
        """Log densities of each feature at the mean, (k, d)."""
        return np.asarray(np.log(self.scale) + 0.5 * (np.log(self.precision) - LOG_2PI), np.float64)

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
