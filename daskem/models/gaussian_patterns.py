"""Rows of a block with holes (NaN), sorted by the number and the pattern of their holes; C = (L_mm)^-1 of each pattern.

What these are for, and the letters, are in `daskem.models.gaussian_missing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from daskem.core import Array, Chunk, Float, Int

__all__ = ["RUN_NUMBERS", "Holes", "Run"]

# Patterns are worked on one by one where their holes are many, or where q^2 numbers for each of their rows are: there
# BLAS gains more than its calls cost (measured).
MAX_SWEPT, MANY_NUMBERS = 8, 4096
# Multiplied by eight bytes that are 0 or 1, it has each of them as a bit of its highest byte.
GATHER_BITS = np.uint64(0x0102040810204080)
# Numbers that the conditional covariances of one run of rows may take.
RUN_NUMBERS = 1 << 18


@dataclass(frozen=True, eq=False)
class Run(ABC):
    """Consecutive rows with holes, sorted by pattern, all with the same number q of holes.

    Components are the last axis of what is said of holes, so that picking a row's numbers copies a few in one piece.
    The last axis of C has length one where components share the precision.

    Attributes
    ----------
    rows : which of the sorted rows. holes : which of the list of all their holes. patterns : which patterns.
    features : (q, patterns) missing features.
    pattern : (rows,) pattern of each row. starts : first row of each pattern, both counted from the run's own first.
    """

    rows: slice
    holes: slice
    patterns: slice
    features: Int
    pattern: Int
    starts: Int

    @abstractmethod
    def invert(self, precision: Float) -> tuple[Float, Float]:
        """Return C of all patterns, in a layout of its own, and log det L_mm (patterns, k), L being (d, d, k)."""

    @abstractmethod
    def apply(self, inverse: Float, g: Float) -> Float:
        """Return C g of each row, g being (rows, q, k)."""

    @abstractmethod
    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        """Add the sum over patterns of weight (patterns, k) times C to `out` (d, d, k)."""


@dataclass(frozen=True, eq=False)
class _Together(Run):
    """A run whose patterns are worked on together: C is (q, q, patterns, k)."""

    def invert(self, precision: Float) -> tuple[Float, Float]:
        a = np.take(precision.reshape(-1, precision.shape[-1]), self._places(len(precision)), axis=0)
        pivots = np.empty(a.shape[1:])
        # Gauss and Jordan's sweeps (Little & Rubin 2020, section 7.4.3); a positive definite matrix needs no pivoting.
        for i in range(len(a)):
            pivots[i] = a[i, i]
            row = a[i] / pivots[i]
            a -= a[:, i, None] * row
            a[i] = a[:, i] = row
            a[i, i] = -1.0 / pivots[i]
        return np.negative(a, out=a), np.asarray(np.log(pivots).sum(axis=0), np.float64)

    def apply(self, inverse: Float, g: Float) -> Float:
        return np.asarray(np.einsum("abnk,nbk->nak", np.take(inverse, self.pattern, axis=2), g))

    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        k, (i, j) = out.shape[-1], np.triu_indices(len(inverse))
        places = (self.features[i] * len(out) + self.features[j])[..., None] * k + np.arange(k)
        numbers = inverse[i, j] * weight
        # Each half adds the diagonal once.
        numbers[i == j] *= 0.5
        half = np.bincount(places.ravel(), numbers.ravel(), out.size).reshape(out.shape)
        out += half + half.swapaxes(0, 1)

    def _places(self, d: int) -> Int:
        return self.features[:, None] * d + self.features


@dataclass(frozen=True, eq=False)
class _OneByOne(Run):
    """A run whose patterns are worked on one by one: C is (patterns, k, q, q)."""

    def invert(self, precision: Float) -> tuple[Float, Float]:
        features = self.features.T
        blocks = np.ascontiguousarray(precision[features[:, :, None], features[:, None]].transpose(0, 3, 1, 2))
        return np.asarray(np.linalg.inv(blocks), np.float64), np.asarray(np.linalg.slogdet(blocks)[1], np.float64)

    def apply(self, inverse: Float, g: Float) -> Float:
        out = np.empty(g.shape)
        for matrix, start, stop in zip(inverse, self.starts, [*self.starts[1:], len(g)], strict=True):
            product = matrix @ np.ascontiguousarray(g[start:stop].transpose(2, 1, 0))
            out[start:stop] = product.transpose(2, 1, 0)
        return out

    def spread(self, inverse: Float, weight: Float, out: Float) -> None:
        for matrix, each, features in zip(inverse, weight, self.features.T, strict=True):
            out[features[:, None], features] += each * matrix.transpose(1, 2, 0)


@dataclass(frozen=True, eq=False)
class Holes:
    """The rows of a block, those with holes apart and sorted; their holes are listed row by row.

    Attributes
    ----------
    complete : the rows without holes, whose places in the block are `kept`.
    rows : places of the others in the block, by number and then by pattern of their holes.
    values : (m, d) their values, NaN for holes.
    pattern : (m,) pattern of each of them.
    features : missing features of each pattern, in increasing order, the patterns one after the other.
    first : (patterns + 1,) where those of each begin, and the number of all.
    """

    complete: Chunk
    kept: Int
    rows: Int
    values: Array
    pattern: Int
    features: Int
    first: Int

    @classmethod
    def of(cls, chunk: Chunk, missing: Array) -> Holes:
        """Take a block apart, of whose values these are missing, (n, d)."""
        codes = _codes(missing)
        order = np.lexsort(codes)
        codes = np.take(codes, order, axis=1)
        begin = int(np.searchsorted(codes[-1], 1))
        kept, rows, codes = np.sort(order[:begin]), order[begin:], codes[:, begin:]
        new = np.ones(len(rows), bool)
        np.any(codes[:, 1:] != codes[:, :-1], axis=0, out=new[1:])
        starts = np.flatnonzero(new)
        features = np.flatnonzero(np.take(missing, rows[starts], axis=0)) % missing.shape[1]
        first = np.concatenate([[0], np.cumsum(codes[-1, starts], dtype=np.int64)])
        complete = Chunk(np.take(chunk.rows, kept, axis=0), scratch=chunk.scratch)
        values = np.take(chunk.rows, rows, axis=0)
        return cls(complete, kept, rows, values, np.cumsum(new) - 1, features, first)

    @cached_property
    def row(self) -> Int:
        """Which of the sorted rows has each hole."""
        return np.repeat(np.arange(len(self.rows)), self._counts)

    @cached_property
    def feature(self) -> Int:
        """The feature of each hole."""
        begin = np.cumsum(self._counts) - self._counts
        within = np.arange(len(self.row)) - np.take(begin, self.row)
        return np.take(self.features, np.take(self.first, np.take(self.pattern, self.row)) + within)

    @cached_property
    def place(self) -> Int:
        """Holes as offsets into (d, m) numbers."""
        return self.feature * len(self.rows) + self.row

    @property
    def n_holes(self) -> int:
        """Number of holes."""
        return int(self._counts.sum())

    @property
    def _counts(self) -> Int:
        """Return the number of holes of each row."""
        return np.take(np.diff(self.first), self.pattern)

    def runs(self, k: int) -> Iterator[Run]:
        """Yield runs of the rows: one number of holes each, and few enough for `RUN_NUMBERS` with k components."""
        counts, hole, start = self._counts, 0, 0
        while start < len(self.rows):
            q = int(counts[start])
            stop = min(int(np.searchsorted(counts, q, side="right")), start + max(1, RUN_NUMBERS // (k * q * q)))
            patterns = slice(int(self.pattern[start]), int(self.pattern[stop - 1]) + 1)
            pattern = self.pattern[start:stop] - patterns.start
            starts = np.searchsorted(pattern, np.arange(patterns.stop - patterns.start))
            features = self.features[self.first[patterns.start] : self.first[patterns.stop]].reshape(-1, q).T
            one_by_one = q > MAX_SWEPT or q * q * (stop - start) > MANY_NUMBERS * len(starts)
            kind = _OneByOne if one_by_one else _Together
            holes = slice(hole, hole + q * (stop - start))
            yield kind(slice(start, stop), holes, patterns, features, pattern, starts)
            hole, start = holes.stop, stop


def _codes(missing: Array) -> Array:
    """Return whole numbers that tell patterns (n, d) apart, a row for each 16 features, and the numbers of holes."""
    n, d = missing.shape
    padded = np.zeros((n, -(-d // 16) * 16), bool)
    padded[:, :d] = missing
    # Eight truth values at a time: their bits meet in the highest byte of the product.
    octets = (padded.view(np.uint64) * GATHER_BITS) >> np.uint64(56)
    # Numbers of 16 bits are sorted in a time that is linear in the rows.
    codes = (octets[:, ::2] | octets[:, 1::2] << np.uint64(8)).astype(np.uint16).T
    return np.vstack([codes, np.bitwise_count(codes).sum(axis=0, dtype=np.uint16)])
