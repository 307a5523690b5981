"""Natural families whose columns depend on each other given the component, over rows with holes (NaN).

What a row that lacks some of its columns tells of a component is the density of the others, which the family knows; and
what is expected in its holes is, in each of these families, a number times a vector of the component: `impute` returns
that, and statistics have it, where a family does not say otherwise.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from daskem.compiled import Terms
from daskem.core import Array, Chunk, Float, Int, Params
from daskem.models.natural import NaturalFamily, SufficientStats

__all__ = ["JointFamily", "Lack"]


@dataclass(frozen=True, eq=False)
class Lack:
    """What components say of the rows of a block with holes.

    Attributes
    ----------
    rows, holes : (m,) which rows they are, and (m, d) where their holes are.
    log_prob : (m, k) to be added to the log density of the row with zeros in the place of its holes.
    factor : (m, k) of the component's vector, for what is expected in the holes.
    """

    rows: Int
    holes: Array
    log_prob: Float
    factor: Float


class JointFamily(NaturalFamily):
    """A natural family whose rows are known as a whole; holes are integrated out, and hold what is expected there."""

    handles_missing: ClassVar[bool] = True

    def log_prob(self, params: Params, chunk: Chunk) -> Array:
        """Return the log density of what is there, (n, k), nats: a view of scratch memory."""
        out = super().log_prob(params, chunk)
        if (lack := self._lack(params, chunk)) is not None:
            out[lack.rows] += lack.log_prob
        return out

    def stats(self, params: Params, chunk: Chunk, resp: Array) -> SufficientStats:
        """Return the sums of the rows under `resp` (n, k), and what those with holes add to them."""
        found = super().stats(params, chunk, resp)
        lack = self._lack(params, chunk)
        return found if lack is None else self._with_holes(found, params, chunk, resp, lack)

    def terms(self, params: Params, chunk: Chunk) -> tuple[Terms, ...] | None:
        """Return the log densities as terms that are linear in features, None where there are holes."""
        return super().terms(params, chunk) if self._lack(params, chunk) is None else None

    def impute(self, params: Params, chunk: Chunk, resp: Array) -> Float:
        """Return the rows (n, d) with what is expected in their holes under `resp` (n, k)."""
        out = np.array(chunk.rows, np.float64)
        if (lack := self._lack(params, chunk)) is not None:
            expected = (resp[lack.rows] * lack.factor) @ self._vectors(params)
            out[lack.rows] = np.where(lack.holes, expected, out[lack.rows])
        return out

    def _lack(self, params: Params, chunk: Chunk) -> Lack | None:
        """Return what there is to say of rows with holes, None where there are none; computed once for a block."""
        cache: dict[Any, Lack | None] = chunk.scratch.keep((self, "lack"), chunk, dict)
        if params not in cache:
            cache.clear()
            holed = np.flatnonzero(np.isnan(chunk.rows).any(axis=1))
            rows = chunk.rows[holed].astype(np.float64)
            holes = np.isnan(rows)
            with np.errstate(all="ignore"):
                said = self._of_holed(params, np.where(holes, 0.0, rows), holes) if len(holed) else None
            cache[params] = None if said is None else Lack(holed, holes, *said)
        return cache[params]

    def missing_bytes(self, rows: int, k: int, d: int) -> int:
        """Return the bytes of scratch that a block with missing values takes beside those of one without."""
        return 8 * rows * (3 * d + 6 * k)

    def _with_holes(
        self, found: SufficientStats, params: Params, chunk: Chunk, resp: Array, lack: Lack
    ) -> SufficientStats:
        """Return statistics, `found` with zeros in the place of holes, with what is expected there."""
        weight = (resp[lack.rows] * lack.factor).T @ lack.holes
        return replace(found, x=found.x + weight * self._vectors(params))

    @abstractmethod
    def _of_holed(self, params: Params, values: Float, holes: Array) -> tuple[Float, Float]:
        """Return `log_prob` and `factor` of rows with holes (see `Lack`), whose `values` (m, d) are zero there."""

    @abstractmethod
    def _vectors(self, params: Params) -> Float:
        """Return the vector of each component, (k, d)."""
