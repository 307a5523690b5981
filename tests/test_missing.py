"""Rows with missing values: brute force on small data, published maximum-likelihood values, the way through daskem."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from scipy.stats import multinomial, multivariate_normal

import daskem
from daskem import compiled
from daskem.algorithms import BatchEM
from daskem.cli import main
from daskem.cli.own import load
from daskem.core import Chunk
from daskem.errors import DataError, MissingCapabilityError, NonFiniteError, OptionError
from daskem.models import (
    Bernoulli,
    Categorical,
    Exponential,
    Gamma,
    Gaussian,
    Mixture,
    Multinomial,
    Poisson,
    Product,
    VonMisesFisher,
    gaussian_missing,
)
from daskem.models.gaussian_kernels import unpack
from daskem.models.mixture import MixtureParams
from daskem.models.von_mises_fisher import VonMisesFisherParams


class Unknowing(Gaussian):
    """A family that does not say what its holes hold."""

    impute = None


COVARIANCES = ["full", "tied", "diag", "spherical", "tied_diag", "tied_spherical"]
N = np.nan


def holed(n, d, share, seed=0, offset=100.0):
    rng = np.random.default_rng(seed)
    rows = offset + rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3.0 * rng.integers(2, size=(n, 1))
    rows[rng.random((n, d)) < share] = np.nan
    return rows


def fitted(covariance, rows, k=2, steps=3, **options):
    model = Mixture(Gaussian(covariance, **{"reg_covar": 1e-3, "missing": True, **options}), k)
    params = model.init(Chunk(rows), np.random.default_rng(0))
    for _ in range(steps):
        params = model.m_step(model.e_step(params, Chunk(rows)).stats, params)
    return model, params


def matrices(covariance, gaussians):
    k, d = gaussians.means.shape
    shaped = gaussians.covariances
    if covariance in ("full", "tied"):
        return np.broadcast_to(shaped, (k, d, d))
    diagonals = np.broadcast_to(shaped[:, None] if covariance == "spherical" else shaped, (k, d))
    return np.stack([np.diag(one) for one in diagonals])


def conditional(x, mean, matrix):
    """Return log p(present), E[row | present] and the conditional covariance, straight from the definitions."""
    o, m = ~np.isnan(x), np.isnan(x)
    expected, spread = x.copy(), np.zeros(matrix.shape)
    if not o.any():
        return 0.0, mean, matrix
    slope = np.linalg.solve(matrix[np.ix_(o, o)], matrix[np.ix_(o, m)]).T
    expected[m] = mean[m] + slope @ (x[o] - mean[o])
    spread[np.ix_(m, m)] = matrix[np.ix_(m, m)] - slope @ matrix[np.ix_(o, m)]
    return multivariate_normal(mean[o], matrix[np.ix_(o, o)]).logpdf(x[o]), expected, spread


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(("d", "share", "kept"), [(4, 0.4, 1 << 20), (12, 0.2, 0), (14, 0.7, 1 << 20)])
def test_an_e_step_is_that_of_the_definitions(covariance, d, share, kept, monkeypatch):
    monkeypatch.setattr(gaussian_missing, "KEPT_NUMBERS", kept)
    rows = holed(80, d, share)
    rows[3] = np.nan
    model, params = fitted(covariance, rows)
    gaussians = params.components
    each = [[conditional(x, *one) for one in zip(gaussians.means, matrices(covariance, gaussians))] for x in rows]  # noqa: B905
    log_prob, expected, spread = (np.array([[one[i] for one in row] for row in each]) for i in range(3))
    joint = log_prob + np.log(params.weights)
    total = logsumexp(joint, axis=1)
    resp = np.exp(joint - total[:, None])
    np.testing.assert_allclose(model.family.log_prob(gaussians, Chunk(rows)), log_prob, rtol=1e-10, atol=1e-10)
    found = model.e_step(params, Chunk(rows))
    assert found.objective == pytest.approx(total.sum(), rel=1e-12)
    assert found.weight == len(rows)
    np.testing.assert_allclose(model.posterior(params, Chunk(rows))[3], params.weights)
    imputed = model.impute(params, Chunk(rows))
    np.testing.assert_allclose(imputed, np.einsum("nk,nkd->nd", resp, expected), rtol=1e-10)
    np.testing.assert_array_equal(imputed[~np.isnan(rows)], rows[~np.isnan(rows)])
    u = (expected - gaussians.reference) * gaussians.scale
    xx = np.einsum("nk,nkd,nke->kde", resp, u, u) + np.einsum("nk,nkde->kde", resp, spread)
    shaped = {
        "full": xx,
        "tied": xx.sum(axis=0),
        "diag": np.diagonal(xx, axis1=1, axis2=2),
        "spherical": np.trace(xx, axis1=1, axis2=2),
        "tied_diag": np.diagonal(xx, axis1=1, axis2=2).sum(axis=0),
        "tied_spherical": np.trace(xx, axis1=1, axis2=2).sum(),
    }[covariance]
    stats = model.family.stats(gaussians, Chunk(rows), resp)
    np.testing.assert_allclose(stats.x, np.einsum("nk,nkd->kd", resp, u), atol=1e-9)
    np.testing.assert_allclose(unpack(stats.xx, d) if covariance == "full" else stats.xx, shaped, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_blocks_without_holes_have_the_bits_of_a_model_that_knows_none(covariance):
    rows = holed(200, 5, 0.0)
    model, params = fitted(covariance, rows)
    plain, plain_params = fitted(covariance, rows, missing=False)
    for ours, theirs in ((params.components, plain_params.components),):
        np.testing.assert_array_equal(ours.means, theirs.means)
        np.testing.assert_array_equal(ours.covariances, theirs.covariances)
    assert model.e_step(params, Chunk(rows)).objective == plain.e_step(params, Chunk(rows)).objective


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_tight_far_apart_components_with_holes(covariance):
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(2, 4)), 300, axis=0) + 1e-5 * rng.normal(size=(600, 4))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    model, params = fitted(covariance, rows, reg_covar=0.0, steps=40)
    gaussians = params.components
    assert (gaussians.reference != gaussians.shift).any()
    sd = np.sqrt(np.diagonal(matrices(covariance, gaussians), axis1=1, axis2=2))
    np.testing.assert_allclose(sd, 1e-5, rtol=0.25)
    assert np.isfinite(model.e_step(params, Chunk(rows)).objective)


def test_rows_without_any_value_change_nothing_but_the_weight():
    rows = holed(100, 3, 0.2)
    rows = rows[~np.isnan(rows).all(axis=1)]
    model, params = fitted("full", rows)
    more = np.vstack([rows, np.full((50, 3), np.nan)])
    alone, padded = model.e_step(params, Chunk(rows)), model.e_step(params, Chunk(more))
    assert padded.objective == pytest.approx(alone.objective, rel=1e-14)
    assert padded.weight == len(more)
    np.testing.assert_allclose(padded.stats.n, alone.stats.n, rtol=1e-14)


# 13 mixtures of cement, Little & Rubin's example 7.7 (2nd edition): the data set `missvals` of the R package mvnmle.
CEMENT = np.array(
    [
        [7, 26, 6, 60, 78.5], [1, 29, 15, 52, 74.3], [11, 56, 8, 20, 104.3], [11, 31, 8, 47, 87.6],
        [7, 52, 6, 33, 95.9], [11, 55, 9, 22, 109.2], [3, 71, 17, N, 102.7],
        [1, 31, 22, N, 72.5], [2, 54, 18, N, 93.1], [N, N, 4, N, 115.9],
        [N, N, 23, N, 83.8], [N, N, 9, N, 113.3], [N, N, 8, N, 109.4],
    ]
)  # fmt: skip
# Size of the crop and share of wormy fruits of 18 apple trees (Snedecor & Cochran; Little & Rubin, table 7.1): `apple`.
APPLE = np.array(
    [
        [8, 59], [6, 58], [11, 56], [22, 53], [14, 50], [17, 45], [18, 43], [24, 42], [19, 39], [23, 38], [26, 30],
        [40, 27], [4, N], [4, N], [5, N], [6, N], [8, N], [10, N],
    ]
)  # fmt: skip


def test_published_estimates_of_one_normal():
    """The figures that the documentation of mvnmle prints for its two examples; one component is the plain normal."""
    apple = fitted("full", APPLE, k=1, steps=100, reg_covar=0.0)[1].components
    np.testing.assert_allclose(apple.means[0], [14.72227, 49.33325], atol=2e-4)
    np.testing.assert_allclose(apple.covariances[0], [[89.53415, -90.69653], [-90.69653, 114.69470]], rtol=2e-4)
    cement = fitted("full", CEMENT, k=1, steps=300, reg_covar=0.0)[1].components
    np.testing.assert_allclose(cement.means[0], [6.655177, 49.965258, 11.769231, 27.047090, 95.423077], rtol=2e-4)


def test_a_monotone_pattern_has_its_closed_form():
    """Anderson's factored likelihood (Little & Rubin 2020, section 7.2): all sizes, a regression."""
    x, (seen_x, seen_y) = APPLE[:, 0], APPLE[~np.isnan(APPLE[:, 1])].T
    slope = np.cov(seen_x, seen_y, bias=True)[0, 1] / seen_x.var()
    rest = np.mean((seen_y - seen_y.mean() - slope * (seen_x - seen_x.mean())) ** 2)
    found = fitted("full", APPLE, k=1, steps=100, reg_covar=0.0)[1].components
    np.testing.assert_allclose(found.means[0], [x.mean(), seen_y.mean() + slope * (x.mean() - seen_x.mean())])
    covariance = [[x.var(), slope * x.var()], [slope * x.var(), rest + slope**2 * x.var()]]
    np.testing.assert_allclose(found.covariances[0], covariance)


def test_stores_with_holes_are_fitted_and_imputed_as_arrays_are(tmp_path):
    rows = holed(600, 3, 0.2)
    z = zarr.create_array(tmp_path / "x.zarr", shape=rows.shape, dtype=rows.dtype, chunks=(100, 3))
    z[...] = rows
    options = {"random_state": 0, "missing": "nan", "tol": 1e-4}
    stored = daskem.GaussianMixture(2, **options).fit(str(tmp_path / "x.zarr"))
    loaded = daskem.GaussianMixture(2, **options).fit(rows)
    np.testing.assert_allclose(stored.means_, loaded.means_, rtol=1e-9)
    imputed = stored.impute(str(tmp_path / "x.zarr")).compute()
    np.testing.assert_allclose(imputed, loaded.impute(rows), rtol=1e-9)
    assert np.isfinite(imputed).all()
    assert np.isfinite(loaded.score(rows))
    far = daskem.GaussianMixture(2, init_params="k-means||", **options).fit(str(tmp_path / "x.zarr"))
    assert np.isfinite(far.lower_bound_)


@pytest.mark.filterwarnings("ignore:.*stopped before it converged")
@pytest.mark.parametrize("algorithm", ["auto", "progressive", "squarem", "stepwise", "variance-reduced"])
@pytest.mark.parametrize("family", [Gaussian(missing=True), Bernoulli(0.5)], ids=["gaussian", "bernoulli"])
def test_every_algorithm_takes_holes(algorithm, family, tmp_path):
    rows = holed(4000, 3, 0.2, offset=0.0)
    if not isinstance(family, Gaussian):
        rows = np.where(np.isnan(rows), np.nan, rows > 1.0)
    z = zarr.create_array(tmp_path / "x.zarr", data=rows, chunks=(500, 3))
    options = {"family": family, "random_state": 0, "tol": 1e-6, "max_iter": 40, "init_params": "kmeans"}
    by_batch, by_other = (daskem.MixtureModel(2, algorithm=a, **options).fit(z) for a in ("batch", algorithm))
    assert by_other.score(z) == pytest.approx(by_batch.score(z), abs=5e-3)


def test_a_stream_may_have_holes():
    rows = holed(2000, 3, 0.2)
    mixture = daskem.GaussianMixture(2, random_state=0, missing="nan")
    for part in np.split(rows, 10):
        mixture.partial_fit(part)
    whole = daskem.GaussianMixture(2, random_state=0, missing="nan").fit(rows)
    assert mixture.score(rows) == pytest.approx(whole.score(rows), abs=0.1)


def test_a_warm_start_means_the_same_by_nan():
    rows = holed(100, 3, 0.0)
    mixture = daskem.GaussianMixture(2, random_state=0, warm_start=True, missing="nan").fit(rows)
    with pytest.raises(OptionError, match="warm_start"):
        mixture.set_params(missing="raise").fit(rows)


def test_a_diagnosis_and_a_choice_take_holes():
    rows = holed(400, 2, 0.2)
    mixture = daskem.GaussianMixture(1, missing="nan", reg_covar=0.0).fit(rows)
    found = mixture.diagnose(rows)
    assert found.identifiable
    # Fewer values than rows tell less than all would: the standard error of a mean is sd / sqrt(n) at best.
    sd = np.sqrt(np.diag(mixture.covariances_[0]))
    seen = (~np.isnan(rows)).sum(axis=0)
    assert (found.standard_errors[:2] > 0.9 * sd / np.sqrt(len(rows))).all()
    assert (found.standard_errors[:2] < 1.1 * sd / np.sqrt(seen)).all()
    mixtures = [Mixture(Gaussian(missing=True), k) for k in (1, 2)]
    assert [np.isfinite(one.icl) for one in daskem.select(mixtures, rows, seed=0).candidates] == [True, True]


def columnwise():
    """Return families of independent columns by name, rows that suit them, and what gives a component's means."""
    rng = np.random.default_rng(4)
    which = rng.integers(2, size=(300, 1))
    positive = rng.gamma(2.0, 1.0 + 5.0 * which, (300, 3))
    return {
        "bernoulli": (Bernoulli(0.5), (rng.random((300, 3)) < 0.2 + 0.6 * which) * 1.0, lambda p: p.probabilities),
        "poisson": (Poisson(), rng.poisson(2.0 + 9.0 * which, (300, 3)) * 1.0, lambda p: p.rates),
        "exponential": (Exponential(), positive, lambda p: p.scales),
        "gamma": (Gamma(), positive, lambda p: p.shapes * p.scales),
    }


@pytest.mark.parametrize("name", ["bernoulli", "poisson", "exponential", "gamma"])
def test_independent_columns_are_filled_in_with_the_posterior_mean(name):
    family, rows, mean = columnwise()[name]
    holes = np.random.default_rng(5).random(rows.shape) < 0.3
    holes[0] = True
    rows = np.where(holes, np.nan, rows)
    model = Mixture(family, 2)
    fitted = daskem.fit(model, rows, algorithm=BatchEM(), stop=daskem.MaxSteps(3))
    imputed = model.impute(fitted.params, Chunk(rows))
    expected = model.posterior(fitted.params, Chunk(rows)) @ mean(fitted.params.components)
    np.testing.assert_allclose(imputed, np.where(holes, expected, rows), rtol=1e-12)
    # A row of nothing but holes is told nothing of its component.
    np.testing.assert_allclose(imputed[0], fitted.params.weights @ mean(fitted.params.components), rtol=1e-12)


def test_codes_are_filled_in_with_the_likeliest_and_groups_by_their_families():
    # Two kinds of row, told apart by the first two columns; the third is the kind's own code.
    kind = np.arange(60) % 2
    rows = np.stack([kind, kind, np.where(kind, 2, 1)], axis=1).astype(float)
    rows[0] = 0, 0, -1
    rows[1] = 1, 1, np.nan
    mixture = daskem.CategoricalMixture(2, random_state=0).fit(rows)
    assert mixture.impute(rows)[:2].tolist() == [[0, 0, 1], [1, 1, 2]]
    scores = np.where(kind, 50.0, 10.0) + np.arange(60) % 3
    scores[:2] = np.nan
    families = {"answers": Categorical(), "score": Gaussian("diag", missing=True)}
    mixed = daskem.MixedMixture(2, families=families, columns={"answers": [0, 1, 2], "score": [3]}, random_state=0)
    imputed = mixed.fit(np.column_stack([rows, scores])).impute(np.column_stack([rows, scores]))
    assert imputed[:2, :3].tolist() == [[0, 0, 1], [1, 1, 2]]
    np.testing.assert_allclose(imputed[:2, 3], [11.0, 51.0], atol=0.1)


def test_only_models_that_can_impute_do():
    model = daskem.models.KMeans(2)
    rows = np.eye(4)[np.arange(40) % 4]
    params = model.init(Chunk(rows), np.random.default_rng(0))
    assert not hasattr(model, "impute")
    mixture = Mixture(Unknowing(), 2)
    with pytest.raises(MissingCapabilityError, match="impute"):
        mixture.impute(params, Chunk(rows))


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="daskem")


def test_the_command_line_fits_and_imputes(tmp_path):
    rows = holed(400, 3, 0.2)
    zarr.create_array(tmp_path / "x.zarr", data=rows, chunks=(100, 3))
    data, model, out = tmp_path / "x.zarr", tmp_path / "m.safetensors", tmp_path / "out.zarr"
    refused = run("fit", "gaussian-mixture", data, "-k", 2, "-o", model)
    assert refused.exit_code == 1
    assert "--missing nan" in refused.stderr
    fitted = run("fit", "gaussian-mixture", data, "-k", 2, "--missing", "nan", "-o", model)
    assert fitted.exit_code == 0, fitted.output
    done = run("predict", model, data, "-o", out, "--impute", "--proba")
    assert done.exit_code == 0, done.output
    imputed = zarr.open_array(out / "imputed", mode="r")[...]
    seen = ~np.isnan(rows)
    np.testing.assert_array_equal(imputed[seen], rows[seen])
    saved = load(str(model))
    np.testing.assert_allclose(imputed, saved.model.impute(saved.params, Chunk(rows)), rtol=1e-12)
    scored = run("score", model, data, "--json")
    assert json.loads(scored.stdout)["log_prob_per_row"] == pytest.approx(
        saved.model.e_step(saved.params, Chunk(rows)).objective / len(rows)
    )
    plain = tmp_path / "plain.safetensors"
    np.save(tmp_path / "whole.npy", imputed)
    assert run("fit", "gaussian-mixture", tmp_path / "whole.npy", "-k", 2, "-o", plain).exit_code == 0
    denied = run("predict", plain, tmp_path / "whole.npy", "-o", tmp_path / "no.zarr", "--impute")
    assert denied.exit_code == 1
    assert "--impute needs a model of missing values" in denied.stderr


def test_what_is_still_refused():
    rows = holed(60, 3, 0.2)
    with pytest.raises(NonFiniteError, match="missing='nan'"):
        daskem.GaussianMixture(2).fit(rows)
    infinite = rows.copy()
    infinite[7, 1] = np.inf
    with pytest.raises(NonFiniteError, match=r"contains infinity.*rows 7:8 .*feature 1"):
        daskem.GaussianMixture(2, missing="nan").fit(infinite)
    rows[:, 2] = np.nan
    with pytest.raises(DataError, match=r"feature\(s\) 2 are missing"):
        daskem.GaussianMixture(2, missing="nan").fit(rows)
    with pytest.raises(DataError, match="sample_weight"):
        daskem.GaussianMixture(2, missing="nan").fit(holed(60, 3, 0.2), sample_weight=np.full(60, np.nan))


def test_missing_counts_are_left_out_given_the_total_of_the_others():
    rng = np.random.default_rng(4)
    counts = rng.multinomial(30, [0.2, 0.3, 0.1, 0.4], 60).astype(float)
    counts[rng.random(counts.shape) < 0.3] = np.nan
    counts[0] = np.nan
    model = Mixture(Multinomial(), 1)
    params = model.init(Chunk(counts), np.random.default_rng(0))
    for _ in range(300):
        found = model.e_step(params, Chunk(counts))
        params = model.m_step(found.stats, params)

    def objective(p):
        seen = [(row[there], p[there] / p[there].sum()) for row in counts if (there := ~np.isnan(row)).any()]
        return sum(multinomial.logpmf(x, x.sum(), share / share.sum()) for x, share in seen)

    p = params.components.probabilities[0]
    assert model.e_step(params, Chunk(counts)).objective == pytest.approx(objective(p), rel=1e-10)
    best = minimize(lambda logits: -objective(softmax(np.append(logits, 0.0))), np.zeros(3), tol=1e-10)
    np.testing.assert_allclose(p, softmax(np.append(best.x, 0.0)), atol=1e-5)
    # What is missing is imputed as it is expected for so many trials with other outcomes.
    filled = model.impute(params, Chunk(counts[1:]))
    there = ~np.isnan(counts[1:])
    np.testing.assert_array_equal(filled[there], counts[1:][there])
    trials = np.nansum(counts[1:], axis=1) / (there @ p)
    np.testing.assert_allclose(filled[~there], (trials[:, None] * p)[~there], rtol=1e-12)
    assert model.log_prob(params, Chunk(counts[:1])) == 0


def two_vocabularies(first, second, n, seed, share):
    rng = np.random.default_rng(seed)
    which = rng.random((n, 1)) < 0.5
    counts = np.where(which, rng.multinomial(10, first, n), rng.multinomial(10, second, n)).astype(float)
    counts[rng.random(counts.shape) < share] = np.nan
    return counts


@pytest.mark.parametrize("algorithm", [BatchEM(), None])
def test_components_leave_outcomes_that_they_were_sure_of(algorithm):
    """From where the outcomes that are there are nearly impossible for a component, expected counts would not lead."""
    model = Mixture(Multinomial(), 2)
    before = two_vocabularies([0.5, 0.25, 0.25, 0, 0, 0], [0, 0, 0, 0.2, 0.3, 0.5], 4_000, 0, 0.0)
    old = daskem.fit(model, before).params
    after = two_vocabularies([0.8, 0.1, 0.1, 0, 0, 0], [0, 0, 0, 0.5, 0.3, 0.2], 4_000, 1, 0.3)
    result = daskem.fit(model, after, params=old, algorithm=algorithm, stop=[daskem.Gain(1e-6), daskem.MaxPasses(200)])
    found = result.params.components.probabilities
    order = np.argsort(found[:, 0])
    truth = [[0, 0, 0, 0.5, 0.3, 0.2], [0.8, 0.1, 0.1, 0, 0, 0]]
    np.testing.assert_allclose(found[order], truth, atol=0.01)
    assert model.e_step(old, Chunk(after)).stats.components.x.max() < np.nansum(after)


@pytest.mark.parametrize("pseudo_count", [0.3, 5.0])
def test_a_prior_of_missing_counts_is_maximised(pseudo_count):
    counts = two_vocabularies([0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], 50, 2, 0.4)
    counts[:, 3] = np.where(np.arange(50) < 2, counts[:, 3], np.nan)
    model = Mixture(Multinomial(pseudo_count), 1)
    params = model.init(Chunk(counts), np.random.default_rng(0))
    for _ in range(2_000):
        params = model.m_step(model.e_step(params, Chunk(counts)).stats, params)

    def penalised(logits):
        p = params.components.probabilities[0]
        vector = np.append(logits, 0.0)
        moved = model.family.from_vector((vector - vector[-1])[:-1], params.components)
        assert moved.probabilities.shape == (1, len(p))
        moved = MixtureParams(params.weights, moved)
        return -(model.e_step(moved, Chunk(counts)).objective + model.log_prior(moved))

    best = minimize(penalised, np.zeros(3), tol=1e-9)
    np.testing.assert_allclose(params.components.probabilities[0], softmax(np.append(best.x, 0.0)), atol=1e-5)


def test_totals_that_are_drawn_are_those_of_whole_rows():
    rng = np.random.default_rng(3)
    counts = rng.multinomial(20, [0.9, 0.05, 0.05], 2_000).astype(float)
    counts[::2, 0] = np.nan
    counts[::5] = np.nan
    result = daskem.fit(Mixture(Multinomial(), 1), counts)
    assert result.params.components.trials == pytest.approx(20.0, rel=0.1)


def test_estimators_and_command_line_take_missing_counts(tmp_path):
    rng = np.random.default_rng(5)
    counts = np.concatenate([rng.multinomial(40, p, 400) for p in ([0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7])])
    holed = np.where(rng.random(counts.shape) < 0.2, np.nan, counts)
    complete = daskem.MultinomialMixture(2, random_state=0, tol=1e-8).fit(counts.astype(float))
    found = daskem.MultinomialMixture(2, random_state=0, tol=1e-8).fit(holed)
    order, other = (np.argsort(each.probabilities_[:, 0]) for each in (complete, found))
    np.testing.assert_allclose(found.probabilities_[other], complete.probabilities_[order], atol=0.01)
    z = zarr.create_array(str(tmp_path / "x.zarr"), shape=holed.shape, chunks=(100, 4), dtype="f8")
    z[:] = holed
    command = ["fit", "multinomial-mixture", str(tmp_path / "x.zarr"), "-k", "2", "-o", str(tmp_path / "m.safetensors")]
    assert CliRunner().invoke(main, command).exit_code == 0
    np.testing.assert_allclose(load(str(tmp_path / "m.safetensors")).params.weights.sum(), 1.0)


@pytest.mark.parametrize("concentration", [1e-6, 0.7, 30.0])
def test_missing_parts_of_directions_are_integrated_over(concentration):
    """Two holes leave a circle, one hole two points of the sphere, against sums over them."""
    direction = np.array([[0.5, -0.5, 0.1, 0.7]])
    direction /= np.linalg.norm(direction)
    family = VonMisesFisher()
    params = VonMisesFisherParams(direction, np.array([concentration]), np.zeros(1, np.int8))
    row = np.array([0.3, np.nan, -0.6, np.nan])
    rest = np.sqrt(1 - 0.3**2 - 0.6**2)
    angle = np.arange(20_000) * 2 * np.pi / 20_000
    circle = np.tile(row, (len(angle), 1))
    circle[:, 1], circle[:, 3] = rest * np.cos(angle), rest * np.sin(angle)
    density = np.exp(family.log_prob(params, Chunk(circle))[:, 0])
    one = Chunk(row[None])
    # In polar coordinates the area of the sphere over dx_1 dx_3 is that of the circle of radius one.
    assert family.log_prob(params, one)[0, 0] == pytest.approx(np.log(density.mean() * 2 * np.pi), abs=1e-9)
    expected = (circle * density[:, None]).sum(axis=0) / density.sum()
    np.testing.assert_allclose(family.impute(params, one, np.ones((1, 1)))[0], expected, atol=1e-9)
    np.testing.assert_allclose(family.stats(params, one, np.ones((1, 1))).x[0], expected, atol=1e-9)
    row = np.array([0.3, 0.2, -0.6, np.nan])
    rest = np.sqrt(1 - 0.3**2 - 0.2**2 - 0.6**2)
    points = np.tile(row, (2, 1))
    points[:, 3] = rest, -rest
    density = np.exp(family.log_prob(params, Chunk(points))[:, 0])
    one = Chunk(row[None])
    assert family.log_prob(params, one)[0, 0] == pytest.approx(np.log(density.sum() / rest), abs=1e-9)
    expected = density @ points[:, 3] / density.sum()
    assert family.impute(params, one, np.ones((1, 1)))[0, 3] == pytest.approx(expected, abs=1e-12)
    nothing = Chunk(np.full((1, 4), np.nan))
    assert family.log_prob(params, nothing)[0, 0] == pytest.approx(0.0, abs=1e-12)
    # The density of two coordinates integrates to one.
    grid = (np.arange(1_000) + 0.5) / 500 - 1
    x, y = np.meshgrid(grid, grid)
    inside = x**2 + y**2 < 1
    rows = np.full((inside.sum(), 4), np.nan)
    rows[:, 0], rows[:, 2] = x[inside], y[inside]
    total = np.exp(family.log_prob(params, Chunk(rows))[:, 0]).sum() / 500**2
    assert total == pytest.approx(1.0, abs=2e-3)


def test_directions_with_holes_are_found_and_too_long_ones_refused():
    rng = np.random.default_rng(6)
    means = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.6, 0.8]])
    rows = means[np.repeat([0, 1], [600, 1400])] + 0.2 * rng.normal(size=(2_000, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    holed_rows = np.where(rng.random(rows.shape) < 0.25, np.nan, rows)
    complete, found = (daskem.VonMisesFisherMixture(2, random_state=0, tol=1e-8).fit(x) for x in (rows, holed_rows))
    order, other = np.argsort(complete.weights_), np.argsort(found.weights_)
    np.testing.assert_allclose(found.weights_[other], [0.3, 0.7], atol=0.01)
    np.testing.assert_allclose(found.directions_[other], complete.directions_[order], atol=0.02)
    np.testing.assert_allclose(found.concentrations_[other], complete.concentrations_[order], rtol=0.05)
    holed_rows[3] = [0.9, np.nan, 0.9, np.nan]
    with pytest.raises(DataError, match=r"row 3 cannot be fitted: what it has is of length 1\.27"):
        daskem.VonMisesFisherMixture(2, random_state=0).fit(holed_rows)


def normal_rows(n, d, seed, dependence=0.3):
    """Rows of two overlapping clusters, features correlated by so much, a fifth of the values missing."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) + dependence * rng.normal(size=(n, 1)) + 2.0 * rng.integers(2, size=(n, 1))
    rows[rng.random((n, d)) < 0.2] = np.nan
    return rows.astype(np.float32)


@pytest.mark.skipif(not compiled.available(), reason="numpy computes rows with holes in double precision")
@pytest.mark.parametrize("covariance", ["full", "tied"])
@pytest.mark.parametrize("d", [2, 3, 7, 16, 32])
@pytest.mark.parametrize("k", [1, 5, 8, 9])
def test_single_precision_rows_with_holes_keep_1e5(covariance, d, k, monkeypatch):
    rows = normal_rows(3_001, d, seed=d)
    model, params = fitted(covariance, rows.astype(np.float64), k=k, steps=2)
    density, stats = model.log_prob(params, Chunk(rows)), model.e_step(params, Chunk(rows)).stats
    double = Chunk(rows.astype(np.float64))
    exact, sums = model.log_prob(params, double), model.e_step(params, double).stats
    assert density.dtype == np.float64
    assert 0 < np.abs(density - exact).max() < 1e-5 * np.abs(exact).max()
    single, exactly = model.m_step(stats, params).components, model.m_step(sums, params).components
    assert np.abs(single.means - exactly.means).max() < 1e-5
    assert np.abs(single.covariances - exactly.covariances).max() < 3e-5
    # Also where numpy computes.
    monkeypatch.setattr(compiled, "library", None)
    np.testing.assert_allclose(model.log_prob(params, Chunk(double.rows)), exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_row_too_far_off_for_its_type_has_density_zero(dtype):
    rows = normal_rows(500, 3, seed=1).astype(dtype)
    model, params = fitted("full", rows.astype(np.float64), k=2, steps=2)
    far = np.array([[1e20 if dtype == "f4" else 1e160, np.nan, 0.0]], dtype)
    assert model.log_prob(params, Chunk(far)) == -np.inf


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_kernels_that_take_turns_on_a_block_keep_their_own(dtype):
    """The offsets of the holes share a buffer; each kernel must find its own there."""
    rows = normal_rows(400, 4, seed=3).astype(dtype)
    model, first = fitted("full", rows.astype(np.float64), k=2, steps=1)
    second = model.m_step(model.e_step(first, Chunk(rows)).stats, first)
    chunk, resp = Chunk(rows), np.full((2, len(rows)), 0.5, dtype)
    kernels = [model.family.holes(params.components, chunk) for params in (first, second)]
    for kernel in kernels:
        kernel.log_prob(chunk)
    for params, kernel in zip((first, second), kernels, strict=True):
        alone = Chunk(rows)
        expected = model.family.holes(params.components, alone).moments(alone, resp)
        for one, other in zip(kernel.moments(chunk, resp), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_holes_of_a_product_are_planned_for():
    columns = {"a": list(range(8)), "b": list(range(8, 16))}
    without, holes = (
        Mixture(Product(dict.fromkeys(columns, Gaussian(missing=missing)), columns), 3).footprint(16, np.dtype("f8"))
        for missing in (False, True)
    )
    assert holes.workspace >= without.workspace + 2 * gaussian_missing.holes_bytes(holes.block_rows, 3, 8)


def test_single_precision_is_not_used_where_features_explain_each_other():
    rows = normal_rows(2_000, 16, seed=0, dependence=8.0)
    rows = rows[np.isnan(rows).any(axis=1)]
    model, params = fitted("full", rows.astype(np.float64), k=2, steps=30)
    exact = model.log_prob(params, Chunk(rows.astype(np.float64)))
    np.testing.assert_allclose(model.log_prob(params, Chunk(rows)), exact, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_sums_of_many_rows_of_one_pattern_do_not_stall(dtype):
    rows = np.full((200_000, 3), 0.7, dtype)
    rows[:, 1] = np.nan
    rows[:2, 1] = 0.7, 1.3
    rows[:2, 0] = 0.1, 1.9
    model, params = fitted("full", rows[:1000].astype(np.float64), k=1, steps=1)
    stats = model.e_step(params, Chunk(rows)).stats
    some = model.e_step(params, Chunk(rows[2:102])).stats
    first = model.e_step(params, Chunk(rows[:2])).stats
    many = (len(rows) - 2) / 100
    for name in ("n", "x", "xx"):
        one, hundred, two = (getattr(each.components, name) for each in (stats, some, first))
        np.testing.assert_allclose(one, two + many * hundred, rtol=2e-6)
