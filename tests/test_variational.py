"""Variational mixtures against scikit-learn's, step by step, and against evidence that is known exactly."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.special import gammaln, multigammaln
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from sklearn.utils.estimator_checks import check_estimator

import daskem
from daskem import models
from daskem.algorithms import BatchEM, Gain, MaxSteps, Squarem, StepwiseEM
from daskem.cli import main
from daskem.cli.own import load
from daskem.core import Chunk, objective_kind
from daskem.errors import DaskEMWarning, NonFiniteError, OptionError
from daskem.models import Gaussian, Mixture, NormalWishart, VariationalMixture
from daskem.persist import load_model, save_model

SHAPES = ("full", "tied", "diag", "spherical")
WEIGHTS = ("dirichlet_process", "dirichlet_distribution")


def rows(n: int = 240) -> np.ndarray:
    rng = np.random.default_rng(8)
    mixed = rng.normal(3.0, 1.5, (n, 3)) @ np.array([[1.0, 0.3, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 0.7]])
    return 20.0 + np.where(rng.random((n, 1)) < 0.6, rng.normal(0.0, 1.0, (n, 3)), mixed)


def one_start(sample: np.ndarray, k: int) -> Any:
    """Return a component for each row, the same for both packages."""
    return np.argsort(np.argsort(sample[:, 0])) * k // len(sample)


def ours(covariance: str, weights: str, k: int, reg_covar: float = 1e-6, **priors: Any) -> tuple[Any, Any]:
    """Return a model, and its parameters after the M-step on labels."""
    family = NormalWishart(covariance, reg_covar, **priors)
    model = VariationalMixture(family, k, weight_distribution=weights)
    x = rows()
    return model, model.init(Chunk(x, labels=one_start(x, k)), np.random.default_rng(0))


class Stepped(BayesianGaussianMixture):
    """scikit-learn's estimator from the same start, through its own public fit."""

    def _initialize_parameters(self, X: np.ndarray, random_state: Any, xp: Any = None) -> None:
        self._initialize(X, np.eye(self.n_components)[one_start(X, self.n_components)])


def theirs(covariance: str, weights: str, k: int, steps: int, reg_covar: float = 1e-6, **priors: Any) -> Any:
    mixture = Stepped(
        n_components=k,
        covariance_type=covariance,
        weight_concentration_prior_type=weights,
        reg_covar=reg_covar,
        max_iter=steps,
        tol=0.0,
        **priors,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(rows())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("covariance", SHAPES)
def test_parity_with_scikit_learn_step_by_step(covariance: str, weights: str) -> None:
    model, params = ours(covariance, weights, 3)
    for step in range(1, 21):
        params = model.m_step(model.e_step(params, Chunk(rows())).stats, params)
        if step not in (1, 5, 20):
            continue
        # scikit-learn makes one E-step more at the end of a fit; it changes no parameter.
        other, components = theirs(covariance, weights, 3, step), params.components
        shared = {"rtol": 1e-8, "atol": 1e-12}
        np.testing.assert_allclose(params.weights, other.weights_, **shared)
        np.testing.assert_allclose(np.squeeze(params.concentration), other.weight_concentration_, **shared)
        np.testing.assert_allclose(components.means, other.means_, **shared)
        np.testing.assert_allclose(components.covariances, other.covariances_, **shared)
        np.testing.assert_allclose(components.precisions_cholesky, other.precisions_cholesky_, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(components.mean_precision, other.mean_precision_, **shared)
        np.testing.assert_allclose(components.degrees_of_freedom, np.broadcast_to(other.degrees_of_freedom_, 3))
        np.testing.assert_allclose(model.log_prob(params, Chunk(rows())), other.score_samples(rows()), rtol=1e-8)
        np.testing.assert_allclose(model.posterior(params, Chunk(rows())), other.predict_proba(rows()), atol=1e-8)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("covariance", SHAPES)
def test_bounds_rise_as_scikit_learns(covariance: str, weights: str) -> None:
    model, params = ours(covariance, weights, 3, reg_covar=0.0)
    bounds = []
    for _ in range(8):
        found = model.e_step(params, Chunk(rows()))
        new = model.m_step(found.stats, params)
        entropy = found.objective - model.surrogate(found.stats, params)
        # scikit-learn's bound is at the new parameters and the old responsibilities.
        bounds.append(entropy + model.surrogate(found.stats, new) + model.log_prior(new))
        assert bounds[-1] >= found.objective + model.log_prior(params) - 1e-9
        params = new
    other = [theirs(covariance, weights, 3, steps, reg_covar=0.0).lower_bound_ for steps in range(1, 9)]
    np.testing.assert_allclose(np.diff(bounds), np.diff(np.ravel(other)), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("covariance", SHAPES)
def test_parity_of_given_priors(covariance: str) -> None:
    one = {
        "full": np.diag([1.0, 2.0, 3.0]) + 0.3,
        "tied": np.eye(3),
        "diag": np.array([1.0, 2.0, 0.5]),
        "spherical": 1.7,
    }
    priors = {
        "mean_precision_prior": 0.3,
        "mean_prior": np.array([20.0, 21.0, 22.0]),
        "degrees_of_freedom_prior": 4.5,
        "covariance_prior": one[covariance],
    }
    model, params = ours(covariance, "dirichlet_process", 2, **priors)
    for _ in range(3):
        params = model.m_step(model.e_step(params, Chunk(rows())).stats, params)
    other = theirs(covariance, "dirichlet_process", 2, 3, **priors)
    np.testing.assert_allclose(params.components.means, other.means_, rtol=1e-8)
    np.testing.assert_allclose(params.components.covariances, other.covariances_, rtol=1e-8, atol=1e-12)


# The bound.


def log_evidence(x: np.ndarray, family: NormalWishart, params: Any) -> float:
    """Return log p(X) of one Gaussian with a Normal-Wishart prior (Murphy 2007, equation 266)."""
    (n, d), beta_0, nu_0 = x.shape, family.mean_precision_prior, float(x.shape[1])
    prior_mean, prior_scale = params.components.prior_mean, params.components.prior_scale
    away = x.mean(axis=0) - prior_mean
    scatter = np.cov(x.T, ddof=0) * n + n * beta_0 / (n + beta_0) * np.outer(away, away)
    log_dets = [float(np.linalg.slogdet(matrix)[1]) for matrix in (prior_scale, prior_scale + scatter)]
    volume = multigammaln((nu_0 + n) / 2, d) - multigammaln(nu_0 / 2, d) - 0.5 * n * d * math.log(math.pi)
    return float(
        volume + 0.5 * d * math.log(beta_0 / (beta_0 + n)) + 0.5 * nu_0 * log_dets[0] - 0.5 * (nu_0 + n) * log_dets[1]
    )


def test_bound_is_the_evidence_where_the_posterior_is_in_the_family() -> None:
    x = rows(90)
    model = VariationalMixture(NormalWishart("full", 0.0, mean_precision_prior=0.4), 1, weight_distribution=WEIGHTS[1])
    params = model.init(Chunk(x), np.random.default_rng(0))
    found = model.e_step(params, Chunk(x))
    # One component: the M-step of the start has already found the exact posterior.
    bound = found.objective + model.log_prior(params)
    assert bound == pytest.approx(log_evidence(x, model.family, params), rel=1e-12)


def dirichlet_evidence(x: np.ndarray, family: NormalWishart, params: Any, alpha: float) -> float:
    """Return log p(X) of two components by the sum over all labellings."""
    n, total = len(x), []
    for code in range(2**n):
        labels = (code >> np.arange(n)) & 1
        counts = np.bincount(labels, minlength=2)
        prior = gammaln(2 * alpha) - gammaln(2 * alpha + n) + (gammaln(alpha + counts) - gammaln(alpha)).sum()
        parts = [log_evidence(x[labels == k], family, params) for k in np.unique(labels)]
        total.append(prior + sum(parts))
    return float(np.logaddexp.reduce(total))


@pytest.mark.parametrize("apart", [0.5, 6.0])
def test_bound_is_below_the_evidence_and_near_it_where_components_are_apart(apart: float) -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(0.0, 1.0, (4, 2)), rng.normal(apart, 1.0, (4, 2))])
    prior = {"mean_prior": np.full(2, apart / 2), "covariance_prior": np.eye(2)}
    family = NormalWishart("full", 0.0, mean_precision_prior=0.2, **prior)
    model = VariationalMixture(family, 2, weight_distribution=WEIGHTS[1], concentration_prior=1.0)
    params = model.init(Chunk(x, labels=np.repeat([0, 1], 4)), np.random.default_rng(0))
    for _ in range(100):
        found = model.e_step(params, Chunk(x))
        bound, params = found.objective + model.log_prior(params), model.m_step(found.stats, params)
    evidence = dirichlet_evidence(x, family, params, 1.0)
    assert bound < evidence
    if apart > 1:
        # Two labellings that are images of each other have all the evidence: the bound sees one of them.
        assert bound == pytest.approx(evidence - math.log(2), abs=0.35)


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_the_bound_of_a_row_with_a_hole_is_integrated_over_it(covariance: str) -> None:
    x = rows(400)
    model = VariationalMixture(NormalWishart(covariance, missing=True), 3)
    params = model.init(Chunk(x), np.random.default_rng(0))
    params = model.m_step(model.e_step(params, Chunk(x)).stats, params)
    for j in range(x.shape[1]):
        some = x[:5].copy()
        some[:, j] = np.nan
        grid = np.linspace(x[:, j].min() - 30.0, x[:, j].max() + 30.0, 40_001)
        whole = np.repeat(some, len(grid), axis=0)
        whole[:, j] = np.tile(grid, len(some))
        density = np.exp(model.log_prob(params, Chunk(whole))).reshape(len(some), -1)
        expected = np.log(density.sum(axis=1) * (grid[1] - grid[0]))
        np.testing.assert_allclose(model.log_prob(params, Chunk(some)), expected, rtol=1e-9)
    # A row without any value is left out.
    assert model.log_prob(params, Chunk(np.full((1, x.shape[1]), np.nan))) == 0


def test_bound_approaches_the_likelihood_with_holes_too() -> None:
    x = rows(20_000)
    x[np.random.default_rng(3).random(x.shape) < 0.2] = np.nan
    stop = [Gain(1e-9), MaxSteps(2000)]
    point = daskem.fit(Mixture(Gaussian("full", 0.0, missing=True), 2), x, algorithm=BatchEM(), stop=stop)
    model = VariationalMixture(NormalWishart("full", 0.0, missing=True), 2, weight_distribution=WEIGHTS[1])
    bound = daskem.fit(model, x, algorithm=BatchEM(), stop=stop)
    assert 0 < point.objective - bound.objective < 0.01
    order, other = np.argsort(bound.params.weights), np.argsort(point.params.weights)
    np.testing.assert_allclose(bound.params.weights[order], point.params.weights[other], atol=2e-3)
    np.testing.assert_allclose(bound.params.components.means[order], point.params.components.means[other], atol=0.02)


def test_estimator_and_command_line_take_missing_values(tmp_path: Path) -> None:
    x = rows(2_000)
    holed = x.copy()
    holed[::7, 0] = np.nan
    with pytest.raises(NonFiniteError, match="missing='nan'"):
        daskem.VariationalGaussianMixture(2).fit(holed)
    mixture = daskem.VariationalGaussianMixture(2, missing="nan", random_state=0, tol=1e-8).fit(holed)
    filled = mixture.impute(holed)
    seen = ~np.isnan(holed)
    np.testing.assert_array_equal(filled[seen], holed[seen])
    assert np.abs(filled[::7, 0] - x[::7, 0]).mean() < np.abs(x[::7, 0] - np.nanmean(holed[:, 0])).mean()
    np.save(tmp_path / "x.npy", holed)
    command = ["fit", "variational-mixture", str(tmp_path / "x.npy"), "-k", "2", "-o", str(tmp_path / "m.safetensors")]
    assert CliRunner().invoke(main, [*command, "--missing", "nan"]).exit_code == 0
    assert load(str(tmp_path / "m.safetensors")).model.family.missing


def test_bound_approaches_the_likelihood_as_rows_outweigh_the_prior() -> None:
    gaps = []
    for n in (200, 2000, 20_000):
        x = rows(n)
        point = daskem.fit(Mixture(Gaussian("full", 0.0), 2), x, algorithm=BatchEM(), stop=[Gain(1e-9), MaxSteps(2000)])
        model = VariationalMixture(NormalWishart("full", 0.0), 2, weight_distribution=WEIGHTS[1])
        bound = daskem.fit(model, x, algorithm=BatchEM(), stop=[Gain(1e-9), MaxSteps(2000)])
        gaps.append(point.objective - bound.objective)
        assert gaps[-1] > 0
    # The divergence of q from the prior grows with log n alone.
    assert gaps[1] < gaps[0] / 4
    assert gaps[2] < gaps[1] / 4
    np.testing.assert_allclose(np.sort(bound.params.weights), np.sort(point.params.weights), atol=2e-3)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_divergence_of_weights_from_their_prior(weights: str) -> None:
    model = VariationalMixture(NormalWishart(), 3, weight_distribution=weights, concentration_prior=0.7)
    prior = model._weights
    rng = np.random.default_rng(3)
    concentration = prior.posterior(np.array([4.0, 0.5, 9.0]))
    if weights == "dirichlet_distribution":
        draws = rng.dirichlet(concentration, 400_000)
        ratio = log_dirichlet(draws, concentration) - log_dirichlet(draws, np.full(3, 0.7))
    else:
        a, b = concentration
        sticks = rng.beta(a, b, (400_000, 3))
        draws = sticks * np.cumprod(np.column_stack([np.ones(len(sticks)), 1 - sticks[:, :-1]]), axis=1)
        ratio = (log_beta(sticks, a, b) - log_beta(sticks, np.ones(3), np.full(3, 0.7))).sum(axis=1)
    error = ratio.std() / math.sqrt(len(ratio))
    assert prior.divergence(concentration) == pytest.approx(ratio.mean(), abs=5 * error)
    np.testing.assert_allclose(prior.expected_log(concentration), np.log(draws).mean(axis=0), atol=0.02)
    # Rows of weight 0 leave the prior.
    assert prior.divergence(prior.posterior(np.zeros(3))) == pytest.approx(0.0, abs=1e-12)


def log_dirichlet(w: np.ndarray, a: np.ndarray) -> np.ndarray:
    return gammaln(a.sum()) - gammaln(a).sum() + ((a - 1) * np.log(w)).sum(axis=1)


def log_beta(v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return gammaln(a + b) - gammaln(a) - gammaln(b) + (a - 1) * np.log(v) + (b - 1) * np.log1p(-v)


# Fits.


def test_tiny_concentrations_do_not_underflow() -> None:
    model, _ = ours("full", "dirichlet_distribution", 3)
    model = replace(model, concentration_prior=1e-6)
    x = rows()
    params = model.init(Chunk(x, labels=np.zeros(len(x), np.int64)), np.random.default_rng(0))
    found = model.e_step(params, Chunk(x))
    assert np.isfinite(found.objective)
    assert model._log_weights(params).min() < -1e5


@pytest.mark.parametrize("covariance", ["full", "tied_diag"])
def test_out_of_core_gives_the_same(covariance: str) -> None:
    x, model = rows(3000), VariationalMixture(NormalWishart(covariance), 4)
    params = model.init(Chunk(x), np.random.default_rng(0))
    fits = [
        daskem.fit(model, data, algorithm=BatchEM(), stop=MaxSteps(10), params=params)
        for data in (x, da.from_array(x, chunks=(450, -1)))
    ]
    np.testing.assert_allclose(fits[1].params.components.means, fits[0].params.components.means, rtol=1e-12)
    assert [info.objective for info in fits[0].trace] == sorted(info.objective for info in fits[0].trace)
    assert fits[0].summary()["objective_kind"] == "lower bound"


@pytest.mark.parametrize(
    "algorithm", [Squarem(), StepwiseEM(batch_rows=300, held_out=300)], ids=["squarem", "stepwise"]
)
def test_other_algorithms_reach_the_bound_of_batch_em(algorithm: Any) -> None:
    x = rows(3000)
    model = VariationalMixture(NormalWishart("diag"), 3)
    params = model.init(Chunk(x), np.random.default_rng(0))
    batch = daskem.fit(model, x, algorithm=BatchEM(), stop=[Gain(1e-8), MaxSteps(2000)], params=params)
    other = daskem.fit(model, x, algorithm=algorithm, stop=MaxSteps(150), params=params)
    found = model.e_step(other.params, Chunk(x))
    bound = (found.objective + model.log_prior(other.params)) / len(x)
    assert bound == pytest.approx(batch.objective, abs=5e-3)


def test_superfluous_components_lose_their_weight() -> None:
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.normal(m, 0.5, (300, 2)) for m in (0.0, 6.0, 12.0)])
    model = VariationalMixture(NormalWishart("full"), 8, concentration_prior=1e-3)
    found = daskem.fit(model, x, algorithm=BatchEM(), stop=[Gain(1e-7), MaxSteps(3000)])
    assert (found.params.weights > 0.01).sum() == 3
    assert not found.events


def test_float32_and_a_constant_feature() -> None:
    x = rows()
    x[:, 1] = 3.0
    for data in (x, x.astype(np.float32)):
        with pytest.warns(DaskEMWarning, match="constant feature"):
            found = daskem.fit(
                VariationalMixture(NormalWishart("full"), 2), data, algorithm=BatchEM(), stop=MaxSteps(10)
            )
        assert np.isfinite(found.objective)
        np.testing.assert_allclose(found.params.components.means[:, 1], 3.0, rtol=1e-6)


def test_model_files_keep_it(tmp_path: Path) -> None:
    model, params = ours("full", "dirichlet_process", 2, mean_prior=np.array([20.0, 20.0, 20.0]))
    save_model(tmp_path / "m", model, params)
    known = [
        models.VariationalMixture,
        models.VariationalMixtureParams,
        models.NormalWishart,
        models.NormalWishartParams,
    ]
    loaded = load_model(tmp_path / "m", known)
    want = model.e_step(params, Chunk(rows())).objective
    assert loaded.model.e_step(loaded.params, Chunk(rows())).objective == want


# The estimator, and the command line.


@pytest.mark.parametrize("covariance", SHAPES)
def test_estimator_has_scikit_learns_parameters_and_attributes(covariance: str) -> None:
    x = rows()
    shared: dict[str, Any] = {"n_components": 2, "covariance_type": covariance, "random_state": 0, "max_iter": 400}
    mine = daskem.VariationalGaussianMixture(**shared, tol=1e-9).fit(x)
    other = BayesianGaussianMixture(**shared, tol=1e-7).fit(x)
    assert set(other.get_params()) <= set(mine.get_params())
    for name, value in other.get_params().items():
        if name != "tol":
            assert mine.get_params()[name] == value
    order, theirs = np.argsort(mine.means_[:, 0]), np.argsort(other.means_[:, 0])
    fitted = {name for name in vars(other) if name.endswith("_")}
    assert fitted <= {name for name in dir(mine) if name.endswith("_")}
    for name in ("weight_concentration_prior_", "mean_precision_prior_", "degrees_of_freedom_prior_"):
        assert getattr(mine, name) == getattr(other, name)
    np.testing.assert_allclose(mine.covariance_prior_, other.covariance_prior_)
    np.testing.assert_allclose(mine.mean_prior_, other.mean_prior_)
    assert np.shape(mine.degrees_of_freedom_) == np.shape(other.degrees_of_freedom_)
    assert np.shape(mine.weight_concentration_) == np.shape(other.weight_concentration_)
    # Both end at the same optimum, but for the order of the sticks.
    np.testing.assert_allclose(mine.means_[order], other.means_[theirs], rtol=0.01)
    assert not hasattr(mine, "bic")
    assert clone(mine).get_params() == mine.get_params()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_estimator_keeps_scikit_learns_contract(weights: str) -> None:
    estimator = daskem.VariationalGaussianMixture(
        2, random_state=0, max_iter=20, tol=1e-2, weight_concentration_prior_type=weights
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = {check["check_name"]: check["exception"] for check in log if check["status"] == "failed"}
    assert not failed


def test_estimator_predicts_samples_and_goes_on() -> None:
    x = rows()
    mixture = daskem.VariationalGaussianMixture(2, random_state=0, warm_start=True, mean_prior=x.mean(axis=0), tol=1e-6)
    mixture.set_params(max_iter=300).fit(x)
    steps = mixture.n_iter_
    assert mixture.fit(x).n_iter_ < steps
    assert mixture.predict_proba(x).shape == (len(x), 2)
    assert mixture.sample(5)[0].shape == (5, 3)
    assert "lower bound" in mixture._repr_html_()
    assert objective_kind(mixture.result_.model) == "lower bound"


def test_estimator_says_lower_bound_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    daskem.VariationalGaussianMixture(2, random_state=0, verbose=1, verbose_interval=1, tol=0.1).fit(rows())
    assert "step 1: lower bound -" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight_concentration_prior_type": "pitman_yor"}, "dirichlet_process"),
        ({"weight_concentration_prior": 0.0}, "positive"),
        ({"mean_precision_prior": -1.0}, "mean_precision_prior"),
        ({"degrees_of_freedom_prior": 1.5}, "must exceed 2"),
        ({"mean_prior": [0.0]}, r"mean_prior has shape \(1,\)"),
        ({"covariance_prior": np.eye(2)}, "covariance_prior has shape"),
        ({"covariance_prior": -np.eye(3)}, "covariance_prior must be positive definite"),
    ],
)
def test_wrong_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        daskem.VariationalGaussianMixture(2, **options).fit(rows())


def test_command_line_fits_and_predicts(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows())
    run = CliRunner().invoke(
        main, ["fit", "variational-mixture", str(tmp_path / "x.npy"), "-k", "3", "-o", str(tmp_path / "m.safetensors")]
    )
    assert run.exit_code == 0, run.output
    assert "lower bound" in run.output
