"""Rows of counts that share a number of trials: multinomial variables given the component."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from scipy.special import gammaln

from daskem.core import Array, Chunk, Float
from daskem.models.joint import JointFamily, Lack
from daskem.models.natural import (
    MAX_COUNT,
    PROBABILITY_FLOOR,
    SufficientStats,
    are_whole,
    filled,
    log_factorial,
    valid_counts,
    where_seen,
)

__all__ = ["Multinomial", "MultinomialParams"]

# Newton's iterations; four or five reach rounding.
MAX_NEWTON, NEWTON_RTOL = 50, 1e-15


@dataclass(frozen=True, eq=False)
class MultinomialParams:
    """Probabilities (k, d), each row summing to one; `trials`, the sample's mean total, for draws; `repaired` (k,)."""

    probabilities: Float
    trials: float
    repaired: Array


@dataclass(frozen=True)
class Multinomial(JointFamily):
    """A family of multinomial rows, such as the counts of words in documents; the total of a row is taken as given.

    log p(x | k) = log N! - sum_j log x_j! + sum_j x_j log p_kj, N being the row's total. Probabilities stay above eps
    (see `daskem.models.natural`).

    Of a row with holes (NaN) the total N of the counts that are there is taken as given: theirs is a multinomial
    distribution with probabilities p_kj / s_k, s_k being the sum of theirs, whose likelihood does not depend on the
    scale of p. With log s_k bounded by its tangent at the current p, the M-step is p_kj ~ x_kj / c_kj, x_kj being the
    weighted sum of the counts, and c_kj that of N / s_k over the rows that have the outcome [2]_. (Steps that put
    expected counts into the holes hardly move where s_k is small.)

    Parameters
    ----------
    pseudo_count : trials with each outcome that a Dirichlet(1 + c) prior adds to each component.
    on_collapse : "keep", "reseed" or "raise": what to do with an empty component.

    References
    ----------
    .. [1] Nigam, McCallum, Thrun & Mitchell (2000), Machine Learning 39, 103-134, section 3.
    .. [2] Hunter (2004), Annals of Statistics 32(1), 384-406, section 2 (there for the Bradley-Terry model).
    """

    start: ClassVar[str] = "short_em"
    takes: ClassVar[str] = f"whole numbers from 0 to {MAX_COUNT:g}, or NaN (missing)"
    discrete: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("probabilities",)

    def embedding(self, rows: Array) -> Float:
        """Return square roots of proportions: distances are then Hellinger's, and totals do not matter."""
        total = np.nansum(rows, axis=1, keepdims=True, dtype=np.float64)
        return np.sqrt(filled(rows / np.where(total > 0, total, 1.0)))

    def init(self, sample: Chunk, resp: Float) -> MultinomialParams:
        """Return parameters from a sample and its responsibilities (n, k) (see `NaturalFamily.init`)."""
        found: MultinomialParams = super().init(sample, resp)
        weight = np.ones(len(sample)) if sample.weight is None else sample.weight
        there = ~np.isnan(sample.rows)
        weight = weight * there.any(axis=1)
        # So many trials as have had the counts that are there, the others coming up in proportion.
        share = there @ (weight @ resp @ found.probabilities / weight.sum())
        total = np.where(there, sample.rows, 0.0).sum(axis=1)
        return replace(found, trials=float(weight @ (total / np.where(share > 0, share, 1.0)) / weight.sum()))

    def surrogate(self, stats: SufficientStats, params: MultinomialParams) -> float:
        """Return sum_j x_kj log p_kj less X_k log(sum_j c_kj p_kj / X_k), summed over components, nats.

        X_k is the sum of x_kj. Without holes the second term is zero, and this is Q.
        """
        total = stats.x.sum(axis=1)
        share = (stats.observed * params.probabilities).sum(axis=1)
        told = total > 0
        return float((stats.x * np.log(params.probabilities)).sum() - total[told] @ np.log(share[told] / total[told]))

    def draw(self, params: MultinomialParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row of `trials` trials from each of the given components, (n, d)."""
        # With very many outcomes the floors add up to more than numpy lets pass for a sum of one.
        shares = params.probabilities / params.probabilities.sum(axis=1, keepdims=True)
        return rng.multinomial(round(params.trials), shares[components]).astype(np.float64)

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        return 8 * k * (1 + 2 * d), 8 * (k * d + 1) + k

    def _of_holed(self, params: MultinomialParams, values: Float, holes: Array) -> tuple[Float, Float]:
        share = ~holes @ params.probabilities.T
        # Nothing is said by a row without values.
        share[share == 0] = 1.0
        total = values.sum(axis=1, keepdims=True)
        return -total * np.log(share), total / share

    def _complete(self, n: Float, x: Float, chunk: Chunk) -> Float:
        return np.repeat(x.sum(axis=1, keepdims=True), x.shape[1], axis=1)

    def _with_holes(
        self, found: SufficientStats, params: MultinomialParams, chunk: Chunk, resp: Array, lack: Lack
    ) -> SufficientStats:
        total = np.where(np.isnan(chunk.rows), 0.0, chunk.rows).sum(axis=1)
        total[lack.rows] = 0.0
        holed = (resp[lack.rows] * lack.factor).T @ ~lack.holes
        return replace(found, observed=(resp.T @ total)[:, None] + holed)

    def _vectors(self, params: MultinomialParams) -> Float:
        return params.probabilities

    def _valid(self, rows: Array, params: MultinomialParams | None) -> Array:
        return valid_counts(rows)

    def _surely_valid(self, rows: Array, params: MultinomialParams) -> bool:
        return are_whole(rows)

    def _log_base(self, values: Array) -> Float:
        return np.asarray(gammaln(values.sum(axis=1) + 1.0) - log_factorial(values).sum(axis=1))

    def _natural(self, params: MultinomialParams) -> tuple[Float, Float]:
        return np.log(params.probabilities), np.zeros((len(params.probabilities), 1))

    def _pseudo(self, params: MultinomialParams) -> tuple[Any, Any]:
        return 0.0, self.pseudo_count

    def _blank(self, rows: Array, k: int) -> MultinomialParams:
        d = rows.shape[1]
        return MultinomialParams(np.full((k, d), 1.0 / d), 1.0, np.zeros(k, np.int8))

    def _maximise(self, observed: Float, x: Float, params: MultinomialParams) -> MultinomialParams:
        if self.pseudo_count:
            found = _penalised(observed, x, self.pseudo_count)
        else:
            found = where_seen(observed, x, params.probabilities)
        total = found.sum(axis=1, keepdims=True)
        return self._with(params, np.maximum(found / np.where(total > 0, total, 1.0), PROBABILITY_FLOOR))

    def _halves(self, params: MultinomialParams, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        # One half leans to the likeliest outcome, the other away from it.
        p = params.probabilities[k]
        most = float(p.max())
        step = 0.25 * min(1.0, most / max(1.0 - most, PROBABILITY_FLOOR)) * ((np.arange(len(p)) == p.argmax()) - p)
        return {"probabilities": p + step}, {"probabilities": np.maximum(p - step, PROBABILITY_FLOOR)}

    def _coordinates(self, params: MultinomialParams) -> list[Float]:
        logs = np.log(params.probabilities)
        return [logs[:, :-1] - logs[:, -1:]]

    def _from_coordinates(self, parts: list[Float], params: MultinomialParams) -> MultinomialParams:
        logits = np.concatenate([parts[0], np.zeros((len(parts[0]), 1))], axis=1)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return self._with(params, odds / odds.sum(axis=1, keepdims=True))

    def _with(self, params: MultinomialParams, probabilities: Float) -> MultinomialParams:
        return replace(params, probabilities=probabilities, repaired=np.zeros(len(probabilities), np.int8))


def _penalised(observed: Float, x: Float, pseudo_count: float) -> Float:
    """Return the maximiser p (k, d) of the surrogate plus c sum_j log p_j, c being `pseudo_count` and in `x` already.

    It is p_j = x_j u / (c_j + c d u), with u = sum_j c_j p_j / X where that is true of its p: where they sum to one.
    Their sum is concave in u and rises, so that Newton's method climbs to it from below.
    """
    d = x.shape[1]
    seen = observed > 0
    c = np.where(seen, observed, 1.0)
    # An outcome that no row could have had keeps the mean of the prior, whatever u is.
    u = (seen.sum(axis=1) / d / np.where(seen, x / c, 0.0).sum(axis=1).clip(np.finfo(float).tiny))[:, None]
    for _ in range(MAX_NEWTON):
        below = c + pseudo_count * d * u
        p = np.where(seen, x * u / below, 1.0 / d)
        slope = np.where(seen, x * c / below**2, 0.0).sum(axis=1, keepdims=True)
        step = (1.0 - p.sum(axis=1, keepdims=True)) / np.where(slope > 0, slope, 1.0)
        u += step
        if (np.abs(step) <= NEWTON_RTOL * u).all():
            break
    return np.asarray(p)
