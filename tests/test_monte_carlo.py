"""Monte Carlo EM against models whose posterior, likelihood and estimates are known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import kstest, multivariate_normal, norm

import daskem
from daskem import tree
from daskem.algorithms import BatchEM, Gain, MaxSteps, StepwiseEM, decrease
from daskem.core import Chunk, StepInfo
from daskem.errors import MissingCapabilityError, OptionError
from daskem.models import Gaussian, GrowingDraws, Mixture, MixtureParams, MixtureStats, MonteCarlo, RowRandom
from daskem.testing import check_model

# Standard errors that a correct estimate stays within.
FAR = 4.5


@dataclass(frozen=True)
class SampledMixture:
    """A Gaussian mixture that knows its posterior only by draws; the exact one is its `mixture`."""

    mixture: Mixture = field(default_factory=lambda: Mixture(Gaussian("diag", 0.0), 2))

    def init(self, sample: Chunk, rng: np.random.Generator) -> MixtureParams:
        return self.mixture.init(sample, rng)

    def sample_posterior(self, params: MixtureParams, chunk: Chunk, rng: RowRandom) -> Any:
        return params, rng.categorical(self.mixture.posterior(params, chunk))

    def complete_stats(self, chunk: Chunk, latent: Any) -> MixtureStats:
        params, component = latent
        resp = np.eye(self.mixture.n_components)[component]
        if chunk.weight is not None:
            resp *= chunk.weight[:, None]
        return MixtureStats(resp.sum(axis=0), self.mixture.family.stats(params.components, chunk, resp))

    def m_step(self, stats: MixtureStats, params: MixtureParams) -> MixtureParams:
        return self.mixture.m_step(stats, params)

    def surrogate(self, stats: MixtureStats, params: MixtureParams) -> float:
        return self.mixture.surrogate(stats, params)

    def rebase(self, stats: MixtureStats, old: MixtureParams, new: MixtureParams) -> MixtureStats:
        return self.mixture.rebase(stats, old, new)

    def log_prob(self, params: MixtureParams, chunk: Chunk) -> np.ndarray:
        return self.mixture.log_prob(params, chunk)

    def posterior(self, params: MixtureParams, chunk: Chunk) -> np.ndarray:
        return self.mixture.posterior(params, chunk)


@dataclass(frozen=True)
class RegressionStats:
    xx: np.ndarray
    xz: np.ndarray
    zz: float


@dataclass(frozen=True)
class Probit:
    """y = (x b + noise > 0), the latent variable being x b + noise; rows are (y, x). It tells no objective."""

    def init(self, sample: Chunk, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(sample.rows.shape[1] - 1)

    def sample_posterior(self, params: np.ndarray, chunk: Chunk, rng: RowRandom) -> np.ndarray:
        sign, mean = 2 * chunk.rows[:, 0] - 1, chunk.rows[:, 1:] @ params
        # Mirrored, the normal variable is above 0: inversion of its distribution function within that range.
        return mean - sign * ndtri((1 - rng.uniform()) * ndtr(sign * mean))

    def complete_stats(self, chunk: Chunk, latent: np.ndarray) -> RegressionStats:
        x = chunk.rows[:, 1:].astype(float)
        w = np.ones(len(x)) if chunk.weight is None else chunk.weight
        return RegressionStats((w[:, None] * x).T @ x, (w[:, None] * x).T @ latent, float(w @ latent**2))

    def m_step(self, stats: RegressionStats, params: np.ndarray) -> np.ndarray:
        return np.linalg.solve(stats.xx, stats.xz)

    def surrogate(self, stats: RegressionStats, params: np.ndarray) -> float:
        return float(-0.5 * (stats.zz - 2 * params @ stats.xz + params @ stats.xx @ params))


class ScoredProbit(Probit):
    """The probit model with its likelihood, which has a closed form."""

    def log_prob(self, params: np.ndarray, chunk: Chunk) -> np.ndarray:
        return log_ndtr((2 * chunk.rows[:, 0] - 1) * (chunk.rows[:, 1:] @ params))


class EstimatedProbit(Probit):
    """The probit model with the density of rows and latent variables together."""

    def complete_log_prob(self, params: np.ndarray, chunk: Chunk, latent: np.ndarray) -> np.ndarray:
        return -0.5 * (latent - chunk.rows[:, 1:] @ params) ** 2


@dataclass(frozen=True)
class FactorStats:
    zz: np.ndarray
    zx: np.ndarray
    xx: np.ndarray
    n: float


@dataclass(frozen=True)
class FactorParams:
    loadings: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Factors:
    """Factor analysis of centred rows: x = W z + e, e ~ N(0, diag), (Rubin & Thayer 1982)."""

    n_factors: int = 1

    def init(self, sample: Chunk, rng: np.random.Generator) -> FactorParams:
        d = sample.rows.shape[1]
        return FactorParams(rng.normal(size=(d, self.n_factors)), np.ones(d))

    def posterior_moments(self, params: FactorParams, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = params.loadings / params.noise[:, None]
        covariance = np.linalg.inv(np.eye(self.n_factors) + params.loadings.T @ scaled)
        return rows @ scaled @ covariance, covariance

    def sample_posterior(self, params: FactorParams, chunk: Chunk, rng: RowRandom) -> np.ndarray:
        mean, covariance = self.posterior_moments(params, chunk.rows)
        return mean + rng.normal(self.n_factors) @ np.linalg.cholesky(covariance).T

    def complete_stats(self, chunk: Chunk, latent: np.ndarray) -> FactorStats:
        return FactorStats(latent.T @ latent, latent.T @ chunk.rows, (chunk.rows**2).sum(0), chunk.total_weight)

    def m_step(self, stats: FactorStats, params: FactorParams) -> FactorParams:
        loadings = np.linalg.solve(stats.zz, stats.zx).T
        return FactorParams(loadings, (stats.xx - (loadings * stats.zx.T).sum(1)) / stats.n)

    def surrogate(self, stats: FactorStats, params: FactorParams) -> float:
        w = params.loadings
        residual = stats.xx - 2 * (w * stats.zx.T).sum(1) + np.einsum("dk,kl,dl->d", w, stats.zz, w)
        return float(-0.5 * (stats.n * np.log(params.noise).sum() + (residual / params.noise).sum()))

    def complete_log_prob(self, params: FactorParams, chunk: Chunk, latent: np.ndarray) -> np.ndarray:
        residual = chunk.rows - latent @ params.loadings.T
        return -0.5 * (np.log(params.noise).sum() + (residual**2 / params.noise).sum(1) + (latent**2).sum(1))

    def log_likelihood(self, params: FactorParams, rows: np.ndarray) -> float:
        covariance = params.loadings @ params.loadings.T + np.diag(params.noise)
        return float(multivariate_normal(np.zeros(rows.shape[1]), covariance).logpdf(rows).sum())


def two_clouds(n: int = 400) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.where(rng.random((n, 1)) < 0.4, rng.normal(0.0, 1.0, (n, 2)), rng.normal(2.5, 0.7, (n, 2)))


def answers(n: int = 600) -> np.ndarray:
    rng = np.random.default_rng(6)
    x = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    return np.column_stack([x @ [0.3, 1.0, -0.6] + rng.normal(size=n) > 0, x])


def one_factor(n: int = 300) -> np.ndarray:
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(n, 1)) @ np.array([[1.0, -0.8, 0.6, 0.4]]) + rng.normal(0, 0.6, (n, 4))
    return rows - rows.mean(axis=0)


def probit_maximum(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum likelihood estimate and its standard errors."""
    sign, x = 2 * rows[:, 0] - 1, rows[:, 1:]
    found = minimize(lambda b: -log_ndtr(sign * (x @ b)).sum(), np.zeros(3), tol=1e-10)
    mean = x @ found.x
    information = (x * (norm.pdf(mean) ** 2 / (ndtr(mean) * ndtr(-mean)))[:, None]).T @ x
    return found.x, np.sqrt(np.diag(np.linalg.inv(information)))


# Draws.


def test_numbers_of_a_row_do_not_depend_on_blocks() -> None:
    rows = np.zeros((100, 1))
    whole = RowRandom(Chunk(rows, start=50, seed=3, step=2), draw=4)
    wanted = whole.uniform(), whole.normal(3), whole.categorical(np.full((100, 3), 1 / 3))
    for start, stop in ((0, 30), (30, 31), (31, 100)):
        part = RowRandom(Chunk(rows[start:stop], start=50 + start, seed=3, step=2), draw=4)
        np.testing.assert_array_equal(part.uniform(), wanted[0][start:stop])
        np.testing.assert_array_equal(part.normal(3), wanted[1][start:stop])
        np.testing.assert_array_equal(part.categorical(np.full((stop - start, 3), 1 / 3)), wanted[2][start:stop])


def test_numbers_are_independent_of_each_other() -> None:
    chunk = Chunk(np.zeros((4000, 1)), seed=1, step=1)
    seen = [RowRandom(replace(chunk, step=s), draw=m).uniform(2) for s in (1, 2) for m in (0, 1)]
    again = RowRandom(chunk, 0)
    again.uniform(2)
    seen += [again.uniform(2), again.generator().random((4000, 2))]
    flat = np.concatenate(seen, axis=1)
    assert len(np.unique(flat)) == flat.size
    assert np.abs(np.corrcoef(flat.T) - np.eye(flat.shape[1])).max() < FAR / math.sqrt(4000)
    assert all(kstest(column, "uniform").pvalue > 1e-4 for column in flat.T)
    assert kstest(RowRandom(chunk, 0).normal(), "norm").pvalue > 1e-3


def test_categories_have_their_probabilities() -> None:
    chunk = Chunk(np.zeros((20_000, 1)))
    prob = np.array([0.2, 0.0, 0.5, 0.3])
    share = np.bincount(RowRandom(chunk, 0).categorical(np.tile(prob, (20_000, 1))), minlength=4) / 20_000
    assert share[1] == 0
    assert (np.abs(share - prob) <= FAR * np.sqrt(prob * (1 - prob) / 20_000)).all()


def test_absent_rows_leave_the_draws_of_others_alone() -> None:
    rows = two_clouds(50)
    model = MonteCarlo(SampledMixture(), 4)
    params = model.init(Chunk(rows), np.random.default_rng(0))
    weight = np.where(np.arange(50) % 3 == 0, 0.0, 1.5)
    spoiled = np.where(weight[:, None] > 0, rows, np.nan)
    got = model.e_step(params, Chunk(spoiled, weight))
    want = model.e_step(params, Chunk(rows, weight + 1e-300))
    tree.map_leaves(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


@pytest.mark.parametrize(
    ("inner", "rows"),
    [(SampledMixture(), two_clouds(200)), (EstimatedProbit(), answers(200)), (Factors(), one_factor(200))],
    ids=["mixture", "probit", "factors"],
)
def test_statistics_are_additive_over_blocks(inner: Any, rows: np.ndarray) -> None:
    model = MonteCarlo(inner, 8)
    params = model.init(Chunk(rows), np.random.default_rng(0))
    params = model.m_step(model.e_step(params, Chunk(rows)).stats, params)
    whole = model.e_step(params, Chunk(rows, start=1000, seed=2, step=7))
    cuts = ((0, 64), (64, 65), (65, 200), (200, 200))
    parts = [model.e_step(params, Chunk(rows[a:b], start=1000 + a, seed=2, step=7)) for a, b in cuts]
    tree.map_leaves(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), tree.reduce(parts), whole)


def test_fits_do_not_depend_on_chunks() -> None:
    rows, model = answers(500), MonteCarlo(ScoredProbit(), 8)
    fits = [
        daskem.fit(model, data, algorithm=BatchEM(), stop=MaxSteps(4), seed=9, params=model.start(np.zeros(3)))
        for data in (rows, da.from_array(rows, chunks=(37, -1)), da.from_array(rows, chunks=(128, -1)))
    ]
    assert fits[0].params.draws == fits[1].params.draws == fits[2].params.draws
    for other in fits[1:]:
        np.testing.assert_allclose(other.params.params, fits[0].params.params, rtol=1e-12)
    different = daskem.fit(model, rows, algorithm=BatchEM(), stop=MaxSteps(4), seed=10, params=model.start(np.zeros(3)))
    assert np.abs(different.params.params - fits[0].params.params).max() > 1e-6


def test_the_contract_of_a_model_is_kept() -> None:
    # What a row draws depends on its place by design, and the objective falls by chance.
    by_design = ["additive", "row_order_does_not_matter", "duplicate_is_weight_two", "zero_weight_is_absent"]
    by_design += ["start_does_not_matter", "objective_never_falls", "float32_rows", "linear_in_weight"]
    # The next number of draws goes by nats, not by nats per row.
    by_design += ["m_step_is_scale_free"]
    checked = check_model(MonteCarlo(SampledMixture(), 4), two_clouds(60), skip=by_design, steps=5)
    assert {
        "footprint_suffices",
        "empty_is_zero",
        "inputs_untouched",
        "same_bits",
        "scratch_is_private",
        "pickles",
    } <= set(checked)


# Estimates.


def test_mixture_approaches_exact_em() -> None:
    rows = two_clouds()
    exact = daskem.fit(Mixture(Gaussian("diag", 0.0), 2), rows, algorithm=BatchEM(), stop=[Gain(1e-10), MaxSteps(500)])
    model = MonteCarlo(SampledMixture(), 8, GrowingDraws(factor=2.0, most=512))
    found = daskem.fit(
        model, rows, algorithm=BatchEM(), stop=[Gain(1e-5), MaxSteps(60)], params=model.start(exact_start(rows))
    )
    assert found.params.draws > 8
    assert found.objective == pytest.approx(exact.objective, abs=1e-4)
    np.testing.assert_allclose(np.sort(found.params.params.weights), np.sort(exact.params.weights), atol=0.01)


def exact_start(rows: np.ndarray) -> MixtureParams:
    return Mixture(Gaussian("diag", 0.0), 2).init(Chunk(rows), np.random.default_rng(1))


def test_probit_approaches_maximum_likelihood() -> None:
    rows = answers()
    maximum, errors = probit_maximum(rows)
    model = MonteCarlo(ScoredProbit(), 8)
    found = daskem.fit(
        model, rows, algorithm=BatchEM(), stop=[Gain(1e-5), MaxSteps(80)], params=model.start(np.zeros(3))
    )
    assert found.params.draws > 8
    assert (np.abs(found.params.params - maximum) < 0.1 * errors).all()
    assert found.trace[-1].error < found.trace[1].error


def test_draws_grow_when_noise_is_the_limit_and_not_before() -> None:
    rows = answers()
    model = MonteCarlo(ScoredProbit(), 8, GrowingDraws(most=256))
    draws: list[int] = []
    daskem.fit(
        model,
        rows,
        algorithm=BatchEM(),
        stop=MaxSteps(25),
        params=model.start(np.zeros(3)),
        callbacks=[lambda info, params: draws.append(params.draws)],
    )
    assert draws[:3] == [8, 8, 8]
    assert draws == sorted(draws)
    assert draws[-1] > 50


def test_stochastic_approximation_needs_no_more_draws() -> None:
    rows = answers(2000)
    maximum, errors = probit_maximum(rows)
    model = MonteCarlo(ScoredProbit(), 1, None)
    noisy, settled = (
        daskem.fit(model, rows, algorithm=algorithm, stop=MaxSteps(steps), params=model.start(np.zeros(3)), seed=4)
        for algorithm, steps in ((BatchEM(), 60), (StepwiseEM(batch_rows=500, held_out=100, average=True), 400))
    )
    assert noisy.params.draws == settled.params.draws == 1
    held_out_too = errors * math.sqrt(2000 / 1900)
    assert (np.abs(settled.params.params - maximum) < 0.75 * held_out_too).all()


def test_blended_statistics_settle_with_one_draw() -> None:
    rows, model = answers(), MonteCarlo(ScoredProbit(), 1, None)
    maximum, errors = probit_maximum(rows)
    far = {}
    for blended in (False, True):
        params, stats, path = model.start(np.zeros(3)), None, []
        for step in range(1, 301):
            found = model.e_step(params, Chunk(rows, seed=1, step=step)).stats
            # Ones until the neighbourhood is reached, then rates as Delyon, Lavielle & Moulines (1999) ask for.
            rate = (step - 30) ** -0.8 if blended and step > 30 else 1.0
            stats = found if rate == 1.0 else tree.lerp(stats, found, rate)
            params = model.m_step(stats, params)
            path.append((params.params - maximum) / errors)
        far[blended] = math.sqrt(np.mean(np.square(path[-100:])))
    assert far[True] < 0.2
    assert far[True] < far[False] / 3


# Objective.


def test_estimated_objective_is_the_log_likelihood_above_the_start() -> None:
    rows, inner = one_factor(), Factors()
    model = MonteCarlo(inner, 64, None)
    params = model.init(Chunk(rows), np.random.default_rng(3))
    start, total_error = inner.log_likelihood(params.params, rows), 0.0
    for step in range(1, 12):
        found = model.e_step(params, Chunk(rows, seed=5, step=step))
        total_error = math.hypot(total_error, math.sqrt(found.stats.variance))
        truth = inner.log_likelihood(params.params, rows) - start
        # The log of a mean is low by half its relative variance: a bias that the variance bounds.
        assert abs(found.objective - truth) <= FAR * total_error + found.stats.variance + 1e-9
        params = model.m_step(found.stats, params)
    assert truth > 50


def test_error_of_the_objective_is_that_of_repeated_draws() -> None:
    rows, inner = one_factor(), Factors()
    model = MonteCarlo(inner, 64, None)
    params = model.init(Chunk(rows), np.random.default_rng(3))
    for step in range(1, 6):
        params = model.m_step(model.e_step(params, Chunk(rows, step=step)).stats, params)
    found = [model.e_step(params, Chunk(rows, seed=seed, step=9)) for seed in range(60)]
    spread = np.std([one.stats.gain for one in found], ddof=1)
    told = math.sqrt(np.mean([one.stats.variance for one in found]))
    # A standard deviation of 60 numbers is known to 9 percent.
    assert told == pytest.approx(spread, rel=0.4)


def test_estimated_objective_ends_a_fit() -> None:
    model = MonteCarlo(EstimatedProbit(), 8)
    found = daskem.fit(model, answers(), algorithm=BatchEM(), stop=[Gain(1e-4), MaxSteps(80)])
    maximum, errors = probit_maximum(answers())
    assert found.converged
    assert (np.abs(found.params.params - maximum) < 0.2 * errors).all()
    assert found.trace[0].objective == 0.0
    assert model.objective_kind == "estimated log-likelihood above the start"


def test_without_an_objective_no_gain_is_claimed() -> None:
    model = MonteCarlo(Probit(), 8)
    found = daskem.fit(model, answers(), algorithm=BatchEM(), stop=[Gain(), MaxSteps(12)])
    assert not found.converged
    assert found.objective == 0.0
    assert math.isinf(found.trace[-1].error)
    assert model.objective_kind == "no objective"


def test_fisher_identity_holds_within_monte_carlo_error() -> None:
    rows, inner = one_factor(), Factors()
    model = MonteCarlo(inner, 4000, None)
    params = replace(model.init(Chunk(rows), np.random.default_rng(3)), previous=None)
    groups = model.e_step(params, Chunk(rows, seed=1, step=1)).stats.groups
    here = params.params
    for d in range(rows.shape[1]):

        def moved(step: float, d: int = d) -> FactorParams:
            loadings = here.loadings.copy()
            loadings[d, 0] += step
            return replace(here, loadings=loadings)

        slope = (inner.log_likelihood(moved(1e-5), rows) - inner.log_likelihood(moved(-1e-5), rows)) / 2e-5
        expected = [(inner.surrogate(g, moved(1e-5)) - inner.surrogate(g, moved(-1e-5))) / 2e-5 for g in groups]
        error = np.std(expected, ddof=1) / math.sqrt(len(groups))
        assert abs(np.mean(expected) - slope) <= 6 * error


def info(objective: float, error: float) -> StepInfo:
    return StepInfo(1, objective, 1.0, 1.0, 0.0, 0.0, error=error)


def test_chance_is_neither_a_fall_nor_convergence() -> None:
    assert decrease([info(-1.0, 0.01), info(-1.03, 0.01)]) == 0.0
    assert decrease([info(-1.0, 0.001), info(-1.03, 0.001)]) == pytest.approx(0.03)
    assert decrease([info(-1.0, math.inf), info(-9.0, 0.0)]) == 0.0
    assert Gain(1e-3)([info(-1.0, 0.01), info(-1.0, 0.01)]) is None
    assert Gain(1e-3)([info(-1.0, 1e-5), info(-1.0, 1e-5)]) is not None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n_draws": 0}, OptionError),
        ({"n_draws": 1}, OptionError),
        ({"n_draws": 2.5}, OptionError),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="draw"):
        MonteCarlo(Probit(), **options)


def test_what_a_model_lacks_is_named() -> None:
    class Bare:
        init, sample_posterior = Probit.init, Probit.sample_posterior
        complete_stats, m_step = Probit.complete_stats, Probit.m_step

    with pytest.raises(MissingCapabilityError, match="surrogate"):
        MonteCarlo(Bare())
    model = MonteCarlo(Bare(), 4, None)
    found = daskem.fit(model, answers(100), algorithm=BatchEM(), stop=MaxSteps(5), params=model.start(np.zeros(3)))
    assert found.n_steps == 5
    with pytest.raises(MissingCapabilityError, match="log_prob"):
        model.log_prob(found.params, Chunk(answers(3)))
    with pytest.raises(OptionError, match="factor=1"):
        GrowingDraws(factor=1.0)
