"""Linear algebra of an information matrix: its rank, the directions it is blind to, and its inverse where it is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import qr

from daskem.core import Array, Float

__all__ = ["Resolved", "resolve"]

# Share of the information of a single coordinate below which a direction counts as unseen. Rounding leaves about
# p eps = 1e-13 of it for hundreds of parameters, and of differences the square of their relative error of 1e-9. A
# direction at the limit has standard errors 1e5 times those of its coordinates alone: 1e10 rows would tell as much of
# it as one row tells of these.
UNSEEN = 1e-10
# Part of a unit vector that rounding may leave in a coordinate which a direction does not concern.
NEGLIGIBLE = 1e-4


@dataclass(frozen=True, eq=False)
class Resolved:
    """An information matrix taken apart.

    Attributes
    ----------
    rank : directions that the data tell of.
    inverse : (p, p) inverse over these directions.
    unseen : (m, p) the others, each with a coordinate that the rest of them do not have; largest coefficient 1.
    determined : (p,) coordinates that no unseen direction moves.
    """

    rank: int
    inverse: Float
    unseen: Float
    determined: Array


def resolve(information: Float, floor: Float) -> Resolved:
    """Take an information matrix (p, p) apart.

    Coordinates are measured in units of one over the root of their own information, so that nothing depends on the
    units of the parameters. `floor` (p,) is what rounding alone may give on the diagonal.
    """
    p = len(information)
    diagonal = np.diagonal(information)
    live = np.flatnonzero(diagonal > floor)
    unit = np.zeros(p)
    unit[live] = 1.0 / np.sqrt(diagonal[live])
    values, vectors = np.linalg.eigh((information * unit * unit[:, None])[np.ix_(live, live)])
    seen = values > UNSEEN
    inverse = np.zeros((p, p))
    inverse[np.ix_(live, live)] = (vectors[:, seen] / values[seen]) @ vectors[:, seen].T
    null = vectors[:, ~seen]
    determined = np.zeros(p, bool)
    determined[live] = np.linalg.norm(null, axis=1) <= NEGLIGIBLE
    dead = np.setdiff1d(np.arange(p), live)
    unseen = np.zeros((len(dead) + null.shape[1], p))
    unseen[np.arange(len(dead)), dead] = 1.0
    unseen[len(dead) :, live] = _readable(null, unit[live])
    return Resolved(int(seen.sum()), inverse * unit * unit[:, None], unseen, determined)


def _readable(null: Float, unit: Float) -> Float:
    """Return a basis of the columns of `null` (p, m) as rows (m, p) of few coefficients, in the parameters' own units.

    Any rotation of a null space's basis is a basis as well. Each vector of this one has a coordinate of its own (chosen
    by pivoting), which is 0 in all others.
    """
    if null.shape[1] == 0:
        return null.T
    pivots = np.sort(qr(null.T, mode="r", pivoting=True)[1][: null.shape[1]])
    basis = np.linalg.solve(null[pivots].T, null.T)
    basis[np.abs(basis) <= NEGLIGIBLE * np.abs(basis).max(axis=1, keepdims=True)] = 0.0
    moved = basis * unit
    largest = np.abs(moved).argmax(axis=1)
    return np.asarray(moved / moved[np.arange(len(pivots)), largest][:, None])
