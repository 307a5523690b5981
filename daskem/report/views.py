"""Components over the rows: projections to pairs of features of a sample, for any model that assigns rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem.core import Chunk, Float, HasPosterior, Params
from daskem.report.charts import Ellipse, density_view, histogram_view

__all__ = ["SAMPLE_ROWS", "Projections"]

SAMPLE_ROWS = 20_000
# Features whose pairs are shown, and components drawn in a view.
MOST_FEATURES, MOST_COMPONENTS = 4, 24


@dataclass(frozen=True, eq=False)
class Projections:
    """A sample of rows, and the moments of those that each component holds.

    At a maximum of the likelihood of a mixture of Gaussians these are the components' own moments; of other models they
    show where the rows lie that a component explains.

    Attributes
    ----------
    rows, weight : (n, d) and (n,).
    names : of the features.
    components : numbers of those that hold rows.
    means, covariances : (k, d), (k, d, d).
    """

    rows: Float
    weight: Float
    names: Sequence[str]
    components: Sequence[int]
    means: Float
    covariances: Float

    @classmethod
    def of(cls, model: Any, params: Params, sample: Chunk, columns: Sequence[str] | None = None) -> Projections:
        """Return the projections of a sample; rows with holes are left out."""
        whole = np.isfinite(sample.rows).all(axis=1)
        rows = np.asarray(sample.rows[whole], np.float64)
        weight = np.ones(len(rows)) if sample.weight is None else np.asarray(sample.weight[whole], np.float64)
        resp = _shares(model, params, Chunk(np.ascontiguousarray(rows))) * weight[:, None]
        held = resp.sum(axis=0)
        chosen = [int(k) for k in np.argsort(-held, kind="stable")[:MOST_COMPONENTS] if held[k] > 0]
        means = np.array([resp[:, k] @ rows / held[k] for k in chosen]).reshape(-1, rows.shape[1])
        scatter = [
            (resp[:, k, None] * (rows - mean)).T @ (rows - mean) / held[k]
            for k, mean in zip(chosen, means, strict=True)
        ]
        names = list(columns) if columns else [f"feature {j}" for j in range(rows.shape[1])]
        return cls(rows, weight, names, chosen, means, np.array(scatter).reshape(-1, *[rows.shape[1]] * 2))

    def features(self) -> list[int]:
        """Return the features that tell the components apart best, in their order."""
        spread = self.rows.var(axis=0)
        between = self.means.var(axis=0) if len(self.means) else spread
        told = np.where(spread > 0, between / np.where(spread > 0, spread, 1.0), -1.0)
        best = np.argsort(-told, kind="stable")[:MOST_FEATURES]
        return sorted(int(j) for j in best if spread[j] > 0)

    def views(self) -> list[str]:
        """Return a picture of each pair of features, or the histogram of the only one."""
        chosen = self.features()
        if len(chosen) == 1:
            (j,) = chosen
            return [histogram_view(self.rows[:, j], self.weight, self._components(j), self.names[j])]
        return [self._view(a, b) for a, b in itertools.combinations(chosen, 2)]

    def _view(self, a: int, b: int) -> str:
        x, y = self.rows[:, a], self.rows[:, b]
        return density_view(x, y, self.weight, self._components(a, b), self.names[a], self.names[b])

    def _components(self, *features: int) -> list[Ellipse]:
        block = np.ix_(features, features)
        found = zip(self.components, self.means, self.covariances, strict=True)
        return [Ellipse(k, mean[list(features)], covariance[block]) for k, mean, covariance in found]


def _shares(model: Any, params: Params, chunk: Chunk) -> Float:
    """Return by how much each component holds each row, (n, k); (n, 0) of a model that assigns none."""
    if hasattr(model, "assign"):
        labels = np.asarray(model.assign(params, chunk))
        return np.asarray(labels[:, None] == np.arange(labels.max(initial=-1) + 1), np.float64)
    if isinstance(model, HasPosterior):
        return np.asarray(np.nan_to_num(model.posterior(params, chunk)), np.float64)
    return np.zeros((len(chunk), 0))
