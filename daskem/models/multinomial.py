"""Rows of counts that share a number of trials: multinomial variables given the component."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from scipy.special import gammaln

from daskem.core import Array, Float
from daskem.models.joint import JointFamily
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
    distribution with probabilities p_kj / s_k, s_k being the sum of theirs. The same likelihood have trials that go on
    until N of them have had such outcomes: the others then come up N p_kj / s_k times in the mean [2]_, which the
    E-step puts into the holes.

    Parameters
    ----------
    pseudo_count : trials with each outcome that a Dirichlet(1 + c) prior adds to each component.
    on_collapse : "keep", "reseed" or "raise": what to do with an empty component.

    References
    ----------
    .. [1] Nigam, McCallum, Thrun & Mitchell (2000), Machine Learning 39, 103-134, section 3.
    .. [2] Johnson, Kotz & Balakrishnan (1997), Discrete Multivariate Distributions, chapter 36 (negative multinomial).
    """

    start: ClassVar[str] = "short_em"
    takes: ClassVar[str] = f"whole numbers from 0 to {MAX_COUNT:g}, or NaN (missing)"
    discrete: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("probabilities",)

    def embedding(self, rows: Array) -> Float:
        """Return square roots of proportions: distances are then Hellinger's, and totals do not matter."""
        total = np.nansum(rows, axis=1, keepdims=True, dtype=np.float64)
        return np.sqrt(filled(rows / np.where(total > 0, total, 1.0)))

    def draw(self, params: MultinomialParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row of `trials` trials from each of the given components, (n, d)."""
        # With very many outcomes the floors add up to more than numpy lets pass for a sum of one.
        shares = params.probabilities / params.probabilities.sum(axis=1, keepdims=True)
        return rng.multinomial(round(params.trials), shares[components]).astype(np.float64)

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        return 8 * k * (2 + d), 8 * (k * d + 1) + k

    def _of_holed(self, params: MultinomialParams, values: Float, holes: Array) -> tuple[Float, Float]:
        share = ~holes @ params.probabilities.T
        # Nothing is said by a row without values.
        share[share == 0] = 1.0
        total = values.sum(axis=1, keepdims=True)
        return -total * np.log(share), total / share

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

    def _centred(self, blank: MultinomialParams, pooled: SufficientStats) -> MultinomialParams:
        return replace(blank, trials=float(pooled.x[0].sum() / pooled.n[0]))

    def _maximise(self, observed: Float, x: Float, params: MultinomialParams) -> MultinomialParams:
        found = where_seen(x.sum(axis=1, keepdims=True), x, params.probabilities)
        return self._with(params, np.maximum(found, PROBABILITY_FLOOR))

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
