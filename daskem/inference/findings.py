"""What stands in the way of determining parameters, in words: too few values, copies, empty components, bounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtri

from daskem.core import Array, Float, HasBounds, Params
from daskem.inference.scores import Evidence

__all__ = ["Finding", "divergences", "find"]

# Two equal components differ by less than this quantile of sampling error.
CONFIDENCE = 0.95
# A component of less weight than one row is empty.
LEAST_WEIGHT = 1.0
# Distance from the maximum, in standard errors, that is worth mentioning.
FAR = 1.0


@dataclass(frozen=True)
class Finding:
    """Something to know about a fit.

    Attributes
    ----------
    what : "few values", "empty", "coincide", "bound", "flat" or "not at the maximum".
    text : what, where, by how much, and what it means.
    components : the components concerned.
    fatal : whether parameters cannot be determined for it.
    """

    what: str
    text: str
    components: tuple[int, ...] = ()
    fatal: bool = False


def find(
    model: Any, params: Params, names: Sequence[str], free: Array, rank: int, evidence: Evidence, away: float
) -> tuple[Finding, ...]:
    """Return all findings; `away` is the distance from the maximum in standard errors, NaN where it is not known."""
    deficient = rank < int(free.sum())
    found = [*_few_values(evidence, len(names), deficient), *_components(names, evidence)]
    if deficient and not found:
        found.append(
            Finding(
                "flat",
                "different parameters give every row the same probability: the model has more parameters than the data "
                "can tell apart. Use fewer components, or fix some parameters.",
                fatal=True,
            )
        )
    found += _bounds(model, params, names, free)
    if away > FAR:
        found.append(
            Finding(
                "not at the maximum",
                f"the parameters are {away:.3g} standard errors from where the likelihood is largest. Standard errors "
                "are those of the maximum: go on with the fit, to a smaller tolerance.",
            )
        )
    return tuple(found)


def divergences(held: Float, overlap: Float) -> Float:
    """Return the symmetric Kullback-Leibler divergence J (k, k) of components, nats, NaN of those without weight.

    J_ab = E_a[log p_a - log p_b] + E_b[log p_b - log p_a], the expectations being averages over rows with weights r_a
    and r_b. Weights w_a, w_b drop out of log r_a - log r_b = log p_a - log p_b + log w_a - log w_b, so that the
    posterior alone tells it.
    """
    with np.errstate(all="ignore"):
        mean = overlap / held[:, None]
    own = np.diagonal(mean)
    gap = own[:, None] - mean
    return np.asarray(np.maximum(gap + gap.T, 0.0))


def _few_values(evidence: Evidence, p: int, deficient: bool) -> Iterator[Finding]:
    distinct = evidence.distinct
    if deficient and distinct is not None:
        n = len(distinct)
        yield Finding(
            "few values",
            f"the rows take only {n} distinct value{'' if n == 1 else 's'}, whose frequencies, summing to one, "
            f"determine at most {n - 1} parameter{'' if n == 2 else 's'}; the model has {p}. More rows of the same "
            "kind cannot help: observe more columns, or use fewer components.",
            fatal=True,
        )


def _components(names: Sequence[str], evidence: Evidence) -> Iterator[Finding]:
    held, overlap = evidence.sums.held, evidence.sums.overlap
    if held is None or overlap is None:
        return
    for a in _indices(held < LEAST_WEIGHT):
        yield Finding(
            "empty",
            f"component {a} holds {held[a]:.3g} of {evidence.sums.weight:,.6g} rows: nothing says where it is. Use "
            "fewer components.",
            (a,),
            fatal=True,
        )
    apart = divergences(held, overlap)
    for a, b in itertools.combinations(_indices(held >= LEAST_WEIGHT), 2):
        # Were each row's component known, twice the rows' log-likelihood ratio of equal components would be chi2.
        limit = chdtri(_own_parameters(names, a, len(held)), 1 - CONFIDENCE) * (1 / held[a] + 1 / held[b])
        if apart[a, b] <= limit:
            yield Finding(
                "coincide",
                f"components {a} and {b} are the same within sampling error: their divergence is {apart[a, b]:.3g} "
                f"nats, chance alone makes {limit:.3g}. How they share their rows is arbitrary. Use fewer components.",
                (a, b),
                fatal=True,
            )


def _own_parameters(names: Sequence[str], component: int, k: int) -> int:
    """Return the parameters of one component: those named after it, else an equal share."""
    own = sum(name.startswith(f"component {component}: ") for name in names)
    return own or max(1, (len(names) - k + 1) // k)


def _bounds(model: Any, params: Params, names: Sequence[str], free: Array) -> Iterator[Finding]:
    for j in _indices(~free):
        yield Finding("bound", f"{names[j]} is at its bound, where it has no standard error.")
    if isinstance(model, HasBounds):
        for component, what in model.at_bound(params):
            text = f"component {component}: {what}. Standard errors suppose that it is not on a bound."
            yield Finding("bound", text, (component,))


def _indices(true: Array) -> list[int]:
    return [int(i) for i in np.flatnonzero(true)]
