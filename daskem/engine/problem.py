"""A model over a data set, as an algorithm sees it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from daskem import tree
from daskem.core import (
    Batch,
    Expectation,
    HasDistance,
    HasEvents,
    HasLogPrior,
    HasMemory,
    HasMoves,
    HasNParameters,
    Model,
    Params,
    Part,
    Stats,
    handles_missing,
    offers,
)
from daskem.engine.passes import Engine, start_engine
from daskem.engine.sampling import Stream, draw_sample, sample_share
from daskem.errors import DataError

__all__ = ["DataProblem"]


@dataclass(frozen=True, eq=False)
class DataProblem:
    """The `daskem.core.Problem` of fitting `model` to the data of `engine`.

    Attributes
    ----------
    model, engine : what is fitted, and what runs its passes.
    scale : rows of the full data that a row here stands for.
    movable : whether there are moves (see `daskem.core.HasMoves`): not from a start that was given, whose components
        mean something.
    """

    model: Model
    engine: Engine
    scale: float = 1.0
    movable: bool = True
    # What was read once for all runs that share this problem.
    _samples: dict[int, DataProblem] = field(default_factory=dict, repr=False)
    _streams: dict[Batch, Stream] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def n_units(self) -> int:
        return len(self.engine.plan.units)

    @property
    def n_rows(self) -> int:
        return self.engine.data.n_rows

    @property
    def sample_room(self) -> int:
        return self.engine.plan.sizes.sample_room

    def expect(self, params: Params, part: Part = None, step: int = 0) -> Expectation:
        return self.expect_each([params], part, step)[0]

    def expect_each(self, members: Sequence[Params], part: Part = None, step: int = 0) -> list[Expectation]:
        if isinstance(part, Batch):
            found = self._stream(part).expect(self.model, members, part.index, step)
        else:
            found = self.engine.expect(self.model, members, part, step)
        return found if self.scale == 1.0 else [tree.scale(expectation, self.scale) for expectation in found]

    def n_batches(self, batch: Batch) -> int:
        return self._stream(batch).n_batches

    def share(self, batch: Batch) -> float:
        return self._stream(batch).n_rows_of(batch.index) / self.n_rows

    def subsample(self, rows: int) -> DataProblem:
        if rows == self.n_rows:
            return self
        with self._lock:
            if rows not in self._samples:
                engine = self.engine
                limit = engine.plan.limit if not engine.plan.cluster else None
                drawn = start_engine(
                    draw_sample(engine, rows, handles_missing(self.model)),
                    self.model,
                    seed=engine.seed,
                    members=engine.plan.members,
                    sample_rows=1,
                    cache="none",
                    memory_limit=limit,
                )
                scale = self.scale * self.n_rows / rows
                self._samples[rows] = DataProblem(self.model, drawn, scale, self.movable)
            return self._samples[rows]

    def sample_passes(self, rows: int) -> float:
        return 0.0 if self.engine.data.in_process else sample_share(self.engine.data, rows)

    def fits(self, algorithm: HasMemory) -> bool:
        sizes = self.engine.plan.sizes
        return algorithm.memory(sizes) <= sizes.room

    def moves(self, params: Params) -> Sequence[tuple[str, Params]]:
        if not (self.movable and isinstance(self.model, HasMoves)):
            return ()
        rng = np.random.Generator(np.random.Philox(key=self.engine.seed, counter=[0, 0, 2, 0]))
        sample = self.engine.sample(self.n_rows, rng, missing=handles_missing(self.model))
        return self.model.moves(params, sample, rng)

    def maximize(self, stats: Stats, params: Params) -> Params:
        return self.model.m_step(stats, params)

    def objective(self, expectation: Expectation, params: Params) -> float:
        if expectation.weight == 0:
            data = self.engine.data
            raise DataError(
                f"{data.rows.name}: none of its {data.n_rows:,} rows has a positive weight, so that they tell nothing. "
                "Fit the rows that have weight alone, draw larger samples, or use batch EM."
            )
        log_prior = self.model.log_prior(params) if isinstance(self.model, HasLogPrior) else 0.0
        return (expectation.objective + log_prior) / expectation.weight

    def precision(self, params: Params) -> float:
        if offers(self.model, HasNParameters):
            return self.model.n_parameters(params) / (2.0 * self.engine.data.n_present)
        # The numbers that a record of parameters holds are an upper bound on those that are free.
        return tree.nbytes(params) / (16.0 * self.engine.data.n_present)

    def change(self, old: Params, new: Params) -> float:
        return self.model.distance(old, new) if isinstance(self.model, HasDistance) else tree.max_change(old, new)

    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        return self.model.events(params) if isinstance(self.model, HasEvents) else ()

    def _stream(self, batch: Batch) -> Stream:
        kind = replace(batch, index=0)
        with self._lock:
            if kind not in self._streams:
                self._streams[kind] = Stream(self.engine, kind, handles_missing(self.model))
            return self._streams[kind]
