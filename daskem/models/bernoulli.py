"""Binary columns: independent Bernoulli variables given the component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, logit

from daskem.core import Array, Float
from daskem.models.natural import PROBABILITY_FLOOR, ColumnFamily, are_whole, where_seen

__all__ = ["Bernoulli", "BernoulliParams"]


@dataclass(frozen=True, eq=False)
class BernoulliParams:
    """Probabilities (k, d) of a one, and `repaired` (k,) int8 (see `daskem.models.repair`)."""

    probabilities: Float
    repaired: Array


@dataclass(frozen=True)
class Bernoulli(ColumnFamily):
    """A family of independent binary columns; a mixture of them is the latent class model of binary answers.

    log p(x | k) = sum_j x_j logit(p_kj) + log(1 - p_kj), over the columns j that are not NaN. Probabilities stay within
    [eps, 1 - eps] (see `daskem.models.natural`).

    Parameters
    ----------
    pseudo_count : weight of ones, and of zeros, that a Beta(1 + c, 1 + c) prior adds to each column of each component.
    on_collapse : "keep", "reseed" or "raise": what to do with an empty component.

    References
    ----------
    .. [1] Bishop (2006), Pattern Recognition and Machine Learning, section 9.3.3.
    """

    start: ClassVar[str] = "short_em"
    takes: ClassVar[str] = "0, 1 or NaN (missing)"
    keeps_float32: ClassVar[bool] = True
    discrete: ClassVar[bool] = True
    most: ClassVar[int] = 1
    fields: ClassVar[tuple[str, ...]] = ("probabilities",)

    def draw(self, params: BernoulliParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        probabilities = params.probabilities[components]
        return (rng.random(probabilities.shape) < probabilities).astype(np.float64)

    def _valid(self, rows: Array, params: BernoulliParams | None) -> Array:
        return np.asarray((rows == 0) | (rows == 1))

    def _surely_valid(self, rows: Array, params: BernoulliParams) -> bool:
        return are_whole(rows, self.most)

    def _filling(self, params: BernoulliParams, resp: Array) -> Float:
        return np.asarray(resp @ params.probabilities, np.float64)

    def _natural(self, params: BernoulliParams) -> tuple[Float, Float]:
        log_one, log_zero = np.log(params.probabilities), np.log1p(-params.probabilities)
        return log_one - log_zero, log_zero

    def _pseudo(self, params: BernoulliParams) -> tuple[Any, Any]:
        return 2 * self.pseudo_count, self.pseudo_count

    def _blank(self, rows: Array, k: int) -> BernoulliParams:
        return BernoulliParams(np.full((k, rows.shape[1]), 0.5), np.zeros(k, np.int8))

    def _maximise(self, observed: Float, x: Float, params: BernoulliParams) -> BernoulliParams:
        found = where_seen(observed, x, params.probabilities)
        return self._of(np.clip(found, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR))

    def _halves(self, params: BernoulliParams, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        # The most variable column is split by half its standard deviation.
        p = params.probabilities[k]
        j = int(np.abs(p - 0.5).argmin())
        step = np.zeros(len(p))
        step[j] = 0.5 * np.sqrt(p[j] * (1 - p[j]))
        return {"probabilities": p + step}, {"probabilities": p - step}

    def _coordinates(self, params: BernoulliParams) -> list[Float]:
        return [logit(params.probabilities)]

    def _from_coordinates(self, parts: list[Float], params: BernoulliParams) -> BernoulliParams:
        return self._of(expit(parts[0]))

    def _of(self, probabilities: Float) -> BernoulliParams:
        return BernoulliParams(probabilities, np.zeros(len(probabilities), np.int8))
