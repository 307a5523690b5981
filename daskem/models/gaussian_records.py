"""What a Gaussian family keeps: parameters and expected statistics."""

from __future__ import annotations

from dataclasses import dataclass

from daskem.core import Array, Float

__all__ = ["GaussianParams", "GaussianStats"]


@dataclass(frozen=True, eq=False)
class GaussianParams:
    """Parameters of k Gaussian components.

    Attributes
    ----------
    means : (k, d), data units.
    covariances : (k, d, d) full, (d, d) tied, (k, d) diag, (k,) spherical, (d,) tied_diag, (1,) tied_spherical; data
        units squared.
    precisions_cholesky : upper triangular P with P P^T the precision, shaped alike (diag, spherical: one over the
        standard deviation).
    reference : (k, d) points that the moments are taken about.
    shift : (d,) the common point that references start from.
    scale : (d,) powers of two that the moments are taken in.
    repaired : (k,) int8, zero or what the M-step did to the component (see `daskem.models.repair`).
    prior_mean : (d,), or (0,) without a prior.
    prior_scale : the matrix Lambda of the prior, (d, d), (d,) or (1,) as for one component; (0,) without a prior.
    """

    means: Float
    covariances: Float
    precisions_cholesky: Float
    reference: Float
    shift: Float
    scale: Float
    repaired: Array
    prior_mean: Float
    prior_scale: Float


@dataclass(frozen=True, eq=False)
class GaussianStats:
    """Expected moments of u = (x - reference) * scale.

    Attributes
    ----------
    n : (k,) weight.
    x : (k, d) sum of u.
    xx : sum of u u^T: (k, d (d + 1) / 2) upper triangles or (k, d, d) for full, (d, d) over all components for tied,
        (k, d) for diag, (k,) sum of |u|^2 for spherical; these two over all components for tied_diag (d,) and
        tied_spherical (1,).
    """

    n: Float
    x: Float
    xx: Float
