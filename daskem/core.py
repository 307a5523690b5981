"""The contracts everything hangs on: what a model, a family and an algorithm are, and what passes between them.

A model says what one block of rows tells (`Model.e_step`, additive expected statistics) and what parameters those
statistics imply (`Model.m_step`). An algorithm says how parameters move and sees nothing but a `Problem`. Neither knows
where rows come from or where code runs.

Array shapes use the axis letters n (rows), d (features) and k (components).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from daskem.errors import MissingCapabilityError

__all__ = [
    "Algorithm",
    "Array",
    "Chunk",
    "Event",
    "Expectation",
    "Family",
    "Float",
    "Footprint",
    "HandlesMissing",
    "HasDistance",
    "HasEvents",
    "HasFootprint",
    "HasImpute",
    "HasLogPrior",
    "HasLogProb",
    "HasNParameters",
    "HasPosterior",
    "HasSample",
    "HasSurrogate",
    "HasVector",
    "Int",
    "Model",
    "Params",
    "Problem",
    "Scratch",
    "State",
    "Stats",
    "StepInfo",
    "StopRule",
    "handles_missing",
    "require",
]

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
# Each model has records of its own for these; daskem only adds, scales and stores them (see daskem.tree).
Params = Any
Stats = Any
State = Any

C = TypeVar("C")


class Scratch:
    """Work arrays that are reused from block to block, and values computed once a task or once a block.

    Allocating tens of megabytes for every block costs as much as the arithmetic. The engine gives all blocks of a task
    one `Scratch`; a chunk made by hand has its own. What a model leaves in it is never seen by anybody else.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, Array] = {}
        self._kept: dict[Hashable, tuple[object, Any]] = {}

    def empty(self, name: Hashable, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float64) -> Array:
        """Return an uninitialised C-contiguous array; the same memory each time for one name, if it is large enough."""
        size, dtype = math.prod(shape), np.dtype(dtype)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)

    def keep(self, name: Hashable, owner: object, make: Callable[[], Any]) -> Any:
        """Return ``make()``, made anew only when `owner` (params, or a chunk) is another object than last time."""
        kept = self._kept.get(name)
        if kept is None or kept[0] is not owner:
            kept = self._kept[name] = (owner, make())
        return kept[1]

    def clear(self) -> None:
        """Forget everything.

        A chunk that owns what is kept here refers back to this scratch. Left to the collector of cycles, its rows, and
        the whole read that they are a view of, would stay in memory long after the task.
        """
        self._buffers.clear()
        self._kept.clear()


@dataclass(frozen=True, eq=False)
class Chunk:
    """A block of rows, with all that a model may know about them.

    Attributes
    ----------
    rows : (n, d) array, C-contiguous, never written to; float32 or float64. NaN, a missing value, reaches only models
        that say they handle it (see `HandlesMissing`).
    weight : (n,) float64, not negative, or None for ones. A row of weight 2 counts as two rows, of weight 0 as none.
    labels : (n,) int64, the known component of a row or -1, or None when nothing is known.
    start : absolute index of the first row in the data set.
    seed, step : seed and step of the run, for E-steps that draw: ``chunk.rng(chunk.step)``.
    scratch : reusable work arrays.
    """

    rows: Array
    weight: Float | None = None
    labels: Int | None = None
    start: int = 0
    seed: int = 0
    step: int = 0
    scratch: Scratch = field(default_factory=Scratch, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def total_weight(self) -> float:
        """Sum of the weights; the number of rows where there are none."""
        return float(len(self)) if self.weight is None else float(self.weight.sum())

    def rng(self, step: int) -> np.random.Generator:
        """Return a generator that depends on (seed, step, start) alone, whichever worker asks.

        Counter-based (Philox; Salmon, Moraes, Dror & Shaw 2011, SC11), so streams of different blocks never overlap.
        """
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, step, self.start]))

    def uniform(self, step: int, size: int) -> Float:
        """Return (n, size) uniform numbers in [0, 1); each row's depend on (seed, step, absolute row) alone.

        Unlike `rng`, the numbers do not depend on where blocks begin, hence not on how the data are chunked.
        """
        # Philox makes four 64-bit words a count; a whole number of counts per row lets any row start at its own count.
        counts = -(-size // 4)
        bits = np.random.Philox(key=self.seed, counter=[0, 0, step, 1 << 63])
        bits.advance(self.start * counts)
        return np.random.Generator(bits).random((len(self), 4 * counts))[:, :size]


@dataclass(frozen=True, eq=False)
class Expectation:
    """What an E-step says of some rows. Every leaf is additive over disjoint rows.

    Attributes
    ----------
    stats : a record of expected sufficient statistics (see `daskem.tree`), float64 whatever the data's type.
    objective : sum of log p(x | params) (or of a lower bound) in nats, at the params that this E-step was given.
    weight : sum of the rows' weights.
    """

    stats: Stats
    objective: float
    weight: float


@runtime_checkable
class Model(Protocol):
    """A latent-variable model: all that a user writes."""

    def init(self, sample: Chunk, rng: np.random.Generator) -> Params:
        """Return starting parameters from a sample of rows drawn across the whole data set."""

    def e_step(self, params: Params, chunk: Chunk) -> Expectation:
        """Return the expected statistics of `chunk`. Pure; runs on workers. An empty chunk gives the zero record."""

    def m_step(self, stats: Stats, params: Params) -> Params:
        """Return the parameters that `stats` imply, `params` being the current ones. Pure; runs on the driver."""


@runtime_checkable
class Family(Protocol):
    """A density given a component. One family serves mixtures, HMM emissions and partly labelled data alike."""

    def init(self, sample: Chunk, resp: Float) -> Params:
        """Return parameters from a sample and its responsibilities (n, k)."""

    def log_prob(self, params: Params, chunk: Chunk) -> Array:
        """Return log p(x | component), (n, k), nats. The array may live in ``chunk.scratch`` and may be overwritten."""

    def stats(self, params: Params, chunk: Chunk, resp: Array) -> Stats:
        """Return the statistics of the rows under `resp` (n, k), which already holds the rows' weights."""

    def m_step(self, stats: Stats, params: Params) -> Params:
        """Return the parameters that `stats` imply."""


class Problem(Protocol):
    """All that an algorithm may ask. Statistics reach `maximize` scaled to the weight of the full data."""

    @property
    def n_units(self) -> int:
        """Number of work units, the smallest pieces `expect` can be asked for."""

    def expect(self, params: Params, blocks: Sequence[int] | None = None, step: int = 0) -> Expectation:
        """Run the E-step over the given work units (all of them by default) and add what they say."""

    def expect_each(
        self, members: Sequence[Params], blocks: Sequence[int] | None = None, step: int = 0
    ) -> list[Expectation]:
        """Run the E-step for several parameter sets in one pass."""

    def maximize(self, stats: Stats, params: Params) -> Params:
        """Run the M-step."""

    def objective(self, expectation: Expectation, params: Params) -> float:
        """Return the mean objective per unit weight, nats, the model's log prior included where it has one."""

    def change(self, old: Params, new: Params) -> float:
        """Return how far parameters moved: the model's own `distance`, else the largest relative change of a leaf."""

    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened) of all that the M-step which made `params` had to repair."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a component and was dealt with, such as an empty component kept or reseeded."""

    step: int
    component: int
    what: str


@dataclass(frozen=True)
class StepInfo:
    """The log line of a step.

    Attributes
    ----------
    step : number of the step, from 1.
    objective : mean per unit weight, nats, at the params the step STARTED from.
    weight : weight of the rows that the step saw.
    passes : passes over the data so far, this step's included.
    seconds : wall-clock time of the step.
    change : how far the parameters moved (see `Problem.change`).
    events : what the step had to repair.
    """

    step: int
    objective: float
    weight: float
    passes: float
    seconds: float
    change: float
    events: tuple[Event, ...] = ()


class Algorithm(Protocol):
    """How parameters move: a frozen value. STATE is the least that the next step needs; it has a field `params`."""

    def init(self, problem: Problem, params: Params) -> State:
        """Return the state before the first step."""

    def step(self, problem: Problem, state: State) -> tuple[State, StepInfo]:
        """Return the next state and what to log of the step. Pure."""


class StopRule(Protocol):
    """Decides from the trace whether to stop."""

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        """Return the reason to stop, or None to go on."""

    @property
    def converged(self) -> bool:
        """Whether stopping for this rule means convergence; False for a budget such as a number of steps."""


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


# Optional capabilities of a model: one-method protocols, asked for by name where they are needed.


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
class HasVector(Protocol):
    def to_vector(self, params: Params) -> Float:
        """Return the parameters as an unconstrained vector (p,)."""

    def from_vector(self, vector: Float, params: Params) -> Params:
        """Return the parameters of an unconstrained vector; `params` supplies what is fixed."""


@runtime_checkable
class HasPosterior(Protocol):
    def posterior(self, params: Params, chunk: Chunk) -> Array:
        """Return the posterior of the latent variable, (n, k)."""


@runtime_checkable
class HasLogProb(Protocol):
    def log_prob(self, params: Params, chunk: Chunk) -> Array:
        """Return log p(x | params) of each row, (n,), nats."""


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
class HasEvents(Protocol):
    def events(self, params: Params) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened) of each component that the M-step which made `params` had to repair."""


@runtime_checkable
class HandlesMissing(Protocol):
    @property
    def handles_missing(self) -> bool:
        """Whether NaN in the rows stands for a value that is missing (at random), rather than for an error."""


@runtime_checkable
class HasImpute(Protocol):
    def impute(self, params: Params, chunk: Chunk) -> Array:
        """Return the rows (n, d) with E[missing | present] in the place of missing values, nothing else changed."""


def handles_missing(model: object) -> bool:
    """Return whether `model`, or a function of blocks, takes NaN for a missing value; False where it does not say."""
    return isinstance(model, HandlesMissing) and bool(model.handles_missing)


def require(model: object, capability: type[C], purpose: str) -> C:
    """Return `model` as one that has `capability`.

    Raises
    ------
    MissingCapabilityError
        Naming the methods to implement.
    """
    if isinstance(model, capability):
        return model
    methods = ", ".join(sorted(name for name in vars(capability) if not name.startswith("_")))
    raise MissingCapabilityError(
        f"{type(model).__name__} cannot be used for {purpose}: it has no method {methods}. "
        f"Implement it as daskem.core.{capability.__name__} documents."
    )
