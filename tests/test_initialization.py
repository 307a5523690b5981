"""Starting centers: what k-means++ draws, where Lloyd's iterations end, what k-means|| picks from a block."""

import numpy as np
import pytest
from sklearn.cluster import KMeans as Peer

from daskem.errors import OptionError
from daskem.models.initialization import assign, kmeans_plus_plus, lloyd, squared_distances


def clusters(n=300, k=5, d=3, spread=0.1, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.uniform(-10, 10, size=(k, d))
    which = rng.integers(k, size=n)
    return centers[which] + spread * rng.normal(size=(n, d)), which, centers


def test_plus_plus_picks_a_row_from_each_of_well_separated_clusters():
    rows, _, centers = clusters()
    for seed in range(10):
        chosen = kmeans_plus_plus(rows, None, 5, np.random.default_rng(seed))
        assert (np.abs(rows[:, None] - chosen).max(axis=2).min(axis=0) < 1e-12).all()
        assert sorted(assign(chosen, centers)[0]) == list(range(5))


def test_plus_plus_never_picks_a_row_of_weight_zero_and_repeats_rows_only_when_it_must():
    rows = np.arange(8.0)[:, None]
    weight = np.array([0, 1, 0, 1, 0, 1, 0, 1.0])
    for seed in range(20):
        chosen = kmeans_plus_plus(rows, weight, 4, np.random.default_rng(seed))
        assert sorted(chosen.ravel()) == [1, 3, 5, 7]
    same = kmeans_plus_plus(np.full((4, 2), 3.0), None, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(same, np.full((3, 2), 3.0))


def test_plus_plus_draws_the_second_center_in_proportion_to_squared_distance():
    # One candidate a draw leaves no greed: with two centers there are 2 + log 2 = 2 trials, so compare with that law.
    rows = np.array([[0.0], [1.0], [2.0]])
    counts = np.zeros(3)
    rng = np.random.default_rng(0)
    for _ in range(4000):
        counts[int(kmeans_plus_plus(rows, None, 2, rng, rows[:1])[1, 0])] += 1
    # Candidates are 1 (probability 1/5) or 2 (4/5), and both leave a sum of squares of 1: the first drawn is taken.
    np.testing.assert_allclose(counts / 4000, [0.0, 0.2, 0.8], atol=0.03)


def test_given_centers_come_first_and_count_as_chosen():
    rows, _, centers = clusters()
    chosen = kmeans_plus_plus(rows, None, 5, np.random.default_rng(0), centers[3:])
    np.testing.assert_allclose(chosen[:2], centers[3:], atol=1e-12)
    assert sorted(assign(chosen[2:], centers)[0]) == [0, 1, 2]


def test_plus_plus_needs_rows():
    with pytest.raises(OptionError, match="at least one row"):
        kmeans_plus_plus(np.empty((0, 2)), None, 2, np.random.default_rng(0))


@pytest.mark.parametrize("size", [1.0, 1e-150, 1e150])
def test_lloyd_ends_where_scikit_learn_does(size):
    rows = np.random.default_rng(0).normal(size=(400, 3))
    weight = np.random.default_rng(1).uniform(0.5, 2, size=400)
    peer = Peer(4, init=rows[:4], n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(rows, sample_weight=weight)
    centers, labels, inertia = lloyd(rows * size, weight, rows[:4] * size, max_iter=300, tol=0.0)
    np.testing.assert_allclose(centers / size, peer.cluster_centers_, rtol=1e-9)
    np.testing.assert_array_equal(labels, peer.labels_)
    assert inertia / size**2 == pytest.approx(peer.inertia_, rel=1e-9)


def test_lloyd_keeps_a_center_without_rows():
    rows = np.array([[0.0], [1.0]])
    centers, labels, _ = lloyd(rows, None, np.array([[0.4], [100.0]]))
    np.testing.assert_allclose(centers, [[0.5], [100.0]])
    np.testing.assert_array_equal(labels, [0, 0])


def test_distances_and_assignment():
    rng = np.random.default_rng(0)
    rows, centers = rng.normal(size=(5000, 3)), rng.normal(size=(7, 3))
    exact = ((rows[:, None] - centers) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(rows, centers), exact, atol=1e-12)
    labels, nearest = assign(rows, centers)
    np.testing.assert_array_equal(labels, exact.argmin(axis=1))
    np.testing.assert_allclose(nearest, exact.min(axis=1), atol=1e-12)
