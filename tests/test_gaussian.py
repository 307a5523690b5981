"""Gaussian mixtures: the same steps as scikit-learn, and the same numbers where scikit-learn loses them."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Peer

from daskem import compiled, tree
from daskem.core import Chunk, Scratch
from daskem.errors import DataError, DegenerateComponentError, OptionError
from daskem.models import gaussian_kernels
from daskem.models.gaussian import Gaussian, GaussianStats
from daskem.models.gaussian_algebra import SHAPES
from daskem.models.gaussian_kernels import unpack
from daskem.models.mixture import Mixture, block_rows
from daskem.models.repair import AT_PRIOR, COLLAPSED_KEPT, EMPTY_KEPT, RESEEDED

COVARIANCES = list(SHAPES)
# Those that scikit-learn has.
SHARED_WITH_PEER = ["full", "tied", "diag", "spherical"]


def draw(d=3, k=3, n=600, seed=0, separation=3.0):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(k, d)) * separation
    mix = rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    which = rng.integers(k, size=n)
    return np.einsum("nde,ne->nd", mix[which], rng.normal(size=(n, d))) + means[which]


def precisions(covariance, k, d):
    return {
        "full": np.stack([np.eye(d)] * k),
        "tied": np.eye(d),
        "diag": np.ones((k, d)),
        "spherical": np.ones(k),
        "tied_diag": np.ones(d),
        "tied_spherical": np.ones(1),
    }[covariance]


def started(covariance, rows, k=3, **options):
    """Return a mixture, and parameters with known weights, means (the first rows) and unit precisions."""
    start = {
        "weights_init": np.full(k, 1 / k),
        "means_init": np.array(rows[:k], float),
        "precisions_init": precisions(covariance, k, rows.shape[1]),
    }
    model = Mixture(Gaussian(covariance, **options), k, **start)
    return model, model.init(Chunk(rows), np.random.default_rng(0)), start


def steps(model, params, rows, n, **side):
    for _ in range(n):
        params = model.m_step(model.e_step(params, Chunk(rows, **side)).stats, params)
    return params


def one_step(model, params, rows, block=256):
    scratch, total = Scratch(), None
    for i in range(0, len(rows), block):
        part = model.e_step(params, Chunk(rows[i : i + block], start=i, scratch=scratch))
        total = part if total is None else tree.accumulate(total, part)
    return total, model.m_step(total.stats, params)


def relative(a, b):
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())


@pytest.mark.parametrize("covariance", SHARED_WITH_PEER)
@pytest.mark.parametrize(("d", "k"), [(3, 3), (12, 3)])  # the features form, and for full the triangular form
@pytest.mark.parametrize("n_steps", [1, 5, 20])
def test_steps_are_those_of_scikit_learn(covariance, d, k, n_steps):
    rows = draw(d, k)
    model, params, start = started(covariance, rows, k)
    params = steps(model, params, rows, n_steps)
    peer = Peer(k, covariance_type=covariance, tol=0, max_iter=n_steps, **start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer.fit(rows)
    ours = params.components
    np.testing.assert_allclose(params.weights, peer.weights_, rtol=1e-8)
    np.testing.assert_allclose(ours.means, peer.means_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.covariances, peer.covariances_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.precisions_cholesky, peer.precisions_cholesky_, rtol=1e-8, atol=1e-10)
    assert model.e_step(params, Chunk(rows)).objective / len(rows) == pytest.approx(peer.score(rows), rel=1e-9)
    np.testing.assert_allclose(model.posterior(params, Chunk(rows)), peer.predict_proba(rows), atol=1e-9)
    np.testing.assert_allclose(model.log_prob(params, Chunk(rows)), peer.score_samples(rows), rtol=1e-9)
    assert model.n_parameters(params) == round((peer.aic(rows) + 2 * len(rows) * peer.score(rows)) / 2)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_statistics_add_over_blocks_and_an_empty_block_is_zero(covariance):
    rows = draw(n=500)
    model, params, _ = started(covariance, rows)
    whole = model.e_step(params, Chunk(rows))
    blocks, _ = one_step(model, params, rows, block=70)
    for (path, a), (_, b) in zip(tree.leaves(whole), tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-11, atol=1e-9, err_msg=path)
    empty = model.e_step(params, Chunk(rows[:0]))
    assert all(not np.any(leaf) for _, leaf in tree.leaves(empty))
    assert [np.shape(leaf) for _, leaf in tree.leaves(empty)] == [np.shape(leaf) for _, leaf in tree.leaves(whole)]


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_weight_counts_rows_and_zero_means_absent_whatever_the_row_holds(covariance):
    rows = draw(n=200)
    weight = np.random.default_rng(1).integers(0, 3, size=200).astype(float)
    model, params, _ = started(covariance, rows)
    repeated = model.e_step(params, Chunk(np.repeat(rows, weight.astype(int), axis=0)))
    spoiled = np.where(weight[:, None] == 0, np.nan, rows)
    weighted = model.e_step(params, Chunk(spoiled, weight))
    assert weighted.weight == weight.sum()
    for (path, a), (_, b) in zip(tree.leaves(repeated), tree.leaves(weighted), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-9, err_msg=path)


def test_a_known_label_gives_the_row_to_its_component_alone():
    rows = draw(n=90)
    labels = np.arange(90) % 4 - 1
    model, params, _ = started("full", rows)
    resp = model.posterior(params, Chunk(rows, labels=labels))
    known = labels >= 0
    np.testing.assert_array_equal(resp[known], np.eye(3)[labels[known]])
    np.testing.assert_allclose(resp[~known], model.posterior(params, Chunk(rows))[~known])
    log_density = Gaussian("full").log_prob(params.components, Chunk(rows[known]))
    expected = np.log(params.weights)[labels[known]] + log_density[np.arange(known.sum()), labels[known]]
    assert model.e_step(params, Chunk(rows[known], labels=labels[known])).objective == pytest.approx(expected.sum())


def test_labelled_rows_steer_the_start():
    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    which = rng.integers(3, size=300)
    rows = centers[which] + rng.normal(size=(300, 2))
    labels = np.where(np.arange(300) < 60, 2 - which, -1)
    for method in ("kmeans", "k-means++", "random_from_data"):
        params = Mixture(Gaussian(), 3, method).init(Chunk(rows, labels=labels), np.random.default_rng(1))
        np.testing.assert_allclose(params.components.means, centers[::-1], atol=1.5)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("d", "k"), [(3, 3), (12, 3)])
def test_single_precision_rows_give_double_statistics_close_to_the_double_ones(covariance, offset, d, k):
    rows = (draw(d, k, n=3000) + offset).astype(np.float32)
    model, params, _ = started(covariance, rows, k)
    params = steps(model, params, np.asarray(rows, float), 3)
    single, after = one_step(model, params, rows)
    _, reference = one_step(model, params, rows.astype(float))
    assert all(np.asarray(leaf).dtype == np.float64 for _, leaf in tree.leaves(single))
    assert model.family.log_prob(params.components, Chunk(rows)).dtype == np.float32
    assert relative(after.components.covariances, reference.components.covariances) < 1e-5
    assert np.abs(after.components.means - reference.components.means).max() < 1e-5
    assert np.abs(after.weights - reference.weights).max() < 1e-5


def test_single_precision_rows_are_computed_in_double_where_single_loses_too_much():
    rng = np.random.default_rng(0)
    rows = (np.repeat([[-1.0, 0.0], [1.0, 0.0]], 500, axis=0) + 1e-2 * rng.normal(size=(1000, 2))).astype(np.float32)
    model = Mixture(Gaussian("full"), 2)
    params = steps(model, model.init(Chunk(rows), rng), rows, 3)
    assert model.family.log_prob(params.components, Chunk(rows)).dtype == np.float64
    halves = [np.cov(rows[i : i + 500].astype(float), rowvar=False, bias=True) for i in (0, 500)]
    order = np.argsort(params.components.means[:, 0])
    np.testing.assert_allclose(params.components.covariances[order], halves + 1e-6 * np.eye(2), rtol=1e-9)


@pytest.mark.parametrize(("tied", "free"), [("tied_diag", "diag"), ("tied_spherical", "spherical"), ("tied", "full")])
@pytest.mark.parametrize("prior", [None, "conjugate"])
def test_one_tied_component_is_one_free_component(tied, free, prior):
    rows = draw(n=200)
    ours, theirs = (Mixture(Gaussian(covariance, prior=prior), 1) for covariance in (tied, free))
    params, others = (model.init(Chunk(rows), np.random.default_rng(0)) for model in (ours, theirs))
    stats, other_stats = ours.e_step(params, Chunk(rows)), theirs.e_step(others, Chunk(rows))
    assert stats.objective == pytest.approx(other_stats.objective, rel=1e-13)
    after, others_after = ours.m_step(stats.stats, params), theirs.m_step(other_stats.stats, others)
    found, expected = after.components, others_after.components
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-13)
    np.testing.assert_allclose(found.covariances, expected.covariances.reshape(found.covariances.shape), rtol=1e-12)
    assert ours.n_parameters(after) == theirs.n_parameters(others_after)
    assert ours.log_prior(after) == pytest.approx(theirs.log_prior(others_after), rel=1e-12)


@pytest.mark.parametrize(("tied", "free"), [("tied_diag", "diag"), ("tied_spherical", "spherical")])
def test_a_tied_m_step_pools_what_free_components_estimate(tied, free):
    rows = draw(n=300)
    resp = np.random.default_rng(1).dirichlet(np.ones(3), size=300)
    means = resp.T @ rows / resp.sum(axis=0)[:, None]
    away = (rows[:, None, :] - means) ** 2 * resp[:, :, None]
    brute = {"tied_diag": away.sum(axis=(0, 1)) / 300, "tied_spherical": [away.sum() / 900]}[tied]
    found = {}
    for covariance in (tied, free):
        _, params, _ = started(covariance, rows, reg_covar=0.0)
        family = Gaussian(covariance, reg_covar=0.0)
        found[covariance] = family.m_step(family.stats(params.components, Chunk(rows), resp), params.components)
    np.testing.assert_allclose(found[tied].covariances, brute, rtol=1e-11)
    shares = resp.sum(axis=0) / 300
    np.testing.assert_allclose(found[tied].covariances.ravel(), (shares @ found[free].covariances).ravel(), rtol=1e-11)
    np.testing.assert_allclose(found[tied].means, found[free].means, rtol=1e-13)


def exact_covariance(rows):
    wide = np.asarray(rows, np.longdouble)
    centered = wide - wide.mean(axis=0)
    return (centered.T @ centered / len(rows)).astype(float)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6, 1e8])
def test_covariances_are_exact_far_from_the_origin(offset):
    rows = np.random.default_rng(0).normal(size=(5000, 3)) + offset
    model, params, _ = started("full", rows, k=1, reg_covar=0.0)
    _, params = one_step(model, params, rows)
    assert relative(params.components.covariances[0], exact_covariance(rows)) < 1e-12


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("tightness", [1e-3, 1e-6])
def test_tight_far_apart_components_are_summed_about_points_of_their_own(covariance, tightness):
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(3, 4)), 400, axis=0) + tightness * rng.normal(size=(1200, 4))
    model = Mixture(Gaussian(covariance, reg_covar=0.0), 3)
    params = steps(model, model.init(Chunk(rows), rng), rows, 3)
    assert (params.components.reference != params.components.shift).any(axis=1).all()
    exact = np.stack([exact_covariance(rows[i : i + 400]) for i in (0, 400, 800)])
    variances = np.diagonal(exact, axis1=1, axis2=2)
    shaped = {
        "full": exact,
        "tied": exact.mean(axis=0),
        "diag": variances,
        "spherical": variances.mean(axis=1),
        "tied_diag": variances.mean(axis=0),
        "tied_spherical": variances.mean(keepdims=True)[0],
    }
    order = [int(np.abs(params.components.means - rows[i]).sum(axis=1).argmin()) for i in (0, 400, 800)]
    found = params.components.covariances
    assert relative(found if SHAPES[covariance].tied else found[order], shaped[covariance]) < 1e-11


def test_references_stay_while_the_ratio_is_small_and_statistics_can_be_moved_between_them():
    rows = draw(n=500)
    for covariance in COVARIANCES:
        model, params, _ = started(covariance, rows)
        later = steps(model, params, rows, 5)
        np.testing.assert_array_equal(later.components.reference, params.components.reference)
        moved = replace(later.components, reference=later.components.means + 1.0)
        resp = model.posterior(later, Chunk(rows))
        here = model.family.stats(later.components, Chunk(rows), resp)
        there = model.family.stats(moved, Chunk(rows), resp)
        rebased = model.family.rebase(here, later.components, moved)
        for (path, a), (_, b) in zip(tree.leaves(there), tree.leaves(rebased), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-8, err_msg=path)


@pytest.mark.parametrize("covariance", sorted({shape.kernel for shape in SHAPES.values()}))
def test_all_forms_of_the_kernel_agree(covariance, monkeypatch):
    rows = draw(d=5, k=4, n=300)
    model, params, _ = started(covariance, rows, k=4)
    home = steps(model, params, rows, 2).components
    mixed = replace(home, reference=home.reference + np.array([[0.0], [0.1], [0.2], [0.0]]))
    apart = replace(home, reference=home.reference + np.array([[0.1], [0.2], [0.3], [0.4]]))
    cases = [("features", places) for places in (home, mixed, apart)]
    if covariance == "full":
        cases += [("triangular", places) for places in (home, mixed, apart)]
    found = []
    for form, places in cases:
        if form == "triangular":
            # Compiled kernels have no need of it.
            monkeypatch.setattr(compiled, "library", None)
            monkeypatch.setattr(gaussian_kernels, "uses_features", lambda *shape: False)
        kernel = model.family.kernel(places, rows.dtype)
        assert (kernel.form, len(kernel.own)) == (form, {id(home): 0, id(mixed): 2, id(apart): 4}[id(places)])
        chunk = Chunk(rows)
        density = kernel.log_prob(chunk).copy()
        stats = model.family.rebase(GaussianStats(*kernel.moments(chunk, np.exp(density))), places, home)
        found.append((density, stats.n, stats.x, unpack(stats.xx, 5) if covariance == "full" else stats.xx))
    for case in found[1:]:
        for a, b in zip(found[0], case, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("prior", [None, "conjugate"])
def test_the_objective_never_falls(covariance, prior):
    rows = draw(n=400, separation=2.0)
    reg_covar = 0.0 if prior is None else 1e-6
    model = Mixture(Gaussian(covariance, reg_covar=reg_covar, prior=prior), 3, "k-means++")
    params = model.init(Chunk(rows), np.random.default_rng(3))
    values = []
    for _ in range(25):
        expectation = model.e_step(params, Chunk(rows))
        values.append(expectation.objective + model.log_prior(params))
        params = model.m_step(expectation.stats, params)
    assert np.diff(values).min() > -1e-9 * abs(values[-1])
    assert values[-1] > values[0] + 1.0


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("prior", [None, "conjugate"])
def test_the_m_step_maximises_the_surrogate_and_the_e_step_obeys_fisher(covariance, prior):
    rows = draw(n=300)
    model = Mixture(Gaussian(covariance, reg_covar=0.0, prior=prior), 3)
    params = model.init(Chunk(rows), np.random.default_rng(0))
    stats = model.e_step(params, Chunk(rows)).stats
    best = model.m_step(stats, params)
    vector, rng = model.to_vector(best), np.random.default_rng(1)

    def penalised(v):
        at = model.from_vector(v, params)
        return model.surrogate(stats, at) + model.log_prior(at)

    top = penalised(vector)
    assert all(penalised(vector + 1e-3 * rng.normal(size=len(vector))) < top for _ in range(20))

    here, h = model.to_vector(params), 1e-5
    for i in rng.choice(len(here), 8, replace=False):
        step = h * np.eye(len(here))[i]
        ends = [model.from_vector(here + sign * step, params) for sign in (1, -1)]
        objective = np.subtract(*[model.e_step(p, Chunk(rows)).objective for p in ends]) / (2 * h)
        surrogate = np.subtract(*[model.surrogate(stats, p) for p in ends]) / (2 * h)
        assert surrogate == pytest.approx(objective, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_conjugate_prior_is_that_of_fraley_and_raftery(covariance):
    rows = draw(n=120)
    k, d, kappa, nu = 3, 3, 0.01, 5
    model = Mixture(Gaussian(covariance, reg_covar=0.0, prior="conjugate"), k)
    params = model.init(Chunk(rows), np.random.default_rng(0))
    resp = model.posterior(params, Chunk(rows))
    after = model.m_step(model.e_step(params, Chunk(rows)).stats, params).components
    n, center = resp.sum(axis=0), rows.mean(axis=0)
    mean = resp.T @ rows / n[:, None]
    np.testing.assert_allclose(after.means, (n[:, None] * mean + kappa * center) / (n + kappa)[:, None], rtol=1e-9)
    sample = np.cov(rows, rowvar=False, bias=True) / k ** (2 / d)
    away = mean - center
    pull = (kappa * n / (kappa + n))[:, None, None] * away[:, :, None] * away[:, None, :]
    centered = rows[:, None, :] - mean
    scatter = pull + np.einsum("nk,nkd,nke->kde", resp, centered, centered)
    diagonal = np.diagonal(scatter, axis1=1, axis2=2)
    expected = {
        "full": (sample + scatter) / (n + nu + d + 2)[:, None, None],
        "tied": (sample + scatter.sum(axis=0)) / (n.sum() + nu + d + k + 1),
        "diag": (np.diag(sample) + diagonal) / (n + nu + 3)[:, None],
        "spherical": (np.diag(sample).mean() + diagonal.sum(axis=1)) / ((n + 1) * d + nu + 2),
        "tied_diag": (np.diag(sample) + diagonal.sum(axis=0)) / (n.sum() + nu + k + 2),
        "tied_spherical": (np.diag(sample).mean() + diagonal.sum(keepdims=True)[0]) / ((n.sum() + k) * d + nu + 2),
    }[covariance]
    np.testing.assert_allclose(after.covariances, expected, rtol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_an_empty_component_is_kept_reseeded_or_refused(covariance):
    rows = draw(n=300)
    _, params, _ = started(covariance, rows)
    resp = np.random.default_rng(0).random((300, 3))
    resp[:, 1] = 0.0

    def m_step(**options):
        family = Gaussian(covariance, **options)
        model = Mixture(family, 3)
        start = params if "prior" not in options else model.init(Chunk(rows), np.random.default_rng(0))
        stats = family.stats(start.components, Chunk(rows), resp)
        new = model.m_step(type(model.e_step(start, Chunk(rows)).stats)(stats.n, stats), start)
        assert tree.all_finite(new)
        return model, new

    model, kept = m_step(on_collapse="keep")
    np.testing.assert_array_equal(kept.components.means[1], params.components.means[1])
    assert kept.components.repaired.tolist() == [0, EMPTY_KEPT, 0]
    assert [(k, what.split(":")[0]) for k, what in model.events(kept)] == [(1, "empty")]

    _, reseeded = m_step(on_collapse="reseed")
    assert reseeded.components.repaired.tolist() == [0, RESEEDED, 0]
    donor = 0 if kept.weights[0] > kept.weights[2] else 2
    assert reseeded.weights[1] == reseeded.weights[donor] == pytest.approx(kept.weights[donor] / 2)
    assert np.abs(reseeded.components.means[1] - reseeded.components.means[donor]).max() > 0.1
    np.testing.assert_array_equal(reseeded.components.means, m_step(on_collapse="reseed")[1].components.means)

    _, prior = m_step(prior="conjugate")
    assert prior.components.repaired.tolist() == [0, AT_PRIOR, 0]
    np.testing.assert_allclose(prior.components.means[1], rows.mean(axis=0), rtol=1e-9)

    with pytest.raises(DegenerateComponentError, match=r"component 1 of 3 has weight 0 rows.*reg_covar"):
        m_step(on_collapse="raise")


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
def test_a_component_that_collapses_onto_one_point_is_kept_or_refused(covariance):
    rows = draw(n=100)
    rows[:20] = rows[0]
    family = Gaussian(covariance, reg_covar=0.0)
    _, params, _ = started(covariance, rows)
    resp = np.zeros((100, 3))
    resp[:20, 0], resp[20:, 1:] = 1.0, 0.5
    stats = family.stats(params.components, Chunk(rows), resp)
    kept = family.m_step(stats, params.components)
    assert kept.repaired.tolist() == [COLLAPSED_KEPT, 0, 0]
    np.testing.assert_array_equal(kept.covariances[0], params.components.covariances[0])
    with pytest.raises(DegenerateComponentError, match=r"component 0 of 3 .*not positive definite"):
        replace(family, on_collapse="raise").m_step(stats, params.components)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_features_of_extreme_size_neither_vanish_nor_overflow(covariance, size):
    rows = draw(n=300)
    model = Mixture(Gaussian(covariance, reg_covar=0.0), 3)
    plain = steps(model, model.init(Chunk(rows), np.random.default_rng(0)), rows, 3)
    scaled = steps(model, model.init(Chunk(rows * size), np.random.default_rng(0)), rows * size, 3)
    np.testing.assert_allclose(scaled.components.means / size, plain.components.means, rtol=1e-8)
    np.testing.assert_allclose(
        scaled.components.precisions_cholesky * size, plain.components.precisions_cholesky, rtol=1e-8, atol=1e-12
    )
    change = model.e_step(plain, Chunk(rows)).objective - model.e_step(scaled, Chunk(rows * size)).objective
    assert change == pytest.approx(len(rows) * 3 * np.log(size), rel=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_row_that_is_not_a_number_makes_the_objective_not_finite(covariance, bad):
    rows = draw(n=50)
    model, params, _ = started(covariance, rows)
    rows[7, 1] = bad
    assert not np.isfinite(model.e_step(params, Chunk(rows)).objective)


def test_a_row_that_no_component_explains_is_not_shared_out():
    class Uniform:
        """Components on [0, 1] and [2, 3]."""

        def log_prob(self, params, chunk):
            inside = (chunk.rows >= [0.0, 2.0]) & (chunk.rows <= [1.0, 3.0])
            return np.where(inside, 0.0, -np.inf)

        def stats(self, params, chunk, resp):
            return resp.sum(axis=0)

    model = Mixture(Uniform(), 2)
    params = type("P", (), {"weights": np.array([0.5, 0.5]), "components": None})()
    expectation = model.e_step(params, Chunk(np.array([[0.5], [2.5], [9.0]])))
    assert expectation.objective == -np.inf
    np.testing.assert_array_equal(expectation.stats.n, [1.0, 1.0])
    assert np.isnan(model.posterior(params, Chunk(np.array([[0.5], [2.5], [9.0]])))).tolist() == [
        [False, False],
        [False, False],
        [True, True],
    ]


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_drawn_rows_have_the_means_and_covariances_they_were_drawn_from(covariance):
    rows = draw(n=400)
    model, params, _ = started(covariance, rows)
    params = steps(model, params, rows, 3)
    drawn, which = model.sample(params, 20_000, np.random.default_rng(5))
    mine = drawn[which == 2]
    one = params.components.covariances if SHAPES[covariance].tied else params.components.covariances[2]
    expected = one if one.ndim == 2 else np.diag(np.broadcast_to(one, 3))
    np.testing.assert_allclose(mine.mean(axis=0), params.components.means[2], atol=0.15)
    np.testing.assert_allclose(exact_covariance(mine), expected, atol=0.1 * np.abs(expected).max())


def test_planning_is_arithmetic_whatever_the_size(monkeypatch):
    for covariance in COVARIANCES:
        plan = Mixture(Gaussian(covariance), 100_000).footprint(5000, np.dtype(np.float32))
        assert plan.block_rows >= 1
        assert plan.stats > 8 * 100_000 * 5000
    assert block_rows(1 << 40) == 1
    assert Mixture(Gaussian("tied"), 16).footprint(32, np.dtype(np.float64)).block_rows == 16384
    # numpy takes the products of all features of a block.
    monkeypatch.setattr(compiled, "library", None)
    assert Mixture(Gaussian("full"), 16).footprint(32, np.dtype(np.float64)).block_rows == 4096


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("prior", [None, "conjugate"])
def test_planned_bytes_are_those_of_the_records(covariance, prior):
    for d, k in ((3, 3), (12, 2)):
        rows = draw(d, k, n=100)
        model = Mixture(Gaussian(covariance, prior=prior), k)
        params = model.init(Chunk(rows), np.random.default_rng(0))
        plan = model.footprint(d, rows.dtype)
        assert plan.params == tree.nbytes(params)
        assert plan.stats == tree.nbytes(model.e_step(params, Chunk(rows)).stats)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights_init": [0.5, 0.5]}, r"weights_init has shape \(2,\); it must be \(3,\)"),
        ({"weights_init": [0.5, 0.5, 0.5]}, "sum to 1"),
        ({"means_init": np.zeros((3, 2))}, r"means_init has shape \(3, 2\); it must be \(3, 3\)"),
        ({"means_init": np.full((3, 3), np.nan)}, "means_init holds NaN"),
        ({"precisions_init": np.eye(3)}, "precisions_init has shape"),
        ({"precisions_init": -np.stack([np.eye(3)] * 3)}, "positive definite"),
        ({"precisions_init": np.triu(np.ones((3, 3, 3)))}, "symmetric"),
    ],
)
def test_an_explicit_start_is_checked(options, message):
    with pytest.raises(OptionError, match=message):
        Mixture(Gaussian(), 3, **options).init(Chunk(draw(n=50)), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian("round"), "covariance is 'round'"),
        (lambda: Gaussian(reg_covar=-1.0), "reg_covar is -1.0"),
        (lambda: Gaussian(prior="flat"), "prior is 'flat'"),
        (lambda: Gaussian(on_collapse="hope"), "on_collapse is 'hope'"),
        (lambda: Mixture(Gaussian(), 0), "n_components is 0"),
        (lambda: Mixture(Gaussian(), 2, "guess"), "init_method is 'guess'"),
    ],
)
def test_options_that_cannot_work_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize("method", ["kmeans", "k-means++", "random", "random_from_data"])
def test_every_start_is_usable_and_depends_on_the_generator_alone(method):
    rows = draw(n=300)
    model = Mixture(Gaussian(), 3, method)
    first, again = (model.init(Chunk(rows), np.random.default_rng(4)) for _ in range(2))
    assert tree.all_finite(first)
    assert first.weights.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(first.components.means, again.components.means)
    later = steps(model, first, rows, 10)
    assert model.e_step(later, Chunk(rows)).objective > model.e_step(first, Chunk(rows)).objective


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_constant_feature_needs_a_floor_unless_features_share_a_variance(covariance):
    rows = draw(n=100)
    rows[:, 1] = 7.0
    model = Mixture(Gaussian(covariance, reg_covar=0.0), 3)
    if not SHAPES[covariance].isotropic:
        with pytest.raises(DataError, match=r"no covariance that could be inverted.*set reg_covar \(now 0\)"):
            model.init(Chunk(rows), np.random.default_rng(0))
        return
    params = steps(model, model.init(Chunk(rows), np.random.default_rng(0)), rows, 3)
    assert tree.all_finite(params)
    assert np.isfinite(model.e_step(params, Chunk(rows)).objective)


def test_features_that_follow_from_others_need_a_floor():
    rows = draw(n=100)
    rows = np.column_stack([rows, rows[:, 0] - rows[:, 1]])
    with pytest.raises(DataError, match="no covariance that could be inverted"):
        Mixture(Gaussian(reg_covar=0.0), 2).init(Chunk(rows), np.random.default_rng(0))


# One component's covariance over two features, stored as its shape stores it.
UNITS = {
    "full": np.eye(2)[None],
    "tied": np.eye(2),
    "diag": np.ones((1, 2)),
    "spherical": np.ones(1),
    "tied_diag": np.ones(2),
    "tied_spherical": np.ones(1),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("variance", [1e-300, 1e-310, 5e-324])
def test_a_variance_whose_inverse_overflows_is_a_collapsed_one(name, variance):
    factor, positive = SHAPES[name].factorise(UNITS[name] * variance)
    assert positive.all() == (variance == 1e-300)
    assert np.isfinite(SHAPES[name].precisions(factor)).all()
