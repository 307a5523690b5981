"""The arithmetic of Gaussian components over one block of rows: log densities and weighted moments.

Everything is feature-major, (features, rows), in units u = (x - reference) * scale. Three forms, chosen by rule:

features    log_prob = natural (k, p) @ T(u) (p, n) and moments = resp (k, n) @ T(u)^T, with T(u) = [1, u, upper(u u^T)]
            (full), [1, u, u^2] (diag) or [1, u, |u A|^2] (spherical; tied, where A whitens).
triangular  z_k = P_k^T u - P_k^T delta_k for each component, moments by symmetric rank-n updates (full only).
own         u - delta_k formed for each component about its own reference: about twice the cost, always accurate.

Rule of cost (float64 and float32 alike, measured with one BLAS thread, blocks of 1,024 rows): building T(u) costs about
0.75 ns a feature and row whatever k is; a component costs 1.6 to 2.5 times as much in the triangular form as in the
features form. The lines cross near k = 0.4 d; beyond d = 64 a block's features leave the caches. See `uses_features`.

Rule of accuracy: second moments lose the square of the distance between mean and reference, in standard deviations.
`COMMON_RATIO` bounds r_k = |(mu_k - reference_k) P_k| (for diag the largest feature's) for the common reference; beyond
it the own form is taken. Single precision rows are computed with in single precision where `FLOAT32_RATIO` bounds the
distance of each feature and `FLOAT32_TERMS` the sum of the magnitudes of the terms that make up a log density, else in
double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem.core import Array, Chunk, Float

__all__ = ["COMMON_RATIO", "FLOAT32_RATIO", "Kernel", "Moments", "ratios", "uses_features"]

# Measured relative error of covariances about a common reference: 3e-13 at r = 32, 2e-12 at 64, 2e-11 at 256.
COMMON_RATIO = 256.0
# Measured likewise in single precision: 3e-6 at 8 standard deviations, 7e-6 at 16, 7e-5 at 32.
FLOAT32_RATIO = 16.0
# Rounding errors of a row's log density stay below 6e-8 times this, 2e-4, and cancel over rows.
FLOAT32_TERMS = 4096.0
LOG_2PI = float(np.log(2.0 * np.pi))

Moments = tuple[Float, Float, Float]


def uses_features(covariance: str, n_features: int, n_components: int) -> bool:
    """Return whether the features form is the faster one; it also decides that full second moments are packed."""
    if covariance != "full":
        return True
    return n_features <= 8 or (n_features <= 64 and 5 * n_components >= 2 * n_features)


def n_statistics(covariance: str, d: int) -> int:
    """Return the rows of T(u)."""
    return {"full": 1 + d + d * (d + 1) // 2, "diag": 1 + 2 * d, "tied": 2 + d, "spherical": 2 + d}[covariance]


def ratios(covariance: str, delta: Float, factor: Float) -> Float:
    """Return r (k,): how many standard deviations the means lie from their references.

    Parameters
    ----------
    delta : (k, d) means minus references, in scaled units.
    factor : Cholesky factors of the precisions in the same units.
    """
    if covariance == "diag":
        return np.asarray(np.abs(delta * factor).max(axis=1))
    if covariance == "spherical":
        return np.asarray(np.sqrt((delta * delta).sum(axis=1)) * factor)
    whitened = delta @ factor if covariance == "tied" else np.einsum("kd,kde->ke", delta, factor)
    return np.asarray(np.sqrt((whitened * whitened).sum(axis=1)))


@dataclass(frozen=True, eq=False)
class Kernel:
    """Parameters in the shape that the arithmetic wants, made once per parameters and task.

    Attributes
    ----------
    form : "features", "triangular" or "own".
    packed : whether full second moments are (k, d (d + 1) / 2), the upper triangle by rows, rather than (k, d, d).
    dtype : type that the products are computed in.
    reference, scale : (k, d), (d,), see the module.
    delta : (k, d) means minus references, scaled.
    factor : Cholesky factors of the precisions, scaled, transposed where they are matrices.
    constant : (k,) log density at the mean, in data units; for "features" what rounding took from it.
    natural : (k, p) for "features", (k, d, d + 1) for "triangular", else empty.
    """

    covariance: str
    form: str
    packed: bool
    dtype: np.dtype[Any]
    reference: Float
    scale: Float
    scaled: bool
    key: bytes
    delta: Float
    factor: Array
    constant: Float
    natural: Array

    @classmethod
    def make(
        cls,
        covariance: str,
        reference: Float,
        scale: Float,
        delta: Float,
        factor: Float,
        deviation: Float,
        rows_dtype: np.dtype[Any],
    ) -> Kernel:
        """Return the kernel for rows of a type: chooses the form and the precision by the rules of the module.

        `factor` holds the Cholesky factors of the precisions, shaped as the parameters have them, `deviation` (k, d)
        the standard deviations, both in scaled units.
        """
        k, d = delta.shape
        packed = uses_features(covariance, d, k)
        common = bool((reference == reference[0]).all())
        form = ("features" if packed else "triangular") if common else "own"
        single = rows_dtype == np.float32 and common and _single_suffices(form, covariance, delta, factor, deviation)
        dtype = np.dtype(np.float32 if single else np.float64)
        natural: Array = np.empty(0)
        constant = _log_peak(covariance, factor, scale, k)
        if form == "features":
            exact = _natural(covariance, delta, factor, constant)
            natural = exact.astype(dtype)
            constant = _rounding_loss(covariance, delta, exact, natural)
        elif form == "triangular":
            offset = np.einsum("kd,kde->ke", delta, factor)
            natural = np.concatenate([factor.swapaxes(-1, -2), -offset[:, :, None]], axis=2).astype(dtype)
        turned = np.ascontiguousarray(factor.swapaxes(-1, -2)) if covariance in ("full", "tied") else factor
        return cls(
            covariance=covariance,
            form=form,
            packed=packed,
            dtype=dtype,
            reference=reference,
            scale=scale,
            scaled=bool((scale != 1.0).any()),
            key=dtype.char.encode() + reference[0].tobytes() + scale.tobytes() + _whitening(covariance, factor),
            delta=delta,
            factor=turned.astype(dtype),
            constant=constant,
            natural=natural,
        )

    def log_prob(self, chunk: Chunk) -> Array:
        """Return log p(x | component) as (k, n), in the scratch of the chunk."""
        k, n = len(self.delta), len(chunk)
        out = chunk.scratch.empty("log_prob", (k, n), self.dtype)
        if self.form == "features":
            np.matmul(self.natural, self._features(chunk), out=out)
            if self.dtype == np.float32:
                out += self.constant.astype(np.float32)[:, None]
            return out
        if self.form == "triangular":
            self._log_prob_triangular(chunk, out)
        else:
            self._log_prob_own(chunk, out)
        out *= -0.5
        out += self.constant.astype(self.dtype)[:, None]
        return out

    def moments(self, chunk: Chunk, resp: Array) -> Moments:
        """Return n (k,), x (k, d) and xx of the rows under `resp` (k, n), in scaled units about the references."""
        d = chunk.rows.shape[1]
        resp = np.asarray(resp, self.dtype)
        if self.form == "own":
            return self._moments_own(chunk, resp)
        features = self._features(chunk)
        if self.form == "features" and self.covariance != "tied":
            sums = np.matmul(resp, features.T).astype(np.float64, copy=False)
            xx = sums[:, -1] if self.covariance == "spherical" else sums[:, d + 1 :]
            return sums[:, 0], sums[:, 1 : d + 1], xx
        if self.covariance == "tied":
            sums = np.matmul(resp, features[: d + 1].T).astype(np.float64, copy=False)
            return sums[:, 0], sums[:, 1:], self._scatter(chunk, features[1 : d + 1], resp.sum(axis=0))
        sums = np.matmul(resp, features.T).astype(np.float64, copy=False)
        xx = np.empty((len(resp), d, d))
        for k in range(len(resp)):
            xx[k] = self._scatter(chunk, features[:d], resp[k])
        return sums[:, d], sums[:, :d], xx

    def _features(self, chunk: Chunk) -> Array:
        """Return T(u), or [u, 1] for the triangular form; shared by log_prob and moments of one block."""
        cache = chunk.scratch.keep("features", chunk, dict)
        if cache.get("key") != self.key:
            cache["key"], cache["value"] = self.key, self._build(chunk)
        return cache["value"]  # type: ignore[no-any-return]

    def _build(self, chunk: Chunk) -> Array:
        n, d = chunk.rows.shape
        if self.form == "triangular":
            out = chunk.scratch.empty("features", (d + 1, n), self.dtype)
            self._shifted(chunk.rows, 0, out[:d])
            out[d] = 1.0
            return out
        out = chunk.scratch.empty("features", (n_statistics(self.covariance, d), n), self.dtype)
        out[0] = 1.0
        u = self._shifted(chunk.rows, 0, out[1 : d + 1])
        if self.covariance == "diag":
            np.multiply(u, u, out=out[d + 1 :])
        elif self.covariance == "full":
            _upper_products(u, out[d + 1 :])
        else:
            z = u if self.covariance == "spherical" else self._product(chunk, self.factor, u)
            np.einsum("dn,dn->n", z, z, out=out[d + 1])
        return out

    def _shifted(self, rows: Array, k: int, out: Array) -> Array:
        """Write (x - reference_k) * scale into `out` (d, n)."""
        reference = self.reference[k][:, None]
        # A reference that single precision cannot hold is subtracted in double, else it would move the means.
        exact = out.dtype == rows.dtype and bool((reference.astype(rows.dtype) == reference).all())
        np.subtract(rows.T, reference, out=out, dtype=out.dtype if exact else np.float64, casting="same_kind")
        if self.scaled:
            out *= self.scale.astype(out.dtype)[:, None]
        return out

    def _product(self, chunk: Chunk, factor: Array, u: Array) -> Array:
        return np.matmul(factor, u, out=chunk.scratch.empty("product", (len(factor), u.shape[1]), self.dtype))

    def _scatter(self, chunk: Chunk, u: Array, resp: Array) -> Array:
        """Return sum_n resp_n u_n u_n^T, (d, d); numpy turns the product of a matrix with its transpose into syrk."""
        y = np.multiply(u, np.sqrt(resp), out=chunk.scratch.empty("product", u.shape, self.dtype))
        return y @ y.T

    def _log_prob_triangular(self, chunk: Chunk, out: Array) -> None:
        u = self._features(chunk)
        d, n = chunk.rows.shape[1], len(chunk)
        z = chunk.scratch.empty("product", (d, n), self.dtype)
        # The factors are lower triangular here: the upper right quarter need not be multiplied.
        half = d // 2
        ones = u[d]
        for k, factor in enumerate(self.natural):
            np.matmul(factor[:half, :half], u[:half], out=z[:half])
            z[:half] += np.multiply(factor[:half, d, None], ones)
            np.matmul(factor[half:], u, out=z[half:])
            np.einsum("dn,dn->n", z, z, out=out[k])

    def _log_prob_own(self, chunk: Chunk, out: Array) -> None:
        n, d = chunk.rows.shape
        u = chunk.scratch.empty("own", (d, n), self.dtype)
        for k in range(len(out)):
            self._shifted(chunk.rows, k, u)
            u -= self.delta[k][:, None]
            if self.covariance in ("diag", "spherical"):
                u *= self.factor[k][:, None] if self.covariance == "diag" else self.factor[k]
                z = u
            else:
                z = self._product(chunk, self.factor if self.covariance == "tied" else self.factor[k], u)
            np.einsum("dn,dn->n", z, z, out=out[k])

    def _moments_own(self, chunk: Chunk, resp: Array) -> Moments:
        n, d = chunk.rows.shape
        u = chunk.scratch.empty("own", (d, n), self.dtype)
        x = np.empty((len(resp), d))
        second: list[Array] = []
        for k, r in enumerate(resp):
            self._shifted(chunk.rows, k, u)
            x[k] = u @ r
            if self.covariance in ("full", "tied"):
                second.append(self._scatter(chunk, u, r))
                if self.covariance == "tied" and k:
                    second[0] += second.pop()
            else:
                u *= u
                second.append(u @ r if self.covariance == "diag" else (u @ r).sum())
        xx = second[0] if self.covariance == "tied" else np.stack(second)
        return resp.sum(axis=1), x, pack(xx) if self.covariance == "full" and self.packed else np.asarray(xx)


def pack(square: Array) -> Array:
    """Return the upper triangles (k, d (d + 1) / 2) of symmetric matrices (k, d, d)."""
    i, j = np.triu_indices(square.shape[-1])
    return square[:, i, j]


def unpack(packed: Array, d: int) -> Array:
    """Return symmetric matrices (k, d, d) from their upper triangles; square ones are returned as they are."""
    if packed.ndim == 3:
        return packed
    i, j = np.triu_indices(d)
    square = np.empty((len(packed), d, d))
    square[:, i, j] = packed
    square[:, j, i] = packed
    return square


def log_det(covariance: str, factor: Float, d: int) -> Array:
    """Return log det P of the Cholesky factors of the precisions: (k,), a scalar array for tied."""
    if covariance in ("full", "tied"):
        return np.asarray(np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(axis=-1))
    return np.asarray(np.log(factor).sum(axis=-1) if covariance == "diag" else d * np.log(factor))


def _whitening(covariance: str, factor: Float) -> bytes:
    """Return what else T(u) depends on: the whitening matrix, for tied."""
    return factor.tobytes() if covariance == "tied" else b""


def _log_peak(covariance: str, factor: Float, scale: Float, k: int) -> Float:
    d = len(scale)
    return np.broadcast_to(log_det(covariance, factor, d) + np.log(scale).sum() - 0.5 * d * LOG_2PI, (k,))


def _natural(covariance: str, delta: Float, factor: Float, constant: Float) -> Float:
    """Return natural parameters (k, p): log p = constant - |P^T (u - delta)|^2 / 2 written as a product with T(u)."""
    k, d = delta.shape
    out = np.empty((k, n_statistics(covariance, d)))
    if covariance in ("diag", "spherical"):
        precision = factor * factor if covariance == "diag" else (factor * factor)[:, None]
        linear = precision * delta
        out[:, d + 1 :] = -0.5 * precision
    elif covariance == "tied":
        linear = (delta @ factor) @ factor.T
        out[:, d + 1] = -0.5
    else:
        linear = np.einsum("kde,ke->kd", factor, np.einsum("kd,kde->ke", delta, factor))
        quadratic = -(factor @ factor.swapaxes(-1, -2))
        # Off the diagonal the upper triangle stands for both halves.
        quadratic[:, np.arange(d), np.arange(d)] *= 0.5
        out[:, d + 1 :] = pack(quadratic)
    out[:, 1 : d + 1] = linear
    out[:, 0] = constant - 0.5 * (linear * delta).sum(axis=1)
    return out


def _rounding_loss(covariance: str, delta: Float, exact: Float, rounded: Array) -> Float:
    """Return (exact - rounded) . T(delta), (k,): what rounded parameters miss at the mean."""
    d = delta.shape[1]
    lost = exact - rounded
    if covariance == "full":
        i, j = np.triu_indices(d)
        second = delta[:, i] * delta[:, j]
    elif covariance == "diag":
        second = delta * delta
    else:
        # -1/2 is exact (tied), and 1 / (2 variance) multiplies |delta|^2 (spherical).
        second = (delta * delta).sum(axis=1, keepdims=True)
    return np.asarray(lost[:, 0] + (lost[:, 1 : d + 1] * delta).sum(axis=1) + (lost[:, d + 1 :] * second).sum(axis=1))


def _single_suffices(form: str, covariance: str, delta: Float, factor: Float, deviation: Float) -> bool:
    """Return whether single precision keeps 1e-5 (see the rule of accuracy)."""
    if not np.abs(delta / deviation).max() <= FLOAT32_RATIO:
        return False
    reach = np.abs(delta) + deviation
    if covariance == "diag":
        terms = ((reach * factor) ** 2).sum(axis=1)
    elif covariance == "spherical":
        terms = (reach**2).sum(axis=1) * factor**2
    else:
        factors = np.broadcast_to(factor, (len(delta), *factor.shape[-2:]))
        if form == "triangular":
            # z is about one and carries the error of the terms that add up to it.
            terms = np.einsum("kd,kde->k", reach, np.abs(factors))
        else:
            terms = np.array([r @ np.abs(p @ p.T) @ r for r, p in zip(reach, factors, strict=True)])
    return bool(terms.max() <= FLOAT32_TERMS)


def _upper_products(u: Array, out: Array) -> None:
    start, d = 0, len(u)
    for i in range(d):
        np.multiply(u[i], u[i:], out=out[start : start + d - i])
        start += d - i
