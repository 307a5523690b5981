"""A model of one's own, to copy and change: counts that are zero more often than a Poisson distribution allows.

Lambert (1992), Technometrics 34, 1-14: with probability `zero` a count is zero for sure, else it is Poisson with mean
`rate`. Which of the two made a zero is hidden. `init`, `e_step` and `m_step` are needed, and are all that batch EM asks
for; `log_prob` and `posterior` let the model score and label rows; `surrogate`, `to_vector` and `from_vector` let all
other algorithms drive it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, gammaln, logit, logsumexp

from daskem.core import Chunk, Expectation, Float

__all__ = ["ZeroInflatedPoisson", "ZipParams"]


@dataclass(frozen=True)
class ZipParams:
    """Probability of a zero for sure, and mean of the counts that are not, (1,) each."""

    zero: Float
    rate: Float


@dataclass(frozen=True)
class ZeroInflatedPoisson:
    """Zero-inflated Poisson counts, (n, 1). Statistics (3,): weight of sure zeros, of all others, and these' sum."""

    def init(self, sample: Chunk, rng: np.random.Generator) -> ZipParams:
        return ZipParams(np.array([0.5]), np.array([sample.rows.mean() + 0.5]))

    def e_step(self, params: ZipParams, chunk: Chunk) -> Expectation:
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        resp = weight[:, None] * self.posterior(params, chunk)
        stats = np.append(resp.sum(axis=0), resp[:, 1] @ chunk.rows.astype(np.float64))
        return Expectation(stats, float(weight @ self.log_prob(params, chunk)), chunk.total_weight)

    def m_step(self, stats: Float, params: ZipParams) -> ZipParams:
        return ZipParams(stats[:1] / stats[:2].sum(), stats[2:] / stats[1])

    def log_prob(self, params: ZipParams, chunk: Chunk) -> Float:
        return np.asarray(logsumexp(self._joint(params, chunk), axis=1))

    def posterior(self, params: ZipParams, chunk: Chunk) -> Float:
        return np.exp(self._joint(params, chunk) - self.log_prob(params, chunk)[:, None])

    def surrogate(self, stats: Float, params: ZipParams) -> float:
        return float(stats @ [*np.log(params.zero), *(np.log1p(-params.zero) - params.rate), *np.log(params.rate)])

    def to_vector(self, params: ZipParams) -> Float:
        return np.concatenate([logit(params.zero), np.log(params.rate)])

    def from_vector(self, vector: Float, params: ZipParams) -> ZipParams:
        return ZipParams(expit(vector[:1]), np.exp(vector[1:]))

    def _joint(self, params: ZipParams, chunk: Chunk) -> Float:
        x = chunk.rows.astype(np.float64)
        sure = np.log(params.zero, where=x == 0, out=np.full(x.shape, -np.inf))
        counted = np.log1p(-params.zero) + x * np.log(params.rate) - params.rate - gammaln(x + 1)
        return np.concatenate([sure, counted], axis=1)
