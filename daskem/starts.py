"""Where a fit starts from: a sample of rows, drawn across all data; and what is checked before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem.core import Array, Chunk, Float
from daskem.data import Dataset
from daskem.engine import Engine, start_engine
from daskem.errors import DataError, OptionError

__all__ = ["check_side_columns", "draw_start"]

# Enough rows for a start (a fit corrects the rest), little enough to be read and clustered in about a second.
SAMPLE_BYTES = 32 << 20
MIN_SAMPLE_ROWS = 1_000
# Bahmani et al. (2012), section 5: five rounds with l = 2k bring the cost to that of k-means++.
ROUNDS = 5
OVERSAMPLING = 2


def draw_start(engine: Engine, model: object, init_sample: str | int) -> Chunk:
    """Return the rows that ``model.init`` gets: a uniform sample, or the weighted candidates of k-means||."""
    rng = np.random.Generator(np.random.Philox(key=engine.seed, counter=[0, 0, 1, 0]))
    if init_sample == "k-means||":
        return _oversample(engine, int(getattr(model, "n_components", 0) or getattr(model, "n_clusters", 1)), rng)
    if init_sample != "auto" and (isinstance(init_sample, str) or init_sample < 1):
        raise OptionError(f"init_sample={init_sample!r} is neither 'auto', 'k-means||' nor a positive number of rows.")
    return distinct(engine.sample(sample_rows(engine) if init_sample == "auto" else int(init_sample), rng))


def distinct(sample: Chunk) -> Chunk:
    """Return the distinct rows (with labels) of a sample in a canonical order, weighted with their multiplicity.

    A start then depends neither on the order of rows nor on whether a row is repeated or weighted.
    """
    n_features = sample.rows.shape[1]
    labels = np.full(len(sample), -1) if sample.labels is None else sample.labels
    keys = np.column_stack([sample.rows, labels]) if sample.labels is not None else sample.rows
    rows, which = np.unique(keys, axis=0, return_inverse=True)
    weight = np.bincount(which.ravel(), sample.weight, len(rows)).astype(np.float64)
    return Chunk(
        np.ascontiguousarray(rows[:, :n_features], sample.rows.dtype),
        weight,
        None if sample.labels is None else rows[:, n_features].astype(np.int64),
        seed=sample.seed,
    )


def sample_rows(engine: Engine) -> int:
    """Return how many rows a start is drawn from by default."""
    budget = min(SAMPLE_BYTES, engine.plan.limit // 32)
    return max(MIN_SAMPLE_ROWS, budget // (8 * engine.data.n_features))


@dataclass(frozen=True, eq=False)
class _Nearest:
    """Per-block work of k-means||: rows drawn in proportion to their cost, and the weight nearest to each centre."""

    centres: Float
    rate: float
    round: int
    seed: int

    def __call__(self, chunk: Chunk) -> tuple[Array, Float]:
        cost, nearest, weight = _cost(chunk, self.centres)
        uniform = Chunk(chunk.rows, start=chunk.start, seed=self.seed).uniform(self.round, 1)[:, 0]
        return chunk.rows[uniform < self.rate * cost], np.bincount(nearest, weight, len(self.centres)).astype(
            np.float64
        )


def _oversample(engine: Engine, n_clusters: int, rng: np.random.Generator) -> Chunk:
    """Return candidate centres, weighted with the rows nearest to them; `ROUNDS` + 1 passes.

    Bahmani, Moseley, Vattani, Kumar & Vassilvitskii (2012), Scalable k-means++, PVLDB 5(7), algorithm 2: in each round
    a row is drawn with probability l d^2(x, C) / phi, independently of all others. Their phi, the cost of all rows,
    takes a pass of its own in each round; here it is estimated from a uniform sample.
    """
    sample = engine.sample(sample_rows(engine), rng)
    centres = sample.rows[[int(rng.integers(len(sample)))]].astype(np.float64)
    for i in range(ROUNDS):
        phi = float(_cost(sample, centres)[0].sum()) * engine.data.n_rows / len(sample)
        if phi == 0.0:
            break
        drawn = engine.gather(_Nearest(centres, OVERSAMPLING * n_clusters / phi, i + 1, engine.seed))
        centres = np.concatenate([centres, *(rows.astype(np.float64) for rows, _ in drawn)])
    counts = np.sum([count for _, count in engine.gather(_Nearest(centres, 0.0, 0, engine.seed))], axis=0)
    return Chunk(centres[counts > 0], counts[counts > 0], seed=engine.seed)


def _cost(chunk: Chunk, centres: Float) -> tuple[Float, Array, Float]:
    """Return each row's weighted squared distance to its nearest centre, that centre, and the row's weight."""
    # Relative to the first centre: coordinates far from zero would cancel in |x|^2 - 2 x c + |c|^2.
    x, c = chunk.rows - centres[0], centres - centres[0]
    square = (c * c).sum(axis=1) - 2.0 * (x @ c.T)
    nearest = square.argmin(axis=1)
    weight: Float = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
    distance = np.maximum(square[np.arange(len(x)), nearest] + (x * x).sum(axis=1), 0.0)
    return np.where(weight > 0, weight * distance, 0.0), np.asarray(nearest), weight


def check_side_columns(data: Dataset, memory_limit: int, n_components: int | None) -> None:
    """Check weights and labels before any work.

    Raises
    ------
    DataError
        If weights are negative, not finite or all zero, or labels are not -1 or the index of a component.
    """
    if data.weight is not None:
        low, total, _ = _summary(data.weight, memory_limit)
        if not (low >= 0 and math.isfinite(total)):
            raise DataError(f"sample_weight ({data.weight.name}) holds negative, NaN or infinite values.")
        if total == 0:
            raise DataError(f"sample_weight ({data.weight.name}) is zero for all rows: there is nothing to fit.")
    if data.labels is not None:
        low, total, high = _summary(data.labels, memory_limit)
        if not math.isfinite(total) or low < -1 or (n_components is not None and high >= n_components):
            upper = "the number of components" if n_components is None else str(n_components)
            raise DataError(
                f"labels ({data.labels.name}) range from {low:g} to {high:g}. A label is the index of a component, "
                f"0 to {upper} - 1, or -1 where it is not known."
            )


def _summary(source: Any, memory_limit: int) -> tuple[float, float, float]:
    engine = start_engine(Dataset(source), None, cache="none", memory_limit=memory_limit)
    blocks = engine.gather(_low_total_high)
    return min(b[0] for b in blocks), math.fsum(b[1] for b in blocks), max(b[2] for b in blocks)


def _low_total_high(chunk: Chunk) -> tuple[float, float, float]:
    return float(chunk.rows.min()), float(chunk.rows.sum()), float(chunk.rows.max())
