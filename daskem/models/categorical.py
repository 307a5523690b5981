"""Columns of codes: independent categorical variables, with levels of their own, given the component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
from scipy.sparse import csr_array

from daskem.core import Array, Chunk, Float, Int
from daskem.errors import DataError, OptionError
from daskem.models.natural import PROBABILITY_FLOOR, ColumnFamily, Observations, are_whole, filled, where_seen

__all__ = ["Categorical", "CategoricalParams"]

# Up to so many levels a column, on average, dense products beat sparse ones (measured).
DENSE_LEVELS = 16
# Levels a column is assumed to have while memory is planned, where the user does not tell.
ASSUMED_LEVELS = 32
# More levels than this in a column that does not tell its levels are taken for numbers that are no codes.
MAX_FOUND_LEVELS = 1 << 16


@dataclass(frozen=True, eq=False)
class CategoricalParams:
    """Probabilities of the levels.

    Attributes
    ----------
    probabilities : (k, p), the columns' levels side by side: those of a column sum to one.
    levels : (d,) number of levels of each column; p is their sum.
    repaired : (k,) int8, see `daskem.models.repair`.
    """

    probabilities: Float
    levels: Int
    repaired: Array

    def of_column(self, j: int) -> Float:
        """Return the probabilities (k, levels) of one column."""
        start = int(self.levels[:j].sum())
        return self.probabilities[:, start : start + int(self.levels[j])]


@dataclass(frozen=True)
class Categorical(ColumnFamily):
    """A family of independent categorical columns; a mixture of them is the latent class model.

    Rows hold codes from 0 to the column's number of levels less 1; NaN or -1 where the column is missing, whose term is
    left out of log p(x | k) = sum_j log p_kj(x_j). Features are indicators of the levels, sparse if there are many.
    Probabilities stay above eps (see `daskem.models.natural`).

    Parameters
    ----------
    pseudo_count : rows of each level that a Dirichlet(1 + c) prior adds to each column of each component.
    on_collapse : "keep", "reseed" or "raise": what to do with an empty component.
    levels : number of levels: one for all columns, a sequence with one for each, or None to find them in the sample
        that parameters start from. A code beyond them is an error.

    References
    ----------
    .. [1] Goodman (1974), Biometrika 61(2), 215-231.
    .. [2] Linzer & Lewis (2011), J. Stat. Softw. 42(10), section 2.
    """

    levels: int | Sequence[int] | None = None

    start: ClassVar[str] = "short_em"
    takes: ClassVar[str] = "codes from 0 to its number of levels less one, or -1 or NaN (missing)"
    per_column: ClassVar[bool] = False
    keeps_float32: ClassVar[bool] = True
    discrete: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("probabilities",)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.levels
        if given is None:
            return
        counts = np.atleast_1d(np.asarray(given))
        if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 1).any() or not counts.size:
            raise OptionError(f"levels is {given!r}; it must be a whole number, at least 1, or one for each column.")
        # A tuple, so that the family is a value that can be hashed.
        object.__setattr__(self, "levels", int(counts[0]) if np.ndim(given) == 0 else tuple(counts.tolist()))

    def unsupported(self, params: CategoricalParams | None, rows: Array) -> tuple[int, str] | None:
        """Return the first row with what is no code of its column, and what is wrong with it; None if there is none."""
        found = super().unsupported(params, rows)
        if found is None or params is None:
            return found
        i, words = found
        bad = ~(self._valid(rows[i : i + 1], params) | self._holes(rows[i : i + 1]))[0]
        levels = int(params.levels[bad.argmax()])
        return i, f"{words}; it has {levels} levels, as many as were given (levels=) or the start's sample shows"

    def embedding(self, rows: Array) -> Float:
        """Return indicators of the levels side by side, a hole being the shares of the levels."""
        codes = np.where(self._holes(rows), np.nan, rows)
        parts = []
        for column, count in zip(codes.T, self._levels(rows), strict=True):
            hot = (column[:, None] == np.arange(count)).astype(np.float64)
            hot[np.isnan(column)] = np.nan
            parts.append(filled(hot))
        return np.concatenate(parts, axis=1)

    def n_features(self, params: CategoricalParams) -> int:
        """Return the number of columns that the parameters are about."""
        return len(params.levels)

    def draw(self, params: CategoricalParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        rows = np.empty((len(components), len(params.levels)))
        for j, last in enumerate(params.levels - 1):
            edges = np.cumsum(params.of_column(j), axis=1)[:, :last]
            rows[:, j] = (rng.random((len(rows), 1)) >= edges[components]).sum(axis=1)
        return rows

    def row_numbers(self, k: int, d: int) -> int:
        """Return how many numbers a block's scratch holds for each row, beside its log densities."""
        given = ASSUMED_LEVELS if self.levels is None else self.levels
        return 5 * d + 3 * k + min(DENSE_LEVELS * d, d * given if isinstance(given, int) else sum(given))

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components, guessed if levels are unknown."""
        given = ASSUMED_LEVELS if self.levels is None else self.levels
        p = d * given if isinstance(given, int) else sum(given)
        return 8 * k * (2 + p), 8 * (k * p + d) + k

    def _valid(self, rows: Array, params: CategoricalParams | None) -> Array:
        most = self._given(rows.shape[1]) if params is None else params.levels
        return np.asarray((rows >= 0) & (rows < most) & (np.floor(rows) == rows))

    def _surely_valid(self, rows: Array, params: CategoricalParams) -> bool:
        same = params.levels.min() == params.levels.max()
        return bool(same) and are_whole(rows, int(params.levels[0]) - 1)

    def _holes(self, rows: Array) -> Array:
        return np.asarray(np.isnan(rows) | (rows == -1))

    def _seen(self, params: CategoricalParams, chunk: Chunk) -> Observations:
        name = (self, "seen", params.levels.tobytes())
        return cast(Observations, chunk.scratch.keep(name, chunk, lambda: self._observe(params, chunk)))

    def _observe(self, params: CategoricalParams, chunk: Chunk) -> Observations:
        rows, starts, p = chunk.rows, _starts(params.levels).astype(np.int32), int(params.levels.sum())
        valid = True if self._surely_valid(rows, params) else self._valid(rows, params)
        if np.all(valid):
            return Observations(_indicators(rows.astype(np.int32) + starts, True, p, chunk))
        outside = np.asarray(~(valid | self._holes(rows)).all(axis=1))
        codes = np.where(valid, rows, 0.0).astype(np.int32)
        hot = _indicators(codes + starts, valid, p, chunk)
        return Observations(hot, outside=outside if outside.any() else None)

    def _filling(self, params: CategoricalParams, resp: Array) -> Float:
        # Means of codes say nothing: the likeliest level of each column.
        likeliest = [(resp @ params.of_column(j)).argmax(axis=1) for j in range(len(params.levels))]
        return np.stack(likeliest, axis=1).astype(np.float64)

    def _natural(self, params: CategoricalParams) -> tuple[Float, Float]:
        return np.log(params.probabilities), np.zeros((len(params.probabilities), 1))

    def _pseudo(self, params: CategoricalParams) -> tuple[Any, Any]:
        return 0.0, self.pseudo_count

    def _blank(self, rows: Array, k: int) -> CategoricalParams:
        levels = self._levels(rows)
        probabilities = np.tile(np.repeat(1.0 / levels, levels), (k, 1))
        return CategoricalParams(probabilities, levels, np.zeros(k, np.int8))

    def _given(self, d: int) -> Int:
        """Return the levels of d columns that the options tell, or the most that any may have."""
        levels = np.atleast_1d(MAX_FOUND_LEVELS if self.levels is None else self.levels)
        if isinstance(self.levels, tuple) and len(levels) != d:
            raise DataError(f"levels tells of {len(levels)} columns, and the data have {d}.")
        return np.broadcast_to(levels, d)

    def _levels(self, rows: Array) -> Int:
        """Return the levels of each column: those given, or those found in the rows."""
        if self.levels is not None:
            return self._given(rows.shape[1]).astype(np.int64)
        return np.asarray(np.where(self._holes(rows), 0.0, rows).max(axis=0, initial=0.0) + 1, np.int64)

    def _maximise(self, observed: Float, x: Float, params: CategoricalParams) -> CategoricalParams:
        total = _spread(np.add.reduceat(x, _starts(params.levels), axis=1), params.levels)
        return self._with(params, np.maximum(where_seen(total, x, params.probabilities), PROBABILITY_FLOOR))

    def _halves(self, params: CategoricalParams, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        # In the column that is least certain one half leans to its likeliest level, the other away from it.
        p, starts = params.probabilities[k], _starts(params.levels)
        j = int(np.add.reduceat(p * p, starts).argmin())
        column = slice(starts[j], starts[j] + params.levels[j])
        most = float(p[column].max())
        lean = (p[column].argmax() == np.arange(params.levels[j])) - p[column]
        step = np.zeros(len(p))
        step[column] = 0.5 * min(1.0, most / max(1.0 - most, PROBABILITY_FLOOR)) * lean
        return {"probabilities": p + step}, {"probabilities": np.maximum(p - step, PROBABILITY_FLOOR)}

    def _coordinates(self, params: CategoricalParams) -> list[Float]:
        logs, last = np.log(params.probabilities), np.cumsum(params.levels) - 1
        return [(logs - _spread(logs[:, last], params.levels))[:, _free(params.levels)]]

    def _from_coordinates(self, parts: list[Float], params: CategoricalParams) -> CategoricalParams:
        logits, starts = np.zeros_like(params.probabilities), _starts(params.levels)
        logits[:, _free(params.levels)] = parts[0]
        odds = np.exp(logits - _spread(np.maximum.reduceat(logits, starts, axis=1), params.levels))
        return self._with(params, odds / _spread(np.add.reduceat(odds, starts, axis=1), params.levels))

    def _with(self, params: CategoricalParams, probabilities: Float) -> CategoricalParams:
        return replace(params, probabilities=probabilities, repaired=np.zeros(len(probabilities), np.int8))


def _indicators(places: Array, valid: Array | bool, p: int, chunk: Chunk) -> Any:
    """Return (n, p) ones at the places (n, d) of each row, zeros at those that are not valid (or True: all are)."""
    n, d = places.shape
    if p > DENSE_LEVELS * d:
        # A hole is a stored zero, so that every row has d entries and nothing has to be counted.
        stored = np.broadcast_to(valid, places.shape).ravel().astype(np.float64)
        return csr_array((stored, places.ravel(), np.arange(0, n * d + 1, d)), (n, p))
    hot = chunk.scratch.empty("indicators", (n, p), chunk.rows.dtype)
    hot.fill(0.0)
    hot.ravel()[(places + p * np.arange(n)[:, None]).ravel()] = valid if valid is True else np.ravel(valid)
    return hot


def _starts(levels: Int) -> Int:
    """Return where each column's levels start."""
    return np.asarray(np.cumsum(levels) - levels)


def _free(levels: Int) -> Int:
    """Return the places of all levels but the last of each column."""
    return np.setdiff1d(np.arange(levels.sum()), np.cumsum(levels) - 1)


def _spread(per_column: Float, levels: Int) -> Float:
    """Return (k, p) from (k, d): a column's value for each of its levels."""
    return np.repeat(per_column, levels, axis=1)
