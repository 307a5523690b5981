"""Mixed columns: groups of columns, each with a family of its own, independent given the component."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from daskem.compiled import Terms
from daskem.core import Array, Chunk, Family, Float, Params
from daskem.errors import DataError, MissingCapabilityError, OptionError
from daskem.models.at_once import knows
from daskem.models.natural import filled
from daskem.models.repair import RESEEDED

__all__ = ["Product", "ProductParams", "ProductStats"]


@dataclass(frozen=True, eq=False)
class ProductParams:
    """The groups' parameters, in the order of the product's families, and the number of columns that rows have."""

    groups: tuple[Params, ...]
    n_features: int

    @property
    def repaired(self) -> Array:
        """What M-steps did to each component (k,): the gravest of its groups."""
        codes = [group.repaired for group in self.groups if hasattr(group, "repaired")]
        if not codes:
            raise AttributeError("repaired")
        # A reseeded component shares the weight of its donor, whichever group it was.
        reseeded = np.any([code == RESEEDED for code in codes], axis=0)
        return np.where(reseeded, RESEEDED, np.max(codes, axis=0)).astype(np.int8)


@dataclass(frozen=True, eq=False)
class ProductStats:
    """The groups' statistics, in the order of the product's families."""

    groups: tuple[Any, ...]

    @property
    def n(self) -> Float:
        """Weight of the rows in each component (k,)."""
        return cast(Float, self.groups[0].n)


@dataclass(frozen=True)
class Product:
    """A family of mixed columns: log p(x | k) is the sum over groups of log p(x_group | k).

    A mixture of it is the latent class or latent profile model of real tables [1]_. Columns that no group names are
    left out, whatever they hold. Holes are treated by each group's family.

    Parameters
    ----------
    families : the family of each group, by the group's name.
    columns : the columns of each group: indices, or names that `resolved` finds in a source's. None stands for names
        that are still to be told, the groups' own: a group named as a column is that column.

    Examples
    --------
    >>> Product({"colour": Gaussian(), "flags": Bernoulli()}, {"colour": [0, 1], "flags": [2, 3]})  # doctest: +SKIP

    References
    ----------
    .. [1] Hunt & Jorgensen (1999), Australian & New Zealand Journal of Statistics 41(2), 153-171.
    """

    families: Mapping[str, Family]
    columns: Mapping[str, Sequence[int | str]] | None = field(default=None)

    def __post_init__(self) -> None:
        if not isinstance(self.families, Mapping) or not self.families:
            raise OptionError("families must map the name of each group to its family, such as {'flags': Bernoulli()}.")
        for name, family in self.families.items():
            if isinstance(family, type) or not callable(getattr(family, "log_prob", None)):
                raise OptionError(f"families: {name!r} is {family!r}. Give a family, such as daskem.models.Gaussian().")
        given = {name: [name] for name in self.families} if self.columns is None else self.columns
        if set(given) != set(self.families):
            raise OptionError(
                f"columns are given for the groups {sorted(given)}, families for {sorted(self.families)}; "
                "each group needs both."
            )
        columns = {name: _listed(name, given[name]) for name in self.families}
        # Plain dictionaries and tuples, which model files can hold.
        object.__setattr__(self, "families", dict(self.families))
        object.__setattr__(self, "columns", columns)
        every = [column for group in columns.values() for column in group]
        if repeated := sorted({str(column) for column in every if every.count(column) > 1}):
            raise OptionError(f"column(s) {', '.join(repeated)} are named twice; a column belongs to one group.")

    def __hash__(self) -> int:
        return hash((tuple(self.families.items()), tuple(cast(dict[str, Any], self.columns).items())))

    @property
    def handles_missing(self) -> bool:
        """Whether NaN is a hole to all families."""
        return all(getattr(family, "handles_missing", False) for family in self.families.values())

    @property
    def used_columns(self) -> tuple[int, ...] | None:
        """The columns that groups name, ascending; None while they are names."""
        every = [column for group in self._columns.values() for column in group]
        indices = [column for column in every if isinstance(column, int)]
        return tuple(sorted(indices)) if len(indices) == len(every) else None

    @property
    def has_floor(self) -> bool:
        """Whether a family keeps variances above a floor that is no prior."""
        return any(getattr(family, "has_floor", False) for family in self.families.values())

    @property
    def discrete(self) -> bool:
        """Whether all columns are discrete, so that rows may repeat each other."""
        return all(getattr(family, "discrete", False) for family in self.families.values())

    @property
    def start(self) -> str:
        """How a mixture starts by default: by short runs of EM if one family asks for that, discrete ones do."""
        starts = [getattr(family, "start", "kmeans") for family in self.families.values()]
        return "short_em" if "short_em" in starts else starts[0]

    def resolved(self, names: Sequence[str]) -> Product:
        """Return the product with indices in place of the names of columns.

        Raises
        ------
        OptionError
            If a name is none of `names`, the columns of a source.
        """
        places = {name: i for i, name in enumerate(names)}
        columns: dict[str, list[int | str]] = {}
        for group, chosen in self._columns.items():
            if unknown := [column for column in chosen if isinstance(column, str) and column not in places]:
                raise OptionError(
                    f"group {group!r} names the column(s) {', '.join(map(str, unknown))}, which the data do not have. "
                    f"They have {', '.join(names)}."
                )
            columns[group] = [places[column] if isinstance(column, str) else column for column in chosen]
        return replace(self, columns=columns)

    def init(self, sample: Chunk, resp: Float) -> ProductParams:
        """Return parameters from a sample and its responsibilities (n, k), which do not hold the weights yet.

        Raises
        ------
        OptionError
            If columns are still names, or the sample does not have them.
        """
        self._check_columns(sample.rows.shape[1])
        groups = zip(self.families.values(), self._parts(sample), strict=True)
        return ProductParams(tuple(family.init(part, resp) for family, part in groups), sample.rows.shape[1])

    def log_prob(self, params: ProductParams, chunk: Chunk) -> Array:
        """Return log p(x | component), (n, k), nats: a view of memory that may be overwritten."""
        total: Array | None = None
        for family, group, part in self._groups(params, chunk):
            found = family.log_prob(group, part).T
            if total is None:
                total = found
            elif total.dtype == np.result_type(total, found):
                total += found
            else:
                total = total + found
        return cast(Array, total).T

    def stats(self, params: ProductParams, chunk: Chunk, resp: Array) -> ProductStats:
        """Return the groups' statistics under `resp` (n, k)."""
        return ProductStats(tuple(f.stats(group, part, resp) for f, group, part in self._groups(params, chunk)))

    def terms(self, params: ProductParams, chunk: Chunk) -> tuple[Terms, ...] | None:
        """Return the terms of all groups' log densities, None where some are not linear in features."""
        found: list[Terms] = []
        for family, group, part in self._groups(params, chunk):
            own = family.terms(group, part) if knows(family, "terms") else None  # type: ignore[attr-defined]
            # Of one term, as all but products have: `stats_of_terms` hands them back one by one.
            if own is None or len(own) > 1 or own[0].rows.dtype != (found or own)[0].rows.dtype:
                return None
            found.extend(own)
        return tuple(found)

    def stats_of_terms(self, params: ProductParams, chunk: Chunk, sums: Sequence[Float]) -> ProductStats:
        """Return the groups' statistics of the sums of those features."""
        pairs = zip(self._groups(params, chunk), sums, strict=True)
        return ProductStats(
            tuple(f.stats_of_terms(group, part, [own]) for (f, group, part), own in pairs)  # type: ignore[attr-defined]
        )

    def impute(self, params: ProductParams, chunk: Chunk, resp: Array) -> Float:
        """Return the rows (n, d) with the holes of each group filled in by its family, under `resp` (n, k)."""
        imputes = self._methods("impute", "imputing missing values")
        out = np.array(chunk.rows, np.float64)
        groups = zip(self._columns.values(), imputes, self._groups(params, chunk), strict=True)
        for columns, impute, (_, group, part) in groups:
            out[:, _span(columns)] = impute(group, part, resp)
        return out

    def m_step(self, stats: ProductStats, params: ProductParams) -> ProductParams:
        """Return what the groups' statistics imply, group by group."""
        groups = zip(self.families.values(), stats.groups, params.groups, strict=True)
        return replace(params, groups=tuple(family.m_step(part, group) for family, part, group in groups))

    def surrogate(self, stats: ProductStats, params: ProductParams) -> float:
        """Return the sum of the groups' expected log densities, nats."""
        surrogates = self._methods("surrogate", "the surrogate of a product")
        return float(sum(map(_call, surrogates, stats.groups, params.groups)))

    def log_prior(self, params: ProductParams) -> float:
        """Return the sum of the groups' log priors, nats."""
        pairs = zip(self.families.values(), params.groups, strict=True)
        return float(sum(family.log_prior(group) for family, group in pairs if hasattr(family, "log_prior")))

    def rebase(self, stats: ProductStats, old: ProductParams, new: ProductParams) -> ProductStats:
        """Return `stats`, made at the parameters `old`, as they would be added to statistics made at `new`."""
        parts = zip(self.families.values(), stats.groups, old.groups, new.groups, strict=True)
        moved = (f.rebase(part, a, b) if hasattr(f, "rebase") else part for f, part, a, b in parts)
        return ProductStats(tuple(moved))

    def unsupported(self, params: ProductParams | None, rows: Array) -> tuple[int, str] | None:
        """Return the first row outside some group's support, and why; None if there is none."""
        self._check_columns(rows.shape[1])
        groups = (None,) * len(self.families) if params is None else params.groups
        found = []
        for (name, columns), family, group in zip(self._columns.items(), self.families.values(), groups, strict=True):
            ask = getattr(family, "unsupported", None)
            if ask is not None and (answer := ask(group, rows[:, _span(columns)])):
                found.append((answer[0], f"in group {name!r} (columns {list(columns)}), {answer[1]}"))
        return min(found, default=None, key=lambda answer: answer[0])

    def embedding(self, rows: Array) -> Float:
        """Return the groups' embeddings side by side, each with a total variance of its number of columns."""
        parts = []
        for columns, family in zip(self._columns.values(), self.families.values(), strict=True):
            own = rows[:, _span(columns)]
            part = family.embedding(own) if hasattr(family, "embedding") else _standardised(filled(own))
            spread = float(part.var(axis=0).sum())
            parts.append(part * np.sqrt(len(columns) / spread) if spread > 0 else part)
        return np.concatenate(parts, axis=1)

    def events(self, params: ProductParams) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened, group by group) of each component that the M-step had to repair."""
        told: list[tuple[int, str]] = []
        for name, family, group in zip(self.families, self.families.values(), params.groups, strict=True):
            events = getattr(family, "events", lambda group: ())(group)
            told += [(component, f"group {name!r}: {what}") for component, what in events]
        return tuple(told)

    def n_features(self, params: ProductParams) -> int:
        """Return the number of columns that rows have, those of no group among them."""
        return params.n_features

    def n_parameters(self, params: ProductParams) -> int:
        """Return the number of free parameters of all groups."""
        numbers = self._methods("n_parameters", "the number of parameters of a product")
        return int(sum(map(_call, numbers, params.groups)))

    def to_vector(self, params: ProductParams) -> Float:
        """Return the groups' vectors one after the other, (p,)."""
        return np.concatenate([*map(_call, self._methods("to_vector", "the vector of a product"), params.groups)])

    def from_vector(self, vector: Float, params: ProductParams) -> ProductParams:
        """Return the parameters of a vector of `to_vector`; `params` supplies what is fixed."""
        vectors = map(_call, self._methods("to_vector", "the vector of a product"), params.groups)
        parts = np.split(vector, np.cumsum([len(part) for part in vectors])[:-1])
        makers = self._methods("from_vector", "the vector of a product")
        return replace(params, groups=tuple(map(_call, makers, parts, params.groups)))

    def draw(self, params: ProductParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d); columns of no group are NaN."""
        rows = np.full((len(components), params.n_features), np.nan)
        draws = self._methods("draw", "sampling from a product")
        for columns, draw, group in zip(self._columns.values(), draws, params.groups, strict=True):
            rows[:, list(cast(tuple[int, ...], columns))] = draw(group, components, rng)
        return rows

    def row_numbers(self, k: int, d: int) -> int:
        """Return how many numbers a block's scratch holds for each row, beside its log densities."""
        numbers = (
            family.row_numbers(k, len(columns)) if hasattr(family, "row_numbers") else 8 * len(columns) + 4 * k
            for columns, family in zip(self._columns.values(), self.families.values(), strict=True)
        )
        # Each group has log densities of its own, and may have a copy of its columns.
        return sum(numbers) + sum(map(len, self._columns.values())) + k * len(self.families)

    def missing_bytes(self, rows: int, k: int, d: int) -> int:
        """Return the bytes of scratch that a block with missing values takes beside those of one without."""
        return sum(
            family.missing_bytes(rows, k, len(columns))
            for columns, family in zip(self._columns.values(), self.families.values(), strict=True)
            if getattr(family, "handles_missing", False) and hasattr(family, "missing_bytes")
        )

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        sizes = [
            family.record_bytes(k, len(columns)) if hasattr(family, "record_bytes") else (1 << 20, 1 << 20)
            for columns, family in zip(self._columns.values(), self.families.values(), strict=True)
        ]
        return sum(stats for stats, _ in sizes), 8 + sum(params for _, params in sizes)

    @property
    def _columns(self) -> dict[str, tuple[int | str, ...]]:
        return cast(dict[str, tuple[int | str, ...]], self.columns)

    def _check_columns(self, n_features: int) -> None:
        for group, columns in self._columns.items():
            if names := [column for column in columns if isinstance(column, str)]:
                raise OptionError(
                    f"group {group!r} names its columns ({', '.join(names)}), and the data have no names. "
                    "Give indices: Product(families, columns={...})."
                )
            if columns and max(cast(tuple[int, ...], columns)) >= n_features:
                raise OptionError(f"group {group!r} has column {max(columns)}; the data have {n_features}.")

    def _groups(self, params: ProductParams, chunk: Chunk) -> Iterable[tuple[Family, Params, Chunk]]:
        if chunk.rows.shape[1] != params.n_features:
            raise DataError(
                f"rows have {chunk.rows.shape[1]} columns; these parameters of a product are of {params.n_features}. "
                "Give the columns that it was fitted to."
            )
        parts = chunk.scratch.keep("groups", chunk, lambda: self._parts(chunk))
        return zip(self.families.values(), params.groups, parts, strict=True)

    def _parts(self, chunk: Chunk) -> list[Chunk]:
        """Return the groups' columns as chunks, each with a scratch of its own within the chunk's."""
        parts = []
        for name, columns in self._columns.items():
            scratch, span = chunk.scratch.part(name), _span(columns)
            if isinstance(span, slice):
                rows = chunk.rows[:, span]
            else:
                memory = scratch.empty("rows", (len(chunk), len(span)), chunk.rows.dtype)
                # Indices were checked; where numpy is to check them again, it copies twice.
                rows = np.take(chunk.rows, span, axis=1, out=memory, mode="clip")
            parts.append(replace(chunk, rows=rows, scratch=scratch))
        return parts

    def _methods(self, name: str, purpose: str) -> list[Callable[..., Any]]:
        for family in self.families.values():
            if not hasattr(family, name):
                raise MissingCapabilityError(f"{type(family).__name__} cannot be used for {purpose}: it has no {name}.")
        return [getattr(family, name) for family in self.families.values()]


def _call(method: Callable[..., Any], *args: Any) -> Any:
    return method(*args)


def _listed(group: str, columns: Sequence[int | str]) -> tuple[int | str, ...]:
    if isinstance(columns, str) or not isinstance(columns, Sequence | np.ndarray) or not len(columns):
        raise OptionError(f"group {group!r} has columns {columns!r}; give a list of indices or names.")
    listed = tuple(column if isinstance(column, str) else int(column) for column in columns)
    if any(isinstance(column, int) and column < 0 for column in listed):
        raise OptionError(f"group {group!r} has a negative column index; count columns from 0.")
    return listed


def _span(columns: tuple[Any, ...]) -> Any:
    """Return a slice where columns follow each other, which needs no copy."""
    first, last = columns[0], columns[-1]
    return slice(first, last + 1) if columns == tuple(range(first, last + 1)) else list(columns)


def _standardised(rows: Float) -> Float:
    deviation = rows.std(axis=0)
    return np.asarray((rows - rows.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0))
