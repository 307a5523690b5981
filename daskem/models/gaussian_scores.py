"""What single rows say of Gaussian components: scores, the names of their coordinates, and variances at the floor."""

from __future__ import annotations

import numpy as np

from daskem.core import Array, Float
from daskem.models.gaussian_algebra import Covariance
from daskem.models.gaussian_records import GaussianParams

__all__ = ["at_floor", "names", "scores"]


def scores(covariance: Covariance, params: GaussianParams, rows: Array, resp: Float) -> Float:
    """Return the gradients of sum_k resp_k log N(x | k) in the coordinates of `Gaussian.to_vector`, (n, p).

    Notes
    -----
    With P P^T the precision, u = x - mu and y = P^T u: log N = sum_j log P_jj - |y|^2 / 2, hence d/d mu = P y,
    d/d P_ij = - u_i y_j above the diagonal and d/d log P_jj = 1 - P_jj u_j y_j on it.
    """
    n, (k, d) = len(rows), params.means.shape
    one, tied = _of_component(covariance)
    factor = params.precisions_cholesky
    if tied:
        factor = np.broadcast_to(factor, (k, *{"full": (d, d), "diag": (d,), "spherical": ()}[one]))
    means = np.empty((n, k, d))
    shapes = np.empty((n, k, {"full": d * (d + 1) // 2, "diag": d, "spherical": 1}[one]))
    for j in range(k):
        u = rows.astype(np.float64) - params.means[j]
        by_mean, by_shape = _of_one(factor[j], u)
        np.multiply(by_mean, resp[:, j, None], out=means[:, j])
        by_shape = by_shape.sum(axis=1, keepdims=True) if one == "spherical" else by_shape
        np.multiply(by_shape, resp[:, j, None], out=shapes[:, j])
    if tied:
        shapes = shapes.sum(axis=1)
    return np.concatenate([means.reshape(n, -1), shapes.reshape(n, -1)], axis=1)


def names(covariance: Covariance, k: int, d: int) -> list[str]:
    """Return the names of the coordinates of `Gaussian.to_vector`."""
    means = [f"component {i}: mean[{j}]" for i in range(k) for j in range(d)]
    one, tied = _of_component(covariance)
    if one == "spherical":
        shapes = ["log(1 / sd)"]
    elif one == "diag":
        shapes = [f"log(1 / sd[{j}])" for j in range(d)]
    else:
        pairs = zip(*np.triu_indices(d), strict=True)
        shapes = [f"{'log ' if a == b else ''}precision factor[{a},{b}]" for a, b in pairs]
    return means + (shapes if tied else [f"component {i}: {s}" for i in range(k) for s in shapes])


def at_floor(covariance: Covariance, params: GaussianParams, floor: float) -> tuple[tuple[int, str], ...]:
    """Return (component, what) of each whose least variance along any axis is at least half made of `floor`."""
    k = len(params.means)
    one, tied = _of_component(covariance)
    if one == "full":
        least = np.linalg.eigvalsh(params.covariances)[..., 0]
    else:
        least = params.covariances.reshape(1 if tied else k, -1).min(axis=1)
    least = np.broadcast_to(least, k)
    what = "variance {:.3g} along its narrowest axis, of which the floor (reg_covar) makes {:.3g}"
    return tuple((int(j), what.format(least[j], floor)) for j in np.flatnonzero(least <= 2 * floor))


def _of_component(covariance: Covariance) -> tuple[str, bool]:
    """Return the shape of one component's covariance, and whether all have the same."""
    return ("full", True) if covariance == "tied" else (covariance.removeprefix("tied_"), covariance.startswith("tied"))


def _of_one(factor: Float, u: Float) -> tuple[Float, Float]:
    """Return one component's gradients: in the mean, (n, d), and in the logged factor, (n, d) or (n, d (d + 1) / 2)."""
    if factor.ndim < 2:
        y = u * factor
        return y * factor, 1.0 - y * y
    y = u @ factor
    row, column = np.triu_indices(len(factor))
    by_factor = -u[:, row] * y[:, column]
    diagonal = row == column
    by_factor[:, diagonal] = 1.0 + np.diagonal(factor) * by_factor[:, diagonal]
    return y @ factor.T, by_factor
