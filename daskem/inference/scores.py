"""The one pass of a diagnosis: scores of rows and their covariance, weights of components, and how these overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskem import tree
from daskem.core import (
    Array,
    Chunk,
    Float,
    Footprint,
    HasFootprint,
    HasPosterior,
    Params,
    handles_missing,
    used_columns,
)
from daskem.errors import MissingCapabilityError, NonFiniteError
from daskem.models.initialization import unique_rows

__all__ = ["Evidence", "ScorePass", "ScoreWork", "Sums", "count_components", "difference_steps", "has_scores", "merge"]

EPS = float(np.finfo(np.float64).eps)
# Central differences are best where truncation h^2 and rounding eps / h meet, in units that change log p by one nat.
BEST_STEP = EPS ** (1 / 3)
# Steps are looked for within so many powers of ten of where the search begins.
MAX_DECADES = 15
# Responsibilities below this count as this: components that differ so much are not alike by any measure.
RESP_FLOOR = 1e-300
# Times the mean square of rounding errors seen: a score below ten of them is nothing but rounding.
NOISE_FACTOR = 100
# A block's scores, their weighted copy and the parts that they are made of stay within this many bytes.
BLOCK_BYTES, COPIES = 32 << 20, 4
# Assumed of a model that does not tell its footprint.
DEFAULT_BLOCK, DEFAULT_PARAMS = 4096, 1 << 20


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over rows of weight w.

    Attributes
    ----------
    weight : of all rows.
    used : of the rows whose scores were taken.
    score : (p,) sum of w s over these.
    information : (p, p) sum of w s s^T over these.
    held : (k,) sum of w r, the weight of each component; None of a model without a posterior.
    overlap : (k, k) sum of w r_a log r_b; None likewise.
    """

    weight: float
    used: float
    score: Float
    information: Float
    held: Float | None
    overlap: Float | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What rows say: sums, and the distinct rows there are, or None where these are more than parameters."""

    sums: Sums
    distinct: Array | None


def merge(a: Evidence, b: Evidence) -> Evidence:
    """Return what two runs of rows say together."""
    sums = tree.add(a.sums, b.sums)
    if a.distinct is None or b.distinct is None:
        return Evidence(sums, None)
    return Evidence(sums, _distinct(np.concatenate([a.distinct, b.distinct]), len(sums.score)))


@dataclass(frozen=True, eq=False)
class ScorePass:
    """A function of blocks that returns their `Evidence`.

    Attributes
    ----------
    free : (p,) whether a coordinate can move; one at an infinite value, such as the logit of 0, cannot.
    steps : (p,) steps of central differences, or None where the model has scores of its own.
    n_components : k, or None of a model without a posterior.
    share : share of the rows whose scores are taken; which ones depends on (seed, absolute row) alone.
    """

    model: Any
    params: Params
    vector: Float
    free: Array
    steps: Float | None
    n_components: int | None
    share: float
    seed: int

    @property
    def handles_missing(self) -> bool:
        """Whether NaN stands for a missing value: the model's answer."""
        return handles_missing(self.model)

    def __call__(self, chunk: Chunk) -> Evidence:
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        # Scores are differences, or products of them: single precision would leave null directions at 1e-7.
        chunk = replace(chunk, rows=np.ascontiguousarray(chunk.rows, np.float64))
        drawn = weight > 0
        present = chunk if drawn.all() else chunk.select(drawn)
        held, overlap = self._components(present)
        if self.share < 1.0:
            same_rows = Chunk(chunk.rows, start=chunk.start, seed=self.seed)
            drawn = drawn & (same_rows.uniform(1, 1)[:, 0] < self.share)
        used = present if drawn.sum() == len(present) else chunk.select(drawn)
        mass, scores = weight[drawn], self.scores(used)
        weighted = scores * mass[:, None]
        sums = Sums(float(weight.sum()), float(mass.sum()), weighted.sum(axis=0), weighted.T @ scores, held, overlap)
        return Evidence(sums, _distinct(present.rows, len(self.vector)))

    def scores(self, chunk: Chunk) -> Float:
        """Return the gradient of log p(x) of each row, (n, p), 0 along coordinates that cannot move.

        Raises
        ------
        NonFiniteError
            If no component explains some row.
        """
        if len(chunk) == 0:
            return np.zeros((0, len(self.vector)))
        with np.errstate(all="ignore"):
            if self.steps is None:
                scores = np.array(self.model.scores(self.params, chunk), np.float64)
            else:
                scores = self._differences(chunk, self.steps)
        scores[:, ~self.free] = 0.0
        if not np.isfinite(scores).all():
            raise NonFiniteError(
                f"{type(self.model).__name__}: log p(x | params) has no finite gradient for some row among the "
                f"{len(chunk)} looked at from row {chunk.start} on: no component explains it. Look for outliers, or "
                "fit the model to these data."
            )
        return scores

    def rounding(self, chunk: Chunk) -> Float:
        """Return the mean squares (p,) that rounding alone may give to scores, in the units of each.

        Seen by how far scores change when the parameters change in their last digits.
        """
        vector = np.where(self.free, self.vector * (1.0 + 8 * EPS), self.vector)
        beside = replace(self, vector=vector, params=self.model.from_vector(vector, self.params))
        change = beside.scores(chunk) - self.scores(chunk)
        return np.asarray(NOISE_FACTOR * np.square(change).mean(axis=0))

    def _differences(self, chunk: Chunk, steps: Float) -> Float:
        scores = np.zeros((len(chunk), len(self.vector)))
        for j in np.flatnonzero(self.free):
            above, below = _beside(self.model, self.params, self.vector, int(j), steps[j], chunk)
            scores[:, j] = (above - below) / (2 * steps[j])
        return scores

    def _components(self, chunk: Chunk) -> tuple[Float | None, Float | None]:
        if self.n_components is None:
            return None, None
        k = self.n_components
        if len(chunk) == 0:
            return np.zeros(k), np.zeros((k, k))
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        resp = np.array(self.model.posterior(self.params, chunk), np.float64)
        held = weight @ resp
        if chunk.labels is not None:
            # What a label forbids says nothing of how alike two components are.
            resp = np.array(self.model.posterior(self.params, replace(chunk, labels=None)), np.float64)
        return held, (resp * weight[:, None]).T @ np.log(np.maximum(resp, RESP_FLOOR))


@dataclass(frozen=True)
class ScoreWork:
    """What the planner is told of a `ScorePass`: blocks as short as their scores demand, and a (p, p) record."""

    model: Any
    p: int
    k: int

    @property
    def used_columns(self) -> tuple[int, ...] | None:
        """The columns that the model looks at, None for all."""
        return used_columns(self.model)

    def footprint(self, n_features: int, dtype: np.dtype[Any]) -> Footprint:
        """Return block length and bytes."""
        if isinstance(self.model, HasFootprint):
            told = self.model.footprint(n_features, np.dtype(np.float64))
        else:
            told = Footprint(DEFAULT_BLOCK, 8 * DEFAULT_BLOCK * 8 * n_features, 0, DEFAULT_PARAMS)
        fitting = max(1, BLOCK_BYTES // (8 * COPIES * self.p))
        rows = min(told.block_rows, 1 << (fitting.bit_length() - 1))
        workspace = told.workspace + 8 * rows * (COPIES * self.p + 2 * n_features + 3 * self.k)
        record = 8 * (self.p**2 + self.p * (1 + n_features) + self.k**2 + self.k + 2)
        # The driver takes the record apart, in about as many copies as it plans for of the parameters.
        return Footprint(rows, workspace, record, told.params + record)


def has_scores(model: Any, params: Params, sample: Chunk) -> bool:
    """Return whether a model has scores of its own; a mixture has them where its family has."""
    if not hasattr(model, "scores"):
        return False
    try:
        with np.errstate(all="ignore"):
            model.scores(params, sample)
    except MissingCapabilityError:
        return False
    return True


def count_components(model: Any, params: Params, sample: Chunk) -> int | None:
    """Return the components that a model's posterior tells of, None where it has none."""
    return int(model.posterior(params, sample).shape[1]) if isinstance(model, HasPosterior) else None


def difference_steps(model: Any, params: Params, vector: Float, free: Array, sample: Chunk) -> Float:
    """Return steps of central differences (p,) for log p(x).

    A step should change log p(x) by the cube root of the rounding unit, whatever unit the coordinate has. It is looked
    for on a sample, from that root times the coordinate's size on, and enlarged only as far as log p(x) is linear: a
    parameter that shows no effect but at another place altogether, such as a logit of -40, says nothing here.
    """
    steps: Float = BEST_STEP * np.maximum(1.0, np.abs(vector))
    with np.errstate(all="ignore"):
        here = np.array(model.log_prob(params, sample), np.float64)
        for j in np.flatnonzero(free):

            def effect(step: float, j: int = int(j)) -> float:
                # Not half of their difference: a component moved far away either way leaves the same density.
                changes = [side - here for side in _beside(model, params, vector, j, step, sample)]
                change = float(np.sqrt(np.mean(np.square(np.maximum(*np.abs(changes))))))
                return change if np.isfinite(change) else np.inf

            steps[j] = _good_step(effect, float(steps[j]))
    return steps


def _good_step(effect: Callable[[float], float], first: float) -> float:
    step = first
    for _ in range(MAX_DECADES):
        if effect(step) <= 10 * BEST_STEP:
            break
        step /= 10
    if step < first or effect(first) >= BEST_STEP / 10:
        return step
    for _ in range(MAX_DECADES):
        before, after = effect(step), effect(10 * step)
        step *= 10
        if after >= BEST_STEP / 10:
            return step if 8 * before < after < 12.5 * before else first
    return first


def _beside(model: Any, params: Params, vector: Float, j: int, step: float, chunk: Chunk) -> tuple[Float, Float]:
    """Return log p(x), (n,), a step above and a step below along coordinate j."""
    sides: list[Float] = []
    for moved in (vector.copy(), vector.copy()):
        moved[j] += -step if sides else step
        sides.append(np.array(model.log_prob(model.from_vector(moved, params), chunk), np.float64))
    return sides[0], sides[1]


def _distinct(rows: Array, most: int) -> Array | None:
    """Return the distinct rows, or None where there are more than `most`."""
    # Continuous data show at the first glance that sorting all rows is not worth while.
    head = unique_rows(rows[: 2 * most + 2])[0]
    if len(head) <= most and len(rows) > 2 * most + 2:
        head = unique_rows(rows)[0]
    return head if len(head) <= most else None
