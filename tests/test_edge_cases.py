"""Models and estimators at their edges: bare families, absent rows, rows beyond arithmetic, empty components."""

from __future__ import annotations

import warnings
from dataclasses import replace

import dask
import numpy as np
import pytest
from cases import Poisson, count_table
from sklearn.exceptions import ConvergenceWarning

import daskem
from daskem import tree
from daskem.core import Chunk
from daskem.data import open_dataset
from daskem.errors import DataTypeError, DegenerateComponentError, NonFiniteError, OptionError
from daskem.models import Gaussian, KMeans, Mixture
from daskem.models.repair import AT_PRIOR, RESEEDED
from daskem.predict import predict_rows
from daskem.report import fit_html

X = np.random.default_rng(0).normal(size=(200, 2)) + 8.0 * (np.arange(200) % 2)[:, None]
MAKE = {
    "mixture": lambda **options: daskem.GaussianMixture(2, **{"random_state": 0, **options}),
    "k-means": lambda **options: daskem.KMeans(2, **{"random_state": 0, **options}),
}
each_estimator = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@pytest.fixture(autouse=True)
def _synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


def test_a_family_of_four_methods_can_be_fitted():
    rows = count_table(np.random.default_rng(3), 300).astype(float)
    result = daskem.fit(Mixture(Poisson(), 2), rows, seed=0)
    rates = result.params.components[np.argsort(result.params.components[:, 0])]
    np.testing.assert_allclose(rates, [[1.0, 5.0, 9.0], [7.0, 5.0, 2.0]], atol=0.7)


def test_a_mixture_moves_the_statistics_of_a_family_that_has_references_and_leaves_all_others():
    model = Mixture(Gaussian(), 2)
    old = model.init(Chunk(X), np.random.default_rng(0))
    new = replace(old, components=replace(old.components, reference=old.components.means + 1.0))
    resp = model.posterior(old, Chunk(X))
    moved = model.rebase(model.e_step(old, Chunk(X)).stats, old, new)
    there = model.family.stats(new.components, Chunk(X), resp)
    for (path, a), (_, b) in zip(tree.leaves(moved.components), tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8, err_msg=path)
    counts = Mixture(Poisson(), 2)
    params = counts.init(Chunk(np.abs(X)), np.random.default_rng(0))
    stats = counts.e_step(params, Chunk(np.abs(X))).stats
    assert counts.rebase(stats, params, params) is stats


def empty_component(policy):
    """Return a model with a prior, its parameters, and statistics that leave component 1 without rows."""
    model = Mixture(Gaussian(prior="conjugate", on_collapse=policy), 3)
    params = model.init(Chunk(X), np.random.default_rng(0))
    resp = np.zeros((len(X), 3))
    resp[np.arange(len(X)), 2 * (np.arange(len(X)) % 2)] = 1.0
    return model, params, model.family.stats(params.components, Chunk(X), resp)


def test_what_to_do_with_an_empty_component_is_asked_under_a_prior_too():
    model, params, stats = empty_component("raise")
    with pytest.raises(DegenerateComponentError, match=r"component 1 of 3 .* another start"):
        model.family.m_step(stats, params.components)
    model, params, stats = empty_component("reseed")
    reseeded = model.family.m_step(stats, params.components)
    assert reseeded.repaired.tolist() == [0, RESEEDED, 0]
    model, params, stats = empty_component("keep")
    kept = model.family.m_step(stats, params.components)
    assert kept.repaired.tolist() == [0, AT_PRIOR, 0]
    assert not np.allclose(reseeded.means[1], kept.means[1], atol=1.0)


def test_a_warm_start_under_another_prior_is_refused():
    mixture = MAKE["mixture"](warm_start=True).fit(X)
    with pytest.raises(OptionError, match=r"prior=None, .* but .*prior='conjugate', .* wanted. Set warm_start"):
        mixture.set_params(prior="conjugate").fit(X)


@each_estimator
def test_masked_values_are_refused(make):
    masked = np.ma.masked_greater(X, 9.0)
    with pytest.raises(DataTypeError, match="masked"):
        make().fit(masked)
    with pytest.raises(DataTypeError, match="masked"):
        make().fit(X).predict(masked)
    assert len(make().fit(np.ma.array(X)).predict(X)) == len(X)


@pytest.mark.parametrize("name", MAKE)
def test_only_a_log_density_is_in_nats(name, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator = MAKE[name](verbose=1, max_iter=10, tol=0.0).fit(X)
    for text in (capsys.readouterr().out, fit_html(estimator.result_)):
        assert "per row" in text
        assert ("nats" in text) == (name == "mixture")


@each_estimator
@pytest.mark.parametrize("value", [1e20, -3e38])
def test_a_row_beyond_arithmetic_is_an_error_that_names_it(make, value):
    estimator = make().fit(X.astype(np.float32))
    far = X.astype(np.float32)
    far[[17, 23], 1] = value
    methods = ("predict", "predict_proba", "score_samples", "score") if hasattr(estimator, "bic") else ("predict",)
    for method in methods:
        where = "rows 0:200" if method == "score" else "rows 17:24"
        with pytest.raises(NonFiniteError, match=f"numpy array.*no component explains .* among {where}"):
            getattr(estimator, method)(far)
    assert len(estimator.predict(far.astype(np.float64))) == len(X)


def test_a_row_of_probability_zero_is_an_error_whatever_the_posterior_makes_of_it():
    class Careless(KMeans):
        assign = None

        def posterior(self, params, chunk):
            return np.where(chunk.rows[:, :1] > 9.0, 0.0, 0.5) * np.ones(2)

    data = open_dataset(X)
    model = KMeans(2)
    params = model.init(Chunk(X), np.random.default_rng(0))
    first = int(np.flatnonzero(X[:, 0] > 9.0)[0])
    for what in ("labels", "proba"):
        with pytest.raises(NonFiniteError, match=f"no component explains .* among rows {first}:"):
            predict_rows(Careless(2), params, data, what, 2, lazy=False)


def test_labels_are_asked_for_by_assignment_where_the_model_has_it():
    class Assigning(KMeans):
        def posterior(self, params, chunk):
            raise AssertionError("no posterior is needed for labels")

    model = Assigning(2)
    params = model.init(Chunk(X), np.random.default_rng(0))
    labels = predict_rows(model, params, open_dataset(X), "labels", 2, lazy=False)
    np.testing.assert_array_equal(labels, model.assign(params, Chunk(X)))


@each_estimator
def test_absent_rows_keep_their_place_among_the_labels(make, monkeypatch):
    weight = np.ones(len(X))
    weight[[0, 5]] = 0.0
    weight[64:128] = 0.0
    spoiled = X.copy()
    spoiled[[0, 70]] = np.nan
    monkeypatch.setattr("daskem.models.mixture.MIN_BLOCK", 32)
    monkeypatch.setattr("daskem.models.mixture.MAX_BLOCK", 32)
    estimator = make()
    labels = estimator.fit_predict(spoiled, sample_weight=weight)
    assert len(labels) == len(X)
    assert np.flatnonzero(labels < 0).tolist() == [0, 70]
    present = labels >= 0
    np.testing.assert_array_equal(labels[present], estimator.predict(X)[present])
    spoiled[64:96] = np.nan
    labels = make().fit_predict(spoiled, sample_weight=weight)
    assert np.flatnonzero(labels < 0).tolist() == [0, *range(64, 96)]


def test_distances_of_absent_rows_are_not_numbers():
    spoiled = np.vstack([X, np.full((1, 2), np.inf)])
    distances = MAKE["k-means"]().fit_transform(spoiled, sample_weight=np.append(np.ones(len(X)), 0.0))
    assert np.flatnonzero(np.isnan(distances).any(axis=1)).tolist() == [len(X)]
