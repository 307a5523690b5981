"""Learning from a stream: one mini-batch after another, as they come, with no end and nothing kept of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from daskem import tree
from daskem.algorithms import StepwiseEM
from daskem.core import Expectation, HasRebase, Model, Params, Stats, StepInfo
from daskem.data import Dataset, open_dataset
from daskem.engine import DataProblem, one_blas_thread, start_engine
from daskem.errors import DataError
from daskem.fit import FitResult
from daskem.starts import check_rows, check_side_columns, components_of, draw_start

__all__ = ["OnlineFit"]


class OnlineFit:
    """Stepwise EM over mini-batches that are given one at a time (Cappé & Moulines 2009).

    Statistics are kept per unit weight: mini-batches count by their number, not by their size, as in `StepwiseEM`. A
    mini-batch that is refused changes nothing, so that parameters are always those of the last good one.

    Parameters
    ----------
    model : the model.
    algorithm : step sizes and warm-up; ``StepwiseEM(decay=None, rate=0.05)`` goes on forgetting, for data that drift.
    params : where to start; by default ``model.init`` on rows of the first mini-batch.
    seed, memory_limit : see `daskem.fit`.
    most_logged : log lines that are kept, the latest.

    Examples
    --------
    >>> import daskem, numpy as np
    >>> from daskem.models import Gaussian, Mixture
    >>> rng, online = np.random.default_rng(0), daskem.OnlineFit(Mixture(Gaussian(), 1))
    >>> for _ in range(100):
    ...     result = online.update(rng.normal(3.0, 1.0, (200, 1)))
    >>> result.params.components.means.round(1).tolist()
    [[3.0]]
    """

    def __init__(
        self,
        model: Model,
        algorithm: StepwiseEM | None = None,
        *,
        params: Params = None,
        seed: int = 0,
        memory_limit: Any = None,
        most_logged: int = 1_000,
    ) -> None:
        self.model = model
        self.algorithm = algorithm or StepwiseEM()
        self.params = params
        self.seed = seed
        self.memory_limit = memory_limit
        self.most_logged = most_logged
        self.stats: Stats = None
        self.weight = 0.0
        self.trace: list[StepInfo] = []
        self.seconds = 0.0
        self.width: int | None = None

    def run(self, stream: Iterable[Any]) -> FitResult | None:
        """Learn from every mini-batch of `stream`; None if there is none."""
        result = None
        for batch in stream:
            result = self.update(batch)
        return result

    def update(self, x: Any, *, sample_weight: Any = None, y: Any = None) -> FitResult:
        """Learn from one mini-batch: rows from anywhere, with their weights and labels.

        Raises
        ------
        DataError
            If it holds no rows of weight, or its rows have other features than those before.
        """
        clock = time.perf_counter()
        data = open_dataset(x, sample_weight=sample_weight, y=y)
        self._check(data)
        engine = start_engine(data, self.model, seed=self.seed, cache="none", memory_limit=self.memory_limit)
        problem, number = DataProblem(self.model, engine), (self.trace[-1].step if self.trace else 0) + 1
        with one_blas_thread():
            params = self.params
            if params is None:
                params = self.model.init(draw_start(engine, self.model, "auto"), np.random.default_rng(self.seed))
            found = problem.expect(params, step=number)
            new = self._blend(found, params, number)
        self.width = data.n_features
        info = StepInfo(
            step=number,
            objective=problem.objective(found, params),
            weight=found.weight,
            passes=float(number),
            seconds=time.perf_counter() - clock,
            change=problem.change(params, new),
            exact=False,
            stage="stream",
        )
        self.params, self.seconds = new, self.seconds + info.seconds
        self.trace = [*self.trace, info][-self.most_logged :]
        reason = f"{number} mini-batches were seen"
        return FitResult(
            self.model, new, tuple(self.trace), False, reason, engine.plan, self.seconds, number, (info.objective,)
        )

    def _check(self, data: Dataset) -> None:
        if self.width is not None and data.n_features != self.width:
            raise DataError(
                f"X has {data.n_features} features, but the mini-batches before it had {self.width}. Nothing was "
                "learnt of it; the parameters are those of the last mini-batch."
            )
        if self.params is None:
            check_rows(data, components_of(self.model))
        check_side_columns(data, self.model, self.memory_limit)

    def _blend(self, found: Expectation, params: Params, number: int) -> Params:
        """Blend in what a mini-batch says at `params`, and return the parameters that follow."""
        mean = tree.scale(found.stats, 1.0 / found.weight)
        stats = mean if self.stats is None else tree.lerp(self.stats, mean, self.algorithm.rate_of(number))
        weight, new = self.weight + found.weight, params
        if number >= self.algorithm.warm_up:
            # A prior weighs as much as it would against all rows seen so far.
            new = self.model.m_step(tree.scale(stats, weight), params)
            stats = self.model.rebase(stats, params, new) if isinstance(self.model, HasRebase) else stats
        self.stats, self.weight = stats, weight
        return new
