"""Rows of counts that share a number of trials: multinomial variables given the component."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from scipy.special import gammaln

from daskem.compiled import Terms
from daskem.core import Array, Chunk, Float, Int
from daskem.models.natural import (
    MAX_COUNT,
    PROBABILITY_FLOOR,
    NaturalFamily,
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


@dataclass(frozen=True, eq=False)
class _Lack:
    """Rows of a block with holes.

    Attributes
    ----------
    rows : (m,) which they are.
    holes : (m, d) where.
    total : (m,) of the counts that are there.
    share : (m, k) sum of the probabilities of these; one for a row without any.
    """

    rows: Int
    holes: Array
    total: Float
    share: Float

    @property
    def trials(self) -> Float:
        """Trials (m, k) that are expected for so many with outcomes that are there."""
        return self.total[:, None] / self.share

    @classmethod
    def of(cls, params: MultinomialParams, rows: Array) -> _Lack | None:
        """Look for holes in rows (n, d)."""
        holed = np.flatnonzero(np.isnan(rows).any(axis=1))
        if not len(holed):
            return None
        holes = np.isnan(rows[holed])
        share = ~holes @ params.probabilities.T
        total = np.where(holes, 0.0, rows[holed]).sum(axis=1)
        return cls(holed, holes, total, np.where(share > 0, share, 1.0))


@dataclass(frozen=True)
class Multinomial(NaturalFamily):
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
    handles_missing: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("probabilities",)

    def embedding(self, rows: Array) -> Float:
        """Return square roots of proportions: distances are then Hellinger's, and totals do not matter."""
        total = np.nansum(rows, axis=1, keepdims=True, dtype=np.float64)
        return np.sqrt(filled(rows / np.where(total > 0, total, 1.0)))

    def log_prob(self, params: MultinomialParams, chunk: Chunk) -> Array:
        """Return log p(x | component), (n, k), nats, -inf outside the support: a view of scratch memory."""
        out = super().log_prob(params, chunk)
        if (lack := self._lack(params, chunk)) is not None:
            out[lack.rows] -= lack.total[:, None] * np.log(lack.share)
        return out

    def stats(self, params: MultinomialParams, chunk: Chunk, resp: Array) -> SufficientStats:
        """Return the sums of the counts under `resp` (n, k), with what is expected in the place of holes."""
        found = super().stats(params, chunk, resp)
        if (lack := self._lack(params, chunk)) is not None:
            trials = resp[lack.rows] * lack.trials
            return replace(found, x=found.x + (trials.T @ lack.holes) * params.probabilities)
        return found

    def terms(self, params: MultinomialParams, chunk: Chunk) -> tuple[Terms, ...] | None:
        """Return the log densities as terms that are linear in features, None where there are holes."""
        return super().terms(params, chunk) if self._lack(params, chunk) is None else None

    def impute(self, params: MultinomialParams, chunk: Chunk, resp: Array) -> Float:
        """Return the rows (n, d) with their holes as they are expected under `resp` (n, k)."""
        out = np.array(chunk.rows, np.float64)
        if (lack := self._lack(params, chunk)) is not None:
            expected = (resp[lack.rows] * lack.trials) @ params.probabilities
            out[lack.rows] = np.where(lack.holes, expected, out[lack.rows])
        return out

    def draw(self, params: MultinomialParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row of `trials` trials from each of the given components, (n, d)."""
        # With very many outcomes the floors add up to more than numpy lets pass for a sum of one.
        shares = params.probabilities / params.probabilities.sum(axis=1, keepdims=True)
        return rng.multinomial(round(params.trials), shares[components]).astype(np.float64)

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        return 8 * k * (2 + d), 8 * (k * d + 1) + k

    def _lack(self, params: MultinomialParams, chunk: Chunk) -> _Lack | None:
        """Return what the rows with holes say, None where there are none; computed once for a block."""
        cache: dict[MultinomialParams, _Lack | None] = chunk.scratch.keep((self, "lack"), chunk, dict)
        if params not in cache:
            cache[params] = _Lack.of(params, chunk.rows)
        return cache[params]

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
