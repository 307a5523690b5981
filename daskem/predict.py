"""What a fitted model says of each row: the posterior, labels, log densities; in memory, lazily, or into a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from daskem import tree
from daskem.core import Array, Chunk, Expectation, HasLogProb, HasPosterior, HasSupport, Model, Params, require
from daskem.data import Dataset, create_output
from daskem.data.writers import check_apart
from daskem.engine import Engine, eager_rows, lazy_rows, start_engine, write_rows
from daskem.engine.rows import write_runs
from daskem.errors import OptionError
from daskem.starts import check_side_columns

__all__ = ["RESULTS", "RowFunction", "evaluate", "predict_rows", "predict_to_store", "score"]

RESULTS = ("labels", "proba", "log_prob", "transform")
# Output chunks of about this size: large enough for object stores, small enough for any worker.
WRITE_BYTES = 8 << 20


@runtime_checkable
class _HasAssign(Protocol):
    """A model that labels rows without their posterior."""

    def assign(self, params: Params, chunk: Chunk) -> Array:
        """Return the component of each row, (n,), -1 where there is none."""


@dataclass(frozen=True, eq=False)
class RowFunction:
    """A function of blocks: one of `RESULTS` of each row under fitted parameters.

    Attributes
    ----------
    what : ``"labels"``, (n,) int64, the most probable component, -1 where none explains the row; ``"proba"``, (n, k),
        the posterior, NaN there; ``"log_prob"``, (n,) nats, log p(x); ``"transform"``, (n, k), the model's own
        coordinates.
    """

    model: Model
    params: Params
    what: str

    def __call__(self, chunk: Chunk) -> Array:
        if self.what == "log_prob":
            log_prob = require(self.model, HasLogProb, "log densities").log_prob(self.params, chunk)
            return np.array(log_prob, dtype=np.float64)
        if self.what == "transform":
            return np.array(self.model.transform(self.params, chunk))  # type: ignore[attr-defined]
        if self.what == "labels" and isinstance(self.model, _HasAssign):
            return np.array(self.model.assign(self.params, chunk), dtype=np.int64)
        posterior = require(self.model, HasPosterior, "assigning rows").posterior(self.params, chunk)
        explained = posterior.sum(axis=1) > 0
        if self.what == "labels":
            return np.where(explained, posterior.argmax(axis=1), -1).astype(np.int64)
        return np.array(np.where(explained[:, None], posterior, np.nan), dtype=np.float64, order="C")

    def why(self, rows: Array) -> tuple[int, str] | None:
        """Return the first row that the model cannot have, and why in words."""
        return self.model.unsupported(self.params, rows) if isinstance(self.model, HasSupport) else None


@dataclass(frozen=True, eq=False)
class _Several:
    functions: tuple[RowFunction, ...]

    def __call__(self, chunk: Chunk) -> dict[str, Array]:
        return {function.what: function(chunk) for function in self.functions}

    def why(self, rows: Array) -> tuple[int, str] | None:
        return self.functions[0].why(rows)


@dataclass(frozen=True, eq=False)
class _SumLogProb:
    function: RowFunction

    def __call__(self, chunk: Chunk) -> tuple[float, float]:
        log_prob = self.function(chunk)
        if chunk.weight is not None:
            log_prob = np.where(chunk.weight > 0, chunk.weight * log_prob, 0.0)
        return float(log_prob.sum()), chunk.total_weight

    def why(self, rows: Array) -> tuple[int, str] | None:
        return self.function.why(rows)


def predict_rows(
    model: Model, params: Params, data: Dataset, what: str, width: int, *, lazy: bool, memory_limit: Any = None
) -> Any:
    """Return one of `RESULTS` for each row.

    Parameters
    ----------
    width : k, the columns of ``"proba"`` and ``"transform"``.
    lazy : return a Dask array, computed when and where the caller wishes, instead of a numpy array.
    """
    results = 16 * _width(what, width) * max(map(len, data.units()))
    engine = start_engine(data, model, results=results, cache="none", memory_limit=memory_limit)
    function = RowFunction(model, params, what)
    if not lazy:
        return eager_rows(engine, function)
    shape = (width,) if what in ("proba", "transform") else ()
    return lazy_rows(engine, function, shape, np.int64 if what == "labels" else np.float64)


def evaluate(model: Model, params: Params, data: Dataset, *, memory_limit: Any = None) -> Expectation:
    """Return what one pass of the E-step at `params` says: the sum of the objective, the weight, the statistics."""
    check_side_columns(data, model, memory_limit)
    return start_engine(data, model, cache="none", memory_limit=memory_limit).expect(model, [params])[0]


def score(model: Model, params: Params, data: Dataset, *, memory_limit: Any = None) -> tuple[float, float]:
    """Return the sum of log p(x) over all rows (nats, weighted) and the weight; one pass."""
    check_side_columns(data, model, memory_limit)
    engine = start_engine(data, model, cache="none", memory_limit=memory_limit)
    total, weight = engine.fold(_SumLogProb(RowFunction(model, params, "log_prob")), tree.add)
    return total, weight


def predict_to_store(
    model: Model,
    params: Params,
    data: Dataset,
    url: str,
    what: Sequence[str],
    width: int,
    *,
    overwrite: bool = False,
    attributes: dict[str, Any] | None = None,
    memory_limit: Any = None,
    planned: Callable[[int], Any] | None = None,
) -> Engine:
    """Write `what` (of `RESULTS`) of each row to a Zarr group at `url`, one array each, in one pass.

    Parameters
    ----------
    planned : called with the number of tasks before the first one starts.

    Raises
    ------
    DataError
        Before any work, if something is at `url` already and `overwrite` is not set, if the rows themselves are there,
        or if it cannot be written.
    """
    unknown = [name for name in what if name not in RESULTS]
    if unknown or not what:
        raise OptionError(f"cannot write {unknown or 'nothing'}: choose from {', '.join(RESULTS)}.")
    row_bytes = sum(8 * _width(name, width) for name in what)
    rows = _write_rows_of(data, width)
    # A write unit's results are there twice: block by block, and joined to be written.
    engine = start_engine(data, model, results=2 * rows * row_bytes, cache="none", memory_limit=memory_limit)
    arrays = {name: ((width,) if name in ("proba", "transform") else (), _dtype(name)) for name in what}
    check_apart(url, data.sources)
    output = create_output(url, arrays, data.n_rows, rows, overwrite=overwrite, attributes=attributes)
    if planned is not None:
        planned(len(write_runs(engine.plan, output.chunk_rows)))
    write_rows(engine, _Several(tuple(RowFunction(model, params, name) for name in what)), output)
    return engine


def _write_rows_of(data: Dataset, width: int) -> int:
    """Return the rows of an output chunk: whole chunks of the source, so that none is decoded for two write units."""
    first: int = max(1, data.rows.piece_boundary(1))
    row_bytes = max(8 * width, data.row_bytes)
    return min(data.n_rows, first * max(1, WRITE_BYTES // (first * row_bytes)))


def _width(name: str, width: int) -> int:
    return width if name in ("proba", "transform") else 1


def _dtype(name: str) -> str:
    return "int64" if name == "labels" else "float64"
