"""Covariances in their six shapes, one object each. Arrays in, arrays out.

full (k, d, d)    tied (d, d)             matrices
diag (k, d)       tied_diag (d,)          one variance a feature
spherical (k,)    tied_spherical (1,)     one variance for all features

A tied shape is as one component's of the shape beside it. Factors P of the precisions, P P^T = Sigma^-1 with P upper
triangular, are shaped like the covariances: for the last two rows they are one over the standard deviation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy.linalg import solve_triangular

from daskem.core import Array, Float
from daskem.errors import OptionError
from daskem.models.gaussian_kernels import log_det, ratios, unpack

__all__ = [
    "ENTRY_ERROR",
    "HOLES_ERROR",
    "SHAPES",
    "Covariance",
    "Diagonals",
    "Matrices",
    "Scalars",
    "Shape",
    "checked",
    "power_of_two",
]

Covariance = Literal["full", "tied", "diag", "spherical", "tied_diag", "tied_spherical"]

# Features within 2^-16 .. 2^16 of unit size are left alone: even single precision squares and sums them safely.
PLAIN_EXPONENT = 16
EPS = float(np.finfo(np.float64).eps)
# Of an entry of a covariance, relative to the deviations of its two features: a sum of many rows, less another one.
ENTRY_ERROR = 16 * EPS
# Likewise, where what holes are expected to hold goes into the sum: its errors grow with the condition. Measured: where
# the next condition should be 1e12, a smallest eigenvalue came out a hundred times as large, and the likelihood fell.
HOLES_ERROR = 1e-9
# Variances below this, in the units of the features, have lost digits, and their inverses soon overflow.
LEAST_VARIANCE = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Shape(ABC):
    """What depends on the shape of the covariances.

    Attributes
    ----------
    kernel : what `daskem.models.gaussian_kernels` calls the arithmetic.
    tied : whether all components share one covariance.
    isotropic : whether all features share one variance, hence one unit.
    """

    kernel: str
    tied: bool
    isotropic = False

    @abstractmethod
    def one_size(self, d: int) -> int:
        """Return the numbers that one covariance is stored in."""

    @abstractmethod
    def one_free(self, d: int) -> int:
        """Return the free parameters of one covariance."""

    def size(self, k: int, d: int) -> int:
        """Return the numbers that all covariances are stored in."""
        return self.one_size(d) * (1 if self.tied else k)

    def n_parameters(self, k: int, d: int) -> int:
        """Return the free parameters of all covariances."""
        return self.one_free(d) * (1 if self.tied else k)

    @abstractmethod
    def outer(self, a: Float, b: Float) -> Float:
        """Return a b^T for each component, (k, d) and (k, d), as far as the second moments have it; summed if tied."""

    def cross(self, a: Float, b: Float) -> Float:
        """Return a b^T + b a^T like `outer`."""
        return 2 * self.outer(a, b)

    def square(self, xx: Float, d: int) -> Float:
        """Return second moments without any packing."""
        return xx

    @abstractmethod
    def from_kernel(self, xx: Float) -> Float:
        """Return the second moments of the shape from those that the kernel sums."""

    @abstractmethod
    def units(self, scale: Float) -> Float:
        """Return what turns factors of scaled units into factors of data units, by multiplication."""

    def unscaled(self, scaled: Float, scale: Float) -> Float:
        """Return covariances in data units."""
        units = self.units(scale)
        return np.asarray(scaled / units / units)

    def rescaled(self, covariance: Float, scale: Float) -> Float:
        """Return covariances in scaled units."""
        return np.asarray(covariance * self.units(scale) ** 2)

    def ridge(self, reg_covar: float, scale: Float) -> Float:
        """Return `reg_covar` in scaled units, as one covariance."""
        return np.asarray(reg_covar * self.units(scale) ** 2)

    def spread(self, one: Float, k: int) -> Float:
        """Return one covariance as that of all components."""
        return one if self.tied else np.repeat(one[None], k, axis=0)

    def freedom(self, n: Float, d: int) -> Array:
        """Return what divides the scatter of rows of weight `n` (k,), against which it broadcasts."""
        return np.asarray(n.sum() if self.tied else n)

    @abstractmethod
    def prior_freedom(self, k: int, d: int) -> int:
        """Return what the conjugate prior adds to `freedom` (Fraley & Raftery 2007, table of M-steps)."""

    @abstractmethod
    def variances(self, second: Float) -> Array:
        """Return the diagonals, (k or 1, d or 1)."""

    def resolved(self, factor: Float, variances: Array, error: float = ENTRY_ERROR) -> Array:
        """Return which factors come of more than rounding errors, (k or 1,).

        Parameters
        ----------
        variances : (k or 1, d or 1) those that the covariances were computed from, errors being relative to them.
        error : of an entry.
        """
        reach = self._reach(factor, np.sqrt(variances))
        return np.asarray((error * reach * reach < 1).all(axis=-1))

    def _reach(self, factor: Float, deviation: Array) -> Array:
        """Return the terms that make up each whitened feature, added without their signs, (k or 1, d or 1)."""
        return self.variances(factor) * deviation

    @abstractmethod
    def pooled_covariance(self, rows: Array, mean: Float, scale: Float, share: Float) -> Float:
        """Return the covariance of a sample in scaled units, as one covariance."""

    def factorise(self, covariances: Float) -> tuple[Float, Array]:
        """Return factors, and which covariances are positive definite (k or 1,)."""
        fine = np.isfinite(covariances) & (covariances >= LEAST_VARIANCE)
        factor = 1.0 / np.sqrt(np.where(fine, covariances, 1.0))
        return factor, self._of_components(fine)

    @abstractmethod
    def _of_components(self, fine: Array) -> Array:
        """Return which components are fine (k or 1,) from which entries of the covariances are."""

    def factor_of_precisions(self, precisions: Float) -> Float:
        """Return the factors of precisions, or raise OptionError unless they are positive definite."""
        if not (precisions > 0).all():
            raise OptionError("precisions_init must be positive.")
        return np.sqrt(precisions)

    def precisions(self, factor: Float) -> Float:
        """Return the precisions of factors."""
        return np.asarray(factor * factor)

    def covariances(self, factor: Float) -> Float:
        """Return the covariances of factors."""
        return np.asarray(factor**-2.0)

    def log_det(self, factor: Float, d: int) -> Array:
        """Return log det P, (k,) or broadcasting to it."""
        return log_det(self.kernel, factor, d)

    def ratios(self, delta: Float, factor: Float) -> Float:
        """Return how many standard deviations `delta` (k, d) is long (see `gaussian_kernels.ratios`)."""
        return ratios(self.kernel, delta, factor)

    def for_kernel(self, factor: Float, k: int) -> Float:
        """Return factors in the kernel's shape, where nothing but matrices is tied."""
        return np.repeat(factor[None], k, axis=0) if self.tied else factor

    def longest_axis(self, one: Float, d: int) -> Float:
        """Return the principal axis (d,) of one covariance, one sd long, its largest entry positive."""
        variance = np.broadcast_to(one, (d,))
        return np.where(np.arange(d) == variance.argmax(), np.sqrt(variance.max()), 0.0)

    def to_vector(self, factor: Float) -> Float:
        """Return factors as an unconstrained vector: the logarithms of diagonals, what is above them as it is."""
        return np.log(factor).ravel()

    def from_vector(self, vector: Float, shape: tuple[int, ...]) -> Float:
        """Return factors of the given shape from a vector of `to_vector`."""
        return np.exp(vector).reshape(shape)

    def coloured(self, noise: Float, factor: Float, components: Array) -> Float:
        """Return standard normal `noise` (n, d) with the covariances of `components` (n,)."""
        return np.asarray(noise / (factor if self.tied else factor[components]))


@dataclass(frozen=True)
class Matrices(Shape):
    """Full covariances."""

    def one_size(self, d: int) -> int:
        return d * d

    def one_free(self, d: int) -> int:
        return d * (d + 1) // 2

    def outer(self, a: Float, b: Float) -> Float:
        return np.asarray(a.T @ b if self.tied else a[:, :, None] * b[:, None, :])

    def cross(self, a: Float, b: Float) -> Float:
        once = self.outer(a, b)
        return once + once.swapaxes(-1, -2)

    def square(self, xx: Float, d: int) -> Float:
        return xx if self.tied else unpack(xx, d)

    def from_kernel(self, xx: Float) -> Float:
        return xx

    def units(self, scale: Float) -> Float:
        return scale[:, None]

    def unscaled(self, scaled: Float, scale: Float) -> Float:
        return np.asarray(scaled / scale[:, None] / scale)

    def rescaled(self, covariance: Float, scale: Float) -> Float:
        return np.asarray(covariance * np.multiply.outer(scale, scale))

    def ridge(self, reg_covar: float, scale: Float) -> Float:
        return np.diag(reg_covar * scale**2)

    def freedom(self, n: Float, d: int) -> Array:
        freedom = super().freedom(n, d)
        return freedom if self.tied else freedom[:, None, None]

    def prior_freedom(self, k: int, d: int) -> int:
        return 2 * d + 3 + (k if self.tied else 1)

    def variances(self, second: Float) -> Array:
        return np.atleast_2d(np.diagonal(second, axis1=-2, axis2=-1))

    def _reach(self, factor: Float, deviation: Array) -> Array:
        stacked = np.abs(factor.reshape(-1, *factor.shape[-2:]))
        return np.asarray((deviation[:, None, :] @ stacked)[:, 0])

    def pooled_covariance(self, rows: Array, mean: Float, scale: Float, share: Float) -> Float:
        u = (rows - mean) * scale
        return np.asarray((u * share[:, None]).T @ u)

    def factorise(self, covariances: Float) -> tuple[Float, Array]:
        stacked = covariances.reshape(-1, *covariances.shape[-2:])
        factor, fine = np.empty_like(stacked), np.zeros(len(stacked), bool)
        identity = np.eye(stacked.shape[-1])
        for k, matrix in enumerate(stacked):
            lower = _cholesky(matrix)
            fine[k] = lower is not None
            factor[k] = identity if lower is None else solve_triangular(lower, identity, lower=True).T
        fine[fine] = self.resolved(factor[fine], self.variances(stacked[fine]))
        return factor.reshape(covariances.shape), fine

    def _of_components(self, fine: Array) -> Array:
        return np.atleast_1d(fine.all(axis=(-2, -1)))

    def factor_of_precisions(self, precisions: Float) -> Float:
        if not np.allclose(precisions, precisions.swapaxes(-1, -2)):
            raise OptionError("precisions_init must be symmetric.")
        try:
            # The factor is upper triangular: that of the matrix turned round, turned back.
            return np.ascontiguousarray(np.linalg.cholesky(precisions[..., ::-1, ::-1])[..., ::-1, ::-1])
        except np.linalg.LinAlgError as error:
            raise OptionError("precisions_init must be positive definite.") from error

    def precisions(self, factor: Float) -> Float:
        return factor @ factor.swapaxes(-1, -2)

    def covariances(self, factor: Float) -> Float:
        stacked = factor.reshape(-1, *factor.shape[-2:])
        inverse = np.stack([solve_triangular(p, np.eye(len(p))) for p in stacked]).reshape(factor.shape)
        return np.asarray(inverse.swapaxes(-1, -2) @ inverse)

    def for_kernel(self, factor: Float, k: int) -> Float:
        return factor

    def longest_axis(self, one: Float, d: int) -> Float:
        values, axes = np.linalg.eigh(one)
        axis = axes[:, -1]
        return np.asarray(np.sqrt(values[-1]) * axis * np.sign(axis[np.abs(axis).argmax()]))

    def to_vector(self, factor: Float) -> Float:
        d = factor.shape[-1]
        logged = np.array(factor)
        logged[..., np.arange(d), np.arange(d)] = np.log(np.diagonal(factor, axis1=-2, axis2=-1))
        return np.asarray(logged[..., *np.triu_indices(d)].ravel())

    def from_vector(self, vector: Float, shape: tuple[int, ...]) -> Float:
        factor, diagonal = np.zeros(shape), np.arange(shape[-1])
        factor[..., *np.triu_indices(shape[-1])] = vector.reshape(*shape[:-2], -1)
        factor[..., diagonal, diagonal] = np.exp(factor[..., diagonal, diagonal])
        return factor

    def coloured(self, noise: Float, factor: Float, components: Array) -> Float:
        if self.tied:
            return np.asarray(solve_triangular(factor, noise.T, trans="T").T)
        rows = np.empty_like(noise)
        for k in np.unique(components):
            mine = components == k
            rows[mine] = solve_triangular(factor[k], noise[mine].T, trans="T").T
        return rows


@dataclass(frozen=True)
class Diagonals(Shape):
    """One variance a feature."""

    def one_size(self, d: int) -> int:
        return d

    def one_free(self, d: int) -> int:
        return d

    def outer(self, a: Float, b: Float) -> Float:
        return np.asarray((a * b).sum(axis=0) if self.tied else a * b)

    def from_kernel(self, xx: Float) -> Float:
        return np.asarray(xx.sum(axis=0)) if self.tied else xx

    def units(self, scale: Float) -> Float:
        return scale

    def freedom(self, n: Float, d: int) -> Array:
        freedom = super().freedom(n, d)
        return freedom if self.tied else freedom[:, None]

    def prior_freedom(self, k: int, d: int) -> int:
        return d + 4 + (k if self.tied else 1)

    def variances(self, second: Float) -> Array:
        return np.atleast_2d(second)

    def pooled_covariance(self, rows: Array, mean: Float, scale: Float, share: Float) -> Float:
        u = (rows - mean) * scale
        return np.asarray(share @ (u * u))

    def _of_components(self, fine: Array) -> Array:
        return np.atleast_1d(fine.all(axis=-1))


@dataclass(frozen=True)
class Scalars(Shape):
    """One variance for all features."""

    isotropic = True

    def one_size(self, d: int) -> int:
        return 1

    def one_free(self, d: int) -> int:
        return 1

    def outer(self, a: Float, b: Float) -> Float:
        return np.asarray((a * b).sum(keepdims=True)[0] if self.tied else (a * b).sum(axis=1))

    def from_kernel(self, xx: Float) -> Float:
        return np.asarray(xx.sum(keepdims=True)) if self.tied else xx

    def units(self, scale: Float) -> Float:
        return scale[:1]

    def spread(self, one: Float, k: int) -> Float:
        return one if self.tied else np.repeat(one, k)

    def freedom(self, n: Float, d: int) -> Array:
        return super().freedom(n, d) * d

    def prior_freedom(self, k: int, d: int) -> int:
        return d + 4 + d * (k if self.tied else 1)

    def variances(self, second: Float) -> Array:
        return second[:, None]

    def pooled_covariance(self, rows: Array, mean: Float, scale: Float, share: Float) -> Float:
        u = (rows - mean) * scale
        return np.asarray((share @ (u * u)).mean(keepdims=True))

    def _of_components(self, fine: Array) -> Array:
        return fine

    def for_kernel(self, factor: Float, k: int) -> Float:
        return np.broadcast_to(factor, (k,))

    def coloured(self, noise: Float, factor: Float, components: Array) -> Float:
        return np.asarray(noise / (factor if self.tied else factor[components, None]))


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "full": Matrices("full", tied=False),
        "tied": Matrices("tied", tied=True),
        "diag": Diagonals("diag", tied=False),
        "spherical": Scalars("spherical", tied=False),
        "tied_diag": Diagonals("diag", tied=True),
        "tied_spherical": Scalars("spherical", tied=True),
    }
)


def checked(name: str, value: Array, shape: tuple[int, ...]) -> Float:
    """Return `value` as float64, or raise OptionError unless it is finite and of `shape`."""
    value = np.asarray(value, float)
    if value.shape != shape:
        raise OptionError(f"{name} has shape {value.shape}; it must be {shape}.")
    if not np.isfinite(value).all():
        raise OptionError(f"{name} holds NaN or infinity.")
    return value


def power_of_two(rows: Array, mean: Float, common: bool) -> Float:
    """Return powers of two (d,) that bring features to about unit size, ones where they are near it already."""
    largest = np.abs(rows - mean).max(axis=0).astype(np.float64)
    if common:
        largest = np.full_like(largest, largest.max())
    _, exponent = np.frexp(largest)
    return np.where((np.abs(exponent) > PLAIN_EXPONENT) & (largest > 0), np.ldexp(1.0, -exponent), 1.0)


def _cholesky(matrix: Float) -> Float | None:
    if not np.isfinite(matrix).all():
        return None
    try:
        lower = np.asarray(np.linalg.cholesky(matrix), np.float64)
    except np.linalg.LinAlgError:
        return None
    return lower if (np.diagonal(lower) ** 2 >= LEAST_VARIANCE).all() else None
