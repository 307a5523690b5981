"""The same start and the same steps lead where scikit-learn's lead; other starts lead to results as good."""

from __future__ import annotations

import logging
import warnings

import dask
import numpy as np
import pytest
from sklearn.cluster import KMeans as ReferenceKMeans
from sklearn.datasets import load_digits, load_iris, load_wine, make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as ReferenceMixture
from threadpoolctl import threadpool_limits

import daskem

COVARIANCES = ("full", "tied", "diag", "spherical")
# Four groups that overlap, so that responsibilities are far from zero and one.
DATA = {
    "iris": load_iris().data,
    "wine": load_wine().data,
    "digits": load_digits().data,
    "blobs": make_blobs(500, 5, centers=4, cluster_std=3.0, random_state=0)[0],
}
K = 3
# Wine's features differ by 10^3 in scale, which costs both sides some digits of a full covariance: 3e-11 was measured.
RTOL = 1e-8

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def _one_thread():
    """Hundreds of tiny steps: neither side gains from threads, and on a busy machine theirs wait for each other."""
    with dask.config.set(scheduler="synchronous"), threadpool_limits(1):
        yield


def explicit_start(X: np.ndarray, covariance: str, k: int = K) -> dict[str, np.ndarray]:
    variance = X.var(axis=0)
    precisions = {
        "full": np.tile(np.diag(1 / variance), (k, 1, 1)),
        "tied": np.diag(1 / variance),
        "diag": np.tile(1 / variance, (k, 1)),
        "spherical": np.full(k, 1 / variance.mean()),
    }
    means = X[np.random.default_rng(0).choice(len(X), k, replace=False)]
    weights = np.arange(1.0, k + 1)
    return {"weights_init": weights / weights.sum(), "means_init": means, "precisions_init": precisions[covariance]}


def both_mixtures(X: np.ndarray, **options: object) -> tuple[ReferenceMixture, daskem.GaussianMixture]:
    return ReferenceMixture(K, **options).fit(X), daskem.GaussianMixture(K, **options).fit(X)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("name", ["iris", "wine", "blobs"])
def test_mixtures_take_the_same_steps(name, covariance, steps):
    X = DATA[name]
    options = {"covariance_type": covariance, "tol": 0.0, "max_iter": steps, **explicit_start(X, covariance)}
    reference, mixture = both_mixtures(X, **options)
    for attribute in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "lower_bounds_"):
        expected = np.asarray(getattr(reference, attribute))
        found = np.asarray(getattr(mixture, attribute))
        assert found.shape == expected.shape, attribute
        np.testing.assert_allclose(found, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max(), err_msg=attribute)
    assert mixture.n_iter_ == reference.n_iter_ == steps
    assert mixture.lower_bound_ == pytest.approx(reference.lower_bound_, rel=RTOL)
    assert not mixture.converged_


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_what_a_mixture_says_of_rows(covariance):
    X, new = DATA["blobs"][:400], DATA["blobs"][400:]
    reference, mixture = both_mixtures(X, covariance_type=covariance, max_iter=5, **explicit_start(X, covariance))
    np.testing.assert_array_equal(mixture.predict(new), reference.predict(new))
    np.testing.assert_allclose(mixture.predict_proba(new), reference.predict_proba(new), rtol=RTOL, atol=1e-14)
    np.testing.assert_allclose(mixture.score_samples(new), reference.score_samples(new), rtol=RTOL)
    for method in ("score", "aic", "bic"):
        assert getattr(mixture, method)(new) == pytest.approx(getattr(reference, method)(new), rel=RTOL)


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("name", ["iris", "blobs"])
def test_mixtures_stop_at_the_same_step(name, tol):
    X = DATA[name]
    reference, mixture = both_mixtures(X, tol=tol, max_iter=500, **explicit_start(X, "full"))
    assert reference.converged_
    assert mixture.converged_
    assert mixture.n_iter_ == reference.n_iter_


def test_a_warm_start_goes_on_where_the_last_fit_ended():
    X = DATA["blobs"]
    options = {"tol": 1e-4, "max_iter": 4, "warm_start": True, **explicit_start(X, "full")}
    reference, mixture = both_mixtures(X, **options)
    steps = []
    for _ in range(30):
        reference.fit(X)
        mixture.fit(X)
        assert mixture.n_iter_ == reference.n_iter_
        assert mixture.converged_ == reference.converged_
        np.testing.assert_allclose(mixture.means_, reference.means_, rtol=RTOL)
        assert mixture.lower_bound_ == pytest.approx(reference.lower_bound_, rel=RTOL)
        steps.append(mixture.n_iter_)
    assert 1 in steps, "once converged, a single step is enough to see it"


def test_steps_of_warm_starts_add_up():
    X, start = DATA["iris"], explicit_start(DATA["iris"], "diag")
    whole = daskem.GaussianMixture(K, covariance_type="diag", tol=0, max_iter=6, **start).fit(X)
    parts = daskem.GaussianMixture(K, covariance_type="diag", tol=0, max_iter=2, warm_start=True, **start)
    for _ in range(3):
        parts.fit(X)
    np.testing.assert_array_equal(parts.means_, whole.means_)
    np.testing.assert_array_equal(parts.covariances_, whole.covariances_)
    assert parts.lower_bound_ == whole.lower_bound_


def distinct_rows(X: np.ndarray, k: int, seed: int) -> np.ndarray:
    X = np.unique(X, axis=0)
    return X[np.random.default_rng(seed).choice(len(X), k, replace=False)]


@pytest.mark.parametrize("tol", [0.0, 1e-4, 1e-2])
# Iris is measured to 0.1: with ten centers some rows lie halfway between two, and rounding decides.
@pytest.mark.parametrize(("name", "k"), [("iris", 3), ("wine", 10), ("digits", 10), ("blobs", 3), ("blobs", 10)])
def test_kmeans_takes_the_same_steps(name, k, tol):
    X = DATA[name]
    steps = []
    for seed in range(3):
        options = {"init": distinct_rows(X, k, seed), "n_init": 1, "tol": tol}
        reference, kmeans = ReferenceKMeans(k, **options).fit(X), daskem.KMeans(k, **options).fit(X)
        assert kmeans.n_iter_ == reference.n_iter_
        scale = np.abs(X).max()
        np.testing.assert_allclose(kmeans.cluster_centers_, reference.cluster_centers_, rtol=1e-9, atol=1e-9 * scale)
        np.testing.assert_array_equal(kmeans.labels_, reference.labels_)
        np.testing.assert_array_equal(kmeans.predict(X), reference.predict(X))
        np.testing.assert_allclose(kmeans.transform(X), reference.transform(X), rtol=1e-7, atol=1e-7 * scale)
        assert kmeans.inertia_ == pytest.approx(reference.inertia_, rel=1e-9)
        assert kmeans.score(X) == pytest.approx(reference.score(X), rel=1e-9)
        steps.append(kmeans.n_iter_)
    assert max(steps) > 2


def test_the_tolerance_of_kmeans_does_not_depend_on_units():
    X, k = DATA["digits"], 10
    start = distinct_rows(X, k, 0)
    steps = {daskem.KMeans(k, init=start * c, tol=1e-2).fit(X * c).n_iter_ for c in (2.0**-30, 1.0, 2.0**30)}
    assert len(steps) == 1
    assert steps != {daskem.KMeans(k, init=start, tol=0.0).fit(X).n_iter_}


def test_single_precision_stays_single_precision():
    X, k = DATA["digits"].astype(np.float32), 10
    options = {"init": distinct_rows(X, k, 0), "n_init": 1}
    reference, kmeans = ReferenceKMeans(k, **options).fit(X), daskem.KMeans(k, **options).fit(X)
    assert kmeans.cluster_centers_.dtype == reference.cluster_centers_.dtype == np.float32
    assert kmeans.inertia_ == pytest.approx(reference.inertia_, rel=1e-5)


@pytest.mark.parametrize(("name", "covariance"), [("iris", "full"), ("wine", "diag"), ("blobs", "full")])
def test_starts_of_mixtures_are_as_good(name, covariance):
    X, found = DATA[name], []
    for seed in range(7):
        reference, mixture = both_mixtures(X, covariance_type=covariance, random_state=seed)
        found.append((reference.lower_bound_, mixture.lower_bound_))
    reference_median, median = np.median(found, axis=0)
    # Fits of one optimum end within a few tolerances of it.
    assert median >= reference_median - 3e-3


@pytest.mark.parametrize("name", ["iris", "wine", "blobs"])
def test_starts_of_kmeans_are_as_good(name):
    X, k, found = DATA[name], 8, []
    for seed in range(9):
        options = {"n_init": 3, "random_state": seed}
        reference, kmeans = ReferenceKMeans(k, **options).fit(X), daskem.KMeans(k, **options).fit(X)
        found.append((reference.inertia_, kmeans.inertia_))
    reference_median, median = np.median(found, axis=0)
    # Of random quantities with the same law one median is the larger half of the time; the spread over seeds is 2-5%.
    assert median <= 1.03 * reference_median


def test_reference_and_daskem_warn_alike_when_steps_run_out():
    X = DATA["iris"]
    for estimator in (ReferenceMixture(K, max_iter=2, random_state=0), daskem.GaussianMixture(K, max_iter=2)):
        with warnings.catch_warnings(), pytest.warns(ConvergenceWarning, match="converge"):
            estimator.fit(X)
        assert not estimator.converged_
        assert estimator.n_iter_ == 2


def test_an_emptied_cluster_is_refilled_and_reported(caplog):
    X = DATA["blobs"]
    init = np.concatenate([distinct_rows(X, 3, 0), [[1e3] * 5]])
    with caplog.at_level(logging.WARNING, logger="daskem"):
        kmeans = daskem.KMeans(4, init=init).fit(X)
    reference = ReferenceKMeans(4, init=init, n_init=1).fit(X)
    assert set(np.unique(kmeans.labels_)) == {0, 1, 2, 3}
    assert kmeans.result_.events[0].component == 3
    assert "component 3" in caplog.text
    assert kmeans.inertia_ <= 1.1 * reference.inertia_
