"""Counts: independent Poisson variables given the component."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from daskem.core import Array, Float
from daskem.models.natural import (
    MAX_COUNT,
    ColumnFamily,
    SufficientStats,
    are_whole,
    filled,
    log_factorial,
    valid_counts,
    where_seen,
)

__all__ = ["Poisson", "PoissonParams"]

# The least rate: a component all of whose counts are zero keeps finite log densities and can leave the boundary.
RATE_FLOOR = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class PoissonParams:
    """Rates (k, d), the sample's means `prior_mean` (d,), and `repaired` (k,) int8 (see `daskem.models.repair`)."""

    rates: Float
    prior_mean: Float
    repaired: Array


@dataclass(frozen=True)
class Poisson(ColumnFamily):
    """A family of independent Poisson columns.

    log p(x | k) = sum_j x_j log rate_kj - rate_kj - log x_j!, over the columns j that are not NaN.

    Parameters
    ----------
    pseudo_count : pseudo-rows at the sample's means that the prior, Gamma(1 + c mean, c), adds to each component.
    on_collapse : "keep", "reseed" or "raise": what to do with an empty component.

    References
    ----------
    .. [1] Zucchini & MacDonald (2009), Hidden Markov Models for Time Series, section 1.2.
    """

    takes: ClassVar[str] = f"whole numbers from 0 to {MAX_COUNT:g}, or NaN (missing)"
    discrete: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("rates",)

    def embedding(self, rows: Array) -> Float:
        """Return square roots, whose variance is the same at every rate; holes filled."""
        return filled(np.sqrt(rows))

    def draw(self, params: PoissonParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        return rng.poisson(params.rates[components]).astype(np.float64)

    def row_numbers(self, k: int, d: int) -> int:
        """Return how many numbers a block's scratch holds for each row, log factorials among them."""
        return super().row_numbers(k, d) + d

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        stats, params = super().record_bytes(k, d)
        return stats, params + 8 * d

    def _valid(self, rows: Array, params: PoissonParams | None) -> Array:
        return valid_counts(rows)

    def _surely_valid(self, rows: Array, params: PoissonParams) -> bool:
        return are_whole(rows)

    def _log_base(self, values: Array) -> Float:
        return np.asarray(-log_factorial(values).sum(axis=1))

    def _filling(self, params: PoissonParams, resp: Array) -> Float:
        return np.asarray(resp @ params.rates, np.float64)

    def _natural(self, params: PoissonParams) -> tuple[Float, Float]:
        return np.log(params.rates), -params.rates

    def _pseudo(self, params: PoissonParams) -> tuple[Any, Any]:
        return self.pseudo_count, self.pseudo_count * params.prior_mean

    def _blank(self, rows: Array, k: int) -> PoissonParams:
        d = rows.shape[1]
        return PoissonParams(np.ones((k, d)), np.ones(d), np.zeros(k, np.int8))

    def _centred(self, blank: PoissonParams, pooled: SufficientStats) -> PoissonParams:
        return replace(blank, prior_mean=np.maximum(pooled.x[0] / pooled.observed[0], RATE_FLOOR))

    def _maximise(self, observed: Float, x: Float, params: PoissonParams) -> PoissonParams:
        return self._with(params, np.maximum(where_seen(observed, x, params.rates), RATE_FLOOR))

    def _halves(self, params: PoissonParams, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        # The column of largest rate is split by half its standard deviation, on the scale of logarithms.
        rates = params.rates[k]
        j = int(rates.argmax())
        factor = np.ones(len(rates))
        factor[j] = np.exp(0.5 / np.sqrt(max(rates[j], 1.0)))
        return {"rates": rates * factor}, {"rates": rates / factor}

    def _coordinates(self, params: PoissonParams) -> list[Float]:
        return [np.log(params.rates)]

    def _from_coordinates(self, parts: list[Float], params: PoissonParams) -> PoissonParams:
        return self._with(params, np.exp(parts[0]))

    def _with(self, params: PoissonParams, rates: Float) -> PoissonParams:
        return replace(params, rates=rates, repaired=np.zeros(len(rates), np.int8))
