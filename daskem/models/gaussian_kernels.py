"""The arithmetic of Gaussian components over one block of rows: log densities and weighted moments.

Everything is feature-major, (features, rows), in units u = (x - reference) * scale. Three forms, chosen by rule:

features    log_prob = natural (k, p) @ T(u) (p, n) and moments = resp (k, n) @ T(u)^T, with T(u) = [1, u, upper(u u^T)]
            (full), [1, u, u^2] (diag) or [1, u, |u A|^2] (spherical; tied, where A whitens).
triangular  z_k = P_k^T u - P_k^T delta_k for each component, moments by symmetric rank-n updates (full only).
own         about points of the component's own, densities its mean and moments its reference, in double precision:
            always accurate, and with many components several times the cost, so only those components take it that
            need it, and only for what they need it.

Where daskem is compiled, the features form makes T(u) piece by piece where it is multiplied (`daskem.compiled`); it is
then the faster one wherever it is accurate enough. Else:

Rule of cost (float64 and float32 alike, measured with one BLAS thread, blocks of 1,024 rows): building T(u) costs about
0.75 ns a feature and row whatever k is; a component costs 1.6 to 2.5 times as much in the triangular form as in the
features form. The lines cross near k = 0.4 d; beyond d = 64 a block's features leave the caches. See `uses_features`.

Rule of accuracy: second moments lose the square of the distance between mean and reference, in standard deviations. For
the common reference `FEATURE_RATIO` bounds the distance in those of each feature, which governs the error of a
covariance, and `COMMON_RATIO` bounds r_k = |(mu_k - reference_k) P_k|, which governs that of its smallest eigenvalue; a
component beyond one of them has a reference of its own. A log density loses the sum of the magnitudes of the terms that
make it up, which is large for nearly collinear features too: where it is beyond `FLOAT64_TERMS` a feature, the density
takes the own form. Single precision rows are computed with in single precision where `FLOAT32_RATIO` bounds the
distance of each feature and `FLOAT32_TERMS` that sum, else in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem import compiled
from daskem.core import Array, Chunk, Float

__all__ = [
    "COMMON_RATIO",
    "FEATURE_RATIO",
    "FLOAT32_RATIO",
    "FLOAT32_TERMS",
    "LOG_2PI",
    "Kernel",
    "Moments",
    "log_det",
    "makes_pieces",
    "n_statistics",
    "pack",
    "ratios",
    "unpack",
    "uses_features",
]

# Measured error of a smallest eigenvalue, relative to itself, about a common reference: 2e-11 at r = 256.
COMMON_RATIO = 256.0
# Measured error of covariances, relative to the largest entry: 3e-13 at 32 standard deviations, 1e-12 at 64.
FEATURE_RATIO = 32.0
# Rounding errors of a row's log density stay below 1e-12 of its two parts (the peak, and half the squared distance).
FLOAT64_TERMS = 2048.0
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


def makes_pieces(covariance: str) -> bool:
    """Return whether there is compiled code for the features form, which never holds T(u) of a block."""
    return compiled.available() and covariance in ("full", "diag")


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
    """Parameters in the shape that the arithmetic wants, made once per parameters and pass.

    Attributes
    ----------
    form : "features" or "triangular", for the components whose reference is the common point.
    own : components with a reference of their own, in increasing order.
    apart : those whose log density takes the own form, `own` included.
    packed : whether full second moments are (k, d (d + 1) / 2), the upper triangle by rows, rather than (k, d, d).
    dtype : type that the products are computed in; those of `own` are double.
    shift : (d,) the common point. reference, means : (k, d). scale : (d,), or None for ones.
    key : what T(u) depends on.
    delta : (k, d) means minus references, scaled.
    factor : Cholesky factors of the precisions, scaled, transposed where they are matrices.
    peak : (k,) log density at the mean, in data units.
    natural : (k, p) for "features", (k, d, d + 1) for "triangular".
    lost : (k,) what rounding took from `natural` (see `_rounding_loss`).
    """

    covariance: str
    form: str
    own: list[int]
    apart: list[int]
    packed: bool
    dtype: np.dtype[Any]
    shift: Float
    reference: Float
    means: Float
    scale: Float | None
    key: bytes
    delta: Float
    factor: Float
    peak: Float
    natural: Array
    lost: Float

    @classmethod
    def make(
        cls,
        covariance: str,
        shift: Float,
        reference: Float,
        scale: Float,
        means: Float,
        factor: Float,
        deviation: Float,
        rows_dtype: np.dtype[Any],
    ) -> Kernel:
        """Return the kernel for rows of a type: chooses the form and the precision by the rules of the module.

        `factor` holds the Cholesky factors of the precisions, shaped as the parameters have them, `deviation` (k, d)
        the standard deviations, both in scaled units.
        """
        k, d = means.shape
        delta = (means - reference) * scale
        packed = uses_features(covariance, d, k)
        home = (reference == shift).all(axis=1)
        at_home = delta[home], deviation[home]
        form, terms = "features", _terms("features", covariance, delta, factor, deviation)
        single = rows_dtype == np.float32 and _single_suffices(*at_home, terms[home])
        accurate = single if rows_dtype == np.float32 else (terms[home] <= FLOAT64_TERMS * d).all()
        if not packed and not (compiled.available() and accurate):
            form, terms = "triangular", _terms("triangular", covariance, delta, factor, deviation)
            single = rows_dtype == np.float32 and _single_suffices(*at_home, terms[home])
        dtype = np.dtype(np.float32 if single else np.float64)
        peak = _log_peak(covariance, factor, scale, k)
        features = form == "features"
        exact = _natural(covariance, delta, factor, peak) if features else _offset_factors(delta, factor)
        # These products are overwritten: they must not overflow before.
        exact[~home] = 0.0
        natural = exact.astype(dtype)
        matrices = covariance in ("full", "tied")
        return cls(
            covariance=covariance,
            form=form,
            own=np.flatnonzero(~home).tolist(),
            apart=np.flatnonzero(~(home & (terms <= FLOAT64_TERMS * d))).tolist(),
            packed=packed,
            dtype=dtype,
            shift=shift,
            reference=reference,
            means=means,
            scale=scale if (scale != 1.0).any() else None,
            key=_key(covariance, form, dtype, shift, scale, factor),
            delta=delta,
            factor=np.ascontiguousarray(factor.swapaxes(-1, -2)) if matrices else factor,
            peak=peak,
            natural=natural,
            lost=_rounding_loss(covariance, delta, exact, natural) if single and features else np.zeros(k),
        )

    def log_prob(self, chunk: Chunk) -> Array:
        """Return log p(x | component) as (k, n), in the scratch of the chunk."""
        k, n = len(self.delta), len(chunk)
        out = chunk.scratch.empty("log_prob", (k, n), self.dtype)
        if len(self.apart) < k and self.form == "features":
            if self.compiled:
                compiled.log_prob(self.covariance, self._features(chunk), self.natural, out)
            else:
                np.matmul(self.natural, self._features(chunk), out=out)
            if self.lost.any():
                out += self.lost.astype(self.dtype)[:, None]
        elif len(self.apart) < k:
            self._log_prob_triangular(chunk, out)
        for component in self.apart:
            self._log_prob_own(chunk, component, out[component])
        return out

    def squared_distances(self, chunk: Chunk) -> Array:
        """Return |P^T (x - mean)|^2, Mahalanobis' distances squared, as (k, n), in the scratch of the chunk."""
        out = self.log_prob(chunk)
        out -= self.peak.astype(out.dtype)[:, None]
        out *= -2
        # Rounding takes rows near a mean below zero.
        return np.maximum(out, 0, out=out)

    @property
    def at_once(self) -> bool:
        """Whether compiled code can do an E-step in one go, and accurately."""
        return self.compiled and not self.apart

    def terms(self, chunk: Chunk) -> compiled.Terms:
        """Return the log densities as what compiled code takes for an E-step in one go."""
        rows = compiled.in_place(chunk.rows, self.dtype)
        return compiled.Terms(self.covariance, rows, self.natural, self.shift, self.scale, self.lost)

    def moments(self, chunk: Chunk, resp: Array) -> Moments:
        """Return n (k,), x (k, d) and xx of the rows under `resp` (k, n), in scaled units about the references."""
        k, d = self.delta.shape
        if len(self.own) == k:
            n, x, xx = resp.sum(axis=1, dtype=np.float64), np.empty((k, d)), self._no_moments()
        elif self.form == "features":
            n, x, xx = self._moments_features(chunk, resp.astype(self.dtype, copy=False))
        else:
            n, x, xx = self._moments_triangular(chunk, resp.astype(self.dtype, copy=False))
        for component in self.own:
            x[component], second = self._moments_own(chunk, component, resp[component].astype(np.float64, copy=False))
            if self.covariance == "tied":
                xx += second
            else:
                xx[component] = second
        return n, x, xx

    @property
    def compiled(self) -> bool:
        """Whether T(u) is made by compiled code, piece by piece, where it is multiplied."""
        return self.form == "features" and makes_pieces(self.covariance)

    def _features(self, chunk: Chunk) -> Array:
        """Return T(u), or u for compiled code, or [u, 1] for the triangular form.

        It is shared by log_prob and moments of one block.
        """
        cache = chunk.scratch.keep("features", chunk, dict)
        if cache.get("key") != self.key:
            cache["key"], cache["value"] = self.key, self._build(chunk)
        return cache["value"]  # type: ignore[no-any-return]

    def _build(self, chunk: Chunk) -> Array:
        n, d = chunk.rows.shape
        if self.compiled:
            return self._shifted(chunk.rows, chunk.scratch.empty("features", (d, n), self.dtype))
        if self.form == "triangular":
            out = chunk.scratch.empty("features", (d + 1, n), self.dtype)
            self._shifted(chunk.rows, out[:d])
            out[d] = 1.0
            return out
        out = chunk.scratch.empty("features", (n_statistics(self.covariance, d), n), self.dtype)
        out[0] = 1.0
        u = self._shifted(chunk.rows, out[1 : d + 1])
        if self.covariance == "diag":
            np.multiply(u, u, out=out[d + 1 :])
        elif self.covariance == "full":
            _upper_products(u, out[d + 1 :])
        else:
            z = u if self.covariance == "spherical" else _product(chunk, self.factor.astype(self.dtype), u)
            np.einsum("dn,dn->n", z, z, out=out[d + 1])
        return out

    def _shifted(self, rows: Array, out: Array) -> Array:
        """Write (x - shift) * scale into `out` (d, n)."""
        if compiled.available():
            compiled.shifted(compiled.in_place(rows, out.dtype), self.shift, self.scale, out)
            return out
        shift = self.shift[:, None]
        # A point that single precision cannot hold is subtracted in double, else it would move the means.
        exact = out.dtype == rows.dtype and bool((shift.astype(rows.dtype) == shift).all())
        np.subtract(rows.T, shift, out=out, dtype=out.dtype if exact else np.float64, casting="same_kind")
        if self.scale is not None:
            out *= self.scale.astype(out.dtype)[:, None]
        return out

    def _log_prob_triangular(self, chunk: Chunk, out: Array) -> None:
        u = self._features(chunk)
        d = len(u) - 1
        z = chunk.scratch.empty(("product", self.dtype.char), (d, len(chunk)), self.dtype)
        # The factors are lower triangular here: the upper right quarter need not be multiplied.
        half = d // 2
        for k in np.setdiff1d(np.arange(len(out)), self.apart):
            factor = self.natural[k]
            np.matmul(factor[:half, :half], u[:half], out=z[:half])
            z[:half] += factor[:half, d, None]
            np.matmul(factor[half:], u, out=z[half:])
            np.einsum("dn,dn->n", z, z, out=out[k])
            out[k] *= -0.5
            out[k] += self.dtype.type(self.peak[k])

    def _moments_features(self, chunk: Chunk, resp: Array) -> Moments:
        features, d = self._features(chunk), self.delta.shape[1]
        if self.compiled:
            return self.split(compiled.moments(self.covariance, features, np.ascontiguousarray(resp)))
        if self.covariance != "tied":
            sums = np.matmul(resp, features.T).astype(np.float64, copy=False)
            return sums[:, 0], sums[:, 1 : d + 1], sums[:, -1] if self.covariance == "spherical" else sums[:, d + 1 :]
        sums = np.matmul(resp, features[: d + 1].T).astype(np.float64, copy=False)
        shares = np.delete(resp, self.own, axis=0) if self.own else resp
        return sums[:, 0], sums[:, 1:], _scatter(chunk, features[1 : d + 1], shares.sum(axis=0)).astype(np.float64)

    def split(self, sums: Float) -> Moments:
        """Return n, x and xx of their sums (k, p) by compiled code."""
        d = self.delta.shape[1]
        second = sums[:, d + 1 :]
        return sums[:, 0], sums[:, 1 : d + 1], second if self.packed else unpack(second, d)

    def _moments_triangular(self, chunk: Chunk, resp: Array) -> Moments:
        features, (k, d) = self._features(chunk), self.delta.shape
        sums = np.matmul(resp, features.T).astype(np.float64, copy=False)
        xx = np.empty((k, d, d))
        for component in np.setdiff1d(np.arange(k), self.own):
            xx[component] = _scatter(chunk, features[:d], resp[component])
        return sums[:, d], sums[:, :d], xx

    def _no_moments(self) -> Float:
        """Return an array for the second moments where all components have references of their own."""
        k, d = self.delta.shape
        full = (k, d * (d + 1) // 2) if self.packed else (k, d, d)
        shape = {"full": full, "tied": (d, d), "diag": (k, d), "spherical": (k,)}[self.covariance]
        return np.zeros(shape)

    def _about(self, chunk: Chunk, point: Float) -> Float:
        """Return (x - point) * scale, (d, n), in double precision."""
        rows = chunk.scratch.keep("transposed", chunk, lambda: np.ascontiguousarray(chunk.rows.T, np.float64))
        out = chunk.scratch.empty("own", rows.shape)
        np.subtract(rows, point[:, None], out=out)
        if self.scale is not None:
            out *= self.scale[:, None]
        return out

    def _log_prob_own(self, chunk: Chunk, k: int, out: Array) -> None:
        # The mean is taken off at once: less the reference first, a difference of large numbers would be rounded.
        z = self._about(chunk, self.means[k])
        if self.covariance in ("diag", "spherical"):
            z *= self.factor[k][:, None] if self.covariance == "diag" else self.factor[k]
        else:
            z = _product(chunk, self.factor if self.covariance == "tied" else self.factor[k], z)
        out[:] = self.peak[k] - 0.5 * np.einsum("dn,dn->n", z, z)

    def _moments_own(self, chunk: Chunk, k: int, resp: Array) -> tuple[Array, Array]:
        """Return x (d,) and the second moments of one component."""
        u = self._about(chunk, self.reference[k])
        x = u @ resp
        if self.covariance in ("full", "tied"):
            second = _scatter(chunk, u, resp)
            return x, pack(second[None])[0] if self.covariance == "full" and self.packed else second
        u *= u
        second = u @ resp
        return x, second if self.covariance == "diag" else second.sum()


def _product(chunk: Chunk, factor: Array, u: Array) -> Array:
    return np.matmul(factor, u, out=chunk.scratch.empty(("product", u.dtype.char), u.shape, u.dtype))


def _scatter(chunk: Chunk, u: Array, resp: Array) -> Array:
    """Return sum_n resp_n u_n u_n^T, (d, d); numpy turns the product of a matrix with its transpose into syrk."""
    y = np.multiply(u, np.sqrt(resp), out=chunk.scratch.empty(("product", u.dtype.char), u.shape, u.dtype))
    return y @ y.T


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


def _key(covariance: str, form: str, dtype: np.dtype[Any], shift: Float, scale: Float, factor: Float) -> bytes:
    """Return what T(u) depends on; for tied that includes the whitening matrix."""
    whitening = factor.tobytes() if covariance == "tied" else b""
    return f"{covariance} {form} {dtype.char}".encode() + shift.tobytes() + scale.tobytes() + whitening


def _offset_factors(delta: Float, factor: Float) -> Float:
    """Return [P^T, -P^T delta], (k, d, d + 1), which takes [u, 1] to z."""
    offset = np.einsum("kd,kde->ke", delta, factor)
    return np.concatenate([factor.swapaxes(-1, -2), -offset[:, :, None]], axis=2)


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


def _terms(form: str, covariance: str, delta: Float, factor: Float, deviation: Float) -> Float:
    """Return the sum of the magnitudes of the terms that make up a typical log density, (k,)."""
    reach = np.abs(delta) + deviation
    # What does not fit into the range of the type is beyond any bound.
    with np.errstate(over="ignore", invalid="ignore"):
        if covariance == "diag":
            terms = ((reach * factor) ** 2).sum(axis=1)
        elif covariance == "spherical":
            terms = ((reach * factor[:, None]) ** 2).sum(axis=1)
        elif form == "triangular":
            # z is about one and carries the error of the terms that add up to it.
            terms = (reach[:, None, :] @ np.abs(factor)).sum(axis=(1, 2))
        else:
            precision = np.abs(factor @ factor.swapaxes(-1, -2))
            terms = ((reach[:, None, :] @ precision)[:, 0] * reach).sum(axis=1)
    return np.asarray(np.nan_to_num(terms, nan=np.inf, posinf=np.inf))


def _single_suffices(delta: Float, deviation: Float, terms: Float) -> bool:
    """Return whether single precision keeps 1e-5 of all these components (see the rule of accuracy)."""
    if not len(delta):
        return False
    return bool(np.abs(delta / deviation).max() <= FLOAT32_RATIO and terms.max() <= FLOAT32_TERMS)


def _upper_products(u: Array, out: Array) -> None:
    start, d = 0, len(u)
    for i in range(d):
        np.multiply(u[i], u[i:], out=out[start : start + d - i])
        start += d - i
