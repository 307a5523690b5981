"""Looks, in one pass before a fit, which stored chunks cannot be used, and leaves them out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from daskem.core import Chunk, handles_missing
from daskem.data import Dataset, missing_chunks
from daskem.data.remaining import Remaining
from daskem.data.source import Source
from daskem.data.units import apart
from daskem.data.zarr_source import ZarrSource
from daskem.engine.passes import start_engine
from daskem.engine.tasks import each_block
from daskem.errors import DaskEMWarning, DataError, OptionError

__all__ = [
    "ON_BAD_UNIT",
    "LeftOut",
    "check_on_bad_unit",
    "leave_out",
    "usable_rows",
    "warn_of_left_out",
    "without_bad_units",
]

ON_BAD_UNIT = ("raise", "skip")
# Rows that are left out together where there are no stored chunks.
RUN_ROWS = 1024


@dataclass(frozen=True)
class LeftOut:
    """Rows ``start:stop`` of a data set that a fit did without, where they are stored, and why."""

    start: int
    stop: int
    where: str
    why: str

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _Look:
    """Per-block work that asks nothing of rows but that they can be read and are finite."""

    handles_missing: bool

    def __call__(self, chunk: Chunk) -> float:
        return 0.0


def check_on_bad_unit(on_bad_unit: str, allow_missing: Any) -> None:
    """Refuse what is no way to treat data that cannot be used, or two ways at a time."""
    if on_bad_unit not in ON_BAD_UNIT:
        raise OptionError(f"on_bad_unit is {on_bad_unit!r}; it must be one of {', '.join(map(repr, ON_BAD_UNIT))}.")
    if on_bad_unit == "skip" and allow_missing:
        raise OptionError(
            "allow_missing reads chunks that the store lacks as its fill value, on_bad_unit='skip' leaves them out. "
            "Choose one of the two."
        )


def warn_of_left_out(data: Dataset, left_out: Sequence[LeftOut]) -> None:
    """Warn of rows that were left out, if any were."""
    if left_out:
        warnings.warn(
            f"{data.rows.name}: {sum(map(len, left_out))} of {data.n_rows} rows are left out, in {len(left_out)} "
            f"place(s); the first, {left_out[0].where}: {left_out[0].why}",
            DaskEMWarning,
            stacklevel=4,
        )


def without_bad_units(data: Dataset, model: object, memory_limit: Any = None) -> tuple[Dataset, tuple[LeftOut, ...]]:
    """Return the data without what cannot be used, and what that is; one pass.

    Left out are stored chunks that are missing, cannot be decoded, or hold NaN (unless `model` takes it for a missing
    value) or infinity in a row of positive weight; where there are no chunks, runs of at most `RUN_ROWS` rows
    that do. It is decided
    here, once: what cannot be read later is an error, so that all steps see the same rows.

    Raises
    ------
    DataError
        If nothing is left.
    """
    engine = start_engine(data, model, cache="none", memory_limit=memory_limit)
    runs = [(unit.start, unit.stop) for unit in engine.plan.units]
    looked = engine.compute_all(engine.call_runs(_examine, runs, _Look(handles_missing(model)), _absent(data)))
    found = tuple(left_out for unit in looked for left_out in unit)
    return leave_out(data, found), found


def usable_rows(data: Dataset, model: object, memory_limit: Any = None) -> tuple[Dataset, tuple[LeftOut, ...]]:
    """Return what `without_bad_units` does, and warn of what is left out."""
    usable, left_out = without_bad_units(data, model, memory_limit)
    warn_of_left_out(data, left_out)
    return usable, left_out


def leave_out(data: Dataset, left_out: Sequence[LeftOut]) -> Dataset:
    """Return the data without some rows.

    Raises
    ------
    DataError
        If nothing is left.
    """
    if not left_out:
        return data
    bad = [(run.start, run.stop) for run in left_out]
    kept = tuple((start, stop) for start, stop, out in apart(0, data.n_rows, bad) if not out)
    if not kept:
        raise DataError(
            f"{data.rows.name}: no stored chunk can be used; the first, {left_out[0].where}: {left_out[0].why} "
            "Look whether the right array was chosen, and write it again."
        )
    weight, labels = (side and Remaining(side, kept) for side in (data.weight, data.labels))
    return replace(data, rows=Remaining(data.rows, kept), weight=weight, labels=labels)


def _examine(
    data: Dataset, start: int, stop: int, block_rows: int, look: _Look, absent: list[tuple[int, int]]
) -> list[LeftOut]:
    """Return what cannot be used of a unit."""
    found: list[LeftOut] = []
    for low, high in data.cuts(start, stop):
        if _overlaps(absent, low, high) or _trouble(data, low, high, block_rows, look):
            for first, last in _chunks(data, low, high):
                lacking = _overlaps(absent, first, last)
                why = "The store does not have it." if lacking else _trouble(data, first, last, block_rows, look)
                if why:
                    found.append(LeftOut(first, last, data.rows.locate(first, last), why))
    return found


def _trouble(data: Dataset, start: int, stop: int, block_rows: int, look: _Look) -> str | None:
    try:
        for _ in each_block(data, start, stop, block_rows, look):
            pass
    except DataError as error:
        return str(error)
    return None


def _chunks(data: Dataset, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the stored chunks of rows ``start:stop``; short runs where any row may end a read."""
    while start < stop:
        end = data.rows.piece_boundary(start + 1)
        end = min(end if end > start + 1 else start + RUN_ROWS, stop)
        yield start, end
        start = end


def _absent(data: Dataset) -> list[tuple[int, int]]:
    """Return the runs of rows whose chunks the stores of rows, weights or labels do not have."""
    return sorted({run for source in data.sources for run in _absent_rows(source)})


def _absent_rows(source: Source) -> Iterator[tuple[int, int]]:
    if isinstance(source, ZarrSource):
        for place in missing_chunks(source):
            first = place[0] * source.shard[0] - source.selection.start
            yield max(first, 0), min(first + source.shard[0], source.shape[0])


def _overlaps(runs: list[tuple[int, int]], start: int, stop: int) -> bool:
    return any(first < stop and start < last for first, last in runs)
