"""A block of rows, as models see it, and the work arrays that go with it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Chunk", "Derived", "Float", "Int", "Scratch"]

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


# Values that are kept for all tasks of a pass: some for each of its parameter sets.
MOST_DERIVED = 256


class Derived:
    """What follows from parameters alone, made once for all tasks of a pass in a process. Nobody may change it."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[object, Any]] = {}
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # It is made again elsewhere: that costs less than sending it.
        return Derived, ()

    def of(self, owner: object, name: Hashable, make: Callable[[], Any]) -> Any:
        """Return ``make()``, made once for `owner`; other threads wait meanwhile."""
        with self._lock:
            if (key := (id(owner), name)) not in self._made:
                # A model that makes parameters for each block would fill the memory.
                if len(self._made) >= MOST_DERIVED:
                    del self._made[next(iter(self._made))]
                # With the owner, whose id would be given to another object.
                self._made[key] = owner, make()
            return self._made[key][1]

    def clear(self) -> None:
        """Forget everything: graphs of tasks refer to themselves, and are left to the collector of cycles."""
        with self._lock:
            self._made.clear()


class Scratch:
    """Work arrays that are reused from block to block, and values computed once a task or once a block.

    Allocating tens of megabytes for every block costs as much as the arithmetic. The engine gives all blocks of a task
    one `Scratch`; a chunk made by hand has its own. What a model leaves in it is never seen by anybody else, but for
    what is derived from parameters alone.
    """

    def __init__(self, derived: Derived | None = None) -> None:
        self._derived = derived
        self._buffers: dict[Hashable, Array] = {}
        self._kept: dict[Hashable, tuple[object, Any]] = {}
        self._parts: dict[Hashable, Scratch] = {}

    def empty(self, name: Hashable, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float64) -> Array:
        """Return an uninitialised C-contiguous array; the same memory each time for one name, if it is large enough."""
        size, dtype = math.prod(shape), np.dtype(dtype)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)

    def keep(self, name: Hashable, owner: object, make: Callable[[], Any]) -> Any:
        """Return ``make()``, made anew only when `owner` (params, or a chunk) is another object than last time."""
        kept = self._kept.get(name)
        if kept is None or kept[0] is not owner:
            kept = self._kept[name] = (owner, make())
        return kept[1]

    def derived(self, name: Hashable, params: object, make: Callable[[], Any]) -> Any:
        """Return ``make()``, which follows from `params` alone, and which other tasks of a pass are given too."""
        return self.keep(name, params, make) if self._derived is None else self._derived.of(params, name, make)

    def part(self, name: Hashable) -> Scratch:
        """Return a scratch within this one, for a part of a model that names its arrays without regard to others."""
        return self._parts.setdefault(name, Scratch(self._derived))

    def clear(self) -> None:
        """Forget everything.

        A chunk that owns what is kept here refers back to this scratch. Left to the collector of cycles, its rows, and
        the whole read that they are a view of, would stay in memory long after the task.
        """
        for part in self._parts.values():
            part.clear()
        self._buffers.clear()
        self._kept.clear()


@dataclass(frozen=True, eq=False)
class Chunk:
    """A block of rows, with all that a model may know about them.

    Attributes
    ----------
    rows : (n, d) array, never written to; float32 or float64. C-contiguous, but that a family may get columns of wider
        rows, as it does in a product. NaN, a missing value, reaches only models that say they handle it (see
        `daskem.core.HandlesMissing`).
    weight : (n,) float64, not negative, or None for ones. A row of weight 2 counts as two rows, of weight 0 as none.
    labels : (n,) int64, the known component of a row or -1; or (n, k) float64 label probabilities, what evidence beside
        the row says of its component: p(evidence | component), 0 where that is forbidden, so that a row of ones says
        nothing and a one-hot row is a known component; or None when nothing is known. A model whose attribute
        `soft_labels` is not true is never given the second form.
    start : absolute index of the first row in the data set.
    seed, step : seed and step of the run, for E-steps that draw: ``chunk.rng(chunk.step)``.
    scratch : reusable work arrays.
    """

    rows: Array
    weight: Float | None = None
    labels: Array | None = None
    start: int = 0
    seed: int = 0
    step: int = 0
    scratch: Scratch = field(default_factory=Scratch, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def total_weight(self) -> float:
        """Sum of the weights; the number of rows where there are none."""
        return float(len(self)) if self.weight is None else float(self.weight.sum())

    def select(self, chosen: Array | slice) -> Chunk:
        """Return the chunk of some rows, with their weights and labels: a mask (n,), indices in any order, a slice."""
        weight = None if self.weight is None else self.weight[chosen]
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, rows=self.rows[chosen], weight=weight, labels=labels)

    def present(self) -> Chunk:
        """Return the chunk without its rows of weight zero: they may hold anything, NaN included."""
        return self if self.weight is None or self.weight.all() else self.select(self.weight > 0)

    def rng(self, step: int) -> np.random.Generator:
        """Return a generator that depends on (seed, step, start) alone, whichever worker asks.

        Counter-based (Philox; Salmon, Moraes, Dror & Shaw 2011, SC11), so streams of different blocks never overlap.
        """
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, step, self.start]))

    def uniform(self, step: int, size: int, stream: int = 0) -> Float:
        """Return (n, size) uniform numbers in [0, 1); each row's depend on (seed, step, stream, absolute row) alone.

        Unlike `rng`, the numbers do not depend on where blocks begin, hence not on how the data are chunked.
        """
        # Philox makes four 64-bit words a count; a whole number of counts per row lets any row start at its own count.
        counts = -(-size // 4)
        bits = np.random.Philox(key=self.seed, counter=[0, stream, step, 1 << 63])
        bits.advance(self.start * counts)
        return np.random.Generator(bits).random((len(self), 4 * counts))[:, :size]
