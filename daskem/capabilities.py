"""What a model may offer beside its three methods: one-method protocols, asked for by name where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

import numpy as np

from daskem.chunk import Array, Chunk, Float
from daskem.errors import MissingCapabilityError

__all__ = [
    "Footprint",
    "HandlesMissing",
    "HasBounds",
    "HasDistance",
    "HasEvents",
    "HasFloor",
    "HasFootprint",
    "HasImpute",
    "HasLogPrior",
    "HasLogProb",
    "HasMoves",
    "HasNParameters",
    "HasObjectiveError",
    "HasObjectiveKind",
    "HasParameterNames",
    "HasParts",
    "HasPosterior",
    "HasRebase",
    "HasSample",
    "HasScores",
    "HasSupport",
    "HasSurrogate",
    "HasVector",
    "Params",
    "Stats",
    "UsesColumns",
    "handles_missing",
    "has_floor",
    "objective_kind",
    "offers",
    "require",
    "used_columns",
]

# Each model has records of its own for these; daskem only adds, scales and stores them (see daskem.tree).
Params = Any
Stats = Any

C = TypeVar("C")


class Footprint(NamedTuple):
    """What the planner must know of a model before any row is read.

    Attributes
    ----------
    block_rows : rows per block, a power of two.
    workspace : bytes of scratch that an E-step over one block needs.
    stats : bytes of one record of statistics.
    params : bytes of the parameters.
    start : bytes that ``init`` takes for each row of its sample, beside the sample.
    """

    block_rows: int
    workspace: int
    stats: int
    params: int
    start: int = 0


@runtime_checkable
class HasFootprint(Protocol):
    def footprint(self, n_features: int, dtype: np.dtype[Any]) -> Footprint:
        """Return what the planner must know. Without it the engine assumes modest blocks and small statistics."""


@runtime_checkable
class HasSurrogate(Protocol):
    def surrogate(self, stats: Stats, params: Params) -> float:
        """Return Q(params | stats), the expected complete-data log-likelihood, nats, up to a constant of the stats."""


@runtime_checkable
class HasLogPrior(Protocol):
    def log_prior(self, params: Params) -> float:
        """Return the log prior density of the parameters, nats; the M-step maximises Q + log_prior."""


@runtime_checkable
class HasRebase(Protocol):
    def rebase(self, stats: Stats, old: Params, new: Params) -> Stats:
        """Return `stats`, made at the parameters `old`, as they are to be added to statistics made at `new`."""


@runtime_checkable
class HasVector(Protocol):
    def to_vector(self, params: Params) -> Float:
        """Return the parameters as an unconstrained vector (p,)."""

    def from_vector(self, vector: Float, params: Params) -> Params:
        """Return the parameters of an unconstrained vector; `params` supplies what is fixed."""


@runtime_checkable
class HasParameterNames(Protocol):
    def parameter_names(self, params: Params) -> list[str]:
        """Return the names of the coordinates of `to_vector`; those of a component begin with ``component 2: ``."""


@runtime_checkable
class HasScores(Protocol):
    def scores(self, params: Params, chunk: Chunk) -> Float:
        """Return the gradient of log p(x | params) of each row, (n, p), nats, in the coordinates of `to_vector`."""


@runtime_checkable
class HasBounds(Protocol):
    def at_bound(self, params: Params) -> tuple[tuple[int, str], ...]:
        """Return (component, which parameter) of all that lie on a bound, such as a probability of 0 or 1."""


@runtime_checkable
class HasPosterior(Protocol):
    def posterior(self, params: Params, chunk: Chunk) -> Array:
        """Return the posterior of the latent variable, (n, k)."""


@runtime_checkable
class HasLogProb(Protocol):
    def log_prob(self, params: Params, chunk: Chunk) -> Array:
        """Return log p(x | params) of each row, (n,), nats."""


@runtime_checkable
class HasMoves(Protocol):
    def moves(self, params: Params, sample: Chunk, rng: np.random.Generator) -> Sequence[tuple[str, Params]]:
        """Return other parameters from which EM may get higher, the likeliest first, with what is different there.

        `params` are near a maximum, which may be a local one, for the rows of `sample`.
        """


@runtime_checkable
class HasNParameters(Protocol):
    def n_parameters(self, params: Params) -> int:
        """Return the number of free parameters."""


@runtime_checkable
class HasSample(Protocol):
    def sample(self, params: Params, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return (n, d) rows drawn from the model and the latent component (n,) of each."""


@runtime_checkable
class HasDistance(Protocol):
    def distance(self, old: Params, new: Params) -> float:
        """Return how far the parameters moved, in the measure that the model's stop rule is stated in."""


@runtime_checkable
class HasSupport(Protocol):
    def unsupported(self, params: Params | None, rows: Array) -> tuple[int, str] | None:
        """Return the first row that no component can have, and why in words; None if there is none.

        Such rows have log density -inf; this is asked only once that is seen, or (params None) before there are any.
        """


@runtime_checkable
class HasEvents(Protocol):
    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened) of each component that the M-step which made `params` had to repair."""


@runtime_checkable
class HasObjectiveError(Protocol):
    def objective_error(self, stats: Stats, params: Params) -> float:
        """Return by how much (nats, all rows) chance may have lowered the objective that came with `stats`.

        For a model whose E-step draws: a fall within a few of these is no error, and a gain must exceed them. The
        standard error of the objective, together with that of the step that led to `params`; inf if not known.
        """


@runtime_checkable
class HasObjectiveKind(Protocol):
    """A model whose objective is not the log-likelihood, such as a lower bound."""

    @property
    def objective_kind(self) -> str:
        """What the objective is, in words, for people."""


@runtime_checkable
class HasParts(Protocol):
    """A model that is made of parts, and has a capability only where they have it."""

    def offers(self, method: str) -> bool:
        """Return whether `method`, one of this model's own, will work."""


@runtime_checkable
class HandlesMissing(Protocol):
    @property
    def handles_missing(self) -> bool:
        """Whether NaN in the rows stands for a value that is missing (at random), rather than for an error."""


@runtime_checkable
class UsesColumns(Protocol):
    @property
    def used_columns(self) -> tuple[int, ...] | None:
        """The columns of the rows that the model looks at, ascending; None for all. Others may hold anything."""


@runtime_checkable
class HasFloor(Protocol):
    @property
    def has_floor(self) -> bool:
        """Whether M-steps add to variances what no prior accounts for, so that the objective may fall by a little."""


@runtime_checkable
class HasImpute(Protocol):
    def impute(self, params: Params, chunk: Chunk) -> Array:
        """Return the rows (n, d) with E[missing | present] in the place of missing values, nothing else changed."""


def handles_missing(model: object) -> bool:
    """Return whether `model`, or a function of blocks, takes NaN for a missing value; False where it does not say."""
    return isinstance(model, HandlesMissing) and bool(model.handles_missing)


def used_columns(model: object) -> tuple[int, ...] | None:
    """Return the columns of the rows that `model` looks at; None, which is all, where it does not say."""
    return model.used_columns if isinstance(model, UsesColumns) else None


def has_floor(model: object) -> bool:
    """Return whether M-steps of `model` keep variances above a floor; False where it does not say."""
    return isinstance(model, HasFloor) and bool(model.has_floor)


def objective_kind(model: object, otherwise: str = "objective") -> str:
    """Return what the objective of a model is, in words: what it says itself, or `otherwise`."""
    return model.objective_kind if isinstance(model, HasObjectiveKind) else otherwise


def offers(model: object, capability: type[C]) -> TypeGuard[C]:
    """Return whether `model` has `capability`, its parts included."""
    if not isinstance(model, capability):
        return False
    return not isinstance(model, HasParts) or all(map(model.offers, _methods(capability)))


def require(model: object, capability: type[C], purpose: str) -> C:
    """Return `model` as one that has `capability`.

    Raises
    ------
    MissingCapabilityError
        Naming the methods to implement.
    """
    if offers(model, capability):
        return model
    part = f" of a {type(model.family).__name__}" if hasattr(model, "family") else ""
    methods = ", ".join(_methods(capability))
    raise MissingCapabilityError(
        f"{type(model).__name__}{part} cannot be used for {purpose}: it has no method {methods}. "
        f"Implement it as daskem.core.{capability.__name__} documents."
    )


def _methods(capability: type) -> list[str]:
    return sorted(name for name in vars(capability) if not name.startswith("_"))
