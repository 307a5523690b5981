"""Positive numbers: independent gamma variables given the component."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from scipy.special import digamma, gammaln, polygamma

from daskem.core import Array, Float
from daskem.errors import OptionError
from daskem.models.natural import ColumnFamily, SufficientStats, filled, valid_positive, where_seen

__all__ = ["Gamma", "GammaParams", "shape_of"]

# Newton's iterations; five or six reach rounding from the start that is used.
MAX_NEWTON, NEWTON_RTOL = 50, 1e-14


@dataclass(frozen=True, eq=False)
class GammaParams:
    """Shapes (k, d) and scales (k, d), data units; `prior_mean` and `prior_mean_log` (d,) of the sample; `repaired`."""

    shapes: Float
    scales: Float
    prior_mean: Float
    prior_mean_log: Float
    repaired: Array


@dataclass(frozen=True)
class Gamma(ColumnFamily):
    """A family of independent gamma columns.

    log p(x | k) = sum_j (a - 1) log x_j - x_j / s - a log s - log Gamma(a), a and s being shape and scale of column j
    in component k, over the columns j that are not NaN. The M-step solves log a - digamma(a) = log(mean) - mean(log) by
    Newton's method in 1 / a [1]_, and sets s = mean / a.

    Parameters
    ----------
    pseudo_count : pseudo-rows with the sample's means, and means of logarithms, that the conjugate prior adds.
    on_collapse : "keep", "reseed" or "raise": what to do with a component that is empty or reaches `max_shape`.
    max_shape : largest shape, hence the least spread, 1 / sqrt(max_shape) of the mean: equal values have no finite one.

    References
    ----------
    .. [1] Minka (2002), Estimating a Gamma distribution, equations 4 to 10.
    """

    max_shape: float = 1e6

    takes: ClassVar[str] = "positive finite numbers, or NaN (missing)"
    fields: ClassVar[tuple[str, ...]] = ("shapes", "scales")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (np.isfinite(self.max_shape) and self.max_shape > 1):
            raise OptionError(f"max_shape is {self.max_shape!r}; it must be a finite number larger than 1.")

    def embedding(self, rows: Array) -> Float:
        """Return logarithms, which differ by the same whatever the scale; holes filled."""
        return filled(np.log(rows, dtype=np.float64))

    def draw(self, params: GammaParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        return rng.gamma(params.shapes[components], params.scales[components])

    def row_numbers(self, k: int, d: int) -> int:
        """Return how many numbers a block's scratch holds for each row, beside its log densities."""
        return 6 * d + 2 * k

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        return 8 * k * (1 + 3 * d), 8 * (2 * k * d + 2 * d) + k

    def _valid(self, rows: Array, params: GammaParams | None) -> Array:
        return valid_positive(rows)

    def _features(self, values: Array) -> Array:
        logs = np.log(values, where=values > 0, out=np.zeros(values.shape))
        return np.concatenate([values, logs], axis=1)

    def _filling(self, params: GammaParams, resp: Array) -> Float:
        return np.asarray(resp @ (params.shapes * params.scales), np.float64)

    def _natural(self, params: GammaParams) -> tuple[Float, Float]:
        a, s = params.shapes, params.scales
        return np.concatenate([-1.0 / s, a - 1.0], axis=1), -a * np.log(s) - gammaln(a)

    def _pseudo(self, params: GammaParams) -> tuple[Any, Any]:
        return self.pseudo_count, self.pseudo_count * np.concatenate([params.prior_mean, params.prior_mean_log])

    def _blank(self, rows: Array, k: int) -> GammaParams:
        d = rows.shape[1]
        return GammaParams(np.ones((k, d)), np.ones((k, d)), np.ones(d), np.zeros(d), np.zeros(k, np.int8))

    def _centred(self, blank: GammaParams, pooled: SufficientStats) -> GammaParams:
        mean, mean_log = np.split(pooled.x[0] / np.tile(pooled.observed[0], 2), 2)
        return replace(blank, prior_mean=mean, prior_mean_log=mean_log)

    def _maximise(self, observed: Float, x: Float, params: GammaParams) -> GammaParams:
        d = observed.shape[1]
        mean = where_seen(observed, x[:, :d], params.shapes * params.scales)
        spread = np.log(mean) - where_seen(observed, x[:, d:], np.log(mean))
        shapes = np.where(observed > 0, shape_of(spread, self.max_shape), params.shapes)
        return self._with(params, shapes, mean / shapes)

    def _at_bound(self, params: GammaParams) -> Array:
        return np.asarray((params.shapes >= self.max_shape).any(axis=1))

    def _halves(self, params: GammaParams, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        # The most variable column is split by half its standard deviation, on the scale of logarithms.
        scales = params.scales[k]
        j = int(params.shapes[k].argmin())
        factor = np.ones(len(scales))
        factor[j] = np.exp(0.5 / np.sqrt(max(params.shapes[k, j], 1.0)))
        shapes = params.shapes[k]
        return {"shapes": shapes, "scales": scales * factor}, {"shapes": shapes, "scales": scales / factor}

    def _coordinates(self, params: GammaParams) -> list[Float]:
        return [np.log(params.shapes), np.log(params.scales)]

    def _from_coordinates(self, parts: list[Float], params: GammaParams) -> GammaParams:
        return self._with(params, np.minimum(np.exp(parts[0]), self.max_shape), np.exp(parts[1]))

    def _with(self, params: GammaParams, shapes: Float, scales: Float) -> GammaParams:
        return replace(params, shapes=shapes, scales=scales, repaired=np.zeros(len(shapes), np.int8))


def shape_of(spread: Float, most: float) -> Float:
    """Return the shapes a, at most `most`, at which log a - digamma(a) = `spread`.

    The start is Minka's; the likelihood being unimodal in a, the bound is the maximiser where the root lies beyond it.
    """
    # Near 1 / (2 a) for large a: below half of the least value there is no root within the bound.
    s = np.maximum(spread, 0.25 / most)
    a = (3.0 - s + np.sqrt((s - 3.0) ** 2 + 24.0 * s)) / (12.0 * s)
    for _ in range(MAX_NEWTON):
        before = a
        a = 1.0 / (1.0 / a + (np.log(a) - digamma(a) - s) / (a * a * (1.0 / a - polygamma(1, a))))
        if (np.abs(a - before) <= NEWTON_RTOL * a).all():
            break
    return np.minimum(a, most)
