"""What cannot work is refused with one clear error, before work starts; what is only odd is warned of."""

from __future__ import annotations

from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from sklearn.exceptions import NotFittedError
from threadpoolctl import threadpool_limits

import daskem
from daskem.core import Array
from daskem.data.selection import Rows, Selection
from daskem.errors import DaskEMError, DaskEMWarning, DataError, NonFiniteError, OptionError, PlanError
from daskem.models import Gaussian, KMeans, Mixture

N, D = 60, 3
X = np.random.default_rng(0).normal(size=(N, D)) + np.repeat([[0.0], [6.0]], N // 2, axis=0)
ESTIMATORS = {
    "mixture": lambda **options: daskem.GaussianMixture(2, random_state=0, **options),
    "k-means": lambda **options: daskem.KMeans(2, random_state=0, **options),
}
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="synchronous"), threadpool_limits(1):
        yield


class Unread(Rows):
    """A source that must not be read."""

    def read(self, start: int, stop: int) -> Array:
        raise AssertionError("rows were read")


def unread(n: int = N, d: int = D) -> Unread:
    return Unread("unread", np.dtype(np.float64), Selection(0, n, d), False)


def stored(path: Path, x: np.ndarray = X, **options: object) -> str:
    z = zarr.create_array(path / "x.zarr", shape=x.shape, dtype=x.dtype, chunks=(20, *x.shape[1:]), **options)
    z[...] = x
    return str(path / "x.zarr")


# --- rows -------------------------------------------------------------------------------------------------------------

IN_MEMORY = {
    "no rows": (np.empty((0, 3)), "0 sample"),
    "no features": (np.empty((5, 0)), "0 feature"),
    "one number a row": (np.arange(20.0), "Expected 2D array, got 1D"),
    "three axes": (np.zeros((4, 3, 2)), "dim"),
    "complex": (X.astype(complex), "[Cc]omplex data"),
    "text": (np.full((20, 2), "a"), "could not convert|numbers"),
    "objects": (np.full((20, 2), None), "NoneType|numbers|NaN"),
    "one row": (X[:1], "minimum of 2|has 1 rows"),
}


@each_estimator
@pytest.mark.parametrize("x", [np.full((20, 2), "2026-01-01", "M8[D]"), np.full((20, 2), object())])
def test_arrays_of_what_is_not_a_number(estimator, x):
    with pytest.raises((TypeError, ValueError)):
        estimator().fit(x)


@each_estimator
@pytest.mark.parametrize("case", IN_MEMORY)
def test_arrays_that_are_no_table_of_numbers(estimator, case):
    x, words = IN_MEMORY[case]
    with pytest.raises((ValueError, TypeError), match=words):
        estimator().fit(x)


@each_estimator
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((0, 3)), "0 sample"),
        (np.zeros(20), "Expected 2D array, got 1D"),
        (np.zeros((20, 2, 2)), "3 dimensions"),
        (np.zeros((20, 2), complex), "Complex data"),
        (np.zeros((20, 2), "M8[s]"), "not numbers"),
    ],
    ids=["no rows", "one axis", "three axes", "complex", "dates"],
)
def test_stores_that_are_no_table_of_numbers(estimator, x, words, tmp_path):
    path = tmp_path / "x.zarr"
    zarr.create_array(path, shape=x.shape, dtype=x.dtype, chunks=(20, *x.shape[1:]))
    with pytest.raises(DataError, match=words):
        estimator().fit(path)


@each_estimator
def test_more_components_than_rows(estimator):
    with pytest.raises(DataError, match=r"1 sample|has 1 rows"):
        estimator().fit(unread(1))
    wide = daskem.GaussianMixture(61) if "Mixture" in repr(estimator()) else daskem.KMeans(61)
    with pytest.raises(DataError, match="61"):
        wide.fit(unread())


@pytest.mark.filterwarnings("ignore::daskem.errors.DaskEMWarning")
@each_estimator
@pytest.mark.parametrize("init_sample", ["auto", "k-means||"])
def test_copies_of_one_row(estimator, init_sample):
    with pytest.raises(DataError, match="one distinct row"):
        estimator(init_sample=init_sample).fit(np.tile([1.0, 2.0], (20, 1)))


def test_one_component_of_one_distinct_row_is_the_floor():
    x = np.tile([1.0, 2.0], (20, 1))
    with pytest.warns(DaskEMWarning, match=r"constant feature\(s\) 0, 1"):
        mixture = daskem.GaussianMixture(1, reg_covar=1e-4).fit(x)
    np.testing.assert_allclose(mixture.means_, x[:1])
    np.testing.assert_allclose(mixture.covariances_[0], 1e-4 * np.eye(2), atol=1e-15)
    kmeans = daskem.KMeans(1).fit(x)
    np.testing.assert_array_equal(kmeans.cluster_centers_, x[:1])
    assert kmeans.inertia_ == 0


@each_estimator
def test_fewer_distinct_rows_than_components(estimator):
    with pytest.warns(DaskEMWarning, match="2 distinct rows .* fewer than the 3"):
        estimator().set_params(
            **{name: 3 for name in ("n_components", "n_clusters") if hasattr(estimator(), name)}
        ).fit(np.repeat([[0.0, 1.0], [5.0, 4.0]], 10, axis=0))


@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
def test_a_constant_feature_is_warned_of_and_floored(covariance):
    x = np.column_stack([X[:, 0], np.full(N, 1e6), X[:, 1]])
    mixture = daskem.GaussianMixture(2, covariance_type=covariance, random_state=0)
    with pytest.warns(DaskEMWarning, match=r"constant feature\(s\) 1 .*reg_covar=1e-06"):
        labels = mixture.fit_predict(x)
    variance = {"full": lambda c: c[:, 1, 1], "tied": lambda c: c[1, 1], "diag": lambda c: c[:, 1]}[covariance]
    np.testing.assert_allclose(variance(mixture.covariances_), 1e-6, rtol=1e-9)
    np.testing.assert_allclose(mixture.means_[:, 1], 1e6, rtol=1e-15)
    without = daskem.GaussianMixture(2, covariance_type=covariance, random_state=0).fit_predict(x[:, ::2])
    assert (labels == without).all() or (labels == 1 - without).all()


def test_constant_features_trouble_neither_kmeans_nor_spheres():
    x = np.column_stack([X, np.full(N, 3.0)])
    daskem.KMeans(2, random_state=0).fit(x)
    daskem.GaussianMixture(2, covariance_type="spherical", random_state=0).fit(x)


@each_estimator
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_memory(estimator, value):
    x = X.copy()
    x[41, 2] = value
    word = "NaN" if np.isnan(value) else "infinity"
    with pytest.raises(NonFiniteError, match=rf"contains {word}.*rows 41:42 .*feature 2"):
        estimator().fit(x)
    fitted = estimator().fit(X)
    with pytest.raises(NonFiniteError, match=word):
        fitted.predict(x)


@each_estimator
def test_nan_in_a_store_is_located(estimator, tmp_path):
    x = X.copy()
    x[30:32, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"x\.zarr.*chunk \(1, 0\).*rows 30:32 hold 2 row"):
        estimator().fit(stored(tmp_path, x))


def test_nan_that_no_start_saw_is_located_by_the_pass(tmp_path):
    x = X.copy()
    x[30, 1] = np.nan
    start = Mixture(Gaussian(), 2).init(daskem.Chunk(X), np.random.default_rng(0))
    with pytest.raises(NonFiniteError, match=r"chunk \(1, 0\).*rows 30:31"):
        daskem.fit(Mixture(Gaussian(), 2), stored(tmp_path, x), params=start)


# --- stores -----------------------------------------------------------------------------------------------------------


@each_estimator
def test_a_store_that_is_not_there(estimator, tmp_path):
    with pytest.raises(DataError, match=r"no Zarr store at .*nowhere\.zarr"):
        estimator().fit(str(tmp_path / "nowhere.zarr"))
    assert not list(tmp_path.iterdir())


def test_a_group_without_that_array(tmp_path):
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("here", shape=(4, 2), dtype="f8")
    model = Mixture(Gaussian(), 1)
    with pytest.raises(DataError, match=r"no array 'there'; it holds 'here' \(4, 2\)"):
        daskem.fit(model, str(tmp_path / "g.zarr"), array="there")
    with pytest.raises(DataError, match="no array 'there'"):
        daskem.GaussianMixture().fit(tmp_path / "g.zarr" / "there")


@each_estimator
def test_a_missing_chunk(estimator, tmp_path):
    path = stored(tmp_path)
    Path(path, "c", "1", "0").unlink()
    with pytest.raises(DataError, match=r"1 of 3 chunks are not in the store: \(1, 0\)"):
        estimator().fit(path)


@each_estimator
def test_a_damaged_chunk(estimator, tmp_path):
    path = stored(tmp_path)
    Path(path, "c", "2", "0").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"chunk \(2, 0\) \(rows 40:60\) cannot be read"):
        estimator().fit(path)


def test_unknown_columns(tmp_path):
    path, model = stored(tmp_path, attributes={"columns": ["G", "BP", "RP"]}), Mixture(Gaussian(), 2)
    with pytest.raises(OptionError, match=r"no column 'B'; its columns are 'G', 'BP', 'RP'\. Did you mean"):
        daskem.fit(model, path, columns=["B"])
    with pytest.raises(OptionError, match="no column 3: it has 3"):
        daskem.fit(model, path, columns=[3])


# --- weights and labels -----------------------------------------------------------------------------------------------

WEIGHTS = {
    "negative": (np.r_[-1.0, np.ones(N - 1)], r"sample_weight.*negative"),
    "NaN": (np.r_[np.nan, np.ones(N - 1)], r"sample_weight.*NaN"),
    "infinite": (np.r_[np.inf, np.ones(N - 1)], r"sample_weight.*infinite"),
    "all zero": (np.zeros(N), r"sample_weight.*zero for all rows"),
    "too few": (np.ones(N - 1), f"sample_weight.*{N - 1} values.*{N} rows"),
    "two a row": (np.ones((N, 2)), "sample_weight must be one number a row"),
    "text": (np.full(N, "a"), "sample_weight.*not numbers"),
}


@each_estimator
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_cannot_be(estimator, case):
    weight, words = WEIGHTS[case]
    with pytest.raises(DataError, match=words):
        estimator().fit(unread(), sample_weight=weight)


@each_estimator
def test_weights_in_a_store_are_checked_too(estimator, tmp_path):
    path = stored(tmp_path, np.r_[np.ones(N - 1), -1.0])
    with pytest.raises(DataError, match=r"sample_weight \(Zarr array .*negative"):
        estimator(cache="none").fit(unread(), sample_weight=path)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.r_[2, np.full(N - 1, -1)], r"range from -1 to 2.*0 to 2 - 1"),
        (np.r_[-2, np.full(N - 1, -1)], "range from -2 to -1"),
        (np.r_[0.5, np.full(N - 1, -1.0)], "not all whole numbers"),
        (np.r_[np.nan, np.full(N - 1, -1.0)], "hold NaN or None, first in row 0. Give -1"),
        (np.r_[np.array([None]), np.full(N - 1, -1)], "hold NaN or None, first in row 0. Give -1"),
        (np.r_[np.array([object()]), np.full(N - 1, -1)], r"hold what is no label \(.*Give -1"),
        (np.full(N - 1, -1), f"{N - 1} values.*{N} rows"),
        (np.full((N, 3), 0.5), "3 columns, but the model has 2 components"),
        (np.full((N - 1, 2), 0.5), f"{N - 1} values.*{N} rows"),
        (np.full((N, 2, 1), 0.5), "one number a row, or one a component"),
        (np.tile([1.5, 0.5], (N, 1)), r"range from 0\.5 to 1\.5.*between 0 \(forbidden\) and 1"),
        (np.tile([-0.5, 0.5], (N, 1)), "range from -0.5 to 0.5"),
        (np.tile([np.nan, 0.5], (N, 1)), "range from nan"),
        (np.repeat([[1.0, 0.0], [0.0, 0.0]], [N - 3, 3], axis=0), r"forbid all components of 3 row\(s\)"),
    ],
)
def test_labels_that_cannot_be(labels, words):
    with pytest.raises(DataError, match=words):
        daskem.GaussianMixture(2).fit(unread(), labels)


def test_label_probabilities_for_a_model_that_takes_none():
    with pytest.raises(DataError, match="2 columns, and KMeans takes no label probabilities"):
        daskem.fit(KMeans(2), unread(), y=np.full((N, 2), 0.5))


# --- options ----------------------------------------------------------------------------------------------------------

SHARED = {
    "max_iter": [0, -1, 2.5, "many", None, True],
    "tol": [-1e-3, np.nan, np.inf, "small", None],
    "n_init": [0, -2, 1.5, "some", None],
    "algorithm": ["newton"],
    "cache": ["disk"],
    "memory_limit": ["lots", -1, 0],
    "on_collapse": ["ignore"],
    "init_sample": ["all", 0, -5, 1.5],
    "max_seconds": [0, -1.0, "soon"],
}
MIXTURE = {
    "n_components": [0, -1, 1.5, "2", None],
    "covariance_type": ["banded", None, 3],
    "reg_covar": [-1e-6, np.nan, "none"],
    "init_params": ["best", None],
    "prior": ["flat"],
    "verbose_interval": [0],
    "weights_init": [[1.0], [0.7, 0.7], [-0.5, 1.5], [np.nan, 1.0]],
    "means_init": [np.zeros((2, D + 1)), np.zeros(D), np.full((2, D), np.nan)],
    "precisions_init": [np.eye(D), -np.tile(np.eye(D), (2, 1, 1)), np.ones((2, D, D))],
}
KMEANS = {
    "n_clusters": [0, -1, 1.5, "2", None],
    "init": ["best", np.zeros((3, D)), np.zeros((2, D + 1)), np.full((2, D), np.nan), lambda X, k, rng: X[:k]],
}
OPTIONS = [(e, o, v) for e in ESTIMATORS for o, values in SHARED.items() for v in values]
OPTIONS += [("mixture", o, v) for o, values in MIXTURE.items() for v in values]
OPTIONS += [("k-means", o, v) for o, values in KMEANS.items() for v in values]
# Found when the start is made, after the sample was read.
LATE = {"init_sample", "weights_init", "means_init", "precisions_init", "init"}


@pytest.mark.parametrize(("estimator", "option", "value"), OPTIONS)
def test_options_that_cannot_be(estimator, option, value):
    made = ESTIMATORS[estimator]().set_params(**{option: value})
    with pytest.raises(OptionError, match=option.removesuffix("_type").removesuffix("_params").partition("_init")[0]):
        made.fit(X if option in LATE else unread())
    assert not hasattr(made, "result_")


def test_errors_are_also_what_python_calls_them():
    for kind, builtin in ((OptionError, ValueError), (DataError, ValueError), (PlanError, MemoryError)):
        assert issubclass(kind, builtin)
        assert issubclass(kind, DaskEMError)


@pytest.mark.parametrize(
    ("model", "n", "d"),
    [
        (daskem.GaussianMixture(10**6), 10**7, 100),
        (daskem.GaussianMixture(100), 10**4, 10**5),
        (daskem.KMeans(10**9), 10**10, 100),
        (daskem.GaussianMixture(2, n_init=10**9), N, D),
        (daskem.GaussianMixture(2, memory_limit="1MB"), N, D),
    ],
    ids=["components", "features", "clusters", "starts", "limit"],
)
def test_what_no_memory_can_hold_is_not_begun(model, n, d):
    with pytest.raises(PlanError, match=r"needs .* but may use .*Nothing was read"):
        model.fit(unread(n, d))


# --- fitted -----------------------------------------------------------------------------------------------------------


@each_estimator
def test_rows_of_another_width(estimator):
    fitted = estimator().fit(X)
    for x in (X[:, :2], da.from_array(X[:, :2]), unread(N, 2)):
        with pytest.raises(ValueError, match=r"X has 2 features, but \w+ is expecting 3 features"):
            fitted.predict(x)


@each_estimator
def test_what_was_not_fitted_says_so(estimator):
    methods = ("predict", "score", "predict_proba", "score_samples", "aic", "bic", "transform")
    for method in methods:
        if hasattr(estimator(), method):
            with pytest.raises(NotFittedError, match="not fitted yet"):
                getattr(estimator(), method)(X)
    with pytest.raises(NotFittedError):
        daskem.GaussianMixture().sample()


@pytest.mark.parametrize("n", [0, -1])
def test_samples_of_no_rows(n):
    with pytest.raises(ValueError, match="at least one sample"):
        daskem.GaussianMixture(2, random_state=0).fit(X).sample(n)


@pytest.mark.parametrize("change", [{"n_components": 3}, {"covariance_type": "diag"}])
def test_a_warm_start_from_another_model(change):
    mixture = daskem.GaussianMixture(2, warm_start=True, random_state=0).fit(X)
    with pytest.raises(OptionError, match="warm_start=True goes on from a fit of 2 components of 3 features"):
        mixture.set_params(**change).fit(X)


def test_a_warm_start_on_other_features():
    mixture = daskem.GaussianMixture(2, warm_start=True, random_state=0).fit(X)
    with pytest.raises(OptionError, match="but 2 components of 2 features, Gaussian"):
        mixture.fit(X[:, :2])


def test_unknown_schedules_and_stops():
    with pytest.raises(OptionError, match="never stops"):
        daskem.fit(Mixture(Gaussian(), 2), unread(), stop=())
