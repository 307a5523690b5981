"""Ways out of a local maximum of a mixture: two components that share their rows become one, another becomes two."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from daskem.core import Array, Chunk, Family, Float, Model, Params, Scratch
from daskem.errors import DegenerateComponentError
from daskem.models.initialization import best_of_runs

__all__ = ["Exchange", "exchanges"]

# Pairs of components that are looked at, those that share most; exchanges that are proposed, and how many of them may
# merge the same pair, or split the same component: where one is mistaken, so are others like it.
PAIRS, PROPOSED, ALIKE = 20, 12, 4
# Steps of EM that share the rows of a component out among two.
STEPS = 10
# Rows that a component must have to be split, and the share of a row that it must have for the row to matter.
LEAST_ROWS, LEAST_SHARE = 50.0, 0.05


class _Pair(Model, Protocol):
    """A mixture of two components."""

    def posterior(self, params: Params, chunk: Chunk) -> Array: ...


class Exchange(NamedTuple):
    """Components `merged` become one, the first of them, and `split` becomes two, itself and the second of them.

    `gain` (nats, all rows) is what that brings while rows keep to these components, `share` (n,) what of each row of
    `split` stays with it.
    """

    gain: float
    merged: tuple[int, int]
    split: int
    share: Float

    def __str__(self) -> str:
        return f"components {self.merged[0]} and {self.merged[1]} made one, and component {self.split} two"

    def exchanged(self, resp: Float) -> Float:
        """Return responsibilities (n, k) after the exchange."""
        new = resp.copy()
        new[:, self.merged[0]] = resp[:, list(self.merged)].sum(axis=1)
        new[:, self.merged[1]] = resp[:, self.split] * (1.0 - self.share)
        new[:, self.split] = resp[:, self.split] * self.share
        return new


class _Halves(NamedTuple):
    """What two components bring in the place of one (nats, all rows), and the share (n,) of the first in each row."""

    gain: float
    share: Float


def exchanges(
    family: Family, components: Params, resp: Float, sample: Chunk, pair: _Pair, rng: np.random.Generator
) -> list[Exchange]:
    """Return the exchanges that promise most, in order.

    Parameters
    ----------
    family, components : the components' family, and their parameters.
    resp : (n, k) responsibilities for the rows of `sample`.
    pair : a mixture of two components of the family.
    rng : source of the starts from which components are split.

    Notes
    -----
    After [1]_, section 3. Pairs to merge are those whose responsibilities go together most: their merge criterion, as
    a cosine, so that large components are not favoured. In the place of their split criterion, gains and losses are
    computed: each component's rows, weighted with its responsibilities, are fitted by two components, and those of a
    pair by one.

    References
    ----------
    .. [1] Ueda, Nakano, Ghahramani & Hinton (2000), Neural Computation 12(9), 2109-2128.
    """
    view = _View(family, sample, resp, np.array(family.log_prob(components, sample), np.float64))
    halves = {k: half for k in range(resp.shape[1]) if (half := view.split(k, pair, rng)) is not None}
    ranked = [
        (gain, merged, k)
        for merged in _sharing(view.rows)
        for loss in [view.loss(*merged)]
        for k, half in halves.items()
        if k not in merged and np.isfinite(gain := half.gain - loss)
    ]
    chosen: list[tuple[float, tuple[int, int], int]] = []
    for one in sorted(ranked, key=lambda one: -one[0]):
        alike = max(sum(other[place] == one[place] for other in chosen) for place in (1, 2))
        if alike < ALIKE and len(chosen) < PROPOSED:
            chosen.append(one)
    return [Exchange(gain, merged, k, halves[k].share) for gain, merged, k in chosen]


@dataclass(frozen=True, eq=False)
class _View:
    """A sample, with the responsibilities and log densities, (n, k), of components for its rows."""

    family: Family
    sample: Chunk
    resp: Float
    log_prob: Float

    @property
    def rows(self) -> Float:
        """How much of each row is each component's, (n, k), weights of rows included."""
        return self.resp if self.sample.weight is None else self.resp * self.sample.weight[:, None]

    def split(self, k: int, pair: _Pair, rng: np.random.Generator) -> _Halves | None:
        """Return what two components make of the rows of component k; None where there is too little to tell."""
        rows, kept = self.rows[:, k], self.resp[:, k] > LEAST_SHARE
        if rows[kept].sum() < LEAST_ROWS:
            return None
        part = replace(self.sample.select(kept), weight=rows[kept], scratch=Scratch())
        try:
            params = best_of_runs(pair, part, [pair.init(part, rng)], STEPS)
        except DegenerateComponentError:
            return None
        share = np.full(len(rows), 0.5)
        share[kept] = pair.posterior(params, part)[:, 0]
        return _Halves(pair.e_step(params, part).objective - float(rows[kept] @ self.log_prob[kept, k]), share)

    def loss(self, i: int, j: int) -> float:
        """Return what is lost (nats, all rows) where one component takes the place of i and j."""
        n = self.rows[:, [i, j]].sum(axis=0)
        resp = self.resp[:, [i, j]].sum(axis=1)
        rows = self.rows[:, [i, j]].sum(axis=1)
        one = self.family.log_prob(self.family.init(self.sample, resp[:, None]), self.sample)[:, 0]
        both = np.logaddexp(*(np.log(n / n.sum()) + self.log_prob[:, [i, j]]).T)
        told = rows > 0
        return float(rows[told] @ (both - one)[told])


def _sharing(rows: Float) -> list[tuple[int, int]]:
    """Return the pairs of components that share most rows, those first whose rows (n, k) go together most."""
    size = np.sqrt((rows**2).sum(axis=0))
    size[size == 0] = np.inf
    cosine = rows.T @ rows / np.outer(size, size)
    pairs = itertools.combinations(range(len(size)), 2)
    return sorted(pairs, key=lambda pair: -cosine[pair])[:PAIRS]
