"""E-steps of mixtures in one go: densities, responsibilities and statistics of a few rows before those of the next."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from daskem import compiled
from daskem.core import Chunk, Family, Float, Params, Stats

__all__ = ["knows", "posterior_stats"]


def posterior_stats(
    family: Family, params: Params, chunk: Chunk, log_weights: Float
) -> tuple[Float, Stats, Float] | None:
    """Return the weights (k,) and statistics under the posterior of the component, and log p(x) (n,), nats.

    None where the family does not know how, or where it is not faster (see `daskem.core.Family`).
    """
    own = cast(Any, family)
    if knows(family, "posterior_stats"):
        return cast(tuple[Float, Stats, Float] | None, own.posterior_stats(params, chunk, log_weights))
    terms = own.terms(params, chunk) if knows(family, "terms") else None
    if terms is None:
        return None
    try:
        sums, log_prob, _ = compiled.e_step(terms, log_weights, chunk.weight)
    except compiled.NotWholeError:
        return None
    return np.array(sums[0][:, 0]), own.stats_of_terms(params, chunk, sums), log_prob


def knows(family: Family, method: str) -> bool:
    """Return whether a family has a method, and no subclass a density or statistics that this knows not of."""
    for cls in type(family).__mro__:
        if method in vars(cls):
            return True
        if not vars(cls).keys().isdisjoint({"log_prob", "stats"}):
            return False
    return False
