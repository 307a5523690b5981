"""What a diagnosis says, against models whose identifiability is known and standard errors that have a closed form."""

from __future__ import annotations

import gc
import json
import pickle
import weakref
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from cases import blobs
from click.testing import CliRunner
from scipy.special import expit, log_expit, log_softmax, logit

import daskem
from daskem import tree
from daskem.cli import main
from daskem.core import Chunk, Expectation
from daskem.errors import MissingCapabilityError, NonFiniteError, OptionError, PlanError
from daskem.inference.directions import resolve
from daskem.inference.findings import divergences
from daskem.inference.scores import Evidence, ScorePass, ScoreWork, merge
from daskem.models import Gaussian, KMeans, Mixture
from daskem.persist import save_model

SHAPES = ("full", "tied", "diag", "spherical", "tied_diag", "tied_spherical")


@dataclass(frozen=True)
class LatentClasses:
    """Bernoulli columns given a latent class, as a user would write it: nothing but densities and a vector."""

    n_components: int = 2

    def init(self, sample: Chunk, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        k = self.n_components
        return np.full(k, 1.0 / k), rng.uniform(0.2, 0.8, (k, sample.rows.shape[1]))

    def joint(self, params: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
        weights, p = params
        with np.errstate(divide="ignore"):
            z = logit(p)
        ones = np.where(rows[:, None] == 1, log_expit(z), log_expit(-z))
        return np.log(weights) + ones.sum(axis=2)

    def log_prob(self, params: Any, chunk: Chunk) -> np.ndarray:
        return np.logaddexp.reduce(self.joint(params, chunk.rows), axis=1)

    def posterior(self, params: Any, chunk: Chunk) -> np.ndarray:
        return np.exp(log_softmax(self.joint(params, chunk.rows), axis=1))

    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        resp = self.posterior(params, chunk) * weight[:, None]
        stats = (resp.sum(axis=0), resp.T @ chunk.rows.astype(np.float64))
        return Expectation(stats, float(weight @ self.log_prob(params, chunk)), chunk.total_weight)

    def m_step(self, stats: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
        return stats[0] / stats[0].sum(), stats[1] / stats[0][:, None]

    def to_vector(self, params: Any) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.concatenate([np.log(params[0][:-1] / params[0][-1]), logit(params[1]).ravel()])

    def from_vector(self, vector: np.ndarray, params: Any) -> tuple[np.ndarray, np.ndarray]:
        k = len(params[0])
        weights = np.exp(log_softmax(np.append(vector[: k - 1], 0.0)))
        return weights, expit(vector[k - 1 :]).reshape(params[1].shape)


class ByDifferences(Mixture):
    """A mixture that does not tell its scores."""

    scores = property()


def draw_classes(weights: list[float], p: Any, n: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (rng.random((n, len(p[0]))) < np.array(p)[rng.choice(len(p), n, p=weights)]).astype(np.float64)


def every_pattern(d: int) -> np.ndarray:
    return np.array(list(product((0.0, 1.0), repeat=d)))


def two_clouds(n: int = 1000, apart: float = 8.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.vstack([rng.normal(0.0, 1.0, (n // 2, 2)), rng.normal(apart, 1.0, (n - n // 2, 2))])


def fitted(covariance: Any, rows: np.ndarray, k: int = 2, reg_covar: float = 0.0, tol: float = 1e-13) -> Any:
    stop = [daskem.Gain(tol), daskem.MaxSteps(500)]
    return daskem.fit(Mixture(Gaussian(covariance, reg_covar), k), rows, stop=stop)


def whats(diagnosis: daskem.Diagnosis) -> list[str]:
    return [finding.what for finding in diagnosis.findings]


# Identifiability.


def test_one_coin_toss_with_a_hidden_coin() -> None:
    """The textbook case: P(x = 1) = w p + (1 - w) q has one degree of freedom and three parameters."""
    rows = np.repeat([[0.0], [1.0]], [6, 4], axis=0)
    found = daskem.diagnose(LatentClasses(), rows, params=(np.array([0.4, 0.6]), np.array([[0.7], [0.2]])))
    assert (found.rank, len(found.unseen), found.identifiable) == (1, 2, False)
    assert "2 distinct values, whose frequencies, summing to one, determine at most 1 parameter;" in str(found)
    assert np.isnan(found.standard_errors).all()
    with pytest.raises(OptionError, match="determine 1 of 3"):
        found.standard_errors_of(lambda params: params[0])
    # The likelihood is indeed flat along what is called unseen.
    model, chunk = LatentClasses(), Chunk(rows)
    for row in found.unseen:
        moved = [model.from_vector(found.vector + t * row, found.params) for t in (1e-4, -1e-4)]
        change = model.log_prob(moved[0], chunk) - model.log_prob(moved[1], chunk)
        assert np.abs(change).max() < 1e-10


def test_two_classes_on_two_columns() -> None:
    rows = draw_classes([0.4, 0.6], [[0.9, 0.8], [0.2, 0.3]])
    result = daskem.fit(LatentClasses(), rows, stop=daskem.Gain(1e-10))
    found = result.diagnose()
    assert (found.rank, found.identifiable) == (3, False)
    assert "4 distinct values" in str(found)
    assert "at most 3 parameters; the model has 5" in str(found)


def test_two_classes_on_five_columns() -> None:
    rows = draw_classes([0.4, 0.6], [[0.9, 0.8, 0.7, 0.8, 0.9], [0.2, 0.3, 0.1, 0.2, 0.3]])
    result = daskem.fit(LatentClasses(), rows, stop=daskem.Gain(1e-12))
    found = daskem.diagnose(result, rows)
    assert (found.rank, found.identifiable, whats(found)) == (11, True, [])
    assert "2! orders of the components are equally good: that is no defect" in str(found)
    assert np.isfinite(found.standard_errors).all()


def test_three_classes_on_four_columns() -> None:
    """Goodman (1974), Biometrika 61, 215-231: 14 parameters, 15 free frequencies, and still not identifiable."""
    rng = np.random.default_rng(3)
    params = (np.array([0.2, 0.3, 0.5]), rng.uniform(0.15, 0.85, (3, 4)))
    rows = every_pattern(4)
    weight = np.exp(LatentClasses(3).log_prob(params, Chunk(rows)))
    found = daskem.diagnose(LatentClasses(3), rows, params=params, sample_weight=1e5 * weight)
    assert (len(found.names), found.rank, whats(found)) == (14, 13, ["flat"])
    assert not found.identifiable


@pytest.mark.parametrize("covariance", SHAPES)
@pytest.mark.parametrize("mixture", [Mixture, ByDifferences])
def test_well_separated_gaussians(covariance: Any, mixture: Any) -> None:
    rows = two_clouds()
    result = fitted(covariance, rows)
    found = daskem.diagnose(mixture(Gaussian(covariance, 0.0), 2), rows, params=result.params)
    assert found.identifiable
    assert found.rank == len(found.names) == result.model.n_parameters(result.params)
    assert whats(found) == []


@pytest.mark.parametrize("covariance", SHAPES)
@pytest.mark.parametrize("mixture", [Mixture, ByDifferences])
def test_duplicated_gaussians(covariance: Any, mixture: Any) -> None:
    rows = two_clouds(apart=0.0)
    one = fitted(covariance, rows, 1).params.components
    shared = covariance.startswith("tied")
    twice = {"means": np.repeat(one.means, 2, axis=0), "reference": np.repeat(one.reference, 2, axis=0)}
    for name in ("covariances", "precisions_cholesky"):
        twice[name] = getattr(one, name) if shared else np.repeat(getattr(one, name), 2, axis=0)
    components = replace(one, repaired=np.zeros(2, np.int8), **twice)
    params = daskem.models.MixtureParams(np.array([0.3, 0.7]), components)
    found = daskem.diagnose(mixture(Gaussian(covariance, 0.0), 2), rows, params=params)
    assert not found.identifiable
    assert found.findings[0].components == (0, 1)
    assert whats(found) == ["coincide"]
    # Two copies are worth one: only what both means and both shapes have in common is seen.
    assert found.rank == Gaussian(covariance).n_parameters(one)
    directions = found.directions()
    assert {"log weight ratio of component 0": 1.0} in directions
    assert {"component 0: mean[1]": 1.0, "component 1: mean[1]": pytest.approx(-3 / 7)} in directions


def test_copies_that_differ_by_chance_coincide() -> None:
    rows = two_clouds(apart=0.0)
    halves = np.where(np.arange(len(rows)) % 2, 0, 1)
    result = daskem.fit(Mixture(Gaussian(), 2), rows, y=halves, stop=daskem.MaxSteps(1))
    found = daskem.diagnose(result, rows)
    assert "coincide" in whats(found)
    assert not found.identifiable


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("mixture", [Mixture, ByDifferences])
def test_units_do_not_matter(unit: float, mixture: Any) -> None:
    rows = two_clouds()
    rows -= rows.mean(axis=0)
    plain, params = daskem.diagnose(r := fitted("full", rows), rows), fitted("full", rows * unit).params
    found = daskem.diagnose(mixture(Gaussian("full", 0.0), 2), rows * unit, params=params)
    assert found.identifiable
    means = slice(1, 5)
    expected = plain.standard_errors[means]
    order = np.argsort(params.components.means[:, 0]) != np.argsort(r.params.components.means[:, 0])
    expected = expected.reshape(2, 2)[::-1].ravel() if order.any() else expected
    np.testing.assert_allclose(found.standard_errors[means] / unit, expected, rtol=1e-5)


def test_empty_component() -> None:
    rows = two_clouds()
    result = fitted("diag", rows)
    components = result.params.components
    means = components.means.copy()
    means[1] = 1e3
    params = replace(result.params, components=replace(components, means=means))
    found = daskem.diagnose(result.model, rows[: len(rows) // 2], params=params)
    assert ("empty", (1,)) in [(finding.what, finding.components) for finding in found.findings]
    assert not found.identifiable


def test_a_variance_at_its_floor_and_a_probability_of_zero() -> None:
    rows = two_clouds()
    rows[:500, 1] = 1e-3 * np.arange(500) / 500
    result = fitted("diag", rows, reg_covar=1e-3)
    found = daskem.diagnose(result, rows)
    (finding,) = [finding for finding in found.findings if finding.what == "bound"]
    tight = int(np.argmin(result.params.components.covariances[:, 1]))
    assert finding.components == (tight,)
    assert found.identifiable

    rows = draw_classes([0.5, 0.5], [[0.0, 0.8, 0.7, 0.8], [0.5, 0.3, 0.1, 0.2]])
    params = (np.array([0.5, 0.5]), np.array([[0.0, 0.8, 0.7, 0.8], [0.5, 0.3, 0.1, 0.2]]))
    found = daskem.diagnose(LatentClasses(), rows, params=params)
    assert "parameter 1 is at its bound" in str(found)
    assert (found.free.sum(), found.rank, found.identifiable) == (8, 8, True)
    assert np.flatnonzero(np.isnan(found.standard_errors)).tolist() == [1]
    assert np.isfinite(found.standard_errors_of(lambda params: params[1])).all()


def test_a_fit_that_stopped_early_is_told() -> None:
    rows = two_clouds(apart=2.0)
    early = daskem.fit(Mixture(Gaussian(), 2), rows, stop=daskem.MaxSteps(1))
    assert "not at the maximum" in whats(daskem.diagnose(early, rows))
    assert "not at the maximum" not in whats(daskem.diagnose(fitted("full", rows), rows))


# Standard errors.


def test_one_gaussian_has_closed_forms() -> None:
    half = np.random.default_rng(2).normal(0.0, [1.0, 3.0], (100, 2))
    # Mirrored rows have no odd moments, which would tie the means to each other and to the variances.
    rows = 5.0 + np.vstack([half, -half, half * [1.0, -1.0], half * [-1.0, 1.0]])
    found = daskem.diagnose(fitted("diag", rows, 1), rows)
    sd, n = rows.std(axis=0), len(rows)
    np.testing.assert_allclose(found.standard_errors[:2], sd / np.sqrt(n), rtol=1e-10)
    # The score of log(1 / sd) is 1 - z^2.
    z = (rows - rows.mean(axis=0)) / sd
    shapes = np.sqrt(np.diagonal(np.linalg.inv(n * np.cov(z.T**2, bias=True))))
    np.testing.assert_allclose(found.standard_errors[2:], shapes, rtol=1e-10)
    variances = found.standard_errors_of(lambda params: params.components.covariances)
    np.testing.assert_allclose(variances, (2 * sd**2 * shapes)[None], rtol=1e-6)


def test_shares_of_labelled_rows_are_binomial() -> None:
    rows, labels = two_clouds(apart=1.0), np.repeat([0, 1, 1, 1], 250)
    result = daskem.fit(Mixture(Gaussian("diag", 0.0), 2), rows, y=labels, stop=daskem.MaxSteps(2))
    found = daskem.diagnose(result, rows, y=labels)
    expected = np.full(2, np.sqrt(0.25 * 0.75 / 1000))
    np.testing.assert_allclose(found.standard_errors_of(lambda params: params.weights), expected, rtol=1e-6)
    assert found.exchangeable == 0


def test_a_result_is_asked_without_its_data_again() -> None:
    rows, labels, weight = two_clouds(apart=1.0), np.repeat([0, 1, -1, -1], 250), np.repeat([1.0, 2.0], 500)
    model, stop = Mixture(Gaussian("diag", 0.0), 2), daskem.MaxSteps(3)
    result = daskem.fit(model, rows, y=labels, sample_weight=weight, stop=stop)
    given = daskem.diagnose(result, rows, y=labels, sample_weight=weight)
    for found in (result.diagnose(), result.diagnose(rows, y=labels, sample_weight=weight)):
        np.testing.assert_array_equal(found.covariance, given.covariance)
        assert str(found) == str(given)
    assert str(result.diagnose(rows[:100])) != str(given)
    with pytest.raises(OptionError, match="sample_weight, y: the data of the result have theirs"):
        result.diagnose(sample_weight=weight, y=labels)
    # A result that was pickled, and one of a stream, have no data.
    again = pickle.loads(pickle.dumps(result))
    streamed = daskem.OnlineFit(model).update(rows)
    assert len(pickle.dumps(result)) < rows.nbytes
    for without in (again, streamed):
        assert np.isfinite(without.objective)
        with pytest.raises(OptionError, match=r"does not hold the data it is of. Give them: result.diagnose\(data\)"):
            without.diagnose()
        assert without.diagnose(rows).names == given.names


def test_a_fitted_estimator_lets_its_data_go() -> None:
    class Rows(np.ndarray):
        """Rows that a weak reference can tell of."""

    for estimator in (daskem.GaussianMixture(2), daskem.KMeans(2, n_init=1)):
        rows = two_clouds(apart=1.0).view(Rows)
        there = weakref.ref(rows)
        estimator.fit(rows)
        del rows
        gc.collect()
        assert there() is None


def test_standard_errors_are_those_of_repeated_samples() -> None:
    model = Mixture(Gaussian("diag", 0.0), 2)
    estimates, errors, params = [], [], None
    for seed in range(60):
        rng = np.random.default_rng(seed)
        latent = rng.random(400) < 0.3
        rows = np.where(latent, rng.normal(0.0, 1.0, 400), rng.normal(6.0, 1.5, 400))[:, None]
        if params is None:
            params = daskem.fit(model, rows, y=1 - latent, stop=daskem.MaxSteps(2)).params
        found = daskem.diagnose(daskem.fit(model, rows, params=params, stop=daskem.Gain(1e-6)), rows)
        estimates.append(found.vector)
        errors.append(found.standard_errors)
    # A standard deviation over 60 samples has a relative standard error of 9%.
    ratio = np.std(estimates, axis=0) / np.mean(errors, axis=0)
    assert (ratio > 0.7).all()
    assert (ratio < 1.35).all()


# Where rows are, which of them, and what they weigh.


@pytest.mark.parametrize("covariance", SHAPES)
def test_scores_and_differences_agree(covariance: Any) -> None:
    rows = blobs(np.random.default_rng(0), 300)
    params = fitted(covariance, rows, tol=1e-3).params
    exact = daskem.diagnose(Mixture(Gaussian(covariance), 2), rows, params=params)
    differences = daskem.diagnose(ByDifferences(Gaussian(covariance), 2), rows, params=params)
    size = np.sqrt(np.diagonal(exact.information))
    gap = (differences.information - exact.information) / size / size[:, None]
    assert np.abs(gap).max() < 1e-7


def test_a_store_in_pieces_says_what_an_array_says() -> None:
    rows = two_clouds(5000)
    result = fitted("full", rows)
    whole = daskem.diagnose(result, rows)
    lazy = daskem.diagnose(result, da.from_array(rows, chunks=(317, 2)))
    np.testing.assert_allclose(lazy.information, whole.information, rtol=1e-10, atol=1e-12)
    assert lazy.weight == whole.weight == 5000.0


def test_a_row_of_weight_two_is_two_rows_and_one_of_weight_zero_is_none() -> None:
    rows = two_clouds()
    result = fitted("full", rows)
    weight = np.random.default_rng(0).integers(0, 3, len(rows)).astype(float)
    spoiled = np.where(weight[:, None] > 0, rows, np.nan)
    weighted = daskem.diagnose(result, spoiled, sample_weight=weight)
    repeated = daskem.diagnose(result, np.repeat(rows, weight.astype(int), axis=0))
    np.testing.assert_allclose(weighted.standard_errors, repeated.standard_errors, rtol=1e-10)


def test_scores_of_some_rows_give_standard_errors_of_all() -> None:
    rows = two_clouds(20_000)
    result = fitted("diag", rows)
    whole = daskem.diagnose(result, rows)
    some = daskem.diagnose(result, rows, max_rows=5000)
    chunked = daskem.diagnose(result, da.from_array(rows, chunks=(1001, 2)), max_rows=5000)
    assert 4500 < some.rows < 5500
    assert (some.weight, chunked.rows) == (20_000, some.rows)
    np.testing.assert_allclose(some.standard_errors, whole.standard_errors, rtol=0.1)
    np.testing.assert_allclose(some.standard_errors, chunked.standard_errors, rtol=1e-10)
    assert daskem.diagnose(result, rows, max_rows=None).rows == 20_000


def test_the_share_of_rows_is_of_those_that_have_weight() -> None:
    rows = two_clouds(20_000)
    weight = np.where(np.arange(len(rows)) % 40 == 0, 1.0, 0.0)
    result = fitted("diag", rows)
    masked = daskem.diagnose(result, rows, sample_weight=weight, max_rows=1_000)
    alone = daskem.diagnose(result, rows[weight > 0])
    assert masked.rows == alone.rows == 500
    np.testing.assert_allclose(masked.standard_errors, alone.standard_errors, rtol=1e-8)


def test_float32_rows_are_looked_at_in_double_precision() -> None:
    rows = two_clouds().astype(np.float32)
    result = fitted("diag", rows, tol=1e-7)
    single, double = daskem.diagnose(result, rows), daskem.diagnose(result, rows.astype(np.float64))
    np.testing.assert_allclose(single.information, double.information, rtol=1e-12, atol=1e-14)


def test_the_plan_counts_the_record() -> None:
    rows = two_clouds()
    result = fitted("full", rows)
    p = len(result.model.to_vector(result.params))
    told = ScoreWork(result.model, p, 2).footprint(2, np.dtype(np.float64))
    vector = result.model.to_vector(result.params)
    scoring = ScorePass(result.model, result.params, vector, np.isfinite(vector), None, 2, 1.0, 0)
    assert told.stats >= tree.nbytes(scoring(Chunk(rows)).sums)
    with pytest.raises(PlanError):
        daskem.diagnose(result, rows, memory_limit="1MB")


def test_distinct_rows_are_counted_as_far_as_matters() -> None:
    vector = np.zeros(3)
    model, params = LatentClasses(), (np.array([0.5, 0.5]), np.array([[0.7], [0.2]]))
    scoring = ScorePass(model, params, vector, np.ones(3, bool), np.full(3, 1e-5), 2, 1.0, 0)

    def say(values: list[float]) -> Evidence:
        return scoring(Chunk(np.array(values)[:, None]))

    few, other = say([0.0, 1.0] * 20), say([1.0, 0.5, 0.0])
    assert few.distinct.tolist() == [[0.0], [1.0]]
    assert merge(few, other).distinct.tolist() == [[0.0], [0.5], [1.0]]
    assert merge(say([0.0, 0.1, 0.2]), say([0.3])).distinct is None


# Parts.


def test_divergence_of_gaussians_is_the_closed_form() -> None:
    """J = (m_a - m_b)^2 / sd^2 for equal variances; averages over rows estimate it."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 1, 200_000), rng.normal(1.5, 1, 100_000)])[:, None]
    joint = np.log([2 / 3, 1 / 3]) - 0.5 * (rows - np.array([0.0, 1.5])) ** 2
    log_resp = log_softmax(joint, axis=1)
    resp = np.exp(log_resp)
    found = divergences(resp.sum(axis=0), resp.T @ log_resp)
    np.testing.assert_allclose(found, [[0.0, 2.25], [2.25, 0.0]], rtol=0.02, atol=1e-12)


def test_resolve_finds_a_null_space() -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 6)) * 10.0 ** np.arange(-6, 6, 2)
    found = resolve(scores.T @ scores, np.zeros(6))
    assert (found.rank, found.unseen.shape) == (4, (2, 6))
    assert np.abs(scores @ found.unseen.T).max() < 1e-7 * np.abs(scores).max()
    assert np.abs(found.unseen).max(axis=1).tolist() == [1.0, 1.0]


# Errors.


def test_what_cannot_be_diagnosed_is_refused() -> None:
    rows = two_clouds()
    result = fitted("full", rows)
    with pytest.raises(MissingCapabilityError, match="from_vector, to_vector"):
        daskem.diagnose(daskem.fit(KMeans(2), rows), rows)
    with pytest.raises(OptionError, match="a Mixture has no parameters"):
        daskem.diagnose(result.model, rows)
    with pytest.raises(OptionError, match="max_rows"):
        daskem.diagnose(result, rows, max_rows="all")
    with pytest.raises(OptionError, match="max_rows"):
        daskem.diagnose(result, rows, max_rows=0)
    with pytest.raises(NonFiniteError):
        daskem.diagnose(result, np.vstack([rows, [[np.nan, 0.0]]]))
    with pytest.raises(NonFiniteError, match="no component explains"):
        daskem.diagnose(result, np.vstack([rows, [[1e200, 0.0]]]))


def test_estimator_face() -> None:
    rows = two_clouds()
    estimator = daskem.GaussianMixture(2, random_state=0, tol=1e-10).fit(rows)
    found = estimator.diagnose(rows)
    assert found.identifiable
    assert found.as_dict()["parameters"] == 11
    np.testing.assert_array_equal(found.vector, daskem.diagnose(estimator, rows).vector)


def test_command(tmp_path: Path) -> None:
    rows = two_clouds()
    result = fitted("full", rows)
    data, model = str(tmp_path / "rows.npy"), str(tmp_path / "model.safetensors")
    np.save(data, rows)
    save_model(model, result.model, result.params)
    said = CliRunner().invoke(main, ["diagnose", model, data, "--quiet"])
    assert (said.exit_code, said.stdout) == (0, f"{daskem.diagnose(result, rows)}\n")
    said = CliRunner().invoke(main, ["diagnose", model, data, "--quiet", "--json"])
    assert json.loads(said.stdout)["identifiable"] is True
