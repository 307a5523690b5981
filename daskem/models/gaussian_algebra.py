"""Covariances in their four shapes: full (k, d, d), tied (d, d), diag (k, d), spherical (k,). Arrays in, arrays out."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.linalg import solve_triangular

from daskem.core import Array, Float
from daskem.errors import OptionError
from daskem.models.gaussian_kernels import unpack

__all__ = [
    "Covariance",
    "checked",
    "covariances_of",
    "factor_of_precisions",
    "factorise",
    "identity_like",
    "longest_axis",
    "outer",
    "pooled_covariance",
    "power_of_two",
    "ridge",
    "square",
    "unscaled",
    "variances",
]

Covariance = Literal["full", "tied", "diag", "spherical"]

# Features within 2^-16 .. 2^16 of unit size are left alone: even single precision squares and sums them safely.
PLAIN_EXPONENT = 16


def outer(covariance: Covariance, a: Float, b: Float) -> Float:
    """Return a b^T for each component, (k, d) and (k, d), as far as the second moments have it."""
    if covariance == "tied":
        return np.asarray(a.T @ b)
    if covariance == "full":
        return np.asarray(a[:, :, None] * b[:, None, :])
    return np.asarray(a * b if covariance == "diag" else (a * b).sum(axis=1))


def square(covariance: Covariance, xx: Float, d: int) -> Float:
    """Return second moments with full ones as (k, d, d)."""
    return unpack(xx, d) if covariance == "full" else xx


def ridge(covariance: Covariance, reg_covar: float, scale: Float) -> Float:
    """Return `reg_covar` in scaled units, shaped as one component's covariance ((1,) for spherical)."""
    if covariance in ("full", "tied"):
        return np.diag(reg_covar * scale**2)
    return np.asarray(reg_covar * (scale if covariance == "diag" else scale[:1]) ** 2)


def unscaled(covariance: Covariance, scaled: Float, scale: Float) -> Float:
    """Return covariances in data units."""
    if covariance in ("full", "tied"):
        return np.asarray(scaled / scale[:, None] / scale)
    one = scale if covariance == "diag" else scale[0]
    return np.asarray(scaled / one / one)


def covariances_of(factor: Float) -> Float:
    """Return (P P^T)^-1 of upper triangular P, (..., d, d)."""
    stacked = factor.reshape(-1, *factor.shape[-2:])
    inverse = np.stack([solve_triangular(p, np.eye(len(p))) for p in stacked]).reshape(factor.shape)
    return np.asarray(inverse.swapaxes(-1, -2) @ inverse)


def longest_axis(covariance: Covariance, one: Float, d: int) -> Float:
    """Return the principal axis (d,) of one component, one standard deviation long, its largest entry positive."""
    if covariance in ("full", "tied"):
        values, axes = np.linalg.eigh(one)
        axis = axes[:, -1]
        return np.asarray(np.sqrt(values[-1]) * axis * np.sign(axis[np.abs(axis).argmax()]))
    variance = np.broadcast_to(one, (d,))
    return np.where(np.arange(d) == variance.argmax(), np.sqrt(variance.max()), 0.0)


def checked(name: str, value: Array, shape: tuple[int, ...]) -> Float:
    """Return `value` as float64, or raise OptionError unless it is finite and of `shape`."""
    value = np.asarray(value, float)
    if value.shape != shape:
        raise OptionError(f"{name} has shape {value.shape}; it must be {shape}.")
    if not np.isfinite(value).all():
        raise OptionError(f"{name} holds NaN or infinity.")
    return value


def factor_of_precisions(covariance: Covariance, precisions: Float) -> Float:
    """Return upper triangular P with P P^T = precision: the Cholesky factor of the matrix turned round."""
    positive = (precisions > 0).all() if covariance in ("diag", "spherical") else True
    if not positive:
        raise OptionError("precisions_init must be positive.")
    if covariance in ("diag", "spherical"):
        return np.sqrt(precisions)
    if not np.allclose(precisions, precisions.swapaxes(-1, -2)):
        raise OptionError("precisions_init must be symmetric.")
    try:
        return np.ascontiguousarray(np.linalg.cholesky(precisions[..., ::-1, ::-1])[..., ::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise OptionError("precisions_init must be positive definite.") from error


def factorise(covariance: Covariance, matrices: Float) -> tuple[Float, Array]:
    """Return factors P with P P^T = Sigma^-1, and which covariances are positive definite (k,)."""
    if covariance in ("diag", "spherical"):
        fine = np.isfinite(matrices) & (matrices > 0)
        factor = 1.0 / np.sqrt(np.where(fine, matrices, 1.0))
        return factor, np.asarray(fine.all(axis=1) if covariance == "diag" else fine)
    stacked = matrices.reshape(-1, *matrices.shape[-2:])
    factor, fine = np.empty_like(stacked), np.zeros(len(stacked), bool)
    identity = np.eye(stacked.shape[-1])
    for k, matrix in enumerate(stacked):
        lower = _cholesky(matrix)
        fine[k] = lower is not None
        factor[k] = identity if lower is None else solve_triangular(lower, identity, lower=True).T
    return factor.reshape(matrices.shape), fine


def _cholesky(matrix: Float) -> Float | None:
    if not np.isfinite(matrix).all():
        return None
    try:
        return np.asarray(np.linalg.cholesky(matrix), np.float64)
    except np.linalg.LinAlgError:
        return None


def variances(covariance: Covariance, second: Float) -> Array:
    """Return the diagonals, (k, d), (1, d) for tied, (k, 1) for spherical."""
    if covariance in ("full", "tied"):
        return np.atleast_2d(np.diagonal(second, axis1=-2, axis2=-1))
    return second if covariance == "diag" else second[:, None]


def identity_like(covariance: Covariance, matrices: Float) -> Float:
    """Return unit covariances in the shape of `matrices`."""
    if covariance in ("full", "tied"):
        return np.broadcast_to(np.eye(matrices.shape[-1]), matrices.shape)
    return np.ones_like(matrices)


def power_of_two(rows: Array, mean: Float, common: bool) -> Float:
    """Return powers of two (d,) that bring features to about unit size, ones where they are near it already."""
    largest = np.abs(rows - mean).max(axis=0).astype(np.float64)
    if common:
        largest = np.full_like(largest, largest.max())
    _, exponent = np.frexp(largest)
    return np.where((np.abs(exponent) > PLAIN_EXPONENT) & (largest > 0), np.ldexp(1.0, -exponent), 1.0)


def pooled_covariance(covariance: Covariance, rows: Array, mean: Float, scale: Float, share: Float) -> Float:
    """Return the covariance of a sample in scaled units, shaped as one component's ((1,) for spherical)."""
    u = (rows - mean) * scale
    if covariance in ("full", "tied"):
        return np.asarray((u * share[:, None]).T @ u)
    variances = share @ (u * u)
    return np.asarray(variances if covariance == "diag" else variances.mean(keepdims=True))
