"""What families in natural form share: log p(x | k) = sum over features of slope * T(x) + constants + log h(x).

Their expected statistics are sums of the features T(x), so both halves of an E-step are one matrix product, and a
conjugate prior is nothing but further sums: `pseudo_count` pseudo-rows that are added before every M-step.

Columns are independent given the component unless a family says otherwise. A hole (NaN) then leaves its column's terms
out, which is the marginal density of what is there; the weight of the rows that do have a column is summed beside.

References
----------
.. [1] Brown (1986), Fundamentals of Statistical Exponential Families, chapters 1 and 4.
.. [2] Little & Rubin (2002), Statistical Analysis with Missing Data, section 6.2 (ignorable holes).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
from scipy.special import gammaln

from daskem import compiled, tree
from daskem.core import Array, Chunk, Float, Params
from daskem.errors import DataError, OptionError
from daskem.models.repair import (
    AT_BOUND,
    AT_PRIOR,
    EMPTY_KEPT,
    EMPTY_SHARE,
    RESEEDED,
    Policy,
    check_policy,
    describe,
    raise_degenerate,
    split_largest,
)

__all__ = [
    "MAX_COUNT",
    "PROBABILITY_FLOOR",
    "ColumnFamily",
    "NaturalFamily",
    "Observations",
    "SufficientStats",
    "are_whole",
    "filled",
    "log_factorial",
    "valid_counts",
    "valid_positive",
    "where_seen",
]

# Probabilities stay within [floor, 1 - floor]: the nearest to 1 that double precision can tell from it. Log densities
# then stay finite and components can leave the boundary; it costs a row at most 2e-16 nats.
PROBABILITY_FLOOR = float(np.finfo(np.float64).eps)
# Larger whole numbers are not exact in double precision.
MAX_COUNT = 2.0**53
# Rounding errors of a row's log density in single precision stay below 6e-8 times this, 3e-5.
SINGLE_TERMS = 512.0
# A tile of rows with more features does not fit into the second cache, and BLAS is as fast (measured).
MOST_AT_ONCE = 256
# Rows at a time while a sample is summed.
SAMPLE_BLOCK = 4096
# Logarithms of factorials below this are looked up, which is ten times faster than computing them.
TABLE: Float = gammaln(np.arange(1.0, 4097.0))


@dataclass(frozen=True, eq=False)
class SufficientStats:
    """Sums over rows under the responsibilities.

    Attributes
    ----------
    n : (k,) weight.
    observed : (k, d) weight of the rows whose column is there; (k, 1) weight again where constants are not a column's.
    x : (k, p) sums of the features.
    """

    n: Float
    observed: Float
    x: Float


@dataclass(frozen=True, eq=False)
class Observations:
    """A block as a family sees it.

    Attributes
    ----------
    features : (n, p) array, or sparse array, zero where a column is missing or outside the support.
    observed : (n, d) of 0 and 1, or None where nothing is missing or constants are not a column's.
    log_base : (n,) log h(x), or None for zero.
    outside : (n,) rows that no parameters give a density to, or None.
    """

    features: Any
    observed: Array | None = None
    log_base: Float | None = None
    outside: Array | None = None


@dataclass(frozen=True)
class NaturalFamily(ABC):
    """A family in natural form. What differs from family to family is in the methods that begin with an underscore.

    Parameters
    ----------
    pseudo_count : weight of the conjugate prior, in pseudo-rows; 0 is maximum likelihood.
    on_collapse : what to do with a component that is empty or at a bound of its parameters: "keep" it (an empty one at
        its previous parameters, or at the prior's mode), "reseed" it by splitting the heaviest component, or "raise".
    """

    pseudo_count: float = 0.0
    on_collapse: Policy = "keep"

    # How a mixture starts (see `daskem.models.mixture.Mixture`).
    start: ClassVar[str] = "kmeans"
    # What a column may hold, for errors.
    takes: ClassVar[str]
    # Whether NaN is a hole that the family leaves out.
    handles_missing: ClassVar[bool] = False
    # Whether each column has a constant of its own, so that holes must be counted.
    per_column: ClassVar[bool] = False
    # Whether float32 rows are computed in float32: only where features and slopes are of unit size.
    keeps_float32: ClassVar[bool] = False
    # Whether columns hold counts or codes, so that rows may repeat each other.
    discrete: ClassVar[bool] = False
    # The largest of the whole numbers from 0 that are all that a column may hold; None where there are other ones.
    most: ClassVar[int | None] = None
    # Fields of the parameters with an entry for each component.
    fields: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        if not (np.isfinite(self.pseudo_count) and self.pseudo_count >= 0):
            raise OptionError(f"pseudo_count is {self.pseudo_count!r}; it must be a finite number, zero or larger.")
        check_policy(self.on_collapse)

    def init(self, sample: Chunk, resp: Float) -> Params:
        """Return parameters from a sample and its responsibilities (n, k), which do not hold the weights yet.

        A component without any responsibility starts as the whole sample.

        Raises
        ------
        DataError
            If the sample holds what the family gives no density to, or nothing at all in some column.
        """
        if found := self.unsupported(None, sample.rows):
            raise DataError(f"a row of the sample to start from cannot be fitted: {found[1]}.")
        blank = self._blank(sample.rows, resp.shape[1])
        weight = np.ones(len(sample)) if sample.weight is None else sample.weight
        pooled = self._sum(blank, sample.rows, np.repeat(weight[:, None], resp.shape[1], axis=1))
        if missing := np.flatnonzero(pooled.observed[0] == 0).tolist():
            raise DataError(
                f"feature(s) {missing} are missing in all rows of the sample to start from; leave them out."
            )
        calm = replace(self, on_collapse="keep")
        whole = calm.m_step(pooled, self._centred(blank, pooled))
        return calm.m_step(self._sum(whole, sample.rows, resp * weight[:, None]), whole)

    def log_prob(self, params: Params, chunk: Chunk) -> Array:
        """Return log p(x | component), (n, k), nats, -inf outside the support: a view of scratch memory."""
        seen = self._seen(params, chunk)
        slope, constant, dtype = self._coefficients(params, chunk)
        out = chunk.scratch.empty((type(self), "log_prob", dtype.char), (len(slope), len(chunk)), dtype)
        _product(slope.astype(dtype, copy=False), seen.features.T, out)
        if seen.observed is None:
            out += constant.sum(axis=1).astype(dtype)[:, None]
        else:
            out += constant.astype(dtype, copy=False) @ seen.observed.T
        if seen.log_base is not None:
            out += seen.log_base
        if seen.outside is not None:
            out[:, seen.outside] = -np.inf
        return out.T

    def stats(self, params: Params, chunk: Chunk, resp: Array) -> SufficientStats:
        """Return the sums of the features under `resp` (n, k), float64 whatever the type of the rows."""
        seen = self._seen(params, chunk)
        shares = resp.T
        n, x = shares.sum(axis=1, dtype=np.float64), np.asarray(shares @ seen.features, np.float64)
        if seen.observed is None:
            return SufficientStats(n, self._complete(n, x, chunk), x)
        return SufficientStats(n, np.asarray(shares @ seen.observed, np.float64), x)

    def terms(self, params: Params, chunk: Chunk) -> tuple[compiled.Terms, ...] | None:
        """Return the log densities as terms that are linear in features, None where they are not taken so."""
        if not compiled.available():
            return None
        slope, constant, dtype = self._coefficients(params, chunk)
        natural = np.column_stack([constant.sum(axis=1), slope]).astype(dtype)
        if self._are_features(chunk.rows) and chunk.rows.dtype == dtype and compiled.readable(chunk.rows):
            # Rows are looked at while they are computed with.
            return (compiled.Terms("linear", chunk.rows, natural, most=self.most),)
        seen = self._seen(params, chunk)
        dense = isinstance(seen.features, np.ndarray) and seen.features.shape[1] <= MOST_AT_ONCE
        if not dense or seen.observed is not None or seen.outside is not None:
            return None
        rows, base = compiled.in_place(seen.features, dtype), 0.0 if seen.log_base is None else seen.log_base
        return (compiled.Terms("linear", rows, natural, base=base),)

    def stats_of_terms(self, params: Params, chunk: Chunk, sums: Sequence[Float]) -> SufficientStats:
        """Return the statistics of the sums of those features."""
        n = sums[0][:, 0]
        x = sums[0][:, 1:]
        return SufficientStats(n, self._complete(n, x, chunk), x)

    def m_step(self, stats: SufficientStats, params: Params) -> Params:
        """Return the maximiser of the expected complete-data log-likelihood plus the log prior.

        Raises
        ------
        DegenerateComponentError
            If a component is empty or at a bound of its parameters, and the policy is to raise.
        """
        observed, x = self._pseudo(params)
        new = self._maximise(stats.observed + observed, stats.x + x, params)
        return self._repair(new, params, stats.n)

    def surrogate(self, stats: SufficientStats, params: Params) -> float:
        """Return the sum over rows and components of resp * log p(x | component), nats, without log h(x)."""
        slope, constant = self._natural(params)
        return float((slope * stats.x).sum() + (constant * stats.observed).sum())

    def log_prior(self, params: Params) -> float:
        """Return the log prior density, nats, up to a constant: what the pseudo-rows would add to the surrogate."""
        if self.pseudo_count == 0:
            return 0.0
        observed, x = self._pseudo(params)
        slope, constant = self._natural(params)
        return float((slope * x).sum() + (constant * observed).sum())

    def unsupported(self, params: Params | None, rows: Array) -> tuple[int, str] | None:
        """Return the first row outside the family's support, and what is wrong with it; None if there is none."""
        bad = ~(self._valid(rows, params) | self._holes(rows))
        if not bad.any():
            return None
        i, j = (int(index) for index in np.argwhere(bad)[0])
        return i, f"feature {j} is {rows[i, j]:g}, and {type(self).__name__} takes {self.takes}"

    def embedding(self, rows: Array) -> Float:
        """Return rows (n, q) between which squared distances mean something, holes filled, for a start to use."""
        return filled(rows)

    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened) of each component that the M-step had to repair."""
        return describe(params.repaired)

    def n_features(self, params: Params) -> int:
        """Return the number of columns that the parameters are about."""
        return int(getattr(params, self.fields[0]).shape[1])

    def n_parameters(self, params: Params) -> int:
        """Return the number of free parameters of all components."""
        return len(self.to_vector(params))

    def to_vector(self, params: Params) -> Float:
        """Return the parameters in unconstrained coordinates, component after component, (p,)."""
        return np.concatenate([part.ravel() for part in self._coordinates(params)])

    def from_vector(self, vector: Float, params: Params) -> Params:
        """Return the parameters of a vector of `to_vector`; `params` supplies what is fixed."""
        parts, start = [], 0
        for part in self._coordinates(params):
            parts.append(vector[start : start + part.size].reshape(part.shape))
            start += part.size
        return self._from_coordinates(parts, params)

    @abstractmethod
    def draw(self, params: Params, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""

    def row_numbers(self, k: int, d: int) -> int:
        """Return how many numbers a block's scratch holds for each row, beside its log densities."""
        return 4 * d + 2 * k

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        return 8 * k * (1 + 2 * d), 8 * k * d + k

    @abstractmethod
    def _valid(self, rows: Array, params: Params | None) -> Array:
        """Return which entries (n, d) are in the support; NaN is not. What needs no parameters is checked without."""

    def _holes(self, rows: Array) -> Array:
        """Return which entries (n, d) are missing."""
        return np.isnan(rows) if self.handles_missing else np.zeros(rows.shape, bool)

    def _features(self, values: Array) -> Array:
        """Return the features (n, p) of rows without holes."""
        return values

    def _log_base(self, values: Array) -> Float | None:
        """Return log h(x), (n,), or None for zero; `values` are zero where a column is missing."""
        return None

    @abstractmethod
    def _natural(self, params: Params) -> tuple[Float, Float]:
        """Return slopes (k, p) and constants, (k, d) or (k, 1)."""

    @abstractmethod
    def _pseudo(self, params: Params) -> tuple[Any, Any]:
        """Return the sums that the prior adds to those of each component: to `observed`, and to `x`."""

    @abstractmethod
    def _blank(self, rows: Array, k: int) -> Params:
        """Return a record for k components of such rows, its values still to be found."""

    def _centred(self, blank: Params, pooled: SufficientStats) -> Params:
        """Return `blank` with what the prior takes from the whole sample."""
        return blank

    @abstractmethod
    def _maximise(self, observed: Float, x: Float, params: Params) -> Params:
        """Return the parameters that maximise slope * x + constant * observed; previous ones where nothing was seen."""

    def _at_bound(self, params: Params) -> Array:
        """Return which components (k,) are at a bound that stands for a collapse."""
        return np.zeros(len(params.repaired), bool)

    @abstractmethod
    def _halves(self, params: Params, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields of two components, about half a standard deviation to either side of component k."""

    @abstractmethod
    def _coordinates(self, params: Params) -> list[Float]:
        """Return unconstrained arrays that stand for the parameters."""

    @abstractmethod
    def _from_coordinates(self, parts: list[Float], params: Params) -> Params:
        """Return the parameters of such arrays."""

    def _coefficients(self, params: Params, chunk: Chunk) -> tuple[Float, Float, np.dtype[Any]]:
        """Return slopes, constants, and the type to compute in."""
        slope, constant = chunk.scratch.derived((self, "natural"), params, lambda: self._natural(params))
        single = self.keeps_float32 and chunk.rows.dtype == np.float32
        # Products cancel against the constants, so that these are what single precision must hold.
        single = single and float(np.abs(constant).sum(axis=1).max()) <= SINGLE_TERMS
        return slope, constant, np.dtype(np.float32 if single else np.float64)

    def _are_features(self, rows: Array) -> bool:
        """Return whether rows that hold nothing but whole numbers up to `most` are all that densities need."""
        own = type(self)
        plain = own._features is NaturalFamily._features and own._log_base is NaturalFamily._log_base
        return self.most is not None and plain and rows.shape[1] <= MOST_AT_ONCE

    def _complete(self, n: Float, x: Float, chunk: Chunk) -> Float:
        """Return what `observed` is of components of weight n (k,) and sums x (k, p), where nothing is missing."""
        return np.repeat(n[:, None], chunk.rows.shape[1] if self.per_column else 1, axis=1)

    def _surely_valid(self, rows: Array, params: Params) -> bool:
        """Return whether all entries are in the support, where that is cheaper to tell than which are; else False."""
        return False

    def _seen(self, params: Params, chunk: Chunk) -> Observations:
        return cast(Observations, chunk.scratch.keep((self, "seen"), chunk, lambda: self._observe(params, chunk)))

    def _observe(self, params: Params, chunk: Chunk) -> Observations:
        rows = chunk.rows
        if not rows.flags.c_contiguous:
            # Columns of wider rows: to walk them as often as follows costs more than to copy them once.
            rows = chunk.scratch.empty("rows in a row", rows.shape, rows.dtype)
            rows[:] = chunk.rows
        valid = None if self._surely_valid(rows, params) else self._valid(rows, params)
        if valid is None or valid.all():
            values = rows if self.keeps_float32 else rows.astype(np.float64, copy=False)
            return Observations(self._features(values), None, self._log_base(values))
        values = np.where(valid, rows, 0.0).astype(rows.dtype if self.keeps_float32 else np.float64, copy=False)
        holes = self._holes(rows)
        outside = np.asarray(~(valid | holes).all(axis=1))
        observed = valid.astype(values.dtype) if self.per_column and holes.any() else None
        base = self._log_base(values)
        return Observations(self._features(values), observed, base, outside if outside.any() else None)

    def _sum(self, params: Params, rows: Array, resp: Float) -> SufficientStats:
        """Return the statistics of a sample, block by block: its features might not fit at once."""
        total: SufficientStats | None = None
        scratch = Chunk(rows[:0]).scratch
        for start in range(0, max(len(rows), 1), SAMPLE_BLOCK):
            block = slice(start, start + SAMPLE_BLOCK)
            part = self.stats(params, Chunk(rows[block], scratch=scratch), np.ascontiguousarray(resp[block].T).T)
            total = part if total is None else tree.accumulate(total, part)
        scratch.clear()
        return cast(SufficientStats, total)

    def _repair(self, new: Params, old: Params, n: Float) -> Params:
        """Return `new` with empty components, and those at a bound, dealt with by the policy."""
        empty = n <= EMPTY_SHARE * n.sum()
        bound = self._at_bound(new)
        vacant = np.flatnonzero(empty | bound)
        if not vacant.size:
            return new
        if self.on_collapse == "raise":
            first = int(vacant[0])
            what = None if empty[first] else "its parameters are at a bound, as those of equal rows are"
            raise_degenerate(first, n, what, f"a larger pseudo_count (now {self.pseudo_count:g})")
        arrays = {name: np.array(getattr(new, name)) for name in self.fields}
        repaired = np.where(empty, AT_PRIOR if self.pseudo_count else EMPTY_KEPT, np.where(bound, AT_BOUND, 0))
        if not self.pseudo_count:
            for name, array in arrays.items():
                array[empty] = getattr(old, name)[empty]
        new = replace(new, repaired=repaired.astype(np.int8), **arrays)
        return self._reseed(new, n, vacant) if self.on_collapse == "reseed" and len(vacant) < len(n) else new

    def _reseed(self, params: Params, n: Float, vacant: Array) -> Params:
        for k, donor in split_largest(n, vacant.tolist())[0]:
            for component, half in zip((k, donor), self._halves(params, donor), strict=True):
                for name, value in half.items():
                    getattr(params, name)[component] = value
        params.repaired[vacant] = RESEEDED
        return params


class ColumnFamily(NaturalFamily):
    """A natural family whose columns are independent given the component, so that holes are left out and filled in."""

    handles_missing: ClassVar[bool] = True
    per_column: ClassVar[bool] = True

    def impute(self, params: Params, chunk: Chunk, resp: Array) -> Float:
        """Return the rows (n, d) with what a hole holds most likely, or in the mean, under `resp` (n, k)."""
        rows = np.asarray(chunk.rows, np.float64)
        return np.where(self._holes(rows), self._filling(params, resp), rows)

    @abstractmethod
    def _filling(self, params: Params, resp: Array) -> Float:
        """Return what stands in the place of holes, (n, d)."""


def filled(rows: Array) -> Float:
    """Return float64 rows whose holes hold the mean of their column, zero where a column is nothing but holes."""
    rows = np.array(rows, np.float64)
    holes = np.isnan(rows)
    if holes.any():
        count = np.maximum((~holes).sum(axis=0), 1)
        means = np.where(holes, 0.0, rows).sum(axis=0) / count
        rows[holes] = np.broadcast_to(means, rows.shape)[holes]
    return rows


def log_factorial(counts: Array) -> Float:
    """Return log x! of whole numbers, looked up where they are small."""
    if counts.max(initial=0.0) < len(TABLE):
        return TABLE[counts.astype(np.intp)]
    return np.asarray(gammaln(counts + 1.0))


def valid_counts(rows: Array) -> Array:
    """Return which entries are whole numbers from 0 to `MAX_COUNT`."""
    return np.asarray((rows >= 0) & (rows <= MAX_COUNT) & (np.floor(rows) == rows))


def valid_positive(rows: Array) -> Array:
    """Return which entries are positive and finite."""
    return np.asarray((rows > 0) & (rows < np.inf))


def are_whole(rows: Array, most: int = compiled.MOST_WHOLE) -> bool:
    """Return whether all are whole numbers from 0 to `most`; False may also mean that there is no quick way to tell."""
    return compiled.readable(rows) and compiled.whole(rows, most)


def where_seen(observed: Float, x: Float, previous: Float) -> Float:
    """Return x / observed, and `previous` where nothing was observed."""
    seen = observed > 0
    return np.where(seen, x / np.where(seen, observed, 1.0), previous)


def _product(slope: Float, features: Any, out: Array) -> None:
    if isinstance(features, np.ndarray):
        np.matmul(slope, features, out=out)
    else:
        out[:] = slope @ features
