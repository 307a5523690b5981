"""What becomes of a component that has lost its rows or collapsed: policies, codes, and who is split to refill it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from daskem.core import Array, Float
from daskem.errors import DegenerateComponentError, OptionError

__all__ = [
    "AT_BOUND",
    "AT_PRIOR",
    "COLLAPSED_KEPT",
    "EMPTY_KEPT",
    "EMPTY_SHARE",
    "RESEEDED",
    "Policy",
    "check_policy",
    "describe",
    "raise_degenerate",
    "split_largest",
]

Policy = Literal["keep", "reseed", "raise"]

EMPTY_KEPT, COLLAPSED_KEPT, RESEEDED, AT_PRIOR, AT_BOUND = 1, 2, 3, 4, 5
_WHAT = {
    EMPTY_KEPT: "empty: kept at its previous parameters",
    COLLAPSED_KEPT: "collapsed (covariance not positive definite): kept at its previous parameters",
    RESEEDED: "degenerate: reseeded by splitting the component of largest weight",
    AT_PRIOR: "empty: at the mode of its prior",
    AT_BOUND: "collapsed onto equal values: kept at the bound of its parameters",
}
# Share of the total weight below which a component holds nothing: its moments would drown in the 10 eps added to n.
EMPTY_SHARE = 1e-12


def check_policy(policy: str) -> None:
    """Raise OptionError unless `policy` is one that exists."""
    if policy not in ("keep", "reseed", "raise"):
        raise OptionError(f"on_collapse is {policy!r}; it must be 'keep', 'reseed' or 'raise'.")


def describe(repaired: Array) -> tuple[tuple[int, str], ...]:
    """Return (component, what happened) of each nonzero code of `repaired` (k,)."""
    return tuple((int(k), _WHAT[int(repaired[k])]) for k in np.flatnonzero(repaired))


def split_largest(n: Float, vacant: Sequence[int]) -> tuple[list[tuple[int, int]], Float]:
    """Choose for each vacant component the one to split: the heaviest, whose weight the two then share.

    Parameters
    ----------
    n : (k,) weights of the components.
    vacant : components to refill, in increasing order.

    Returns
    -------
    pairs : (vacant component, component to split), in order.
    n : (k,) weights after the splits.
    """
    n = np.array(n, dtype=float)
    n[list(vacant)] = 0.0
    pairs = []
    for k in vacant:
        donor = int(n.argmax())
        n[donor] /= 2
        n[k] = n[donor]
        pairs.append((int(k), donor))
    return pairs, n


def raise_degenerate(k: int, n: Float, collapse: str | None, remedy: str) -> None:
    """Raise the error that names the component, its weight and what may be done; an empty one has no `collapse`."""
    limit = EMPTY_SHARE * float(n.sum())
    what = f"below the limit of {limit:.3g}" if collapse is None else collapse
    raise DegenerateComponentError(
        f"component {k} of {len(n)} has weight {n[k]:.3g} rows: {what}. It is empty or collapses onto few points. "
        f"Use fewer components, {remedy}, or on_collapse='keep' or 'reseed'."
    )
