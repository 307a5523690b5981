"""Gaussian components over rows with holes (NaN), missing at random: exact marginals and conditional expectations.

In units z = (x - mean_k) * scale, with precision L, a row whose features m are missing is set to z_m = 0; then
g = L z tells all that is needed of its holes (Little & Rubin 2020, Statistical Analysis with Missing Data, 3rd edition,
section 11.2, written with precisions):

    z_m | z_o  has mean -C g_m and covariance C = (L_mm)^-1
    log p(z_o) = (log det L - log det L_mm - |o| log 2 pi - z^T g + g_m^T C g_m) / 2

Rows with holes are sorted by the number and the pattern of their holes, so that C is computed once a pattern: by sweeps
over all patterns at a time where holes are few, by LAPACK where they are many; or by compiled code, for several
components at a time (`daskem.compiled`), where there are not many features. Rows without holes, and blocks without
any, take the arithmetic of `daskem.models.gaussian_kernels`. Features that are independent given the component (diag,
spherical) need no patterns: a hole has the component's own mean and variance.

Where features nearly determine each other, the two quadratic forms above are large and nearly equal. There the density
is taken of the whole row with its holes at their conditional means, which is the same number, and log det L_mm from a
QR decomposition of those columns of the factor F, L = F^T F.

Single precision rows with holes are computed with in single precision by compiled code, where rows without holes are
and no feature is explained by the others beyond `STIFF_SINGLE`; else in double precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from daskem import compiled
from daskem.core import Array, Chunk, Float, Int
from daskem.models.gaussian_kernels import LOG_2PI, Kernel, Moments, pack
from daskem.models.gaussian_patterns import RUN_NUMBERS, Holes, Run
from daskem.models.gaussian_records import GaussianParams

__all__ = ["HolesKernel", "has_holes", "holes_bytes", "over_holes", "without_holes"]

# Numbers of the conditional covariances that are kept until the moments are taken, rather than computed again.
KEPT_NUMBERS = 1 << 20
# A feature that the others explain up to one part in so many of its variance: rounding grows by as much.
STIFF = 1e3
# The same for single precision. Measured errors of a log density: 6e-5 at 12, 1e-4 at 29, 4e-4 at 72 (16 features).
STIFF_SINGLE = 32.0


def has_holes(chunk: Chunk) -> bool:
    """Return whether a block holds any NaN."""
    return bool(chunk.scratch.keep("has holes", chunk, lambda: bool(_missing(chunk).any())))


def _missing(chunk: Chunk) -> Array:
    """Return which values are NaN, (n, d); looked for once a block."""
    missing: Array = chunk.scratch.keep("missing", chunk, lambda: np.isnan(chunk.rows))
    return missing


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
class _Conditional:
    """What parameters say of the holes of rows given the rest of these.

    Attributes
    ----------
    offset : (holes, k) conditional means less the means, scaled.
    about : (d, m) values about the reference that components share, scaled; holes hold anything. Not for compiled code.
    runs : the rows, and C of each run or None where it is to be computed again; likewise.
    peaks : (patterns, k) what log densities at the mean are more than those of rows without holes.
    """

    offset: Array
    peaks: Float
    about: Float | None = None
    runs: tuple[tuple[Run, Float | None], ...] = ()


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
            return _MatrixHoles(kernel, params.means, params.scale, factor.swapaxes(-1, -2) @ factor, factor)
        factor = kernel.factor if kernel.factor.ndim == 2 else kernel.factor[:, None]
        return _DiagonalHoles(kernel, params.means, params.scale, np.broadcast_to(factor * factor, params.means.shape))

    made: HolesKernel = chunk.scratch.keep("holes kernel", kernel, make)
    return made


@dataclass(frozen=True, eq=False)
class _MatrixHoles(HolesKernel):
    """Full or tied covariances; `factor` is the F of the precisions L = F^T F, shaped as they are."""

    factor: Float

    def log_prob(self, chunk: Chunk) -> Array:
        holes = self._holes(chunk)
        out = chunk.scratch.empty("log_prob with holes", (len(self.means), len(chunk)), self._dtype)
        if len(holes.kept):
            out[:, holes.kept] = self.kernel.log_prob(holes.complete)
        self._conditional(chunk, out)
        return out

    def log_peak(self, chunk: Chunk) -> Float:
        holes, found = self._holes(chunk), self._conditional(chunk)
        out = np.repeat(self.kernel.peak[:, None], len(chunk), axis=1)
        out[:, holes.rows] += np.take(found.peaks, holes.pattern, axis=0).T
        return out

    def moments(self, chunk: Chunk, resp: Array, spread: Array | None = None) -> Moments:
        holes, found = self._holes(chunk), self._conditional(chunk)
        _, x, xx = self.kernel.moments(holes.complete, np.take(resp, holes.kept, axis=1))
        moments = self._filled_compiled if self._compiled else self._filled
        first, second = moments(chunk, found, resp, resp if spread is None else spread)
        return resp.sum(axis=1, dtype=np.float64), x + first, xx + self._shaped(second)

    def impute(self, chunk: Chunk, resp: Array) -> Float:
        holes, found = self._holes(chunk), self._conditional(chunk)
        expected = self.means[:, holes.feature] + found.offset.T / self.scale[holes.feature]
        row = holes.rows[holes.row]
        out = np.array(chunk.rows, np.float64)
        out[row, holes.feature] = (np.take(resp, row, axis=1) * expected).sum(axis=0)
        return out

    def _holes(self, chunk: Chunk) -> Holes:
        holes: Holes = chunk.scratch.keep("holes", chunk, lambda: Holes.of(chunk, _missing(chunk)))
        return holes

    def _conditional(self, chunk: Chunk, out: Array | None = None) -> _Conditional:
        """Return what log densities and moments of one block share; write the log densities to `out`, if asked for."""
        # Of one kernel at a time: the next one's offsets take the place of this one's.
        cache = chunk.scratch.keep("conditional", chunk, dict)
        if out is not None or cache.get("owner") is not self:
            if out is None:
                out = chunk.scratch.empty("unused log_prob", (len(self.means), len(chunk)), self._dtype)
            cache["owner"], cache["value"] = self, self._condition(chunk, out)
        return cache["value"]  # type: ignore[no-any-return]

    def _condition(self, chunk: Chunk, out: Array) -> _Conditional:
        """Write the log densities of the rows with holes to their places in `out` (k, n)."""
        holes, k = self._holes(chunk), len(self.means)
        g = chunk.scratch.empty("g", (holes.n_holes, k), self._dtype)
        if self._compiled:
            return _Conditional(g, compiled.condition(self._rows(chunk), self._components, out, g))
        log_prob = chunk.scratch.empty("log_prob of holes", (k, len(holes.rows)))
        z, product = (chunk.scratch.empty(name, holes.values.shape[::-1]) for name in ("z", "L z"))
        about = self._scaled(chunk, self.kernel.shift, "about")
        for component, delta in enumerate(self.kernel.delta):
            np.subtract(self._about(chunk, component, about), delta[:, None], out=z)
            z.reshape(-1)[holes.place] = 0.0
            np.matmul(self.precision[component % len(self.precision)], z, out=product)
            np.einsum("dn,dn->n", z, product, out=log_prob[component])
            g[:, component] = np.take(product, holes.place)
        log_prob *= -0.5
        log_prob += self.kernel.peak[:, None]
        peaks = np.empty((len(holes.first) - 1, k))
        found = _Conditional(g, peaks, about, tuple(self._condition_runs(holes, log_prob, g, peaks)))
        if self.stiff:
            self._refine(chunk, found, log_prob)
        out[:, holes.rows] = log_prob
        return found

    @property
    def stiff(self) -> bool:
        """Whether a feature is explained by the others so well that large numbers would have to cancel."""
        return self._stiffness > STIFF

    @cached_property
    def _stiffness(self) -> float:
        """The largest variance of a feature over what the others leave of it."""
        inverse = np.linalg.inv(self.factor)
        variance = np.einsum("kij,kij->ki", inverse, inverse)
        return float((variance * np.einsum("kii->ki", self.precision)).max())

    def _refine(self, chunk: Chunk, found: _Conditional, log_prob: Float) -> None:
        """Take the log densities anew, of whole rows with their holes at the conditional means."""
        holes = self._holes(chunk)
        z, product = (chunk.scratch.empty(name, holes.values.shape[::-1]) for name in ("z", "L z"))
        for component, delta in enumerate(self.kernel.delta):
            np.subtract(self._about(chunk, component, found.about), delta[:, None], out=z)
            z.reshape(-1)[holes.place] = found.offset[:, component]
            np.matmul(self.factor[component % len(self.factor)], z, out=product)
            np.einsum("dn,dn->n", product, product, out=log_prob[component])
        log_prob *= -0.5
        log_prob += self.kernel.peak[:, None]
        log_prob += np.take(found.peaks, holes.pattern, axis=0).T

    def _condition_runs(
        self, holes: Holes, log_prob: Float, g: Float, peaks: Float
    ) -> Iterator[tuple[Run, Float | None]]:
        """Turn g into conditional offsets and complete the log densities, run by run; yield runs and inverses."""
        precision = self._component_last()
        constant = 0.5 * LOG_2PI - np.log(self.scale)
        kept = 0
        for run in holes.runs(g.shape[1]):
            inverse, log_det = run.invert(precision)
            if self.stiff:
                log_det = _log_det(self.factor, run.features)
            peaks[run.patterns] = peak = constant[run.features].sum(axis=0)[:, None] - 0.5 * log_det
            gradient = g[run.holes].reshape(-1, len(run.features), g.shape[1])
            offset = run.apply(inverse, gradient)
            gain = np.take(peak, run.pattern, axis=0) + 0.5 * np.einsum("nqk,nqk->nk", offset, gradient)
            log_prob[:, run.rows] += gain.T
            np.negative(offset, out=gradient)
            kept += inverse.size
            yield run, inverse if kept <= KEPT_NUMBERS else None

    @cached_property
    def _compiled(self) -> bool:
        """Whether compiled code does what it is faster at, and accurate enough."""
        return compiled.available() and self.means.shape[1] <= compiled.MOST_HOLED and not self.stiff

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        """The type that rows with holes are computed in."""
        single = self._compiled and not self.kernel.own and self._stiffness <= STIFF_SINGLE
        return self.kernel.dtype if single else np.dtype(np.float64)

    @cached_property
    def _components(self) -> compiled.Components:
        kernel = self.kernel
        arrays = (
            kernel.reference if kernel.own else kernel.shift[None],
            kernel.delta,
            self.scale,
            0.5 * LOG_2PI - np.log(self.scale),
            self.precision,
        )
        peak = np.broadcast_to(kernel.peak, len(self.means))
        return compiled.Components(*(np.ascontiguousarray(array, np.float64) for array in (*arrays, peak)))

    def _rows(self, chunk: Chunk) -> compiled.Rows:
        """Return the rows with holes for compiled code."""
        holes = self._holes(chunk)
        values = holes.values.astype(self._dtype, copy=False)
        return compiled.Rows(values, holes.features, holes.first, holes.pattern, holes.rows)

    def _filled_compiled(self, chunk: Chunk, found: _Conditional, resp: Array, loose: Array) -> tuple[Float, Float]:
        """Return `_filled` of these."""
        resp, loose = (np.ascontiguousarray(array, self._dtype) for array in (resp, loose))
        first, second = compiled.filled(self._rows(chunk), self._components, found.offset, resp, loose)
        return first, second + np.triu(second, 1).swapaxes(-1, -2)

    def _filled(self, chunk: Chunk, found: _Conditional, resp: Array, loose: Array) -> tuple[Float, Float]:
        """Return the sums of filled rows (k, d), and their second moments, shaped as the precision."""
        holes = self._holes(chunk)
        share, loose = (np.asarray(np.take(array, holes.rows, axis=1), np.float64) for array in (resp, loose))
        first, second = np.empty(self.means.shape), self._covariance(found, loose)
        expected = found.offset.T + np.take(self.kernel.delta, holes.feature, axis=1)
        u = chunk.scratch.empty("weighted", holes.values.shape[::-1])
        for component, root in enumerate(np.sqrt(share)):
            np.multiply(self._about(chunk, component, found.about), root, out=u)
            u.reshape(-1)[holes.place] = expected[component] * np.take(root, holes.row)
            first[component] = u @ root
            second[component % len(second)] += u @ u.T
        return first, second

    def _covariance(self, found: _Conditional, share: Float) -> Float:
        """Return the sum over rows of share (k, m) times the conditional covariance, shaped as the precision."""
        precision = self._component_last()
        out = np.zeros(precision.shape)
        weight = np.ascontiguousarray(share.T) if len(self.precision) > 1 else share.sum(axis=0)[:, None]
        for run, inverse in found.runs:
            each = np.add.reduceat(weight[run.rows], run.starts, axis=0)
            run.spread(run.invert(precision)[0] if inverse is None else inverse, each, out)
        return np.ascontiguousarray(out.transpose(2, 0, 1))

    def _component_last(self) -> Float:
        return np.ascontiguousarray(self.precision.transpose(1, 2, 0))

    def _about(self, chunk: Chunk, component: int, shared: Float | None) -> Float:
        """Return the values about a component's reference, which is most often the one that components share."""
        if shared is not None and component not in self.kernel.own:
            return shared
        return self._scaled(chunk, self.kernel.reference[component], "about own")

    def _scaled(self, chunk: Chunk, point: Float, name: str) -> Float:
        """Return (x - point) * scale of the rows with holes, (d, m), in the scratch; holes hold anything."""
        values = self._holes(chunk).values
        out = chunk.scratch.empty(name, values.shape[::-1])
        np.subtract(values.T, point[:, None], out=out)
        if self.kernel.scale is not None:
            out *= self.scale[:, None]
        return out

    def _shaped(self, second: Float) -> Float:
        if self.kernel.covariance == "tied":
            return np.asarray(second[0])
        return pack(second) if self.kernel.packed else second


def _log_det(factor: Float, features: Int) -> Float:
    """Return log det (F^T F)_mm (patterns, k) for the columns m of each pattern, features being (q, patterns)."""
    q, patterns = features.shape
    out = np.empty((patterns, len(factor)))
    most = max(1, RUN_NUMBERS // (factor.shape[-1] * q))
    for component, each in enumerate(factor):
        for start in range(0, patterns, most):
            part = slice(start, start + most)
            r = np.linalg.qr(each[:, features[:, part].T].transpose(1, 0, 2), mode="r")
            out[part, component] = 2.0 * np.log(np.abs(np.einsum("nqq->nq", r))).sum(axis=1)
    return out


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
