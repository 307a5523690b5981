"""Sources, stores and models that tell what was done to them."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp
from zarr.storage import WrapperStore

from daskem.core import Chunk, Expectation, Footprint


class CountingStore(WrapperStore):
    """A Zarr store that counts how often each chunk is fetched: keys of chunks, and ranges within shards."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.fetched: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if "c/" in key:
            with self.lock:
                self.fetched[key, str(byte_range)] += 1
        return await super().get(key, prototype, byte_range)

    # Newer releases of zarr ask for all inner chunks of a shard at once.
    async def get_ranges(self, key: str, byte_ranges: Any, **options: Any) -> Any:
        with self.lock:
            self.fetched.update((key, str(byte_range)) for byte_range in byte_ranges)
        async for group in super().get_ranges(key, byte_ranges, **options):
            yield group

    @property
    def whole(self) -> Counter[str]:
        """Fetches of whole chunks."""
        return Counter({key: n for (key, where), n in self.fetched.items() if where == "None"})

    @property
    def ranges(self) -> Counter[tuple[str, str]]:
        """Fetches of inner chunks, without those of the index at the end of each shard."""
        return Counter({what: n for what, n in self.fetched.items() if what[1].startswith("RangeByteRequest")})


@dataclass(frozen=True, eq=False)
class FakeSource:
    """Rows in memory that pretend to be stored in chunks, and shards of several chunks, somewhere else."""

    values: np.ndarray
    chunk: int = 1
    shard: int = 0
    on_read: Callable[[int, int], None] = lambda start, stop: None
    name: str = "fake rows"
    columns: tuple[str, ...] | None = None
    in_process: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        self.on_read(start, stop)
        return self.values[start:stop]

    def unit_boundary(self, row: int) -> int:
        step = self.shard or self.chunk
        return min(-(-row // step) * step, len(self.values))

    def piece_boundary(self, row: int) -> int:
        return min(-(-row // self.chunk) * self.chunk, len(self.values))

    def read_bytes(self, rows: int) -> int:
        return 2 * rows * self.values[0].nbytes

    def locate(self, start: int, stop: int) -> str:
        return f"chunk ({start // self.chunk}, 0)"

    def bind(self, start: int, stop: int) -> FakeSource:
        return self


def no_reading(start: int, stop: int) -> None:
    """For sources that must not be read."""
    raise AssertionError(f"rows {start}:{stop} were read")


@dataclass(frozen=True)
class Centers:
    weights: np.ndarray
    means: np.ndarray


@dataclass(frozen=True)
class Sums:
    n: np.ndarray
    x: np.ndarray


@dataclass(frozen=True)
class Balls:
    """A mixture of unit spheres, as a user would write it, in blocks short enough for tests to have many."""

    n_components: int = 3
    block_rows: int = 64

    def init(self, sample: Chunk, rng: np.random.Generator) -> Centers:
        means = sample.rows[rng.choice(len(sample), self.n_components, replace=False)].astype(np.float64)
        return Centers(np.full(self.n_components, 1.0 / self.n_components), means)

    def joint(self, params: Centers, chunk: Chunk) -> np.ndarray:
        residual = chunk.rows[:, None, :] - params.means
        with np.errstate(over="ignore"):
            square = (residual**2).sum(axis=2)
        return np.log(params.weights) - 0.5 * square - 0.5 * residual.shape[2] * np.log(2 * np.pi)

    def e_step(self, params: Centers, chunk: Chunk) -> Expectation:
        joint = self.joint(params, chunk)
        log_prob = logsumexp(joint, axis=1)
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        # Some BLAS fill up with zeros what is multiplied by the infinity of a bad row.
        with np.errstate(invalid="ignore"):
            resp = np.exp(joint - log_prob[:, None]) * weight[:, None]
            stats = Sums(resp.sum(axis=0), resp.T @ chunk.rows)
        return Expectation(stats, float(weight @ log_prob), chunk.total_weight)

    def m_step(self, stats: Sums, params: Centers) -> Centers:
        return Centers(stats.n / stats.n.sum(), stats.x / stats.n[:, None])

    def posterior(self, params: Centers, chunk: Chunk) -> np.ndarray:
        joint = self.joint(params, chunk)
        return np.exp(joint - logsumexp(joint, axis=1)[:, None])

    def log_prob(self, params: Centers, chunk: Chunk) -> np.ndarray:
        return logsumexp(self.joint(params, chunk), axis=1)

    def footprint(self, n_features: int, dtype: np.dtype) -> Footprint:
        row = 8 * self.n_components * (2 * n_features + 4)
        return Footprint(self.block_rows, self.block_rows * row, 8 * self.n_components * (n_features + 1), 1 << 10)


@dataclass(frozen=True)
class Watched(Balls):
    """`Balls` that calls back from each E-step."""

    watch: Callable[[Centers, Chunk], None] = field(default=lambda params, chunk: None, compare=False)

    def e_step(self, params: Centers, chunk: Chunk) -> Expectation:
        self.watch(params, chunk)
        return super().e_step(params, chunk)


@dataclass(frozen=True)
class Stranger(Balls):
    """`Balls` that refuse to work in one process."""

    pid: int = 0

    def e_step(self, params: Centers, chunk: Chunk) -> Expectation:
        assert os.getpid() != self.pid
        return super().e_step(params, chunk)


@dataclass(frozen=True)
class Deadly(Balls):
    """`Balls` whose process dies at once, as one killed for memory would, when it meets a given row.

    Only the first few `times`, where there is the path of a `flag` to count them in.
    """

    flag: str = ""
    times: int = 1
    step: int = 0
    row: int = 0

    def e_step(self, params: Centers, chunk: Chunk) -> Expectation:
        met = chunk.step == self.step and chunk.start <= self.row < chunk.start + len(chunk)
        if met and not (self.flag and Path(self.flag).exists() and os.path.getsize(self.flag) >= self.times):
            if self.flag:
                with open(self.flag, "a") as file:
                    file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().e_step(params, chunk)


def clouds(n: int, d: int = 4, k: int = 3, seed: int = 0, spread: float = 4.0) -> np.ndarray:
    """Return (n, d) rows around k centres."""
    rng = np.random.default_rng(seed)
    return spread * rng.standard_normal((k, d))[rng.integers(k, size=n)] + rng.standard_normal((n, d))


def bits(params: Any) -> bytes:
    """Return the bits of parameters."""
    return params.weights.tobytes() + params.means.tobytes()
