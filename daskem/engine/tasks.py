"""What a task does with its unit of rows. These functions run on workers; each takes the part of the data it reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from daskem import tree
from daskem.chunk import Derived
from daskem.core import Array, Chunk, Expectation, HasSupport, Model, Params, Scratch, handles_missing
from daskem.data.dataset import Dataset, blocks
from daskem.engine.blas import one_blas_thread
from daskem.errors import DataError, NonFiniteError

__all__ = [
    "ExpectTask",
    "Merge",
    "Partial",
    "combine",
    "draw_rows",
    "each_block",
    "expect_unit",
    "fold",
    "fold_unit",
    "join",
    "load_unit",
    "map_unit",
    "take_rows",
]

# Puts what two runs of rows say together.
Merge = Callable[[Any, Any], Any]
# Says which row is the first that a model cannot have, and why.
Why = Callable[[Array], tuple[int, str] | None]

# Bytes of rows that are looked at in one go while a sample is drawn.
DRAW_BYTES = 1 << 20
HOLES_REMEDY = (
    " Where NaN stands for a missing value, use a model that handles these: one with handles_missing, such as a "
    "mixture of Gaussian(missing=True), in the estimators missing='nan', on the command line --missing nan."
)


@dataclass(frozen=True, eq=False)
class ExpectTask:
    """What all tasks of an E-step have in common.

    Attributes
    ----------
    model : the model.
    members : parameter sets that share the pass.
    block_rows, segment_rows : see `daskem.engine.planner.Plan`.
    seed, step : what random E-steps draw from, beside the row number.
    derived : what tasks of a process have derived from the members.
    """

    model: Model
    members: tuple[Params, ...]
    block_rows: int
    segment_rows: int
    seed: int
    step: int
    derived: Derived = field(default_factory=Derived)


@dataclass(frozen=True, eq=False)
class Partial:
    """What some units say of each member, and how many rows and which units that is."""

    expectations: tuple[Expectation, ...]
    rows: int
    units: tuple[int, ...]


def expect_unit(data: Dataset, start: int, stop: int, index: int, task: ExpectTask) -> Partial:
    """Run the E-step over a unit: blocks are added one after the other into segments, segments pairwise."""
    scratches = [Scratch(task.derived) for _ in task.members]
    counted = 0

    def block_expectations() -> Iterator[tuple[int, tuple[Expectation, ...]]]:
        nonlocal counted
        for chunk in blocks(data, start, stop, task.block_rows, task.seed, task.step, whole=True):
            counted += len(chunk)
            present = _present(chunk)
            yield (
                chunk.start // task.segment_rows,
                tuple(
                    _expect_block(data, task.model, params, replace(present, scratch=scratch))
                    for params, scratch in zip(task.members, scratches, strict=True)
                ),
            )

    try:
        with one_blas_thread():
            expectations = tree.reduce(_segments(block_expectations()))
    finally:
        for scratch in scratches:
            scratch.clear()
    for expectation in expectations:
        _check_stats(data, task.model, expectation, start, stop)
    return Partial(expectations, counted, (index,))


def combine(*partials: Partial) -> Partial:
    """Add the partials of consecutive units."""
    return Partial(
        tree.reduce(partial.expectations for partial in partials),
        sum(partial.rows for partial in partials),
        tuple(index for partial in partials for index in partial.units),
    )


def each_block(
    data: Dataset, start: int, stop: int, block_rows: int, function: Callable[[Chunk], Any], *, in_place: bool = False
) -> Iterator[Any]:
    """Yield `function` of each block of a unit, in row order.

    `function` sees other rows, or none, in place of those of weight zero, and zero in columns that are not used. With
    `in_place` all keep their place and their values, and what is said of one that holds NaN or infinity is -1 (whole
    numbers) or NaN. Where it has a method `why`, that is asked about rows for which there is no answer: see
    `HasSupport.unsupported`, less the parameters. NaN is a value like others for a function that handles missing values
    (see `daskem.core.HandlesMissing`).

    Raises
    ------
    DataError
        If `why` names a row.
    NonFiniteError
        If rows of positive weight hold NaN or infinity: no function of rows is asked to make sense of them. Or if
        `function` says NaN, infinity, or a label below zero of such a row: no component explains it.
    """
    scratch, missing = Scratch(), handles_missing(function)
    try:
        with one_blas_thread():
            for chunk in blocks(data, start, stop, block_rows, whole=in_place):
                _check_rows(data, chunk, missing)
                given, spoiled = _whole(data, chunk, missing) if in_place else (_present(chunk), None)
                result = function(replace(given, scratch=scratch))
                _check_results(data, given, result, getattr(function, "why", None))
                yield _blanked(result, spoiled)
    finally:
        scratch.clear()


def map_unit(data: Dataset, start: int, stop: int, block_rows: int, function: Callable[[Chunk], Any]) -> list[Any]:
    """Return `function` of each block of a unit, in row order, something for each row (see `each_block`)."""
    return list(each_block(data, start, stop, block_rows, function, in_place=True))


def fold_unit(
    data: Dataset, start: int, stop: int, block_rows: int, function: Callable[[Chunk], Any], merge: Merge
) -> Any:
    """Return `function` of the blocks of a unit, put together by `merge` as they come."""
    total: Any = None
    for result in each_block(data, start, stop, block_rows, function):
        total = result if total is None else merge(total, result)
    return total


def fold(merge: Merge, *results: Any) -> Any:
    """Put the results of consecutive units together."""
    return functools.reduce(merge, results)


def load_unit(data: Dataset, start: int, stop: int) -> Dataset:
    """Return a unit decoded in memory."""
    return data.load(start, stop)


def draw_rows(data: Dataset, start: int, stop: int, share: int | None, seed: int, missing: bool) -> Chunk:
    """Return `share` rows (None for all) of ``start:stop``, drawn at random among those of positive weight.

    With `missing` they may hold NaN.
    """
    weight = None if data.weight is None else data.weight.read(start, stop)[:, 0]
    chosen = np.arange(stop - start) if weight is None else np.flatnonzero(weight > 0)
    if share is not None and share < len(chosen):
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 3, start]))
        chosen = np.sort(rng.choice(chosen, share, replace=False))
    return join(take_rows(data, start, stop, chosen, missing))


def take_rows(data: Dataset, start: int, stop: int, chosen: Array, missing: bool) -> list[Chunk]:
    """Return the rows of ``start:stop`` at the ascending offsets `chosen`, with their weights and labels, in parts.

    Pieces of which no row is chosen are not read. With `missing` rows may hold NaN.
    """
    drawn = [Chunk(np.empty((0, data.n_features), data.dtype))] if not len(chosen) else []
    for low, high in data.cuts(start, stop):
        if not len(_between(chosen, low - start, high - start)):
            continue
        # Step by step: rows that live in this process would be copied as a whole for the few that are chosen.
        for chunk in blocks(data, low, high, max(1, DRAW_BYTES // data.row_bytes)):
            _check_rows(data, _present(chunk), missing)
            offset = chunk.start - start
            drawn.append(chunk.select(_between(chosen, offset, offset + len(chunk)) - offset))
    return drawn


def join(chunks: Sequence[Chunk], order: Array | None = None) -> Chunk:
    """Return the rows of `chunks` as one, in an order of theirs or as they are; where they come from is forgotten."""
    place = None
    if order is not None:
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
    rows, weight, labels = (
        _joined([side for chunk in chunks if (side := getattr(chunk, name)) is not None], place)
        for name in ("rows", "weight", "labels")
    )
    return Chunk(rows, weight, labels)


def _joined(parts: Sequence[Array], place: Array | None) -> Any:
    """Return the rows of arrays, each in its `place`; None if there are no arrays."""
    if place is None or not parts:
        return np.concatenate(parts) if parts else None
    out = np.empty((len(place), *parts[0].shape[1:]), np.result_type(*parts))
    start = 0
    for part in parts:
        out[place[start : start + len(part)]] = part
        start += len(part)
    return out


def _between(ascending: Array, low: int, high: int) -> Array:
    first, last = np.searchsorted(ascending, (low, high))
    return ascending[first:last]


def _segments(blocks: Iterator[tuple[int, tuple[Expectation, ...]]]) -> Iterator[tuple[Expectation, ...]]:
    segment, total = next(blocks)
    # A model may say two things in one array, which must not be added to twice.
    owned = False
    for current, expectations in blocks:
        if current == segment:
            total = tree.accumulate(total, expectations) if owned else tree.add(total, expectations)
            owned = True
        else:
            yield total
            segment, total, owned = current, expectations, False
    yield total


def _present(chunk: Chunk) -> Chunk:
    """Return `chunk` without the harm that rows of weight zero, being absent, might do: they may hold NaN."""
    if chunk.weight is None or chunk.weight.all():
        return chunk
    if not chunk.weight.any():
        return chunk.select(np.zeros(len(chunk), bool))
    rows = chunk.rows.copy()
    rows[chunk.weight == 0] = rows[np.argmax(chunk.weight > 0)]
    return replace(chunk, rows=rows)


def _whole(data: Dataset, chunk: Chunk, missing: bool) -> tuple[Chunk, Array | None]:
    """Return `chunk` with other rows in place of those that hold what they must not, and which these are, (n,)."""
    if chunk.weight is None or not (spoiled := _spoiled(data.blanked(chunk.rows), missing)).any():
        return chunk, None
    rows = chunk.rows.copy()
    rows[spoiled] = 0.0 if spoiled.all() else rows[np.argmin(spoiled)]
    return replace(chunk, rows=rows), spoiled


def _spoiled(rows: Array, missing: bool) -> Array:
    """Return which rows hold infinity or, unless it stands for a missing value, NaN, (n,)."""
    bad = np.isinf(rows) if missing else ~np.isfinite(rows)
    return np.asarray(bad.any(axis=1))


def _blanked(result: Any, spoiled: Array | None) -> Any:
    """Return `result` without what it says of rows that were replaced."""
    if spoiled is None:
        return result
    if isinstance(result, Mapping):
        return {name: _blanked(value, spoiled) for name, value in result.items()}
    if isinstance(result, np.ndarray):
        result[spoiled] = np.nan if result.dtype.kind == "f" else -1
    return result


def _check_results(data: Dataset, chunk: Chunk, result: Any, why: Why | None) -> None:
    parts = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple) else (result,)
    for part in parts:
        # Imputed rows hold what they held in columns that are not used. Of any other result as wide as rows, such as
        # probabilities, a row without an answer is NaN throughout.
        as_wide = isinstance(part, np.ndarray) and part.shape == chunk.rows.shape
        bad = _unexplained(data.blanked(part) if as_wide else part, chunk)
        if bad.size:
            _check_support(data, chunk, why)
            start, stop = chunk.start + int(bad[0]), chunk.start + int(bad[-1]) + 1
            largest = np.nanmax(np.abs(data.blanked(chunk.rows[bad[0]])))
            raise NonFiniteError(
                f"{data.rows.name}, {data.rows.locate(start, stop)}: no component explains {bad.size} row(s) among "
                f"rows {start}:{stop}, though all their values are finite. The first has values up to "
                f"{largest:g}, which may be too large to be squared. Look for outliers and fill values, leave these "
                "rows out, or convert the data to double precision."
            )


def _unexplained(result: Any, chunk: Chunk) -> Array:
    """Return the rows of positive weight, as offsets, for which a function had no answer."""
    if isinstance(result, float):
        return np.arange(0 if math.isfinite(result) else len(chunk))
    if not isinstance(result, np.ndarray) or result.dtype.kind not in "fi":
        return np.arange(0)
    good = np.isfinite(result) if result.dtype.kind == "f" else result >= 0
    if good.all():
        return np.arange(0)
    bad = ~good.reshape(len(chunk), -1).all(axis=1)
    return np.flatnonzero(bad if chunk.weight is None else bad & (chunk.weight > 0))


def _expect_block(data: Dataset, model: Model, params: Params, chunk: Chunk) -> Expectation:
    # A row with NaN or infinity makes the objective so: one look at one number is all that finding it costs.
    expectation = model.e_step(params, chunk)
    if not math.isfinite(expectation.objective):
        _check_rows(data, chunk, handles_missing(model))
        if isinstance(model, HasSupport):
            _check_support(data, chunk, functools.partial(model.unsupported, params))
        start, stop = chunk.start, chunk.start + len(chunk)
        raise NonFiniteError(
            f"{type(model).__name__}.e_step: the objective of rows {start}:{stop} of {data.rows.name} "
            f"({data.rows.locate(start, stop)}) is {expectation.objective}, though all their values are finite: "
            "no component explains some row, or a value is too large to be squared. Look for outliers and rescale."
        )
    return expectation


def _check_stats(data: Dataset, model: Model, expectation: Expectation, start: int, stop: int) -> None:
    for path, leaf in tree.leaves(expectation):
        if not np.isfinite(leaf).all():
            raise NonFiniteError(
                f"{type(model).__name__}.e_step returned NaN or infinity in {path} for rows {start}:{stop} of "
                f"{data.rows.name} ({data.rows.locate(start, stop)}), whose objective is finite. "
                "A sum overflowed: rescale the data, or mend the model."
            )


def _check_rows(data: Dataset, chunk: Chunk, missing: bool) -> None:
    if np.isfinite(chunk.rows).all():
        return
    rows = data.blanked(chunk.rows)
    spoiled = _spoiled(rows, missing)
    bad = np.flatnonzero(spoiled if chunk.weight is None else spoiled & (chunk.weight > 0))
    if not bad.size:
        return
    start, stop = chunk.start + int(bad[0]), chunk.start + int(bad[-1]) + 1
    first = rows[bad[0]]
    feature = int(np.flatnonzero(np.isinf(first) if missing else ~np.isfinite(first))[0])
    kind = "NaN" if not missing and np.isnan(rows[bad]).any() else "infinity"
    raise NonFiniteError(
        f"Input X contains {kind}: {data.rows.name}, {data.rows.locate(start, stop)}, rows {start}:{stop} hold "
        f"{bad.size} row(s) with {'infinity' if missing else 'NaN or infinity'}; the first has {first[feature]} in "
        f"feature {feature}. Clean the data, leave these rows out, or give them sample_weight 0."
        f"{HOLES_REMEDY if kind == 'NaN' else ''}"
    )


def _check_support(data: Dataset, chunk: Chunk, why: Why | None) -> None:
    found = why(chunk.rows) if why is not None else None
    if found is None:
        return
    row = chunk.start + found[0]
    raise DataError(
        f"{data.rows.name}, {data.rows.locate(row, row + 1)}, row {row} cannot be fitted: {found[1]}. "
        "Look whether the right array and columns were chosen, recode the data, or choose another family."
    )
