"""What is known of a row's component beside the row: labels, and the probabilities of labels."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr
from sklearn.datasets import make_blobs

import daskem
from daskem.core import Chunk
from daskem.data import open_dataset
from daskem.fit import fit
from daskem.models import Gaussian, Mixture
from daskem.starts import distinct

N, K = 300, 3
X, TRUTH = make_blobs(N, 2, centers=K, cluster_std=2.5, random_state=1)
MODEL = Mixture(Gaussian("diag"), K)
RNG = np.random.default_rng(0)
SOFT = RNG.dirichlet(np.full(K, 0.7), N)
SOFT[::4] = 1.0
SOFT[1::4, 0] = 0.0
STOP = daskem.MaxSteps(5)


def params_of(result):
    return result.params.weights, result.params.components.means, result.params.components.covariances


def assert_same(a, b, rtol=0.0):
    for mine, other in zip(params_of(a), params_of(b), strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol)


def test_the_posterior_is_bayes_rule():
    params = fit(MODEL, X, stop=STOP).params
    joint = params.weights * np.exp(MODEL.family.log_prob(params.components, Chunk(X))) * SOFT
    chunk = Chunk(X, labels=SOFT)
    np.testing.assert_allclose(MODEL.posterior(params, chunk), joint / joint.sum(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(MODEL.log_prob(params, chunk), np.log(joint.sum(axis=1)), rtol=1e-12)
    assert (MODEL.posterior(params, chunk)[1::4, 0] == 0).all()


def test_a_one_hot_row_is_a_known_component():
    labels = np.where(np.arange(N) % 3, -1, TRUTH)
    one_hot = np.where(labels[:, None] < 0, 1.0, np.arange(K) == labels[:, None])
    assert_same(fit(MODEL, X, y=one_hot, stop=STOP), fit(MODEL, X, y=labels, stop=STOP), 1e-9)


def test_rows_of_ones_say_nothing():
    assert_same(fit(MODEL, X, y=np.ones((N, K)), stop=STOP), fit(MODEL, X, stop=STOP))


def test_equal_probabilities_change_the_objective_alone():
    start = fit(MODEL, X, stop=daskem.MaxSteps(1)).params
    plain, told = (
        fit(MODEL, X, y=y, params=start, algorithm=daskem.BatchEM(), stop=STOP) for y in (None, np.full((N, K), 1 / K))
    )
    assert_same(plain, told, 1e-9)
    assert told.objective == pytest.approx(plain.objective - np.log(K), rel=1e-12)


@pytest.mark.parametrize("kind", ["store", "dask", "float32", "npy"])
def test_label_probabilities_come_from_any_source(kind, tmp_path):
    labels = SOFT.astype(np.float32) if kind == "float32" else SOFT
    if kind == "dask":
        y = da.from_array(labels, chunks=(70, 2))
    elif kind == "npy":
        np.save(tmp_path / "y.npy", labels)
        y = tmp_path / "y.npy"
    else:
        y = str(tmp_path / "y.zarr")
        zarr.create_array(y, data=labels, chunks=(77, K))
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(100, 2))
    stored = fit(MODEL, tmp_path / "x.zarr", y=y, stop=STOP)
    assert_same(stored, fit(MODEL, X, y=labels.astype(np.float64), stop=STOP), 1e-12)


def test_a_slice_of_rows_applies_to_label_probabilities():
    data = open_dataset(X, y=SOFT, rows=slice(50, 60))
    assert data.labels.shape == (10, K)
    np.testing.assert_array_equal(data.labels.read(2, 4), SOFT[52:54])
    assert data.memory_row_bytes == 8 * (2 + K)


def test_equal_rows_of_a_sample_stay_apart_by_what_is_known_of_them():
    rows, labels = np.zeros((4, 2)), np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    sample = distinct(Chunk(rows, labels=labels))
    np.testing.assert_array_equal(sample.labels, [[0.5, 0.5], [1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(sample.weight, [1.0, 2.0, 1.0])


def test_a_start_never_contradicts_the_labels():
    """Rows known by two of three components apart: the component of each is told, whatever k-means would think."""
    forbidding = (np.arange(K) != ((TRUTH + 1) % K)[:, None]) * (np.arange(K) != ((TRUTH + 2) % K)[:, None]) * 1.0
    params = MODEL.init(Chunk(X, labels=forbidding), np.random.default_rng(0))
    for k in range(K):
        np.testing.assert_allclose(params.components.means[k], X[k == TRUTH].mean(axis=0), rtol=1e-9)


def test_estimators_take_label_probabilities():
    mixture = daskem.GaussianMixture(K, covariance_type="diag", random_state=0, tol=1e-6).fit(X, SOFT)
    posterior = mixture.fit_transform(X, SOFT)
    assert (posterior[1::4, 0] == 0).all()
    found = mixture.fit_predict(X, SOFT)
    np.testing.assert_array_equal(found, posterior.argmax(axis=1))
    assert not (found[1::4] == 0).any()
    assert (mixture.predict(X)[1::4] == 0).any()


def test_probabilities_teach_which_component_is_which():
    """Vague hints for all rows, 60% on the truth: components come out in the order of the hints."""
    x, truth = make_blobs(N, 2, centers=[[0, 0], [9, 0], [0, 9]], random_state=2)
    hints = np.where(np.arange(K) == truth[:, None], 0.6, 0.2)
    for seed in range(5):
        mixture = daskem.GaussianMixture(K, random_state=seed).fit(x, hints)
        np.testing.assert_array_equal(mixture.predict(x), truth)
