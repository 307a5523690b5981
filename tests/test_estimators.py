"""The scikit-learn face: conventions, kinds of input and output, weights, labels, starts."""

from __future__ import annotations

import inspect
import pickle
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import dask
import dask.array as da
import numpy as np
import pytest
import sklearn.cluster
import sklearn.mixture
import zarr
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from threadpoolctl import threadpool_limits
from zarr.storage import LocalStore, WrapperStore

import daskem
from daskem import errors
from daskem.errors import DaskEMWarning
from daskem.models import SHAPES

X, TRUTH = make_blobs(300, 3, centers=3, cluster_std=1.5, random_state=1)
K = 3
MAKE = {
    "mixture": lambda **options: daskem.GaussianMixture(K, **{"random_state": 0, "tol": 1e-6, **options}),
    "k-means": lambda **options: daskem.KMeans(K, **{"random_state": 0, **options}),
}
each_estimator = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
# Methods that return something for each row.
ROWWISE = {"mixture": ("predict", "predict_proba", "score_samples"), "k-means": ("predict", "transform")}


@pytest.fixture(autouse=True)
def _one_thread():
    """Many tiny steps gain nothing from threads; that those change no bit has a test of its own."""
    with dask.config.set(scheduler="synchronous"), threadpool_limits(1):
        yield


def rowwise(estimator: object) -> tuple[str, ...]:
    return ROWWISE["mixture" if isinstance(estimator, daskem.GaussianMixture) else "k-means"]


def fitted(estimator: object) -> dict[str, np.ndarray]:
    """Return the fitted numbers of an estimator."""
    if isinstance(estimator, daskem.KMeans):
        names = ("cluster_centers_", "labels_", "inertia_", "n_iter_")
    else:
        names = ("weights_", "means_", "covariances_", "precisions_", "lower_bound_", "n_iter_")
    return {name: np.asarray(getattr(estimator, name)) for name in names}


def assert_same_fit(a: object, b: object, **tolerance: float) -> None:
    others = fitted(b)
    for name, value in fitted(a).items():
        np.testing.assert_allclose(value, others[name], err_msg=name, **{"rtol": 0, **tolerance})


# --- conventions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(daskem.GaussianMixture, sklearn.mixture.GaussianMixture), (daskem.KMeans, sklearn.cluster.KMeans)],
)
def test_constructors_take_what_those_of_scikit_learn_take(ours, theirs):
    mine, reference = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    assert next(iter(mine)) == next(iter(reference))
    # `algorithm` names more than scikit-learn's two, and one of daskem's own is the default.
    for name, other in ((name, other) for name, other in reference.items() if name != "algorithm"):
        assert (mine[name].default, mine[name].kind) == (other.default, other.kind)
    assert len(mine) > len(reference)
    assert all(own.kind is inspect.Parameter.KEYWORD_ONLY for own in list(mine.values())[1:])
    for method in ("fit", "fit_predict", "predict", "score"):
        names = list(inspect.signature(getattr(ours, method)).parameters)
        wanted = list(inspect.signature(getattr(theirs, method)).parameters)
        assert names[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("make", "theirs"),
    [(MAKE["mixture"], sklearn.mixture.GaussianMixture(K)), (MAKE["k-means"], sklearn.cluster.KMeans(K))],
)
def test_fitted_attributes_are_those_of_scikit_learn(make, theirs):
    theirs.fit(X)
    ours = make().fit(X)
    names = {name for name in vars(theirs) if name.endswith("_") and not name.startswith("_")}
    assert names - set(vars(ours)) == set()
    for name in names:
        assert np.shape(getattr(ours, name)) == np.shape(getattr(theirs, name)) or name == "lower_bounds_"


@each_estimator
def test_estimators_are_cloned_pickled_and_set(make):
    estimator = make(memory_limit="8GB", cache="none").fit(X)
    again = clone(estimator)
    assert again.get_params() == estimator.get_params()
    assert not hasattr(again, "result_")
    assert_same_fit(again.fit(X), estimator)
    assert again.set_params(max_iter=7, cache="auto").get_params()["max_iter"] == 7
    loaded = pickle.loads(pickle.dumps(estimator))
    assert_same_fit(loaded, estimator)
    for method in rowwise(estimator):
        np.testing.assert_array_equal(getattr(loaded, method)(X), getattr(estimator, method)(X))


def test_reprs():
    mixture = daskem.GaussianMixture(2, reg_covar=1e-3, random_state=0)
    assert repr(mixture) == "GaussianMixture(n_components=2, random_state=0, reg_covar=0.001)"
    assert "daskem-fit" not in mixture._repr_html_()
    bundle = mixture.fit(X)._repr_mimebundle_()
    assert bundle["text/plain"] == repr(mixture)
    page = bundle["text/html"]
    for part in ("reg_covar", "0.001", "300 rows x 3 features", "nats per row", "passes", "converged: the gain"):
        assert part in page
    figure = ElementTree.fromstring(page[page.index('<div class="daskem-fit">') :])
    line = figure.find("svg/polyline").get("points").split()
    assert len(line) == mixture.n_iter_
    heights = [float(point.split(",")[1]) for point in line]
    assert heights == sorted(heights, reverse=True), "the objective rises, and pages count from the top"
    assert [row.find("th").text for row in figure.iter("tr")] == ["objective", "ended", "cost", "data", "memory"]


def test_progress_is_printed_when_asked_for(capsys):
    with pytest.warns(ConvergenceWarning):
        daskem.GaussianMixture(K, verbose=1, verbose_interval=2, max_iter=5, tol=0, random_state=0).fit(X)
    steps = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["step 2", "step 4"]


def test_data_frames_name_features():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    mixture = MAKE["mixture"]().fit(frame)
    assert mixture.feature_names_in_.tolist() == ["a", "b", "c"]
    assert_same_fit(mixture, MAKE["mixture"]().fit(X))
    np.testing.assert_array_equal(mixture.predict(frame), mixture.predict(da.from_array(X)))
    with pytest.raises(ValueError, match="feature names should match"):
        mixture.predict(frame[["b", "a", "c"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        mixture.predict(X)
    mixture.fit(da.from_array(X))
    assert not hasattr(mixture, "feature_names_in_")
    mixture.predict(X)


def test_transform_may_return_a_frame():
    pd = pytest.importorskip("pandas")
    kmeans = MAKE["k-means"]().set_output(transform="pandas").fit(X)
    table = kmeans.transform(X)
    assert isinstance(table, pd.DataFrame)
    assert table.columns.tolist() == kmeans.get_feature_names_out().tolist() == ["kmeans0", "kmeans1", "kmeans2"]
    np.testing.assert_array_equal(table.to_numpy(), MAKE["k-means"]().fit_transform(X))


def test_samples_follow_the_mixture():
    mixture = MAKE["mixture"]().fit(X)
    rows, labels = mixture.sample(20_000)
    assert rows.shape == (20_000, 3)
    for k in range(K):
        mine = rows[labels == k]
        # Four standard errors.
        assert abs(len(mine) / 20_000 - mixture.weights_[k]) < 4 * np.sqrt(0.25 / 20_000)
        error = np.sqrt(np.diag(mixture.covariances_[k]) / len(mine))
        assert (np.abs(mine.mean(axis=0) - mixture.means_[k]) < 4 * error).all()
    np.testing.assert_array_equal(mixture.sample(20_000)[0], rows)


# --- kinds of input and output ----------------------------------------------------------------------------------------


class CountingStore(WrapperStore):
    """Counts the chunks fetched from a store."""

    def __init__(self, store):
        super().__init__(store)
        self.fetched = Counter()

    async def get(self, key, prototype, byte_range=None):
        if key.startswith("c/"):
            self.fetched[key] += 1
        return await super().get(key, prototype, byte_range)


def in_zarr(path: Path, x: np.ndarray = X, rows: int = 100) -> str:
    z = zarr.create_array(path, shape=x.shape, dtype=x.dtype, chunks=(rows, *x.shape[1:]))
    z[...] = x
    return str(path)


def in_memmap(path: Path) -> np.memmap:
    np.save(path, X)
    return np.load(path, mmap_mode="r")


LAZY = {
    "path": in_zarr,
    "Path": lambda path: Path(in_zarr(path)),
    "zarr": lambda path: zarr.open_array(in_zarr(path), mode="r"),
    "dask": lambda path: da.from_array(X, chunks=(70, 2)),
}
EAGER = {
    "numpy": lambda path: X,
    "list": lambda path: X.tolist(),
    "fortran": lambda path: np.asfortranarray(X),
    "memmap": lambda path: in_memmap(path.with_suffix(".npy")),
}


@each_estimator
@pytest.mark.parametrize("kind", EAGER | LAZY)
def test_every_kind_of_input_gives_the_same_results(make, kind, tmp_path):
    x = (EAGER | LAZY)[kind](tmp_path / "x")
    estimator, reference = make().fit(x), make().fit(X)
    assert_same_fit(estimator, reference, rtol=1e-12)
    wanted = da.Array if kind in LAZY else np.ndarray
    for method in rowwise(estimator):
        result, expected = getattr(estimator, method)(x), getattr(reference, method)(X)
        assert type(result) is wanted
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-9, atol=1e-12)
    assert type(make().fit_predict(x)) is wanted
    assert estimator.score(x) == pytest.approx(reference.score(X), rel=1e-12)
    if isinstance(estimator, daskem.KMeans):
        assert type(estimator.labels_) is wanted
    else:
        assert estimator.bic(x) == pytest.approx(reference.bic(X), rel=1e-12)


@each_estimator
def test_results_of_a_store_wait_until_they_are_asked_for(make, tmp_path):
    in_zarr(tmp_path / "x.zarr")
    estimator = make().fit(X)
    x = zarr.open_array(CountingStore(LocalStore(tmp_path / "x.zarr")), mode="r")
    # Opening for reading wraps the store anew.
    store = x.store
    results = {method: getattr(estimator, method)(x) for method in rowwise(estimator)}
    assert store.fetched == {}
    for method, result in results.items():
        np.testing.assert_array_equal(result.compute(), getattr(estimator, method)(X))
        assert store.fetched == {f"c/{i}/0": 1 for i in range(3)}
        store.fetched.clear()


@each_estimator
def test_dask_graphs_are_not_run_by_predicting(make):
    estimator, ran = make().fit(X), []

    def note(block):
        ran.append(block.shape)
        return block

    lazy = da.from_array(X, chunks=(100, 3)).map_blocks(note, meta=X[:0])
    results = [getattr(estimator, method)(lazy) for method in rowwise(estimator)]
    assert ran == []
    dask.compute(*results)
    assert ran


@each_estimator
@pytest.mark.parametrize("dtype", ["float32", "int16", "bool"])
def test_other_types_of_numbers(make, dtype, tmp_path):
    x = (X > 0) if dtype == "bool" else X.astype(dtype)
    stored = make(max_iter=300).fit(in_zarr(tmp_path / "x", x))
    memory = make(max_iter=300).fit(x)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-9}
    assert_same_fit(stored, memory, **tolerance)


# --- weights and labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", [*SHAPES, None])
@pytest.mark.parametrize("init", ["default", "other"])
def test_a_weight_is_a_number_of_repetitions(covariance, init):
    weight = np.random.default_rng(0).integers(0, 4, len(X))
    if covariance is None:
        options = {} if init == "default" else {"init": X[:K]}
        make = MAKE["k-means"]
    else:
        options = {"covariance_type": covariance, "max_iter": 500}
        options |= {} if init == "default" else {"init_params": "k-means++"}
        make = MAKE["mixture"]
    weighted = make(**options).fit(X, sample_weight=weight)
    repeated = make(**options).fit(np.repeat(X, weight, axis=0))
    for name, value in fitted(weighted).items():
        if name != "labels_":
            np.testing.assert_allclose(value, fitted(repeated)[name], rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_array_equal(weighted.predict(X), repeated.predict(X))
    if covariance is None:
        np.testing.assert_array_equal(np.repeat(weighted.labels_, weight), repeated.labels_)
        assert weighted.score(X, sample_weight=weight) == pytest.approx(repeated.score(np.repeat(X, weight, axis=0)))


@each_estimator
def test_a_row_of_weight_zero_is_absent_whatever_it_holds(make):
    keep = np.random.default_rng(0).random(len(X)) < 0.7
    x = np.where(keep[:, None], X, np.nan)
    weighted, subset = (
        make().fit(np.where(keep[:, None], X, 1e9), sample_weight=keep.astype(float)),
        make().fit(X[keep]),
    )
    np.testing.assert_array_equal(weighted.predict(X), subset.predict(X))
    if isinstance(weighted, daskem.GaussianMixture):
        assert_same_fit(weighted, subset, rtol=1e-9, atol=1e-9)
        assert_same_fit(make().fit(x, sample_weight=keep.astype(float)), subset, rtol=1e-9, atol=1e-9)


@each_estimator
def test_weights_may_lie_in_a_store_beside_the_rows(make, tmp_path):
    weight = np.random.default_rng(0).integers(0, 4, len(X)).astype(float)
    # Chunks that do not fall together with those of the rows.
    stored = make().fit(in_zarr(tmp_path / "x"), sample_weight=in_zarr(tmp_path / "w", weight, 77))
    assert_same_fit(stored, make().fit(X, sample_weight=weight), rtol=1e-12)


def test_rows_labelled_throughout_are_the_closed_form():
    mixture = MAKE["mixture"](reg_covar=0.0)
    labels = np.r_[TRUTH[:-1], -1]
    weight = np.r_[np.ones(len(X) - 1), 0.0]
    mixture.fit(X, labels, weight)
    known = X[:-1], TRUTH[:-1]
    np.testing.assert_allclose(mixture.weights_, np.bincount(known[1]) / (len(X) - 1), rtol=1e-12)
    for k in range(K):
        rows = known[0][known[1] == k]
        np.testing.assert_allclose(mixture.means_[k], rows.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(mixture.covariances_[k], np.cov(rows.T, bias=True), rtol=1e-10)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_known_rows_end_in_their_component(order):
    truth = np.asarray(order)[TRUTH]
    labels = np.full(len(X), -1)
    chosen = np.random.default_rng(0).choice(len(X), 30, replace=False)
    labels[chosen] = truth[chosen]
    # One row is said to be in a group where it is not: it counts there all the same.
    wrong = int(chosen[0])
    labels[wrong] = (truth[wrong] + 1) % K
    mixture = MAKE["mixture"]()
    found = mixture.fit_predict(X, labels)
    np.testing.assert_array_equal(found[chosen], labels[chosen])
    assert (mixture.predict(X) == truth).mean() > 0.95
    assert mixture.predict(X[[wrong]])[0] == truth[wrong]
    # By hand: one more step from the fit, with the posterior of known rows replaced by their label.
    resp = mixture.predict_proba(X)
    resp[chosen] = np.eye(K)[labels[chosen]]
    np.testing.assert_allclose(mixture.weights_, resp.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(mixture.means_, (resp.T @ X) / resp.sum(axis=0)[:, None], atol=1e-2)


def test_labels_may_lie_in_a_store_beside_the_rows(tmp_path):
    labels = np.where(np.random.default_rng(0).random(len(X)) < 0.3, TRUTH, -1)
    memory = MAKE["mixture"]().fit(X, labels)
    stored = MAKE["mixture"]().fit(in_zarr(tmp_path / "x"), in_zarr(tmp_path / "y", labels, 77))
    assert_same_fit(stored, memory, rtol=1e-12)
    assert (memory.predict(X) == TRUTH).mean() > 0.95


@pytest.mark.parametrize("kind", [object, str, float])
def test_labels_may_be_numbers_of_any_type(kind):
    labels = np.where(np.random.default_rng(0).random(len(X)) < 0.3, TRUTH, -1)
    assert_same_fit(MAKE["mixture"]().fit(X, labels.astype(kind)), MAKE["mixture"]().fit(X, labels))


@pytest.mark.parametrize("y", [TRUTH, TRUTH.tolist(), TRUTH.astype(str), np.where(TRUTH, "star", "-1")])
def test_labels_without_an_unknown_one_are_ignored_with_a_word(y):
    with pytest.warns(DaskEMWarning, match="y has no -1 and is ignored"):
        mixture = MAKE["mixture"]().fit(X, y)
    assert_same_fit(mixture, MAKE["mixture"]().fit(X))


# --- starts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data", "k-means||"])
def test_every_start_of_a_mixture(init):
    mixture = MAKE["mixture"](init_params=init, max_iter=500, n_init=3).fit(X)
    assert mixture.converged_
    assert np.isfinite(mixture.lower_bound_)
    if init != "random":
        assert mixture.lower_bound_ == pytest.approx(MAKE["mixture"]().fit(X).lower_bound_, abs=1e-4)


@pytest.mark.parametrize("init", ["k-means++", "random", "k-means||", X[:K], X[:K].tolist()], ids=repr)
def test_every_start_of_kmeans(init):
    kmeans = MAKE["k-means"](init=init).fit(X)
    assert kmeans.inertia_ == pytest.approx(MAKE["k-means"]().fit(X).inertia_, rel=1e-6)
    assert len(kmeans.result_.objectives) == (10 if isinstance(init, str) and init == "random" else 1)


@each_estimator
def test_the_best_of_several_starts_is_kept(make):
    x = make_blobs(200, 2, centers=7, random_state=0)[0]
    name = "n_components" if isinstance(make(), daskem.GaussianMixture) else "n_clusters"
    option = {"init_params": "random_from_data"} if name == "n_components" else {"init": "random"}
    estimator = make(n_init=4, max_iter=300, **option).set_params(**{name: 7}).fit(x)
    ends = estimator.result_.objectives
    assert len(ends) == 4
    assert len(set(ends)) > 1
    assert estimator.result_.objective == max(ends)
    # They share passes: as many were made as the best start needed.
    assert estimator.result_.trace[-1].passes == estimator.n_iter_


@each_estimator
def test_running_out_of_steps_is_not_convergence(make):
    with pytest.warns(ConvergenceWarning, match=r"stopped before it converged: 2 passes were made.*max_iter"):
        estimator = make(max_iter=2, tol=0.0).fit(X)
    assert estimator.n_iter_ == 2
    assert not estimator.result_.converged


def test_a_budget_of_time_is_not_convergence():
    with pytest.warns(ConvergenceWarning, match="seconds were over"):
        mixture = MAKE["mixture"](max_seconds=1e-9).fit(X)
    assert mixture.n_iter_ == 1
    assert not mixture.converged_


@each_estimator
def test_the_same_seed_gives_the_same_bits(make):
    for seed in (0, 7):
        assert_same_fit(make(random_state=seed).fit(X), make(random_state=seed).fit(X))
        state = np.random.RandomState(seed)
        assert_same_fit(make(random_state=state).fit(X), make(random_state=seed).fit(X))
    # scikit-learn's None is numpy's global state, the one thing this can be tested with.
    np.random.seed(5)  # noqa: NPY002
    first = make(random_state=None).fit(X)
    np.random.seed(5)  # noqa: NPY002
    assert_same_fit(make(random_state=None).fit(X), first)


def test_other_seeds_start_elsewhere():
    starts = {
        float(MAKE["k-means"](random_state=s, init="random", n_init=1).fit(X).result_.trace[0].objective)
        for s in range(4)
    }
    assert len(starts) > 1


@each_estimator
@pytest.mark.parametrize("scheduler", ["threads", None])
def test_schedulers_do_not_change_a_bit(make, scheduler):
    with dask.config.set(scheduler=scheduler):
        other = make().fit(X)
        labels = other.predict(da.from_array(X, chunks=(70, 3))).compute()
    reference = make().fit(X)
    assert_same_fit(other, reference)
    np.testing.assert_array_equal(labels, reference.predict(X))


def test_the_conjugate_prior_keeps_a_mixture_from_collapsing():
    x = np.concatenate([X[:40], np.tile(X[0], (8, 1))])
    options = {"random_state": 0, "reg_covar": 0.0, "max_iter": 500, "n_init": 2}
    mixture = daskem.GaussianMixture(4, prior="conjugate", **options).fit(x)
    assert np.linalg.eigvalsh(mixture.covariances_).min() > 1e-3
    assert np.isfinite(mixture.lower_bound_)
    bounds = np.asarray(mixture.lower_bounds_)
    assert (np.diff(bounds) >= -1e-10).all()


def test_an_estimator_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    X = np.random.default_rng(0).standard_normal((400, 2)) + 4.0 * np.arange(400)[:, None] % 8
    options = {"n_components": 2, "random_state": 0, "tol": 0.0, "max_iter": 6, "algorithm": "batch"}

    def stop(*step):
        raise KeyboardInterrupt

    monkeypatch.setattr("daskem.estimators.base._PrintStep.__call__", stop)
    kept = {"checkpoint": tmp_path / "kept", "checkpoint_interval": 0}
    with pytest.raises(KeyboardInterrupt):
        daskem.GaussianMixture(**options, **kept, verbose=1).fit(X)
    with pytest.warns(ConvergenceWarning):
        resumed = daskem.GaussianMixture(**options, **kept, resume="must").fit(X)
    with pytest.warns(ConvergenceWarning):
        whole = daskem.GaussianMixture(**options).fit(X)
    assert resumed.n_iter_ == whole.n_iter_ == 6
    np.testing.assert_array_equal(resumed.means_, whole.means_)
    for random_state in (None, np.random.RandomState(0)):
        with pytest.raises(errors.OptionError, match="checkpoint= needs random_state= to be an int"):
            daskem.GaussianMixture(**kept, random_state=random_state).fit(X)


# What was fitted stays what it was


@each_estimator
def test_columns_are_those_that_were_fitted_in_their_order(make, tmp_path):
    for names in ("ab", "ba"):
        rows = X[:, :2] if names == "ab" else X[:, 1::-1]
        stored = zarr.create_array(tmp_path / f"{names}.zarr", data=np.ascontiguousarray(rows), chunks=(100, 2))
        stored.attrs["columns"] = list(names)
    fitted = make().fit(str(tmp_path / "ab.zarr"))
    assert np.isfinite(fitted.score(str(tmp_path / "ab.zarr")))
    with pytest.raises(errors.DataError, match=r"has the columns b, a, in this order, but \w+ was fitted to a, b"):
        fitted.score(str(tmp_path / "ba.zarr"))


def test_options_set_after_a_fit_change_nothing_of_it():
    fitted = MAKE["mixture"]().fit(X).set_params(n_components=5)
    lazy = fitted.predict_proba(da.from_array(X, chunks=(100, 3)))
    assert lazy.shape == lazy.compute().shape == (len(X), K)
    assert len(fitted.get_feature_names_out()) == K


def test_k_means_does_without_rows_that_cannot_be_used():
    rows = np.tile(X, (10, 1))
    rows[7] = np.nan
    with pytest.warns(DaskEMWarning, match="rows 0:1024"):
        fitted = daskem.KMeans(K, random_state=0, on_bad_unit="skip").fit(rows)
    out = np.zeros(len(rows), bool)
    for run in fitted.result_.left_out:
        out[run.start : run.stop] = True
    assert out.sum() == 1024
    assert (fitted.labels_[out] == -1).all()
    distance = ((rows[~out][:, None] - fitted.cluster_centers_) ** 2).sum(axis=2)
    np.testing.assert_array_equal(fitted.labels_[~out], distance.argmin(axis=1))
    np.testing.assert_allclose(fitted.inertia_, distance.min(axis=1).sum(), rtol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_labelled_rows_steer_k_means_oversampling_too(seed):
    rng = np.random.default_rng(9)
    rows = rng.normal(0, 1, (4_000, 2)) + 5.5 * rng.integers(2, size=(4_000, 1))
    y = np.full(len(rows), -1)
    y[np.flatnonzero(np.linalg.norm(rows, axis=1) < 1)[:100]] = 1
    fitted = daskem.GaussianMixture(2, init_params="k-means||", random_state=seed).fit(rows, y)
    np.testing.assert_allclose(fitted.means_, [[5.5, 5.5], [0, 0]], atol=0.2)


def test_what_is_not_fitted_or_no_object_says_so():
    for estimator in (daskem.GaussianMixture(3), daskem.KMeans(3)):
        with pytest.raises(errors.OptionError, match=r"is an estimator: call its own fit"):
            daskem.fit(estimator, X)
    with pytest.raises(NotFittedError):
        daskem.GaussianMixture().diagnose(X)
    with pytest.raises(errors.OptionError, match="tol='statistical'"):
        daskem.KMeans(K, tol="statistical").fit(X)
    with pytest.raises(errors.OptionError, match=r"algorithm=StepwiseEM is a class"):
        daskem.GaussianMixture(K, algorithm=daskem.StepwiseEM).fit(X)
    variational = daskem.VariationalGaussianMixture(2, random_state=0, tol=1e-2).fit(X)
    with pytest.raises(errors.OptionError, match="has a distribution of parameters"):
        variational.diagnose(X)
