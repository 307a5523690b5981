"""The contracts everything hangs on: what a model, a family and an algorithm are, and what passes between them.

A model says what one block of rows tells (`Model.e_step`, additive expected statistics) and what parameters those
statistics imply (`Model.m_step`). An algorithm says how parameters move and sees nothing but a `Problem`. Neither knows
where rows come from or where code runs.

Array shapes use the axis letters n (rows), d (features) and k (components).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from daskem.capabilities import (
    Footprint,
    HandlesMissing,
    HasBounds,
    HasDistance,
    HasEvents,
    HasFloor,
    HasFootprint,
    HasImpute,
    HasLogPrior,
    HasLogProb,
    HasMoves,
    HasNParameters,
    HasObjectiveError,
    HasObjectiveKind,
    HasParameterNames,
    HasParts,
    HasPosterior,
    HasRebase,
    HasSample,
    HasScores,
    HasSupport,
    HasSurrogate,
    HasVector,
    Params,
    Stats,
    UsesColumns,
    handles_missing,
    has_floor,
    objective_kind,
    offers,
    require,
    used_columns,
)
from daskem.chunk import Array, Chunk, Float, Int, Scratch

__all__ = [
    "Algorithm",
    "Array",
    "Batch",
    "Chunk",
    "Event",
    "Expectation",
    "Family",
    "Float",
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
    "HasMemory",
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
    "Int",
    "Model",
    "Params",
    "Part",
    "Problem",
    "Scratch",
    "Sizes",
    "State",
    "Stats",
    "StepInfo",
    "StopRule",
    "UsesColumns",
    "handles_missing",
    "has_floor",
    "objective_kind",
    "offers",
    "require",
    "used_columns",
]

# Each algorithm has records of its own for this, as each model has for `Params` and `Stats`.
State = Any


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
    """A latent-variable model: all that a user writes; `daskem.testing.zero_inflated_poisson` is one to copy.

    Further methods, if there, switch something on: `log_prob` scores, ``daskem score`` and fits on samples first;
    `posterior` labels and probabilities of rows; `n_parameters` AIC, BIC and the tolerance "statistical"; `to_vector`
    and `from_vector` the algorithms that extrapolate (squarem, anderson); `surrogate` incremental EM and Fisher's
    identity as a check; `log_prior` maximum a posteriori estimates; `sample` simulated rows; `distance` a stop rule in
    the model's own measure; `moves` ways out of a local maximum, for fits on samples first; `events` reports of
    repaired components; `unsupported` errors that name the row a model cannot have; `rebase` statistics about moving
    points; `footprint` exact plans of memory; and the attributes `soft_labels` = True label probabilities,
    `used_columns` rows whose other columns may hold anything. The protocols below say what each returns.
    """

    def init(self, sample: Chunk, rng: np.random.Generator) -> Params:
        """Return starting parameters from a sample of rows drawn across the whole data set."""

    def e_step(self, params: Params, chunk: Chunk) -> Expectation:
        """Return the expected statistics of `chunk`. Pure; runs on workers. An empty chunk gives the zero record."""

    def m_step(self, stats: Stats, params: Params) -> Params:
        """Return the parameters that `stats` imply, `params` being the current ones. Pure; runs on the driver."""


@runtime_checkable
class Family(Protocol):
    """A density given a component. One family serves mixtures, HMM emissions and partly labelled data alike.

    What a family may have beside, for a mixture to have it too: `surrogate`, `log_prior`, `to_vector`, `from_vector`,
    `n_parameters`, `events`, `rebase` and `unsupported`, as those of a model; ``draw(params, components, rng)``, a row
    (n, d) from each of the components (n,), for samples; ``embedding(rows)``, (n, q) and finite, between whose rows
    a start measures distances; ``start``, the `init_method` that it prefers; ``handles_missing``, whether NaN is a hole
    that it leaves out; ``used_columns``, the only columns that it looks at; ``terms(params, chunk)``, log densities
    that are linear in features (a tuple of `daskem.compiled.Terms`, or None), and ``stats_of_terms(params, chunk,
    sums)``, the statistics of the sums of these, or ``posterior_stats(params, chunk, log_weights)`` itself (see
    `daskem.models.at_once`), for speed; ``row_numbers(k, d)``, ``record_bytes(k, d)`` and
    ``missing_bytes(rows, k, d)``, for the planner (see `daskem.models.Mixture.footprint`).
    """

    def init(self, sample: Chunk, resp: Float) -> Params:
        """Return parameters from a sample and its responsibilities (n, k)."""

    def log_prob(self, params: Params, chunk: Chunk) -> Array:
        """Return log p(x | component), (n, k), nats. The array may live in ``chunk.scratch`` and may be overwritten."""

    def stats(self, params: Params, chunk: Chunk, resp: Array) -> Stats:
        """Return the statistics of the rows under `resp` (n, k), which already holds the rows' weights."""

    def m_step(self, stats: Stats, params: Params) -> Params:
        """Return the parameters that `stats` imply."""


@dataclass(frozen=True)
class Batch:
    """Names a mini-batch: rows drawn at random from a window of pieces of the data, themselves in random order.

    Attributes
    ----------
    index : place among all mini-batches, counted from 0 and on from epoch to epoch.
    rows : rows of a mini-batch, about.
    window : pieces (runs of stored chunks of about 16 MiB) whose rows are mixed; None for 16, or all if fewer.
    held_out : rows of the sample (see `Problem.subsample`) that no mini-batch holds.
    """

    index: int
    rows: int
    window: int | None = None
    held_out: int = 0


# Which rows an E-step sees: work units by their numbers, a mini-batch, or all (None).
Part = Sequence[int] | Batch | None


class Problem(Protocol):
    """All that an algorithm may ask. Statistics reach `maximize` scaled to the weight of the full data.

    What `expect` says of a mini-batch, or of a subsample, is already scaled so: an estimate of what it would say of all
    rows. What it says of some work units is their share, to be added to the others'.
    """

    @property
    def model(self) -> Model:
        """The model, for its optional capabilities (see `require`)."""

    @property
    def n_units(self) -> int:
        """Number of work units, the smallest pieces `expect` can be asked for."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    def expect(self, params: Params, part: Part = None, step: int = 0) -> Expectation:
        """Run the E-step over a part of the data, all of them by default, and add what the rows say."""

    def expect_each(self, members: Sequence[Params], part: Part = None, step: int = 0) -> list[Expectation]:
        """Run the E-step for several parameter sets in one pass."""

    def n_batches(self, batch: Batch) -> int:
        """Return how many mini-batches such as `batch` make an epoch, in which each row is seen once."""

    def share(self, batch: Batch) -> float:
        """Return the share of all rows that a mini-batch holds; with what is held out, an epoch's add up to 1."""

    def subsample(self, rows: int) -> Problem:
        """Return the problem of a uniform sample of rows, read once and kept in memory.

        The same call gives the same rows. A sample of a sample is part of it.
        """

    def sample_passes(self, rows: int) -> float:
        """Return the passes over the data that drawing a sample takes: at most 1, and 0 where rows are in memory."""

    @property
    def sample_room(self) -> int:
        """Most rows that `subsample` may be asked for, by the memory there is."""

    def fits(self, algorithm: HasMemory) -> bool:
        """Return whether there is memory for what an algorithm keeps."""

    def moves(self, params: Params) -> Sequence[tuple[str, Params]]:
        """Return where else EM might start from, near a maximum over rows in memory (see `HasMoves`); maybe nothing."""

    def maximize(self, stats: Stats, params: Params) -> Params:
        """Run the M-step."""

    def objective(self, expectation: Expectation, params: Params) -> float:
        """Return the mean objective per unit weight, nats, the model's log prior included where it has one."""

    def precision(self, params: Params) -> float:
        """Return p / (2 n), nats per row: by how much chance alone lifts the maximum over n rows with p parameters.

        Rows of weight zero are not counted.
        """

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
    exact : whether the objective is of all rows, so that it must not fall from step to step.
    remaining : estimate of what further steps would still gain, nats per row; None where the algorithm makes none.
    stage : what the algorithm is about, where it has stages.
    error : by how much chance may have lowered the objective, a standard error in nats per row, inf if not known; 0
        but for models that draw (see `HasObjectiveError`).
    """

    step: int
    objective: float
    weight: float
    passes: float
    seconds: float
    change: float
    events: tuple[Event, ...] = ()
    exact: bool = True
    remaining: float | None = None
    stage: str = ""
    error: float = 0.0


class Algorithm(Protocol):
    """How parameters move: a frozen value. STATE is the least that the next step needs; it has a field `params`.

    An algorithm may have an attribute ``needs``, the capabilities without which a model cannot be fitted by it, and a
    method ``memory`` (see `HasMemory`).
    """

    def init(self, problem: Problem, params: Params) -> State:
        """Return the state before the first step."""

    def step(self, problem: Problem, state: State) -> tuple[State, StepInfo]:
        """Return the next state and what to log of the step. Pure."""


@runtime_checkable
class HasMemory(Protocol):
    """An algorithm that keeps something beside the E-step."""

    def memory(self, sizes: Sizes) -> int:
        """Return the bytes that the algorithm keeps in this process."""


class StopRule(Protocol):
    """Decides from the trace whether to stop."""

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        """Return the reason to stop, or None to go on."""

    @property
    def converged(self) -> bool:
        """Whether stopping for this rule means convergence; False for a budget such as a number of steps."""


# Copies of a subsample that are in memory at a time: as it is drawn, as it is joined, and smaller samples of it.
SAMPLE_COPIES = 2.5


class Sizes(NamedTuple):
    """What an algorithm must know of a problem to tell how much memory it will need.

    Attributes
    ----------
    n_rows, n_units : rows and work units of the data.
    row : bytes of a row in memory, its weight and label included.
    piece : bytes of a piece of the data (see `Batch`).
    stats, params : bytes of the statistics, and of the parameters, of all runs that share their passes.
    member : bytes that tasks need for one parameter set more of each run.
    readers : bytes that tasks read by, and that are free while they see mini-batches.
    room : bytes that are left for it.
    """

    n_rows: int
    n_units: int
    row: int
    piece: int
    stats: int
    params: int
    member: int
    readers: int
    room: int

    @property
    def sample_room(self) -> int:
        """Most rows of a subsample (see `Problem.subsample`)."""
        return int(self.room / (SAMPLE_COPIES * self.row))

    def sample_bytes(self, rows: int) -> int:
        """Return the bytes that a subsample of `rows` takes while it is drawn."""
        return int(SAMPLE_COPIES * rows * self.row)
