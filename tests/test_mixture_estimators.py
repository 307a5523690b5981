"""Mixtures of every family with scikit-learn's face: attributes, answers in closed form, columns by name, bad input."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from scipy.special import digamma
from sklearn.base import clone
from threadpoolctl import threadpool_limits

import daskem
from daskem import models
from daskem.errors import DataError, OptionError

N, K = 400, 2
RNG = np.random.default_rng(3)
WHICH = np.arange(N) % K
SHIFT = 6.0 * WHICH[:, None]
DIRECTIONS = RNG.normal(size=(N, 3)) + np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])[WHICH]
KNOWN = np.eye(K)[WHICH]
LEVELS = (3, 2, 2, 2)


def means(x: np.ndarray) -> np.ndarray:
    return np.stack([x[k == WHICH].mean(axis=0) for k in range(K)])


def shares(x: np.ndarray) -> np.ndarray:
    return means(x) / means(x).sum(axis=1, keepdims=True)


def directions(x: np.ndarray) -> np.ndarray:
    return means(x) / np.linalg.norm(means(x), axis=1, keepdims=True)


# Estimator, rows, and for each fitted attribute its maximum likelihood estimate where all components are known.
FACES = {
    "Gaussian": (daskem.GaussianMixture(K, reg_covar=0.0), RNG.normal(size=(N, 2)) + SHIFT, {"means_": means}),
    "Student-t": (daskem.StudentTMixture(K, dof=3.0), RNG.standard_t(3, size=(N, 2)) + SHIFT, {}),
    "Bernoulli": (
        daskem.BernoulliMixture(K),
        (RNG.random((N, 4)) < 0.2 + 0.1 * SHIFT).astype(float),
        {"probabilities_": means},
    ),
    "categorical": (
        daskem.CategoricalMixture(K, levels=LEVELS),
        np.where(RNG.random((N, 4)) < 0.85, WHICH[:, None] * (np.array(LEVELS) - 1.0), RNG.integers(2, size=(N, 4))),
        {"probabilities_": lambda x: [means(x[:, [j]] == np.arange(m)) for j, m in enumerate(LEVELS)]},
    ),
    "multinomial": (
        daskem.MultinomialMixture(K),
        np.stack([RNG.multinomial(9, [0.1 + 0.6 * k, 0.2, 0.7 - 0.6 * k]) for k in WHICH]).astype(float),
        {"probabilities_": shares},
    ),
    "Poisson": (daskem.PoissonMixture(K), RNG.poisson(2 + SHIFT, (N, 2)).astype(float), {"rates_": means}),
    "exponential": (daskem.ExponentialMixture(K), RNG.exponential(1 + SHIFT, (N, 2)), {"scales_": means}),
    "gamma": (daskem.GammaMixture(K), RNG.gamma(3, 1 + SHIFT, (N, 2)), {}),
    "von Mises-Fisher": (
        daskem.VonMisesFisherMixture(K),
        DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True),
        {"directions_": directions},
    ),
    "mixed": (
        daskem.MixedMixture(
            K,
            families={"size": models.Gaussian("diag", 0.0), "visits": models.Poisson()},
            columns={"size": [0, 1], "visits": [2]},
        ),
        np.column_stack([RNG.normal(size=(N, 2)) + SHIFT, RNG.poisson(2 + SHIFT)]),
        {"groups_": lambda x: {"size": means(x[:, :2]), "visits": means(x[:, 2:])}},
    ),
    "any family": (daskem.MixtureModel(K, family=models.Poisson()), RNG.poisson(2 + SHIFT, (N, 2)).astype(float), {}),
}
each_face = pytest.mark.parametrize("name", FACES)


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="synchronous"), threadpool_limits(1):
        yield


def made(name: str, **options):
    estimator, x, _ = FACES[name]
    return clone(estimator).set_params(random_state=0, algorithm="batch", **options), x


def leaves(value):
    if isinstance(value, dict):
        return [np.asarray(getattr(part, "means", getattr(part, "rates", part))) for part in value.values()]
    return [np.asarray(part) for part in value] if isinstance(value, list) else [np.asarray(value)]


@each_face
def test_known_components_give_the_closed_form(name):
    estimator, x = made(name)
    estimator.fit(x, KNOWN)
    np.testing.assert_allclose(estimator.weights_, [0.5, 0.5], rtol=1e-12)
    for attribute, expected in FACES[name][2].items():
        for mine, theirs in zip(leaves(getattr(estimator, attribute)), leaves(expected(x)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_a_gamma_of_known_components_solves_its_equations():
    estimator, x = made("gamma")
    estimator.fit(x, KNOWN)
    np.testing.assert_allclose(estimator.shapes_ * estimator.scales_, means(x), rtol=1e-8)
    log_means = digamma(estimator.shapes_) + np.log(estimator.scales_)
    np.testing.assert_allclose(log_means, means(np.log(x)), atol=1e-8)


@each_face
def test_a_face_is_the_mixture_of_its_family(name):
    estimator, x = made(name)
    estimator.fit(x)
    family = estimator.result_.model.family
    other = daskem.MixtureModel(K, family=family, init_params=estimator.init_params, random_state=0, algorithm="batch")
    np.testing.assert_array_equal(other.fit(x).weights_, estimator.weights_)
    assert other.lower_bounds_ == estimator.lower_bounds_
    assert estimator.converged_
    assert (np.diff(estimator.lower_bounds_) >= -1e-10).all()


@each_face
def test_methods_agree_with_each_other(name):
    estimator, x = made(name)
    estimator.fit(x)
    proba, labels, log_prob = estimator.predict_proba(x), estimator.predict(x), estimator.score_samples(x)
    np.testing.assert_array_equal(labels, proba.argmax(axis=1))
    np.testing.assert_array_equal(estimator.transform(x), proba)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-9)
    assert estimator.score(x) == pytest.approx(log_prob.mean(), rel=1e-12)
    p = estimator.result_.model.n_parameters(estimator.result_.params)
    assert estimator.aic(x) == pytest.approx(2 * p - 2 * log_prob.sum())
    assert estimator.bic(x) == pytest.approx(p * np.log(N) - 2 * log_prob.sum())
    rows, components = estimator.sample(50)
    assert rows.shape == (50, x.shape[1])
    assert set(components) <= {0, 1}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).predict(x), labels)
    assert max((labels == WHICH).mean(), (labels != WHICH).mean()) > 0.7
    lazy = estimator.predict(da.from_array(x, chunks=(90, 2)))
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), labels)


@each_face
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_warm_start_goes_on(name):
    estimator, x = made(name, tol=0.0, max_iter=3)
    first = estimator.fit(x).lower_bounds_
    second = estimator.set_params(warm_start=True).fit(x).lower_bounds_
    whole, _ = made(name, tol=0.0, max_iter=6)
    np.testing.assert_allclose([*first, *second], whole.fit(x).lower_bounds_, rtol=1e-12)


def test_numbers_may_change_in_a_warm_start_and_meaning_may_not():
    estimator, x = made("Bernoulli", warm_start=True)
    estimator.fit(x).set_params(pseudo_count=1.0).fit(x)
    categorical, codes = made("categorical", warm_start=True)
    with pytest.raises(OptionError, match=r"goes on from a fit of 2 components of 4 features, Categorical\(.*levels=4"):
        categorical.fit(codes).set_params(levels=4).fit(codes)
    mixed, rows = made("mixed", warm_start=True)
    mixed.fit(rows)
    with pytest.raises(OptionError, match="Set warm_start=False"):
        mixed.set_params(columns={"size": [1], "visits": [2]}).fit(rows)


def test_priors_reach_the_model():
    x = np.ones((20, 3))
    sure = daskem.BernoulliMixture(1, pseudo_count=5.0).fit(x)
    # 20 ones and 5 more of 20 + 10 outcomes.
    np.testing.assert_allclose(sure.probabilities_, 25 / 30)
    y = np.eye(K)[[0] * 15 + [1] * 5]
    heavy = daskem.BernoulliMixture(K, weight_prior=11.0).fit(np.where(y[:, :1] > 0, 1.0, 0.0), y)
    np.testing.assert_allclose(heavy.weights_, [25 / 40, 15 / 40])


def test_transformed_rows_may_be_a_frame():
    pd = pytest.importorskip("pandas")
    estimator, x = made("Poisson")
    table = estimator.set_output(transform="pandas").fit_transform(x)
    assert isinstance(table, pd.DataFrame)
    assert table.columns.tolist() == ["poissonmixture0", "poissonmixture1"]


# --- mixed columns ----------------------------------------------------------------------------------------------------

GROUPS = {"families": {"size": models.Gaussian(), "visits": models.Poisson()}}
BY_NAME = {"size": ["h", "w"], "visits": ["n"]}


def test_columns_are_found_by_name_wherever_there_are_names(tmp_path):
    pd = pytest.importorskip("pandas")
    _, x = made("mixed")
    x = x[:, [2, 0, 1]]
    frame = pd.DataFrame(x, columns=["n", "h", "w"])
    store = zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(100, 3))
    store.attrs["columns"] = ["n", "h", "w"]
    options = {**GROUPS, "random_state": 0}
    by_index = daskem.MixedMixture(K, columns={"size": [1, 2], "visits": [0]}, **options).fit(x)
    for data in (frame, str(tmp_path / "x.zarr")):
        by_name = daskem.MixedMixture(K, columns=BY_NAME, **options).fit(data)
        np.testing.assert_allclose(by_name.groups_["size"].means, by_index.groups_["size"].means, rtol=1e-9)
        assert by_name.result_.model.family.columns == {"size": (1, 2), "visits": (0,)}
    assert by_name.families is GROUPS["families"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "families=None. Give the family of each group"),
        ({"families": {"size": models.Gaussian()}, "columns": {"visits": [0]}}, "each group needs both"),
        ({**GROUPS, "columns": {"size": [0, 1], "visits": [1]}}, "named twice"),
        ({**GROUPS, "columns": {"size": [0, 1], "visits": [7]}}, "has column 7"),
        ({**GROUPS, "columns": BY_NAME}, "the data have no names"),
    ],
)
def test_groups_that_cannot_be(options, words):
    with pytest.raises(OptionError, match=words):
        daskem.MixedMixture(K, **options).fit(made("mixed")[1])


def test_names_that_a_frame_does_not_have():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(made("mixed")[1], columns=["n", "h", "width"])
    with pytest.raises(OptionError, match=r"group 'size' names the column\(s\) w.*They have n, h, width"):
        daskem.MixedMixture(K, **GROUPS, columns=BY_NAME).fit(frame)


# --- bad input --------------------------------------------------------------------------------------------------------


class Headless:
    def log_prob(self, params, chunk):
        return np.zeros((len(chunk), K))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (None, "family=None. Give an object"),
        (models.Poisson, "Give an object that keeps the contract of daskem.core.Family"),
        ("poisson", "has no init, log_prob, stats, m_step"),
        (Headless(), "has no init, stats, m_step"),
    ],
)
def test_what_is_no_family(family, words):
    with pytest.raises(OptionError, match=words):
        daskem.MixtureModel(K, family=family).fit(made("Poisson")[1])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Bernoulli", {"pseudo_count": -1.0}, "pseudo_count=-1.0 must be a finite number, not negative"),
        ("Bernoulli", {"weight_prior": 0.5}, "weight_prior is 0.5; it must be a finite number, at least 1"),
        ("Bernoulli", {"weight_prior": "strong"}, "weight_prior='strong' must be"),
        ("Bernoulli", {"on_collapse": "ignore"}, "on_collapse"),
        ("Bernoulli", {"init_params": "best"}, "init_params='best' is not one of 'auto', 'kmeans'"),
        ("categorical", {"levels": 0}, "levels"),
        ("categorical", {"levels": [3, 2.5]}, "levels"),
        ("gamma", {"max_shape": -1.0}, "max_shape"),
        ("von Mises-Fisher", {"max_concentration": 0.0}, "max_concentration"),
        ("Student-t", {"dof": "all"}, "dof"),
        ("Student-t", {"covariance_type": "round"}, "covariance_type='round'"),
        ("Poisson", {"n_components": 0}, "n_components=0"),
        ("Poisson", {"algorithm": "newton"}, "algorithm='newton'"),
    ],
)
def test_options_that_cannot_work(name, options, words):
    estimator, x = made(name)
    with pytest.raises(OptionError, match=words):
        estimator.set_params(**options).fit(x)


@pytest.mark.parametrize("name", ["Bernoulli", "categorical", "multinomial", "Poisson", "exponential", "gamma"])
def test_rows_that_a_family_does_not_take(name):
    estimator, x = made(name)
    bad = x.copy()
    bad[123, 1] = -0.5
    with pytest.raises(DataError, match=r"row 123 cannot be fitted: feature 1 is -0\.5"):
        estimator.fit(bad)
    estimator.fit(x)
    with pytest.raises(DataError, match="row 123"):
        estimator.predict(bad)
