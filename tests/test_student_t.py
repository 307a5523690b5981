"""Student-t mixtures: densities and estimates of scipy, the Gaussian at the limit, and what outliers may not move."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as peer
from scipy.optimize import minimize
from scipy.special import gammaln, psi

from daskem import tree
from daskem.core import Chunk
from daskem.errors import DegenerateComponentError, OptionError
from daskem.models import SHAPES, Gaussian, Mixture, StudentT
from daskem.models.repair import AT_PRIOR, COLLAPSED_KEPT, EMPTY_KEPT, RESEEDED
from daskem.models.student_t import MAX_DOF, MIN_DOF, START_DOF

DOFS = ["each", "shared", 3.0]
each_shape = pytest.mark.parametrize("covariance", SHAPES)


def draw(n=400, d=2, k=2, nu=4.0, seed=0):
    """Return rows of k correlated Student-t components that overlap."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    which = rng.integers(k, size=n)
    noise = np.einsum("nde,ne->nd", mix[which], rng.normal(size=(n, d)))
    return 4.0 * which[:, None] + noise / np.sqrt(rng.chisquare(nu, size=(n, 1)) / nu)


def start(model, rows, seed=0):
    return model.init(Chunk(rows), np.random.default_rng(seed))


def steps(model, params, rows, n):
    for _ in range(n):
        params = model.m_step(model.e_step(params, Chunk(rows)).stats, params)
    return params


def matrix(covariance, params, k):
    one = params.covariances if SHAPES[covariance].tied else params.covariances[k]
    return one if np.ndim(one) == 2 else np.diag(np.broadcast_to(one, params.means.shape[1]))


@each_shape
@pytest.mark.parametrize("nu", [0.5, 3.0, 60.0])
def test_log_densities_are_those_of_scipy(covariance, nu):
    rows = draw()
    family = StudentT(covariance, nu)
    params = start(Mixture(family, 2), rows).components
    found = family.log_prob(params, Chunk(rows))
    for k in range(2):
        expected = peer.multivariate_t(params.means[k], matrix(covariance, params, k), df=nu).logpdf(rows)
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-11)


@each_shape
@pytest.mark.parametrize("d", [2, 16])
def test_many_degrees_of_freedom_are_the_gaussian(covariance, d):
    rows = draw(d=d, nu=1e9)
    student, gaussian = (Mixture(f, 2) for f in (StudentT(covariance, 1e8), Gaussian(covariance)))
    params, expected = start(student, rows), start(gaussian, rows)
    np.testing.assert_allclose(student.log_prob(params, Chunk(rows)), gaussian.log_prob(expected, Chunk(rows)), 1e-6)
    params, expected = steps(student, params, rows, 5), steps(gaussian, expected, rows, 5)
    for name in ("means", "covariances"):
        found, limit = getattr(params.components, name), getattr(expected.components, name)
        np.testing.assert_allclose(found, limit, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
def test_statistics_and_m_step_are_the_published_formulas(covariance):
    rows, d = draw(), 2
    family = StudentT(covariance, "each", 0.0)
    mixture = Mixture(family, 2)
    params = steps(mixture, start(mixture, rows), rows, 2)
    resp = mixture.posterior(params, Chunk(rows))
    after = mixture.m_step(mixture.e_step(params, Chunk(rows)).stats, params).components
    for k in range(2):
        nu, away = params.components.dof[k], rows - params.components.means[k]
        inverse = np.linalg.inv(matrix(covariance, params.components, k))
        u = (nu + d) / (nu + np.einsum("nd,de,ne->n", away, inverse, away))
        weight = resp[:, k] * u
        mean = weight @ rows / weight.sum()
        scatter = (weight[:, None] * (rows - mean)).T @ (rows - mean) / resp[:, k].sum()
        expected = {"full": scatter, "diag": np.diag(scatter), "spherical": np.diag(scatter).mean()}[covariance]
        np.testing.assert_allclose(after.means[k], mean, rtol=1e-10)
        np.testing.assert_allclose(after.covariances[k], expected, rtol=1e-10)
        # The expected complete-data log-likelihood of nu, by brute force over a grid around the estimate.
        log_u = np.log(u) + psi((nu + d) / 2) - np.log((nu + d) / 2)
        grid = after.dof[k] * np.array([0.999, 1.0, 1.001])
        q = [resp[:, k] @ (g / 2 * np.log(g / 2) - gammaln(g / 2) + g / 2 * (log_u - u)) for g in grid]
        assert np.argmax(q) == 1


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
@pytest.mark.parametrize("d", [1, 2])
def test_one_component_reaches_the_maximum_that_an_optimiser_finds(covariance, d):
    rows = draw(300, d, k=1, nu=3.0)
    model = Mixture(StudentT(covariance, "each", 0.0), 1)
    params = steps(model, start(model, rows), rows, 400)

    def loss(vector):
        at = model.from_vector(vector, params).components
        return -peer.multivariate_t(at.means[0], matrix(covariance, at, 0), df=at.dof[0]).logpdf(rows).sum()

    best = minimize(loss, model.to_vector(start(model, rows)), method="BFGS", options={"gtol": 1e-4})
    assert model.e_step(params, Chunk(rows)).objective == pytest.approx(-best.fun, abs=1e-6)
    np.testing.assert_allclose(model.to_vector(params), best.x, atol=1e-4)


def test_shared_degrees_of_freedom_are_one_number_and_fixed_ones_stay():
    rows = draw(k=3)
    found = {dof: steps(m := Mixture(StudentT("full", dof), 3), start(m, rows), rows, 5).components for dof in DOFS}
    assert len(set(found["each"].dof)) == 3
    assert len(set(found["shared"].dof)) == 1
    assert found["shared"].dof[0] != START_DOF
    assert found[3.0].dof.tolist() == [3.0, 3.0, 3.0]
    free = {dof: Mixture(StudentT("full", dof), 3).family.n_parameters(found[dof]) for dof in DOFS}
    assert free == {"each": 18, "shared": 16, 3.0: 15}


@pytest.mark.parametrize(("spread", "limit"), [(0.0, MAX_DOF), (100.0, MIN_DOF)])
def test_estimates_stay_within_their_bounds(spread, limit):
    rows = draw()
    family = StudentT()
    params = start(Mixture(family, 2), rows).components
    stats = family.stats(params, Chunk(rows), np.full((len(rows), 2), 0.5))
    after = family.m_step(replace(stats, u=stats.n, log_u=-spread * stats.n), params)
    assert after.dof.tolist() == [limit, limit]


@each_shape
@pytest.mark.parametrize("dof", DOFS)
def test_outliers_do_not_move_locations(covariance, dof):
    rng = np.random.default_rng(0)
    centers = np.repeat([[0.0, 0.0], [12.0, 0.0]], 1000, axis=0)
    clean = centers + rng.normal(size=centers.shape)
    rows = np.concatenate([clean, rng.uniform(20.0, 60.0, size=(len(clean) // 20, 2))])
    means = {}
    for family in (StudentT(covariance, dof), Gaussian(covariance)):
        model = Mixture(family, 2, means_init=centers[[0, -1]], precisions_init=_unit(covariance))
        means[type(family)] = steps(model, start(model, rows), rows, 60).components.means
    assert np.abs(means[StudentT] - centers[[0, -1]]).max() < 0.1
    assert np.abs(means[Gaussian] - centers[[0, -1]]).max() > 0.5


def _unit(covariance):
    shape = SHAPES[covariance]
    return shape.spread(np.eye(2) if covariance in ("full", "tied") else np.ones(shape.one_size(2)), 2)


@each_shape
@pytest.mark.parametrize("nu", [0.2, 4.0, 1e6])
def test_single_precision_rows_give_statistics_close_to_the_double_ones(covariance, nu):
    rows = (draw(2000, d=3, nu=5.0) + 100.0).astype(np.float32)
    model = Mixture(StudentT(covariance, nu), 2)
    params = steps(model, start(model, rows.astype(float)), rows.astype(float), 3)
    single, double = (model.m_step(model.e_step(params, Chunk(x)).stats, params) for x in (rows, rows.astype(float)))
    assert np.abs(single.components.means - double.components.means).max() < 1e-5
    np.testing.assert_allclose(single.components.covariances, double.components.covariances, rtol=2e-5, atol=2e-5)


@each_shape
def test_tight_far_apart_components_are_summed_about_points_of_their_own(covariance):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 4))
    rows = np.repeat(centers, 400, axis=0) + 1e-6 * rng.standard_t(4.0, size=(1200, 4))
    model = Mixture(StudentT(covariance, "each", 0.0), 3)
    params = steps(model, start(model, rows), rows, 4)
    assert (params.components.reference != params.components.shift).any(axis=1).all()
    # The same rows without the offsets, which cost the second moments nothing.
    order = [int(np.abs(params.components.means - center).sum(axis=1).argmin()) for center in centers]
    near = params.components
    zoomed = replace(
        near,
        means=(near.means - near.reference) * 1e6,
        covariances=near.covariances * 1e12,
        precisions_cholesky=near.precisions_cholesky / 1e6,
        reference=np.zeros_like(near.reference),
        shift=np.zeros(4),
        scale=np.ones(4),
    )
    for i, k in enumerate(order):
        mine = rows[400 * i : 400 * (i + 1)]
        resp = np.eye(3)[np.full(400, k)]
        there = model.family.stats(near, Chunk(mine), resp)
        here = model.family.stats(zoomed, Chunk((mine - near.reference[k]) * 1e6), resp)
        np.testing.assert_allclose(there.u[k], here.u[k], rtol=1e-9)
        np.testing.assert_allclose(there.log_u[k], here.log_u[k], rtol=1e-9)


def test_statistics_do_not_depend_on_what_was_computed_before():
    rows, other = draw(200), draw(200, seed=1)
    family = StudentT()
    params = start(Mixture(family, 2), rows).components
    resp = np.random.default_rng(0).random((200, 2))
    fresh = family.stats(params, Chunk(rows), resp)
    chunk = Chunk(rows)
    later = family.m_step(fresh, params)
    family.log_prob(params, chunk)
    # Responsibilities in the very memory that log densities are made in, and other parameters in between.
    family.log_prob(later, replace(chunk, rows=other))
    lying = family.log_prob(later, chunk)
    lying[:] = resp
    found = family.stats(params, chunk, lying)
    for (path, a), (_, b) in zip(tree.leaves(fresh), tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, err_msg=path)


@pytest.mark.parametrize("size", [1e100, 1e200])
def test_a_row_far_beyond_all_others_has_no_weight_and_is_not_called_missing(size):
    rows = draw(200)
    model = Mixture(StudentT("full", 3.0), 2)
    params = start(model, rows)
    expected = model.e_step(params, Chunk(rows)).stats
    far = np.concatenate([rows, [[size, 0.0]]])
    log_prob = model.log_prob(params, Chunk(far))[-1]
    assert log_prob == -np.inf or log_prob < -1000
    if size < 1e150:
        found = model.e_step(params, Chunk(far)).stats
        np.testing.assert_allclose(found.components.u, expected.components.u, rtol=1e-12)
        np.testing.assert_allclose(found.components.xx, expected.components.xx, rtol=0.1)


@pytest.mark.parametrize("dof", DOFS)
def test_drawn_rows_have_the_tails_of_the_model(dof):
    rows = draw()
    model = Mixture(StudentT("full", dof), 2)
    params = steps(model, start(model, rows), rows, 20)
    drawn, which = model.sample(params, 20_000, np.random.default_rng(5))
    for k in range(2):
        away = (drawn[which == k] - params.components.means[k]) @ params.components.precisions_cholesky[k]
        # delta / d has an F distribution with d and nu degrees of freedom.
        law = peer.f(2, params.components.dof[k])
        assert peer.kstest((away**2).sum(axis=1) / 2, law.cdf).pvalue > 1e-3


@each_shape
@pytest.mark.parametrize("dof", DOFS)
def test_an_empty_component_is_kept_reseeded_or_refused(covariance, dof):
    rows = draw(300, k=3)
    resp = np.random.default_rng(0).random((300, 3))
    resp[:, 1] = 0.0

    def m_step(**options):
        model = Mixture(StudentT(covariance, dof, **options), 3)
        params = steps(model, start(model, rows), rows, 2)
        stats = model.family.stats(params.components, Chunk(rows), resp)
        new = model.family.m_step(stats, params.components)
        assert tree.all_finite(new)
        return params.components, new, model.family

    old, kept, family = m_step(on_collapse="keep")
    np.testing.assert_array_equal(kept.means[1], old.means[1])
    assert kept.repaired.tolist() == [0, EMPTY_KEPT, 0]
    assert [k for k, _ in family.events(kept)] == [1]
    if dof != "shared":
        assert kept.dof[1] == old.dof[1]

    _, reseeded, _ = m_step(on_collapse="reseed")
    assert reseeded.repaired.tolist() == [0, RESEEDED, 0]
    assert np.abs(reseeded.means[1] - reseeded.means[[0, 2]]).max() > 0.1
    if dof == "each":
        assert reseeded.dof[1] == START_DOF

    _, prior, _ = m_step(prior="conjugate")
    assert prior.repaired.tolist() == [0, AT_PRIOR, 0]
    np.testing.assert_allclose(prior.means[1], rows.mean(axis=0), rtol=1e-9)

    with pytest.raises(DegenerateComponentError, match=r"component 1 of 3 has weight 0 rows.*reg_covar"):
        m_step(on_collapse="raise")


@pytest.mark.parametrize("covariance", [name for name, shape in SHAPES.items() if not shape.tied])
@pytest.mark.parametrize("dof", DOFS)
def test_a_component_that_collapses_onto_one_point_is_kept_floored_or_refused(covariance, dof):
    rows = draw(100, k=3)
    rows[:20] = rows[0]
    resp = np.zeros((100, 3))
    resp[:20, 0], resp[20:, 1:] = 1.0, 0.5
    family = StudentT(covariance, dof, reg_covar=0.0)
    params = start(Mixture(family, 3), rows).components
    stats = family.stats(params, Chunk(rows), resp)
    kept = family.m_step(stats, params)
    assert kept.repaired.tolist() == [COLLAPSED_KEPT, 0, 0]
    np.testing.assert_array_equal(kept.covariances[0], params.covariances[0])
    with pytest.raises(DegenerateComponentError, match=r"component 0 of 3 .*not positive definite"):
        replace(family, on_collapse="raise").m_step(stats, params)
    floored = replace(family, reg_covar=0.25).m_step(stats, params)
    np.testing.assert_allclose(SHAPES[covariance].variances(floored.covariances)[0], 0.25, rtol=1e-9)
    assert floored.repaired.tolist() == [0, 0, 0]


@each_shape
@pytest.mark.parametrize("dof", DOFS)
@pytest.mark.parametrize("prior", [None, "conjugate"])
def test_planned_bytes_are_those_of_the_records(covariance, dof, prior):
    for d, k in ((3, 3), (12, 2)):
        rows = draw(100, d, k)
        model = Mixture(StudentT(covariance, dof, prior=prior), k)
        params, plan = start(model, rows), model.footprint(d, rows.dtype)
        assert plan.params == tree.nbytes(params)
        assert plan.stats == tree.nbytes(model.e_step(params, Chunk(rows)).stats)


@pytest.mark.parametrize("dof", ["some", 0.0, -1.0, np.nan, np.inf, True, None])
def test_degrees_of_freedom_that_cannot_work_are_refused(dof):
    with pytest.raises(OptionError, match=r"dof is .*; it must be 'each', 'shared' or a finite number, at least 0.1"):
        StudentT(dof=dof)


def test_options_of_the_gaussian_are_checked_at_once():
    with pytest.raises(OptionError, match="covariance is 'round'"):
        StudentT("round")


@each_shape
def test_log_densities_of_what_is_present_are_those_of_the_marginal(covariance):
    rows = draw(n=60, d=3)
    family = StudentT(covariance, 3.0, missing=True)
    params = start(Mixture(family, 2), rows).components
    rows[np.random.default_rng(1).random(rows.shape) < 0.3] = np.nan
    rows[0] = np.nan
    found = family.log_prob(params, Chunk(rows))
    np.testing.assert_allclose(found[0], 0.0, atol=1e-13)
    for k in range(2):
        scale = matrix(covariance, params, k)
        for row, value in zip(rows[1:], found[1:, k], strict=True):
            there = ~np.isnan(row)
            if there.any():
                marginal = peer.multivariate_t(params.means[k][there], scale[np.ix_(there, there)], df=3.0)
                assert value == pytest.approx(marginal.logpdf(row[there]), rel=1e-11)


def test_holes_and_outliers_are_no_obstacle_to_the_truth():
    # Monotone missing data (Liu & Rubin 1995): the second column is seen in half of the rows alone.
    rows = draw(n=4_000, k=1, nu=3.0, seed=2)
    whole = steps(Mixture(StudentT(), 1), start(Mixture(StudentT(), 1), rows), rows, 60).components
    model = Mixture(StudentT(missing=True), 1)
    rows[::2, 1] = np.nan
    params = steps(model, start(model, rows), rows, 150).components
    np.testing.assert_allclose(params.means, whole.means, atol=0.1)
    np.testing.assert_allclose(params.covariances, whole.covariances, rtol=0.1)
    assert params.dof[0] == pytest.approx(whole.dof[0], rel=0.1)
