"""A model over a data set, as an algorithm sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daskem import tree
from daskem.core import Expectation, HasDistance, HasEvents, HasLogPrior, Model, Params, Stats
from daskem.engine.passes import Engine

__all__ = ["DataProblem"]


@dataclass(frozen=True, eq=False)
class DataProblem:
    """The `daskem.core.Problem` of fitting `model` to the data of `engine`."""

    model: Model
    engine: Engine

    @property
    def n_units(self) -> int:
        return len(self.engine.plan.units)

    def expect(self, params: Params, blocks: Sequence[int] | None = None, step: int = 0) -> Expectation:
        return self.engine.expect(self.model, [params], blocks, step)[0]

    def expect_each(
        self, members: Sequence[Params], blocks: Sequence[int] | None = None, step: int = 0
    ) -> list[Expectation]:
        return self.engine.expect(self.model, members, blocks, step)

    def maximize(self, stats: Stats, params: Params) -> Params:
        return self.model.m_step(stats, params)

    def objective(self, expectation: Expectation, params: Params) -> float:
        log_prior = self.model.log_prior(params) if isinstance(self.model, HasLogPrior) else 0.0
        return (expectation.objective + log_prior) / expectation.weight

    def change(self, old: Params, new: Params) -> float:
        return self.model.distance(old, new) if isinstance(self.model, HasDistance) else tree.max_change(old, new)

    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        return self.model.events(params) if isinstance(self.model, HasEvents) else ()
