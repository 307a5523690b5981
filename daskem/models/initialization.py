"""Where centers start: k-means++ and Lloyd's iterations on a sample, and the pure part of k-means|| over all data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import scipy

from daskem.core import Array, Chunk, Float, HasLogPrior, Int, Model, Params, Scratch
from daskem.errors import OptionError

__all__ = [
    "assign",
    "best_of_runs",
    "certain_labels",
    "few_each",
    "few_rows",
    "fill_holes",
    "kmeans_plus_plus",
    "lloyd",
    "means_present",
    "pieces",
    "resp_of_labels",
    "squared_distances",
    "unique_rows",
    "unit_scaled",
]

# Rows at a time, so that distances to many centers stay small.
BLOCK = 4096
# Rows that a component of a random start is made of, and what all rows together add to them: enough rows to be like
# others, few enough to differ from the other components, and no value is ruled out for not being among them.
FEW, REST = 20, 4.0


def unit_scaled(rows: Array) -> tuple[Float, Float, float]:
    """Return ``(rows - center) * factor`` in float64 with entries of at most about one, the center, and the factor.

    The factor is one power of two for all features: distances keep their order, and their squares stay in range.
    """
    center = np.asarray(rows, np.float64).mean(axis=0)
    moved = rows - center
    largest = float(np.abs(moved).max(initial=0.0))
    factor = float(np.ldexp(1.0, -int(np.frexp(largest)[1]))) if largest > 0 else 1.0
    return moved * factor, center, factor


def squared_distances(rows: Array, centers: Array) -> Float:
    """Return |x - c|^2, (n, k), by |x|^2 - 2 x c + |c|^2: rows should be about the origin (see `unit_scaled`)."""
    out = rows @ centers.T
    out *= -2.0
    out += np.einsum("nd,nd->n", rows, rows)[:, None]
    out += np.einsum("kd,kd->k", centers, centers)
    return np.asarray(np.maximum(out, 0.0, out=out))


def means_present(rows: Array, weight: Float) -> Float:
    """Return the mean of the values that each feature has, (d,); NaN stands for one that is missing."""
    holes = np.isnan(rows)
    return np.asarray(weight @ np.where(holes, 0.0, rows) / (weight @ ~holes))


def fill_holes(rows: Array, values: Float) -> Array:
    """Return `rows` with `values`, (d,) or (n, d), in the place of NaN; the rows themselves where there is none."""
    holes = np.isnan(rows)
    return np.where(holes, values, rows) if holes.any() else rows


def unique_rows(rows: Array) -> tuple[Array, Int]:
    """Return the distinct rows in order, NaN being a value, the largest, and which of them each row is."""
    # NaN differs from itself. Infinity, which no sample holds, does not.
    holes = np.isnan(rows)
    found, which = np.unique(np.where(holes, np.inf, rows) if holes.any() else rows, axis=0, return_inverse=True)
    if holes.any():
        found[np.isinf(found)] = np.nan
    return found, which.ravel()


def assign(rows: Array, centers: Array) -> tuple[Int, Float]:
    """Return the nearest center of each row, the first of equals, and the squared distance to it."""
    labels, nearest = np.empty(len(rows), np.int64), np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        distances = squared_distances(rows[block], centers)
        labels[block] = distances.argmin(axis=1)
        nearest[block] = np.take_along_axis(distances, labels[block, None], axis=1)[:, 0]
    return labels, nearest


def kmeans_plus_plus(
    rows: Array,
    weight: Float | None,
    n_clusters: int,
    rng: np.random.Generator,
    centers: Array | None = None,
) -> Float:
    """Choose rows as centers, each with probability proportional to its squared distance from those chosen before.

    Greedy: of 2 + log k candidates the one that leaves the least sum of squares is taken, as scikit-learn does.

    Parameters
    ----------
    rows : (n, d).
    weight : (n,) or None; a row of weight 2 is as likely as two rows.
    n_clusters : number of centers to return.
    rng : source of the choices.
    centers : (m, d) centers that are given already, m <= n_clusters; they come first in the result.

    Returns
    -------
    (n_clusters, d) float64. Where fewer rows differ than centers are wanted, some rows are chosen more than once.

    References
    ----------
    .. [1] Arthur & Vassilvitskii (2007), SODA, 1027-1035; the greedy variant is in their section 5.
    """
    if len(rows) == 0:
        raise OptionError("k-means++ needs at least one row, got none.")
    weight = np.ones(len(rows)) if weight is None else np.asarray(weight, np.float64)
    u, origin, factor = unit_scaled(rows)
    chosen: list[Float] = [] if centers is None else list((np.asarray(centers, np.float64) - origin) * factor)
    if not chosen:
        chosen.append(u[_draw(weight, 1, rng)[0]])
    _, cost = assign(u, np.stack(chosen))
    trials = 2 + int(np.log(n_clusters))
    while len(chosen) < n_clusters:
        candidates = _draw(cost * weight if (cost * weight).any() else weight, trials, rng)
        left = np.minimum(squared_distances(u[candidates], u), cost)
        best = int((left @ weight).argmin())
        cost = left[best]
        chosen.append(u[candidates[best]])
    return np.stack(chosen) / factor + origin


def lloyd(
    rows: Array, weight: Float | None, centers: Array, max_iter: int = 30, tol: float = 1e-4
) -> tuple[Float, Int, float]:
    """Run Lloyd's iterations on rows in memory.

    Parameters
    ----------
    rows : (n, d).
    weight : (n,) or None.
    centers : (k, d) to start from. A center that loses all rows stays where it is.
    max_iter : most iterations.
    tol : stops when the squared shifts of the centers sum to at most `tol` times the mean variance of the features.

    Returns
    -------
    centers : (k, d).
    labels : (n,) nearest of these centers.
    inertia : weighted sum of squared distances to them.

    References
    ----------
    .. [1] Lloyd (1982), IEEE Transactions on Information Theory 28(2), 129-137.
    """
    weight = np.ones(len(rows)) if weight is None else np.asarray(weight, np.float64)
    u, origin, factor = unit_scaled(rows)
    moved = (np.asarray(centers, np.float64) - origin) * factor
    limit = tol * float(u.var(axis=0).mean())
    for _ in range(max_iter):
        labels, _ = assign(u, moved)
        previous, moved = moved, _means(u, weight, labels, moved)
        if float(((moved - previous) ** 2).sum()) <= limit:
            break
    labels, cost = assign(u, moved)
    return moved / factor + origin, labels, float(cost @ weight) / factor / factor


def few_rows(sample: Chunk, most: int, rng: np.random.Generator) -> Chunk:
    """Return `most` rows of a sample, drawn at random; all of them if there are no more."""
    if len(sample) <= most:
        return sample
    return _taken(sample, np.sort(rng.choice(len(sample), most, replace=False)))


def few_each(sample: Chunk, n_components: int, rng: np.random.Generator) -> Float:
    """Return responsibilities (n, k) that make each component of a few random rows, and a little of all.

    Rows are drawn by weight, and count once: responsibilities are to be multiplied by the weights.
    """
    weight = np.ones(len(sample)) if sample.weight is None else sample.weight
    resp = np.full((len(sample), n_components), REST / weight.sum())
    for k in range(n_components):
        drawn, times = np.unique(_draw(weight, FEW, rng), return_counts=True)
        resp[drawn, k] += times / weight[drawn]
    return resp


def best_of_runs(model: Model, sample: Chunk, starts: Sequence[Params], steps: int) -> Params:
    """Return where EM on a sample in memory gets in some steps, from the start that gets furthest."""
    best: tuple[float, Params] | None = None
    for params in starts:
        for _ in range(steps):
            params = model.m_step(model.e_step(params, sample).stats, params)
        reached = model.e_step(params, sample).objective
        reached += model.log_prior(params) if isinstance(model, HasLogPrior) else 0.0
        if best is None or reached > best[0]:
            best = reached, params
    if best is None:
        raise OptionError("there is no start to run from.")
    return best[1]


def certain_labels(labels: Array) -> Array:
    """Return the component of each row (n,) where it is known for certain, else -1."""
    if labels.ndim == 1:
        return labels
    return np.where((labels > 0).sum(axis=1) == 1, labels.argmax(axis=1), -1)


def resp_of_labels(resp: Float, labels: Array) -> Float:
    """Return responsibilities (n, k) that agree with what is known of the rows, and with which component is which."""
    if labels.ndim == 1:
        known = np.flatnonzero(labels >= 0)
        resp[known] = 0.0
        resp[known, labels[known]] = 1.0
        return resp
    hints = labels / labels.sum(axis=1, keepdims=True) - 1.0 / labels.shape[1]
    _, cluster_of = scipy.optimize.linear_sum_assignment(hints.T @ resp, maximize=True)
    allowed = resp[:, cluster_of] * labels
    total = allowed.sum(axis=1, keepdims=True)
    # Where all that the start had in mind is forbidden, the labels decide alone.
    decided = np.where(total > 0, allowed, labels)
    return cast(Float, decided / decided.sum(axis=1, keepdims=True))


def pieces(sample: Chunk, length: int) -> Iterator[Chunk]:
    """Yield runs of at most `length` rows of a sample, in order."""
    for start in range(0, len(sample), length):
        yield _taken(sample, np.arange(start, min(start + length, len(sample))))


def _taken(sample: Chunk, chosen: Int) -> Chunk:
    return replace(sample.select(chosen), scratch=Scratch())


def _draw(mass: Float, size: int, rng: np.random.Generator) -> Int:
    """Return indices drawn with probability proportional to `mass`."""
    total = np.cumsum(mass)
    drawn = np.searchsorted(total, rng.random(size) * total[-1], side="right")
    return np.asarray(np.minimum(drawn, int(np.flatnonzero(mass)[-1]) if mass.any() else len(mass) - 1))


def _means(rows: Float, weight: Float, labels: Int, centers: Float) -> Float:
    n = np.bincount(labels, weight, len(centers))
    sums = np.stack([np.bincount(labels, weight * column, len(centers)) for column in rows.T], axis=1)
    return np.where(n[:, None] > 0, sums / np.where(n > 0, n, 1.0)[:, None], centers)
