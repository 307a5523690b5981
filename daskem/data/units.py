"""Plans which rows a task reads, and in what steps it walks them. Integer arithmetic only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

__all__ = ["MAX_UNITS", "Unit", "apart", "nominal_rows", "plan_units", "walk"]

# A task costs the scheduler 2-4 ms, so that this many cost a pass a few seconds at most.
MAX_UNITS = 2048
# Enough units to keep tens of workers busy to the end of a pass ...
MANY_UNITS = 64
# ... unless that makes units whose reading and arithmetic no longer outweigh the cost of a task.
MIN_UNIT_BYTES = 8 << 20


@dataclass(frozen=True)
class Unit:
    """A run of rows ``start:stop`` that one task reads; `index` is its place in the reduction tree."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def nominal_rows(n_rows: int, row_bytes: int, max_units: int = MAX_UNITS) -> int:
    """Return the rows of a work unit before it is fitted to the stored chunks: a power of two, by bytes alone.

    It depends on the size of the data and never on chunks or workers. Chunkings whose boundaries fall on its multiples
    therefore lead to the same units, the same order of summation and the same bits.
    """
    floor = max(1, MIN_UNIT_BYTES // max(row_bytes, 1))
    rows = 1 << (floor.bit_length() - 1)
    while n_rows > rows * MANY_UNITS and (rows * row_bytes < 8 * MIN_UNIT_BYTES or n_rows > rows * max_units):
        rows *= 2
    return rows


def plan_units(n_rows: int, row_bytes: int, boundary: Callable[[int], int], max_units: int = MAX_UNITS) -> list[Unit]:
    """Cut ``range(n_rows)`` into units of about `nominal_rows`, each ending at a boundary of the stored chunks.

    Parameters
    ----------
    n_rows : rows in the data set.
    row_bytes : bytes of a row as stored.
    boundary : the source's `unit_boundary`.
    max_units : most units; larger ones are cut where the data have more bytes than so many ordinary units.
    """
    rows = nominal_rows(n_rows, row_bytes, max_units)
    units: list[Unit] = []
    start = 0
    while start < n_rows:
        target = (start // rows + 1) * rows
        stop = min(boundary(min(target, n_rows)), n_rows)
        units.append(Unit(len(units), start, stop))
        start = stop
    return units


def apart(start: int, stop: int, runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """Yield the parts of ``start:stop`` in order, each with whether it is in one of `runs` (ascending and apart)."""
    for first, last in runs:
        first, last = max(first, start), min(last, stop)
        if first < last:
            if start < first:
                yield start, first, False
            yield first, last, True
            start = last
    if start < stop:
        yield start, stop, False


def walk(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of ``start:stop`` between multiples of `step`, at absolute offsets."""
    while start < stop:
        end = min((start // step + 1) * step, stop)
        yield start, end
        start = end
