"""Distinct rows in place of all: a pass that counts them, and the same problem over what it found.

An E-step that takes rows one by one says the same of equal rows. Where few are distinct, as in binary, categorical or
count data of few columns, each of them with the weight of its copies gives the statistics of all rows exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskem.core import Array, Chunk, Float, HasObjectiveError, HasSupport, Model, Params
from daskem.data.dataset import Dataset, Memory, blocks
from daskem.engine.graph import calls_on, reduction
from daskem.engine.passes import Engine, start_engine
from daskem.engine.problem import DataProblem
from daskem.errors import OptionError

__all__ = ["COMPRESS_MODES", "CompressedProblem", "check_compress", "compressed"]

logger = logging.getLogger("daskem")

COMPRESS_MODES = ("auto", "never", "always")

# Distinct rows beyond which a pass over them is no longer free, and a record of them no longer small.
MAX_PATTERNS = 1 << 18
# Copies that a distinct row must have on average for the pass that counts them to be worth while.
MIN_COPIES = 8
# Rows below which a pass costs next to nothing anyway.
MIN_ROWS = 1 << 16
# Runs of rows across all data, and rows of each, that are looked at before the pass; one row in FEW may be distinct.
RUNS, RUN_ROWS, FEW = 16, 1024, 4
# Rows that wait, at most, to be merged with as many or more distinct ones.
PENDING = 1 << 14
# Odd multiplier of the hash: 2^64 over the golden ratio (Knuth, TAOCP 3, section 6.4).
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class CompressedProblem(DataProblem):
    """The problem of fitting a model to the distinct rows of data, each with the weight of its copies.

    Attributes
    ----------
    source_rows : rows of the data that were counted, those of weight zero left out.
    """

    source_rows: int = 0

    def precision(self, params: Params) -> float:
        return super().precision(params) * self.n_rows / self.source_rows


@dataclass(frozen=True, eq=False)
class _Patterns:
    """Distinct rows (n, d), with the label of each if there are labels, in an order that they alone determine.

    Rows are unsigned bytes where these hold their values; `weight` (n,) is the weight of all copies.
    """

    rows: Array
    weight: Float
    labels: Array | None

    def __len__(self) -> int:
        return len(self.rows)


def check_compress(compress: str, model: Model) -> None:
    """Refuse what is not one of `COMPRESS_MODES`, and to count rows for a model that draws for each of them anew."""
    if compress not in COMPRESS_MODES:
        raise OptionError(f"compress={compress!r} is not one of {', '.join(COMPRESS_MODES)}.")
    if compress == "always" and isinstance(model, HasObjectiveError):
        raise OptionError(
            f"compress='always' puts one row in place of its copies, but {type(model).__name__} draws for each row "
            "anew. Use compress='auto' or 'never'."
        )


def compressed(problem: DataProblem, compress: str, suited: bool = True) -> DataProblem:
    """Return the same problem over distinct rows in this process, or `problem` where that does not pay.

    Parameters
    ----------
    compress : ``"auto"`` to count, in one pass, where the model is of discrete data and a few rows promise that it
        pays; ``"always"`` to count in any case; ``"never"``.
    suited : whether "auto" may, as to the algorithm.
    """
    if compress == "never" or (compress == "auto" and not (suited and _promising(problem))):
        return problem
    engine = problem.engine
    limit = min(engine.data.n_rows // MIN_COPIES, MAX_PATTERNS, engine.plan.sizes.sample_room)
    found = _count(engine, limit)
    if found is None:
        logger.info("more than %d of %d rows are distinct: all rows are kept", limit, engine.data.n_rows)
        return problem
    rows = np.ascontiguousarray(found.rows, engine.data.dtype)
    if _has_strangers(problem.model, rows):
        # Where such a row lies is known to a pass over all rows alone, which fails there.
        return problem
    logger.info("%d of %d rows are distinct: each step takes these alone", len(rows), engine.data.n_rows)
    return _over(problem, rows, found)


def _promising(problem: DataProblem) -> bool:
    """Return whether rows at several places of the data repeat each other enough."""
    data = problem.engine.data
    if not getattr(problem.model, "discrete", False) or data.n_rows < MIN_ROWS:
        return False
    starts = [i * data.n_rows // RUNS for i in range(RUNS)]
    runs = [(start, start + RUN_ROWS) for start in starts]
    found = problem.engine.compute_all(problem.engine.call_runs(_count_unit, runs, RUNS * RUN_ROWS))
    return len(_merged([part for run in found for part in run])) * FEW <= RUNS * RUN_ROWS


def _has_strangers(model: Model, rows: Array) -> bool:
    """Return whether the model cannot have some row."""
    if isinstance(model, HasSupport) and model.unsupported(None, rows):
        return True
    return not (getattr(model, "discrete", False) or np.isfinite(rows).all())


def _over(problem: DataProblem, rows: Array, found: _Patterns) -> CompressedProblem:
    engine = problem.engine
    name = f"distinct rows of {engine.data.rows.name}"
    labels = None if found.labels is None else Memory(name, found.labels.reshape(len(rows), -1))
    counted = start_engine(
        Dataset(Memory(name, rows), Memory(name, found.weight[:, None]), labels),
        problem.model,
        seed=engine.seed,
        members=engine.plan.members,
        sample_rows=1,
        cache="none",
        memory_limit=None if engine.plan.cluster else engine.plan.limit,
    )
    return CompressedProblem(problem.model, counted, movable=problem.movable, source_rows=engine.data.n_present)


def _count(engine: Engine, limit: int) -> _Patterns | None:
    """Return the distinct rows of all data, or None if there are more than `limit`; one pass."""
    runs = [(engine.parts[u.index], u.start, u.stop) for u in engine.plan.units]
    leaves = calls_on(_count_unit, runs, engine.plan.block_rows, limit)
    total = engine.compute(reduction(leaves, engine.plan.arity, _join, limit))
    merged = None if total is None else _merged(total)
    return None if merged is None or len(merged) > limit else merged


def _count_unit(data: Dataset, start: int, stop: int, block_rows: int, limit: int) -> list[_Patterns] | None:
    """Return the distinct rows of a unit as one record, or None, at once, if they are more than `limit`."""
    total: list[_Patterns] = []
    for chunk in blocks(data, start, stop, block_rows):
        total.append(_distinct(*_narrowed(chunk)))
        if sum(map(len, total[1:])) > max(len(total[0]), PENDING):
            total = [_merged(total)]
        if len(total[0]) > limit:
            return None
    return _join(limit, total)


def _join(limit: int, *runs: list[_Patterns] | None) -> list[_Patterns] | None:
    """Put the distinct rows of consecutive units together; None stands for too many."""
    parts: list[_Patterns] = []
    for run in runs:
        if run is None:
            return None
        parts += run
    merged = _merged(parts)
    return [merged] if len(merged) <= limit else None


def _merged(parts: Sequence[_Patterns]) -> _Patterns:
    if len(parts) == 1:
        return parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    return _distinct(
        # Bytes among floating-point rows become such.
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.weight for part in parts]),
        np.concatenate(labels) if labels else None,
    )


def _narrowed(chunk: Chunk) -> tuple[Array, Float, Array | None]:
    """Return the rows that have weight, as bytes if these hold them, with their weights and labels."""
    rows, labels = chunk.rows, chunk.labels
    weight = np.ones(len(rows)) if chunk.weight is None else chunk.weight
    if not weight.all():
        kept = weight > 0
        rows, weight, labels = rows[kept], weight[kept], None if labels is None else labels[kept]
    with np.errstate(invalid="ignore"):
        narrow = rows.astype(np.uint8)
    # Adding zero makes 0 of -0: they are equal, and their bytes must be.
    return (narrow if (narrow == rows).all() else rows + rows.dtype.type(0)), weight, labels


def _distinct(rows: Array, weight: Float, labels: Array | None) -> _Patterns:
    """Return the distinct ones among rows (and labels), and the sum of the weights of each, added in order."""
    words = _words(rows) if labels is None else np.concatenate([_words(rows), _words(labels)], axis=1)
    _, first, which = np.unique(_hash(words), return_index=True, return_inverse=True)
    if not np.array_equal(words[first][which], words):
        # Two rows share a hash.
        _, first, which = np.unique(words, axis=0, return_index=True, return_inverse=True)
    total = np.bincount(which.ravel(), weight, len(first)).astype(np.float64)
    return _Patterns(rows[first], total, None if labels is None else labels[first])


def _words(values: Array) -> Array:
    """Return the bytes of each row, filled up to whole words of 64 bits, (n, w): equal where rows are, NaN included."""
    values = np.ascontiguousarray(values.reshape(len(values), -1))
    width = values.shape[1] * values.itemsize
    padded = np.zeros((len(values), -(-width // 8) * 8), np.uint8)
    padded[:, :width] = values.view(np.uint8).reshape(len(values), width)
    return padded.view(np.uint64)


def _hash(words: Array) -> Array:
    """Return a number for each row of words, (n,) uint64."""
    found = np.zeros(len(words), np.uint64)
    for word in words.T:
        found = (found ^ word) * MULTIPLIER
        found ^= found >> np.uint64(32)
    return found
