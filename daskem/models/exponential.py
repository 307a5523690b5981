"""Waiting times: independent exponential variables given the component."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from daskem.core import Array, Float
from daskem.models.natural import ColumnFamily, SufficientStats, filled, valid_positive, where_seen

__all__ = ["Exponential", "ExponentialParams"]


@dataclass(frozen=True, eq=False)
class ExponentialParams:
    """Scales (k, d), which are the means, data units; the sample's means `prior_mean` (d,); `repaired` (k,) int8."""

    scales: Float
    prior_mean: Float
    repaired: Array


@dataclass(frozen=True)
class Exponential(ColumnFamily):
    """A family of independent exponential columns.

    log p(x | k) = sum_j -x_j / scale_kj - log scale_kj, over the columns j that are not NaN.

    Parameters
    ----------
    pseudo_count : pseudo-rows at the sample's means that the conjugate prior adds to each component.
    on_collapse : "keep", "reseed" or "raise": what to do with an empty component.
    """

    takes: ClassVar[str] = "positive finite numbers, or NaN (missing)"
    fields: ClassVar[tuple[str, ...]] = ("scales",)

    def embedding(self, rows: Array) -> Float:
        """Return logarithms, which differ by the same whatever the scale; holes filled."""
        return filled(np.log(rows, dtype=np.float64))

    def draw(self, params: ExponentialParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        return rng.exponential(params.scales[components])

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        stats, params = super().record_bytes(k, d)
        return stats, params + 8 * d

    def _valid(self, rows: Array, params: ExponentialParams | None) -> Array:
        return valid_positive(rows)

    def _filling(self, params: ExponentialParams, resp: Array) -> Float:
        return np.asarray(resp @ params.scales, np.float64)

    def _natural(self, params: ExponentialParams) -> tuple[Float, Float]:
        return -1.0 / params.scales, -np.log(params.scales)

    def _pseudo(self, params: ExponentialParams) -> tuple[Any, Any]:
        return self.pseudo_count, self.pseudo_count * params.prior_mean

    def _blank(self, rows: Array, k: int) -> ExponentialParams:
        d = rows.shape[1]
        return ExponentialParams(np.ones((k, d)), np.ones(d), np.zeros(k, np.int8))

    def _centred(self, blank: ExponentialParams, pooled: SufficientStats) -> ExponentialParams:
        return replace(blank, prior_mean=pooled.x[0] / pooled.observed[0])

    def _maximise(self, observed: Float, x: Float, params: ExponentialParams) -> ExponentialParams:
        return self._with(params, where_seen(observed, x, params.scales))

    def _halves(self, params: ExponentialParams, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        # The spread of every column is its mean; all are split, by half of it on the scale of logarithms.
        return {"scales": params.scales[k] * np.exp(0.5)}, {"scales": params.scales[k] * np.exp(-0.5)}

    def _coordinates(self, params: ExponentialParams) -> list[Float]:
        return [np.log(params.scales)]

    def _from_coordinates(self, parts: list[Float], params: ExponentialParams) -> ExponentialParams:
        return self._with(params, np.exp(parts[0]))

    def _with(self, params: ExponentialParams, scales: Float) -> ExponentialParams:
        return replace(params, scales=scales, repaired=np.zeros(len(scales), np.int8))
