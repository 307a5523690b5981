"""What a fitted model says of each row: the posterior, labels, log densities; in memory, lazily, or into a store."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from daskem import tree
from daskem.core import (
    Array,
    Chunk,
    Expectation,
    HasImpute,
    HasLogProb,
    HasPosterior,
    HasSupport,
    Model,
    Params,
    handles_missing,
    require,
)
from daskem.data import Dataset, create_output, fingerprint
from daskem.data.writers import Place, check_apart
from daskem.engine import (
    LeftOut,
    eager_rows,
    start_engine,
    warn_of_left_out,
    without_bad_units,
    write_rows,
)
from daskem.engine.lazy import lazy_rows
from daskem.engine.rows import write_runs
from daskem.errors import OptionError
from daskem.persist import digest
from daskem.starts import check_features, check_side_columns

__all__ = ["RESULTS", "RowFunction", "evaluate", "predict_rows", "predict_to_store", "score"]

RESULTS = ("labels", "proba", "log_prob", "transform", "imputed")
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
        coordinates; ``"imputed"``, (n, d) in the type of the data, the row with conditional means for missing values.
    """

    model: Model
    params: Params
    what: str

    @property
    def handles_missing(self) -> bool:
        """Whether NaN stands for a missing value: the model's answer."""
        return handles_missing(self.model)

    def __call__(self, chunk: Chunk) -> Array:
        if self.what == "log_prob":
            log_prob = require(self.model, HasLogProb, "log densities").log_prob(self.params, chunk)
            return np.array(log_prob, dtype=np.float64)
        if self.what == "imputed":
            imputed = require(self.model, HasImpute, "imputing missing values").impute(self.params, chunk)
            return np.array(imputed, dtype=chunk.rows.dtype)
        if self.what == "transform":
            return np.array(self.model.transform(self.params, chunk))  # type: ignore[attr-defined]
        if self.what == "labels" and isinstance(self.model, _HasAssign):
            return np.array(self.model.assign(self.params, chunk), dtype=np.int64)
        posterior = require(self.model, HasPosterior, "assigning rows").posterior(self.params, chunk)
        explained = posterior.sum(axis=1) > 0
        if self.what == "labels":
            return np.where(explained, posterior.argmax(axis=1), -1).astype(np.int64)
        # The model's own array and this one, no third: what a plan says of results.
        proba = np.array(posterior, dtype=np.float64, order="C")
        proba[~explained] = np.nan
        return proba

    def why(self, rows: Array) -> tuple[int, str] | None:
        """Return the first row that the model cannot have, and why in words."""
        return self.model.unsupported(self.params, rows) if isinstance(self.model, HasSupport) else None


@dataclass(frozen=True, eq=False)
class _Several:
    functions: tuple[RowFunction, ...]

    @property
    def handles_missing(self) -> bool:
        return all(function.handles_missing for function in self.functions)

    def __call__(self, chunk: Chunk) -> dict[str, Array]:
        return {function.what: function(chunk) for function in self.functions}

    def why(self, rows: Array) -> tuple[int, str] | None:
        return self.functions[0].why(rows)


@dataclass(frozen=True, eq=False)
class _SumLogProb:
    function: RowFunction

    @property
    def handles_missing(self) -> bool:
        return self.function.handles_missing

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
    check_features(data, model, params)
    shape, dtype = _row(what, width, data)
    results = 16 * math.prod(shape) * max(map(len, data.units()))
    engine = start_engine(data, model, results=results, cache="none", memory_limit=memory_limit)
    function = RowFunction(model, params, what)
    if not lazy:
        return eager_rows(engine, function)
    return lazy_rows(engine, function, shape, dtype)


def evaluate(model: Model, params: Params, data: Dataset, *, memory_limit: Any = None) -> Expectation:
    """Return what one pass of the E-step at `params` says: the sum of the objective, the weight, the statistics."""
    check_features(data, model, params)
    check_side_columns(data, model, memory_limit)
    return start_engine(data, model, cache="none", memory_limit=memory_limit).expect(model, [params])[0]


def score(model: Model, params: Params, data: Dataset, *, memory_limit: Any = None) -> tuple[float, float]:
    """Return the sum of log p(x) over all rows (nats, weighted) and the weight; one pass."""
    check_features(data, model, params)
    check_side_columns(data, model, memory_limit)
    engine = start_engine(data, model, cache="none", memory_limit=memory_limit)
    total, weight = engine.fold(_SumLogProb(RowFunction(model, params, "log_prob")), tree.add)
    return total, weight


def predict_to_store(
    model: Model,
    params: Params,
    data: Dataset,
    url: Place,
    what: Sequence[str],
    width: int,
    *,
    overwrite: bool = False,
    attributes: dict[str, Any] | None = None,
    memory_limit: Any = None,
    on_bad_unit: str = "raise",
    planned: Callable[[int], Any] | None = None,
) -> tuple[LeftOut, ...]:
    """Write `what` (of `RESULTS`) of each row to a Zarr group at `url` (or in that store), one array each, in one pass.

    What was broken off is gone on with, if model, parameters and data are the same: only missing chunks are written.

    Parameters
    ----------
    on_bad_unit : ``"raise"`` to refuse data of which a chunk is missing, damaged or not finite; ``"skip"`` to find such
        chunks in a pass of their own, and to write NaN, or the label -1, for their rows.
    planned : called with the number of tasks before the first one starts.

    Returns
    -------
    tuple of LeftOut
        What could not be used; noted in the group's attribute ``daskem:left_out`` too.

    Raises
    ------
    DataError
        Before any work, if something else is at `url` already and `overwrite` is not set, if the rows themselves are
        there, or if it cannot be written.
    """
    unknown = [name for name in what if name not in RESULTS]
    if unknown or not what:
        raise OptionError(f"cannot write {unknown or 'nothing'}: choose from {', '.join(RESULTS)}.")
    check_features(data, model, params)
    arrays = {name: _row(name, width, data) for name in what}
    row_bytes = sum(8 * math.prod(shape) for shape, _ in arrays.values())
    rows = _write_rows_of(data, width)
    # A write unit's results are there twice: block by block, and joined to be written.
    engine = start_engine(data, model, results=2 * rows * row_bytes, cache="none", memory_limit=memory_limit)
    check_apart(url, data.sources)
    made_from = _made_from(model, params, data, engine.plan.block_rows, on_bad_unit)
    output = create_output(
        *(url, arrays, data.n_rows, rows), overwrite=overwrite, attributes=attributes, made_from=made_from
    )
    left_out = without_bad_units(data, model, memory_limit)[1] if on_bad_unit == "skip" else ()
    if left_out:
        warn_of_left_out(data, left_out)
        output.group.attrs["daskem:left_out"] = [asdict(run) for run in left_out]
    if planned is not None:
        planned(len(write_runs(engine.plan, output.chunk_rows)))
    function = _Several(tuple(RowFunction(model, params, name) for name in what))
    write_rows(engine, function, output, [(run.start, run.stop) for run in left_out])
    return left_out


def _made_from(model: Model, params: Params, data: Dataset, block_rows: int, on_bad_unit: str) -> str | None:
    """Return a digest of all that results depend on, to the bit; None where the rows cannot be told from others."""
    told = fingerprint(data)
    if any(source is not None and source["content"] is None for source in told.values()):
        return None
    return digest(model=model, params=params, data=told, block_rows=block_rows, on_bad_unit=on_bad_unit)


def _write_rows_of(data: Dataset, width: int) -> int:
    """Return the rows of an output chunk: whole chunks of the source, so that none is decoded for two write units."""
    first: int = max(1, data.rows.piece_boundary(1))
    row_bytes = max(8 * width, data.row_bytes)
    return min(data.n_rows, first * max(1, WRITE_BYTES // (first * row_bytes)))


def _row(name: str, width: int, data: Dataset) -> tuple[tuple[int, ...], str]:
    """Return the shape and the type of what a result says of one row."""
    if name == "imputed":
        return (data.n_features,), str(data.dtype)
    return (width,) if name in ("proba", "transform") else (), "int64" if name == "labels" else "float64"
