"""Models whose posterior can only be sampled: Monte Carlo EM, and with `StepwiseEM` stochastic approximation EM."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from scipy.special import ndtri

from daskem import tree
from daskem.core import (
    Array,
    Chunk,
    Expectation,
    Float,
    Footprint,
    HasDistance,
    HasEvents,
    HasFootprint,
    HasLogPrior,
    HasLogProb,
    HasNParameters,
    HasPosterior,
    HasRebase,
    HasSample,
    HasSurrogate,
    Int,
    Params,
    Stats,
    require,
    used_columns,
)
from daskem.errors import OptionError
from daskem.models.mixture import RECORD_BYTES

__all__ = ["GrowingDraws", "MonteCarlo", "MonteCarloParams", "MonteCarloStats", "RowRandom", "Sampler"]

# Groups of draws whose spread is the Monte Carlo error; each costs a record of statistics.
MAX_GROUPS = 8
# Numbers that a normal variable is inverted from must not be 0.
SMALLEST = 2.0**-54
# Assumed of a model that does not tell its footprint, and of what a draw takes: blocks, and copies of their rows.
BLOCK_ROWS, DRAW_COPIES = 1024, 8

# What only a model can tell that has the method itself.
PASSED_ON = ("log_prob", "posterior", "sample", "n_parameters")


class RowRandom:
    """Random numbers for the rows of a block; those of a row depend on (seed, step, draw, absolute row) alone.

    So they are the same wherever a block begins, whoever computes it, and for all parameters tried at one step. Calls
    are told apart by their order, which must not depend on the rows.

    Parameters
    ----------
    chunk : the block, with all its rows.
    draw : number of the draw.
    kept : (n,) which rows to give numbers for, or None for all.
    """

    def __init__(self, chunk: Chunk, draw: int, kept: Array | None = None) -> None:
        self._chunk, self._kept = chunk, kept
        self._stream = draw << 32

    def uniform(self, size: int | None = None) -> Float:
        """Return uniform numbers in [0, 1), (n,), or (n, size)."""
        self._stream += 1
        numbers = self._chunk.uniform(self._chunk.step, size or 1, self._stream)
        numbers = numbers if self._kept is None else numbers[self._kept]
        return numbers[:, 0] if size is None else numbers

    def normal(self, size: int | None = None) -> Float:
        """Return standard normal numbers, (n,), or (n, size), by inversion."""
        return np.asarray(ndtri(np.maximum(self.uniform(size), SMALLEST)))

    def categorical(self, prob: Array) -> Int:
        """Return a category (n,) drawn from the probabilities (n, k) of each row."""
        upto = np.cumsum(prob, axis=1)
        return np.asarray((upto[:, :-1] <= self.uniform()[:, None] * upto[:, -1:]).sum(axis=1), np.int64)

    def generator(self) -> np.random.Generator:
        """Return a generator for the block, for methods such as rejection that need they know not how many numbers.

        It gives the same bits for any number of workers, but other ones where blocks begin at other rows, as they do
        when the same rows are stored in other chunks.
        """
        self._stream += 1
        chunk = self._chunk
        counter = [0, 1 << 63 | self._stream, chunk.step, chunk.start]
        return np.random.Generator(np.random.Philox(key=chunk.seed, counter=counter))


class Sampler(Protocol):
    """A model that can only sample its posterior.

    It may also have ``log_prob`` (see `daskem.core.HasLogProb`), or else
    ``complete_log_prob(params, chunk, latent) -> (n,)``, log p(x, z | params) in nats, for the objective;
    ``surrogate``, for the Monte Carlo error of a step; and what else `daskem.core` lists.
    """

    def init(self, sample: Chunk, rng: np.random.Generator) -> Params:
        """Return starting parameters (see `daskem.core.Model`)."""

    def sample_posterior(self, params: Params, chunk: Chunk, rng: RowRandom) -> Any:
        """Return a draw of the latent variables of each row from p(z | x, params), in any form."""

    def complete_stats(self, chunk: Chunk, latent: Any) -> Stats:
        """Return the complete-data statistics, additive over rows, weights included."""

    def m_step(self, stats: Stats, params: Params) -> Params:
        """Return the parameters that mean complete-data statistics imply."""


@runtime_checkable
class _HasCompleteLogProb(Protocol):
    def complete_log_prob(self, params: Params, chunk: Chunk, latent: Any) -> Float:
        """Return log p(x, z | params), (n,), nats."""


@dataclass(frozen=True, eq=False)
class MonteCarloParams:
    """Parameters of the model, and how the next E-step is to draw.

    Attributes
    ----------
    params : the model's own.
    draws : number of draws of each latent variable in the next E-step.
    noise : by how much (nats, all rows) the Monte Carlo error of the step that made `params` may have lowered the
        objective; None where it is not known.
    previous : the parameters before, and `level` the objective there (nats per unit weight), where the objective is
        estimated from one step to the next.
    """

    params: Params
    draws: int
    noise: float | None
    previous: Params = None
    level: float = 0.0


@dataclass(frozen=True, eq=False)
class MonteCarloStats:
    """Statistics by groups of draws, and the gain of the step before.

    Attributes
    ----------
    groups : complete-data statistics, each record the mean over the draws of its group.
    gain : estimate of log p(x | params) - log p(x | previous), nats, and `variance`, its Monte Carlo variance.
    weight : weight of the rows.
    """

    groups: tuple[Stats, ...]
    gain: float
    variance: float
    weight: float


@dataclass(frozen=True)
class GrowingDraws:
    """More draws as soon as the gain of a step is not told from Monte Carlo error.

    Parameters
    ----------
    factor : what the number of draws is multiplied by.
    z : standard errors by which a gain must exceed 0, for the number of draws to stay.
    most : largest number of draws.

    References
    ----------
    .. [1] Booth & Hobert (1999), J. R. Stat. Soc. B 61(1), 265-285.
    .. [2] Caffo, Jank & Jones (2005), J. R. Stat. Soc. B 67(2), 235-251.
    """

    factor: float = 1.5
    z: float = 1.645
    most: int = 1024

    def __post_init__(self) -> None:
        if not (self.factor > 1 and self.z >= 0 and self.most >= 1):
            raise OptionError(
                f"factor={self.factor}, z={self.z}, most={self.most}: draws grow by a factor above 1, up to a positive "
                "number, when a gain is below z >= 0 standard errors."
            )

    def __call__(self, draws: int, gain: float, error: float) -> int:
        """Return the next number of draws, from the gain of a step and its standard error, nats."""
        return draws if gain > self.z * error else max(draws, min(math.ceil(self.factor * draws), self.most))


@dataclass(frozen=True)
class MonteCarlo:
    """Makes a model that can only sample its posterior one that every algorithm fits: the E-step averages draws.

    With `BatchEM` this is Monte Carlo EM [1]_, whose number of draws grows as Monte Carlo error becomes the limit; with
    `StepwiseEM`, and a constant number, stochastic approximation EM [2]_.

    Parameters
    ----------
    model : see `Sampler`.
    n_draws : number of draws to begin with; above 1 it is rounded up to a multiple of `groups`.
    schedule : how it grows: `GrowingDraws`, or None for a constant number. A model without `surrogate` cannot tell the
        gain of a step, hence needs None.

    Notes
    -----
    Draws are kept apart in groups. To tell the gain of a step free of the optimism of maximising over the same draws,
    the gain in Q of a step made from one half of the groups is taken over each group of the other half.

    The objective is the model's own `log_prob` where it has one. Else it is the log-likelihood above that of the start,
    a sum over steps of -log mean_z p(x, z | before) / p(x, z | now), with z drawn now [3]_; several starts cannot be
    compared by it, and with blended statistics it is of little use: with `StepwiseEM` it lags behind, and with
    `VarianceReducedEM` it may be a third too high. A model with neither is fitted without an
    objective, which is then 0; only budgets or `Change` end a fit.

    References
    ----------
    .. [1] Wei & Tanner (1990), J. Am. Stat. Assoc. 85(411), 699-704.
    .. [2] Delyon, Lavielle & Moulines (1999), Ann. Stat. 27(1), 94-128.
    .. [3] Meng & Schilling (1996), J. Am. Stat. Assoc. 91(435), 1254-1267.
    """

    model: Sampler
    n_draws: int = 16
    schedule: GrowingDraws | None = GrowingDraws()

    # Its E-steps depend on the step (see `daskem.algorithms.lockstep`).
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.n_draws, bool) or not isinstance(self.n_draws, (int, np.integer)) or self.n_draws < 1:
            raise OptionError(f"n_draws is {self.n_draws!r}; it must be a whole number, at least 1.")
        if self.schedule is not None:
            require(self.model, HasSurrogate, "a number of draws that grows (schedule=None keeps it constant)")
            if self.n_draws < 2:
                raise OptionError("one draw does not tell its Monte Carlo error. Use n_draws >= 2, or schedule=None.")

    @property
    def used_columns(self) -> tuple[int, ...] | None:
        """The columns that the model looks at, None for all."""
        return used_columns(self.model)

    @property
    def groups(self) -> int:
        """Number of groups of draws."""
        return min(int(self.n_draws), MAX_GROUPS)

    @property
    def objective_kind(self) -> str:
        """What the objective is, in words."""
        if isinstance(self.model, HasLogProb):
            return str(getattr(self.model, "objective_kind", "objective"))
        return "estimated log-likelihood above the start" if self._estimates else "no objective"

    def init(self, sample: Chunk, rng: np.random.Generator) -> MonteCarloParams:
        """Return the model's own start."""
        return self.start(self.model.init(sample, rng))

    def start(self, params: Params) -> MonteCarloParams:
        """Return parameters of the model as those to start from."""
        noise = 0.0 if self._tells_noise else None
        return MonteCarloParams(params, self._rounded(self.n_draws), noise, params if self._estimates else None)

    def e_step(self, params: MonteCarloParams, chunk: Chunk) -> Expectation:
        """Return the statistics averaged over draws; their bits depend on (seed, step, absolute row) alone."""
        kept = None if chunk.weight is None or chunk.weight.all() else chunk.weight > 0
        here = chunk.present()
        ratios = _LogMean(len(here))
        sums: list[Stats] = [None] * self.groups
        for draw in range(params.draws):
            latent = self.model.sample_posterior(params.params, here, RowRandom(chunk, draw, kept))
            stats = self.model.complete_stats(here, latent)
            group = draw % self.groups
            sums[group] = stats if sums[group] is None else tree.add(sums[group], stats)
            if params.previous is not None:
                ratios.add(self._log_ratio(params, here, latent))
        weight = np.ones(len(here)) if here.weight is None else here.weight
        gain, variance = -float(weight @ ratios.mean()), float(weight**2 @ ratios.variance())
        groups = tuple(tree.scale(total, self.groups / params.draws) for total in sums)
        total = chunk.total_weight
        objective = params.level * total + gain
        if isinstance(self.model, HasLogProb):
            objective = float(weight @ self.model.log_prob(params.params, here))
        return Expectation(MonteCarloStats(groups, gain, variance, total), objective, total)

    def m_step(self, stats: MonteCarloStats, params: MonteCarloParams) -> MonteCarloParams:
        """Return the model's M-step on the mean statistics, and the number of draws that comes next."""
        new = self.model.m_step(_mean(stats.groups), params.params)
        draws, noise = params.draws, None
        if self._tells_noise:
            gain, error = self._gain(stats.groups, params.params)
            # A step that truly loses was made of noise; it may lose that much, and an error more.
            noise = math.hypot(min(gain, 0.0), error)
            draws = draws if self.schedule is None else self._rounded(self.schedule(draws, gain, error))
        if not self._estimates:
            return MonteCarloParams(new, draws, noise)
        return MonteCarloParams(new, draws, noise, params.params, params.level + stats.gain / stats.weight)

    def objective_error(self, stats: MonteCarloStats, params: MonteCarloParams) -> float:
        """Return by how much (nats, all rows) Monte Carlo error may have lowered the objective; inf if not known."""
        if params.noise is None or not (self._estimates or isinstance(self.model, HasLogProb)):
            return math.inf
        return math.hypot(math.sqrt(stats.variance), params.noise)

    def rebase(self, stats: MonteCarloStats, old: MonteCarloParams, new: MonteCarloParams) -> MonteCarloStats:
        """Return `stats`, made at `old`, as they are to be added to statistics made at `new`."""
        return replace(stats, groups=tuple(self._rebased(group, old.params, new.params) for group in stats.groups))

    def footprint(self, n_features: int, dtype: np.dtype[Any]) -> Footprint:
        """Return the model's footprint, or modest sizes where it tells none, with the statistics of every group."""
        row = DRAW_COPIES * n_features * dtype.itemsize
        told = Footprint(BLOCK_ROWS, BLOCK_ROWS * row, RECORD_BYTES, RECORD_BYTES, row)
        if isinstance(self.model, HasFootprint):
            told = self.model.footprint(n_features, dtype)
        own = told.block_rows * row + 2 * told.stats
        # Numbers beside the records, and the parameters before.
        return told._replace(
            workspace=told.workspace + own, stats=self.groups * told.stats + 24, params=2 * told.params + 32
        )

    def log_prior(self, params: MonteCarloParams) -> float:
        """Return the model's log prior density; 0 where it has none."""
        return self._log_prior(params.params)

    def log_prob(self, params: MonteCarloParams, chunk: Chunk) -> Array:
        """Return the model's log p(x | params) of each row, (n,), nats."""
        return require(self.model, HasLogProb, "log densities").log_prob(params.params, chunk)

    def posterior(self, params: MonteCarloParams, chunk: Chunk) -> Array:
        """Return the model's posterior, (n, k)."""
        return require(self.model, HasPosterior, "assigning rows").posterior(params.params, chunk)

    def sample(self, params: MonteCarloParams, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return (n, d) rows that the model draws, and their latent variables."""
        return require(self.model, HasSample, "sampling").sample(params.params, n, rng)

    def n_parameters(self, params: MonteCarloParams) -> int:
        """Return the number of the model's free parameters."""
        return require(self.model, HasNParameters, "a number of parameters").n_parameters(params.params)

    def events(self, params: MonteCarloParams) -> tuple[tuple[int, str], ...]:
        """Return what the model's M-step had to repair."""
        return self.model.events(params.params) if isinstance(self.model, HasEvents) else ()

    def distance(self, old: MonteCarloParams, new: MonteCarloParams) -> float:
        """Return how far the model's parameters moved."""
        distance = self.model.distance if isinstance(self.model, HasDistance) else tree.max_change
        return float(distance(old.params, new.params))

    def offers(self, method: str) -> bool:
        """Return whether `method`, one of this model's own, will work."""
        return method not in PASSED_ON or callable(getattr(self.model, method, None))

    @property
    def _estimates(self) -> bool:
        return isinstance(self.model, _HasCompleteLogProb) and not isinstance(self.model, HasLogProb)

    @property
    def _tells_noise(self) -> bool:
        return self.groups > 1 and isinstance(self.model, HasSurrogate)

    def _rounded(self, draws: int) -> int:
        return -(-int(draws) // self.groups) * self.groups

    def _log_ratio(self, params: MonteCarloParams, chunk: Chunk, latent: Any) -> Float:
        """Return log p(x, z | previous) - log p(x, z | params), (n,)."""
        log_prob = require(self.model, _HasCompleteLogProb, "the objective").complete_log_prob
        return np.asarray(log_prob(params.previous, chunk, latent) - log_prob(params.params, chunk, latent), np.float64)

    def _gain(self, groups: tuple[Stats, ...], old: Params) -> tuple[float, float]:
        """Return the gain of a step from half of the draws, measured over the others, and its standard error, nats."""
        halves = groups[::2], groups[1::2]
        gains = np.concatenate([self._gains(halves[0], halves[1], old), self._gains(halves[1], halves[0], old)])
        return float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains)))

    def _gains(self, step: tuple[Stats, ...], over: tuple[Stats, ...], old: Params) -> Float:
        model = require(self.model, HasSurrogate, "the gain of a step")
        new = self.model.m_step(_mean(step), old)
        prior = self._log_prior(new) - self._log_prior(old)
        return np.array(
            [model.surrogate(self._rebased(g, old, new), new) - model.surrogate(g, old) + prior for g in over]
        )

    def _rebased(self, stats: Stats, old: Params, new: Params) -> Stats:
        return self.model.rebase(stats, old, new) if isinstance(self.model, HasRebase) else stats

    def _log_prior(self, params: Params) -> float:
        return self.model.log_prior(params) if isinstance(self.model, HasLogPrior) else 0.0


class _LogMean:
    """Running log of a mean of exponentials, (n,), and its variance by the delta method."""

    def __init__(self, n: int) -> None:
        self._first, self._second, self._count = np.full(n, -np.inf), np.full(n, -np.inf), 0

    def add(self, value: Float) -> None:
        self._first = np.logaddexp(self._first, value)
        self._second = np.logaddexp(self._second, 2 * value)
        self._count += 1

    def mean(self) -> Float:
        return self._first - math.log(self._count) if self._count else np.zeros(len(self._first))

    def variance(self) -> Float:
        if self._count < 2:
            return np.zeros(len(self._first))
        relative = np.exp(self._second + math.log(self._count) - 2 * self._first) - 1.0
        return np.asarray(np.maximum(relative, 0.0) / (self._count - 1))


def _mean(groups: tuple[Stats, ...]) -> Stats:
    return tree.scale(tree.reduce(groups), 1.0 / len(groups))
