"""K-means: Lloyd's steps as scikit-learn takes them, accurate far from the origin, and never with an empty excuse."""

import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.cluster import KMeans as Peer
from sklearn.exceptions import ConvergenceWarning

from daskem import tree
from daskem.core import Chunk, Scratch
from daskem.errors import DegenerateComponentError, OptionError
from daskem.models.kmeans import KMeans
from daskem.models.repair import EMPTY_KEPT, RESEEDED
from daskem.predict import RowFunction


def draw(n=600, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def steps(model, params, chunk, n):
    for _ in range(n):
        params = model.m_step(model.e_step(params, chunk).stats, params)
    return params


def started(rows, k=5, **options):
    model = KMeans(k, centers_init=rows[:k], **options)
    return model, model.init(Chunk(rows), np.random.default_rng(0))


@pytest.mark.parametrize("n_steps", [1, 5, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_steps_are_those_of_scikit_learn(n_steps, weighted):
    rows = draw()
    weight = np.random.default_rng(1).uniform(0.5, 2, size=600) if weighted else None
    model, params = started(rows)
    params = steps(model, params, Chunk(rows, weight), n_steps)
    peer = Peer(5, init=rows[:5], n_init=1, max_iter=n_steps, tol=0, algorithm="lloyd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer.fit(rows, sample_weight=weight)
    np.testing.assert_allclose(params.centers, peer.cluster_centers_, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(model.assign(params, Chunk(rows)), peer.labels_)
    assert model.e_step(params, Chunk(rows, weight)).objective == pytest.approx(-peer.inertia_, rel=1e-9)
    np.testing.assert_allclose(model.transform(params, Chunk(rows)), peer.transform(rows), rtol=1e-9)
    np.testing.assert_array_equal(model.posterior(params, Chunk(rows)), np.eye(5)[peer.labels_])


def test_statistics_add_over_blocks_share_a_scratch_and_an_empty_block_is_zero():
    rows = draw()
    model, params = started(rows)
    whole = model.e_step(params, Chunk(rows))
    scratch = Scratch()
    parts = [model.e_step(params, Chunk(rows[i : i + 97], start=i, scratch=scratch)) for i in range(0, 600, 97)]
    total = tree.reduce(parts)
    for (path, a), (_, b) in zip(tree.leaves(whole), tree.leaves(total), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-11, atol=1e-10, err_msg=path)
    empty = model.e_step(params, Chunk(rows[:0]))
    assert all(not np.any(leaf) for _, leaf in tree.leaves(empty))
    assert [np.shape(leaf) for _, leaf in tree.leaves(empty)] == [np.shape(leaf) for _, leaf in tree.leaves(whole)]


def test_a_weight_counts_rows_zero_means_absent_and_a_label_decides():
    rows = draw(n=200)
    weight = np.random.default_rng(1).integers(0, 3, size=200).astype(float)
    labels = np.arange(200) % 6 - 1
    model, params = started(rows)
    times = weight.astype(int)
    repeated = model.e_step(params, Chunk(np.repeat(rows, times, axis=0), labels=np.repeat(labels, times)))
    weighted = model.e_step(params, Chunk(np.where(weight[:, None] == 0, np.nan, rows), weight, labels))
    for (path, a), (_, b) in zip(tree.leaves(repeated), tree.leaves(weighted), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-11, atol=1e-10, err_msg=path)
    assigned = model.assign(params, Chunk(rows, labels=labels))
    np.testing.assert_array_equal(assigned[labels >= 0], labels[labels >= 0])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_single_precision_rows_give_double_statistics_close_to_the_double_ones(offset):
    rows = (draw(n=3000) * 2 + offset).astype(np.float32)
    model, params = started(rows)
    single = model.e_step(params, Chunk(rows))
    double = model.e_step(params, Chunk(rows.astype(float)))
    assert all(np.asarray(leaf).dtype == np.float64 for _, leaf in tree.leaves(single))
    assert single.objective == pytest.approx(double.objective, rel=1e-5)
    after = [model.m_step(e.stats, params).centers for e in (single, double)]
    assert np.abs(after[0] - after[1]).max() < 1e-2 * (1 + 1e-5)  # a row on the edge may change sides, of 3,000


@pytest.mark.parametrize("tightness", [1.0, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_way_to_measure_distances_gives_the_inertia_of_differences(tightness, dtype):
    # The four sizes take the expanded sum, residuals, and (double precision) distances to each center by differences.
    rng = np.random.default_rng(0)
    centers = 10 * rng.normal(size=(3, 2))
    rows = (np.repeat(centers, 100, axis=0) + tightness * rng.normal(size=(300, 2))).astype(dtype)
    model = KMeans(3)
    params = steps(model, model.init(Chunk(rows), rng), Chunk(rows), 2)
    exact = ((rows[:, None].astype(float) - params.centers) ** 2).sum(axis=2)
    expectation = model.e_step(params, Chunk(rows))
    np.testing.assert_array_equal(model.assign(params, Chunk(rows)), exact.argmin(axis=1))
    assert -expectation.objective == pytest.approx(exact.min(axis=1).sum(), rel=1e-5 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("tightness", [1.0, 1e-3, 1e-6])
def test_long_blocks_are_walked_by_short_ones_where_there_are_tables(tightness, monkeypatch):
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.normal(size=(5, 3)), 1_000, axis=0) + tightness * rng.normal(size=(5_000, 3))
    rows = rng.permutation(rows).astype(np.float32)
    model = KMeans(5)
    params = model.init(Chunk(rows[:300]), rng)
    chunk = Chunk(rows, rng.integers(0, 3, size=5_000).astype(float), rng.integers(-1, 5, size=5_000))
    found = [model.e_step(params, chunk), model.assign(params, chunk), model.transform(params, chunk)]
    monkeypatch.setattr("daskem.models.kmeans.TABLE_ROWS", 10_000)
    whole = [model.e_step(params, chunk), model.assign(params, chunk), model.transform(params, chunk)]
    for (path, some), (_, all_rows) in zip(tree.leaves(found[0]), tree.leaves(whole[0]), strict=True):
        np.testing.assert_allclose(some, all_rows, rtol=1e-5, err_msg=path)
    assert np.array_equal(found[1], whole[1])
    assert np.array_equal(found[2], whole[2])
    exact = np.linalg.norm(rows[:, None].astype(float) - params.centers, axis=2)
    np.testing.assert_allclose(found[2], exact, atol=1e-6)
    empty = chunk.select(slice(0))
    assert len(model.assign(params, empty)) == len(model.transform(params, empty)) == 0


def test_the_objective_never_falls_and_the_distance_is_scikit_learns_measure():
    rows = draw()
    model, params = started(rows)
    values = []
    for _ in range(20):
        expectation = model.e_step(params, Chunk(rows))
        values.append(expectation.objective)
        new = model.m_step(expectation.stats, params)
        assert model.distance(params, new) == pytest.approx(
            np.sum((params.centers - new.centers) ** 2) / rows.var(axis=0).mean()
        )
        params = new
    assert np.diff(values).min() >= -1e-9 * abs(values[-1])
    assert values[-1] > values[0] + 1.0


def test_an_empty_cluster_is_kept_reseeded_or_refused():
    rows = draw()
    starts = np.concatenate([rows[:4], [[100.0] * 4]])

    def m_step(policy):
        model = KMeans(5, centers_init=starts, on_collapse=policy)
        params = model.init(Chunk(rows), np.random.default_rng(0))
        return model, params, model.m_step(model.e_step(params, Chunk(rows)).stats, params)

    model, params, kept = m_step("keep")
    np.testing.assert_array_equal(kept.centers[4], params.centers[4])
    assert kept.repaired.tolist() == [0, 0, 0, 0, EMPTY_KEPT]
    assert [k for k, _ in model.events(kept)] == [4]

    model, params, reseeded = m_step("reseed")
    assert reseeded.repaired.tolist() == [0, 0, 0, 0, RESEEDED]
    np.testing.assert_array_equal(reseeded.centers[:4], kept.centers[:4])
    after = model.e_step(reseeded, Chunk(rows))
    assert after.stats.n[4] > 0
    assert after.objective > model.e_step(kept, Chunk(rows)).objective

    with pytest.raises(DegenerateComponentError, match="component 4 of 5 has weight 0 rows"):
        m_step("raise")


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_features_of_extreme_size_neither_vanish_nor_overflow(size):
    rows = draw(n=200)
    model = KMeans(3)
    plain = steps(model, model.init(Chunk(rows), np.random.default_rng(0)), Chunk(rows), 5)
    scaled = steps(model, model.init(Chunk(rows * size), np.random.default_rng(0)), Chunk(rows * size), 5)
    np.testing.assert_allclose(scaled.centers / size, plain.centers, rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_a_number_makes_the_objective_not_finite(bad):
    rows = draw(n=50)
    model, params = started(rows)
    rows[7, 1] = bad
    assert not np.isfinite(model.e_step(params, Chunk(rows)).objective)


@pytest.mark.parametrize("method", ["kmeans", "k-means++", "random"])
def test_every_start_improves_and_depends_on_the_generator_alone(method):
    rows = draw(n=300)
    model = KMeans(4, method)
    first, again = (model.init(Chunk(rows), np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first.centers, again.centers)
    later = steps(model, first, Chunk(rows), 10)
    assert model.e_step(later, Chunk(rows)).objective >= model.e_step(first, Chunk(rows)).objective
    assert model.n_parameters(first) == 16


def test_planned_bytes_are_those_of_the_records():
    rows = draw()
    model, params = started(rows)
    plan = model.footprint(4, rows.dtype)
    assert plan.params == tree.nbytes(params)
    assert plan.stats == tree.nbytes(model.e_step(params, Chunk(rows)).stats)
    assert KMeans(100_000).footprint(5000, np.dtype(np.float32)).block_rows >= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KMeans(0), "n_clusters is 0"),
        (lambda: KMeans(2, "guess"), "init_method is 'guess'"),
        (lambda: KMeans(2, on_collapse="hope"), "on_collapse is 'hope'"),
        (
            lambda: started(draw(), k=5)[0].init(Chunk(draw(d=3)), np.random.default_rng(0)),
            r"must be finite and \(5, 3\)",
        ),
        (lambda: KMeans(2).init(Chunk(draw(n=0)), np.random.default_rng(0)), "no rows of positive weight"),
    ],
)
def test_options_that_cannot_work_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize(("d", "k"), [(1, 2), (2, 64), (32, 64), (300, 5)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("what", ["labels", "proba", "transform"])
def test_what_is_said_of_a_block_takes_what_is_planned(d, k, dtype, what):
    model, rng = KMeans(k, "random"), np.random.default_rng(0)
    told = model.footprint(d, np.dtype(dtype))
    rows = rng.standard_normal((told.block_rows, d)).astype(dtype)
    function = RowFunction(model, model.init(Chunk(rows[:1000]), rng), what)
    function(Chunk(rows[:100]))
    tracemalloc.start()
    try:
        function(Chunk(rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # As `predict_rows` plans it: what is returned, twice.
    assert peak <= 16 * (1 if what == "labels" else k) * len(rows) + told.workspace
    assert 8 * k * len(rows) <= 64 << 20
