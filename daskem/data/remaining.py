"""What is left of a source when some runs of its rows cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from dask.delayed import delayed

from daskem.core import Array
from daskem.data.source import Source

__all__ = ["Remaining"]


@dataclass(frozen=True, eq=False)
class Remaining:
    """The rows of `whole` that are in one of `runs`, numbered anew without gaps; a `Source` itself.

    Attributes
    ----------
    whole : the source.
    runs : (start, stop) of rows of `whole`, ascending and apart; each begins and ends where a read may.
    """

    whole: Source
    runs: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """What errors call the whole."""
        return self.whole.name

    @property
    def shape(self) -> tuple[int, int]:
        """Rows that are left, and features."""
        return int(self._ends[-1]), self.whole.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers as stored."""
        return self.whole.dtype

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the features where the whole has any."""
        return self.whole.columns

    @property
    def in_process(self) -> bool:
        """Whether the rows live in this process."""
        return self.whole.in_process

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``, which may be of several runs."""
        parts = [self.whole.read(*run) for run in self._stored(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def unit_boundary(self, row: int) -> int:
        """Return the first row at or after `row` where a work unit may end: as in the whole, or with a run."""
        return self._boundary(row, self.whole.unit_boundary)

    def piece_boundary(self, row: int) -> int:
        """Return the first row at or after `row` where a read may end."""
        return self._boundary(row, self.whole.piece_boundary)

    def read_bytes(self, rows: int) -> int:
        """Return the peak memory in bytes of reading `rows` rows, which are put together from several runs."""
        return self.whole.read_bytes(rows) + rows * self.whole.shape[1] * self.dtype.itemsize

    def locate(self, start: int, stop: int) -> str:
        """Return where the rows are in the whole."""
        found = list(self._stored(start, stop))
        ends = found if len(found) < 3 else [found[0], found[-1]]
        return " to ".join(self.whole.locate(*run) for run in ends)

    def bind(self, start: int, stop: int) -> Any:
        """Return this source, or a delayed one over the blocks of these rows where the whole is a Dask array."""
        found = list(self._stored(start, stop))
        bound = self.whole.bind(found[0][0], found[-1][1])
        return self if bound is self.whole else delayed(Remaining, pure=False)(bound, self.runs)

    @cached_property
    def _ends(self) -> Array:
        """The row after the last of each run, in the new numbers."""
        return np.cumsum([stop - start for start, stop in self.runs])

    def _stored(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of the whole that rows ``start:stop`` are."""
        for i in range(int(np.searchsorted(self._ends, start, side="right")), len(self.runs)):
            begin, end = self.runs[i]
            first = int(self._ends[i]) - (end - begin)
            if first >= stop:
                return
            yield begin + max(start - first, 0), begin + min(stop - first, end - begin)

    def _boundary(self, row: int, of_whole: Callable[[int], int]) -> int:
        i = int(np.searchsorted(self._ends, row, side="right"))
        if i == len(self.runs):
            return self.shape[0]
        begin, end = self.runs[i]
        first = int(self._ends[i]) - (end - begin)
        # A run begins where what is left out ends.
        return row if row == first else first + min(of_whole(begin + row - first), end) - begin
