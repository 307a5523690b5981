"""Gaussian arithmetic under attack, held against long double: far, huge, tiny, tight, collinear, constant, repeated.

``pytest -m slow tests/test_numerics.py`` takes more features and the whole grid of offsets, sizes and shapes.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

import daskem
from daskem import tree
from daskem.core import Array, Chunk, Float, Scratch
from daskem.errors import DaskEMError, DataError
from daskem.models import Gaussian, KMeans, Mixture, StudentT
from daskem.models.gaussian_algebra import SHAPES
from daskem.models.gaussian_records import GaussianParams

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="long double is no wider than double on this machine"
)
BLOCK = 512
TYPES = {"float64": 1e-12, "float32": 1e-5}


def rows_of(d: int, n: int, seed: int = 0) -> Float:
    """Return correlated rows of about unit spread."""
    rng = np.random.default_rng([seed, d])
    return rng.normal(size=(n, d)) @ (np.eye(d) + rng.normal(size=(d, d)) * 0.3 / np.sqrt(d))


def exact_covariance(rows: Array, columns: Array | slice = slice(None)) -> np.ndarray:
    """Return the covariance of some columns in long double."""
    wide = np.asarray(rows[:, columns], np.longdouble)
    centered = wide - wide.mean(axis=0)
    return centered.T @ centered / len(rows)


def shaped(covariance: str, exact: np.ndarray) -> np.ndarray:
    """Return the covariances (k, d, d) of components of equal weight as a family of that shape has them."""
    variances = np.diagonal(exact, axis1=1, axis2=2)
    return {
        "full": exact,
        "tied": exact.mean(axis=0),
        "diag": variances,
        "spherical": variances.mean(axis=1),
        "tied_diag": variances.mean(axis=0),
        "tied_spherical": variances.mean(keepdims=True)[0],
    }[covariance]


def steps(model: Mixture, rows: Array, n_steps: int = 1, sample: Array | None = None):
    """Return the parameters after some steps, and the objective at the start of each."""
    params, objectives = model.init(Chunk(rows if sample is None else sample), np.random.default_rng(0)), []
    for _ in range(n_steps):
        scratch, total = Scratch(), None
        for start in range(0, len(rows), BLOCK):
            found = model.e_step(params, Chunk(rows[start : start + BLOCK], start=start, scratch=scratch))
            total = found if total is None else tree.accumulate(total, found)
        objectives.append(total.objective)
        params = model.m_step(total.stats, params)
    return params, np.array(objectives)


def relative(found: Array, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def smallest_eigenvalue(name: str, covariance: Float) -> float:
    """Return the smallest eigenvalue of correlation matrices, or variance of what has no matrices."""
    if name not in ("full", "tied"):
        return float(covariance.min())
    inverse = 1.0 / np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return float(np.linalg.eigvalsh(covariance * inverse[..., :, None] * inverse[..., None, :]).min())


# Covariances


def check_one_component(covariance: str, dtype: str, offset: float, size: float, d: int, n: int = 3_000) -> None:
    rows = ((rows_of(d, n) + offset) * size).astype(dtype)
    params, objectives = steps(Mixture(Gaussian(covariance, 0.0), 1), rows)
    chosen = np.random.default_rng(0).choice(d, min(d, 24), replace=False)
    found = params.components.covariances
    assert tree.all_finite(params)
    assert np.isfinite(objectives).all()
    assert smallest_eigenvalue(covariance, found) > 0
    if SHAPES[covariance].isotropic:
        chosen = np.arange(d)
    elif covariance in ("full", "tied"):
        found = found[..., chosen[:, None], chosen]
    else:
        found = found[..., chosen]
    # Squares of sizes of 1e150 fit into double precision, sums of their squares into long double alone.
    exact = shaped(covariance, exact_covariance(rows, chosen)[None])
    assert relative(found, exact) < TYPES[dtype]


@pytest.mark.parametrize("covariance", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "offset", "size", "d"),
    [
        ("float64", 0.0, 1.0, 3),
        ("float64", 1e8, 1.0, 3),
        ("float64", -1e8, 1e150, 12),
        ("float64", 1e8, 1e-150, 3),
        ("float64", 1e4, 1e-20, 80),
        ("float32", 0.0, 1.0, 3),
        ("float32", 1e3, 1e10, 12),
        ("float32", -1e2, 1e-10, 80),
    ],
)
def test_a_covariance_is_that_of_long_double(covariance, dtype, offset, size, d):
    check_one_component(covariance, dtype, offset, size, d, 1_000)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", SHAPES)
@pytest.mark.parametrize("d", [1, 2, 8, 9, 64, 65, 500])
@pytest.mark.parametrize("size", [1e-150, 1e-75, 1.0, 1e75, 1e150])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
def test_covariances_of_the_whole_grid_are_those_of_long_double(covariance, d, size, offset):
    check_one_component(covariance, "float64", offset, size, d)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
def test_covariances_of_two_thousand_features_are_those_of_long_double(covariance):
    check_one_component(covariance, "float64", 1e8, 1.0, 2_000, 2_600)


@pytest.mark.parametrize("covariance", SHAPES)
@pytest.mark.parametrize("tightness", [0.03, 0.02, 0.008, 1e-3, 1e-6])
@pytest.mark.parametrize("d", [3, 16])
def test_covariances_of_tight_components_apart_are_those_of_long_double(covariance, tightness, d):
    rng = np.random.default_rng(1)
    rows = np.repeat([[1.0], [-1.0]], 1_000, axis=0) / np.sqrt(d) + tightness * rng.normal(size=(2_000, d))
    model = Mixture(Gaussian(covariance, 0.0), 2)
    params, _ = steps(model, rows, 3)
    resp = model.posterior(params, Chunk(rows))
    assert np.isin(resp, (0.0, 1.0)).all()
    halves = [rows[resp[:, k] > 0.5] for k in (0, 1)]
    exact = shaped(covariance, np.stack([exact_covariance(half) for half in halves]))
    assert relative(params.components.covariances, exact) < 1e-12


# Log densities


def exact_log_prob(params: GaussianParams, k: int, rows: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return log p(x | k) of the parameters as they are, in long double, and the magnitude of what it is made of."""
    d = rows.shape[1]
    factor = np.asarray(params.precisions_cholesky, np.longdouble)
    factor = factor if factor.ndim == 2 else factor[k]
    square = (((rows.astype(np.longdouble) - params.means[k]) @ factor) ** 2).sum(axis=1) / 2
    peak = np.log(np.diagonal(factor)).sum() - np.longdouble(d) / 2 * np.log(2 * np.longdouble(np.pi))
    return peak - square, 1 + np.abs(peak) + square


def rows_of_condition(d, condition):
    """Return rows whose covariance has this condition, in axes of any direction."""
    rng = np.random.default_rng([d, round(np.log10(condition))])
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.geomspace(1.0, condition**-0.5, d)[:, None]
    return rng.normal(size=(600, d)) @ axes


@pytest.mark.parametrize("covariance", ["full", "tied"])
@pytest.mark.parametrize("d", [3, 12, 80])
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
def test_log_densities_are_those_of_long_double(covariance, d, condition, offset):
    rows = rows_of_condition(d, condition) + offset
    model = Mixture(Gaussian(covariance, 0.0), 2)
    params, _ = steps(model, rows, 2)
    found = model.family.log_prob(params.components, Chunk(rows))
    for k in (0, 1):
        exact, magnitude = exact_log_prob(params.components, k, rows)
        assert (np.abs(found[:, k] - exact) / magnitude).max() < 1e-12


def exact_marginal(factor, deviation):
    """Return the log density of what is present of a row, in long double, and the size of its terms."""
    holes = np.isnan(deviation)
    whole = factor.T @ np.where(holes, 0, deviation)
    peak = np.log(np.diagonal(factor)).sum() - np.sum(~holes) / np.longdouble(2) * np.log(2 * np.longdouble(np.pi))
    basis = []
    for column in factor.T[:, holes].T:
        for q in [*basis, *basis]:
            column = column - q * (q @ column)
        basis.append(column / np.sqrt(column @ column))
        peak -= np.log(column @ column) / 2
    for q in [*basis, *basis]:
        whole = whole - q * (q @ whole)
    square = whole @ whole / 2
    return peak - square, 1 + np.abs(peak) + square


@pytest.mark.parametrize("covariance", ["full", "tied"])
@pytest.mark.parametrize("d", [3, 12])
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
def test_log_densities_of_rows_with_holes_are_those_of_long_double(covariance, d, condition, offset):
    rows = rows_of_condition(d, condition) + offset
    params, _ = steps(Mixture(Gaussian(covariance, 0.0), 2), rows, 2)
    rows[np.random.default_rng(d).random(rows.shape) < 0.2] = np.nan
    found = Gaussian(covariance, 0.0, missing=True).log_prob(params.components, Chunk(rows[:100]))
    factor = np.asarray(params.components.precisions_cholesky, np.longdouble)
    for k in (0, 1):
        mean = params.components.means[k].astype(np.longdouble)
        for row, ours in zip(rows[:100], found[:, k], strict=True):
            exact, magnitude = exact_marginal(factor if factor.ndim == 2 else factor[k], row - mean)
            assert abs(ours - exact) / magnitude < 1e-12


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_log_densities_of_extreme_sizes_are_those_of_long_double(size):
    rows = rows_of(4, 500) * size
    model = Mixture(Gaussian(reg_covar=0.0), 2)
    params, _ = steps(model, rows, 2)
    exact, magnitude = exact_log_prob(params.components, 0, rows)
    found = model.family.log_prob(params.components, Chunk(rows))[:, 0]
    assert (np.abs(found - exact) / magnitude).max() < 1e-12


# Rows that make poor mixtures


def poor_rows() -> dict[str, tuple[Float, int]]:
    """Return rows by what is wrong with them, and a number of components."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 4))
    return {
        "a constant column": (np.c_[x, np.full(200, 7.0)], 3),
        "a constant column far away": (np.c_[x, np.full(200, 1e150)], 3),
        "collinear columns": (np.c_[x, 2 * x[:, 0] - x[:, 1]], 3),
        "columns twice": (np.c_[x, x], 3),
        "rows twenty times": (np.repeat(x[:10], 20, axis=0), 3),
        "one row repeated": (np.tile(x[:1], (50, 1)), 2),
        "as many components as rows": (x[:12], 12),
        "almost as many components as rows": (x[:12], 11),
        "two rows a component": (x[:20], 10),
        "fewer rows than features": (rng.normal(size=(10, 30)), 2),
        "columns of many sizes": ((x + 1e6) * [1e-140, 1e140, 1.0, 1e-5], 3),
        "an outlier": (np.r_[x, [[1e10, 0, 0, 0]]], 3),
        "two points": (np.repeat([[0.0, 0.0], [1.0, 1.0]], 50, axis=0), 2),
        "zeros": (np.zeros((40, 3)), 2),
    }


FLOORS = {"none": (0.0, None), "reg_covar": (1e-6, None), "prior": (0.0, "conjugate")}


# Without a floor the covariance of these has no inverse; that of variances alone has one where no feature is constant.
SINGULAR = {"a constant column", "a constant column far away", "one row repeated", "zeros"}
# One variance of all features is zero only where there is one row.
ISOTROPIC = {shape: {"a constant column", "a constant column far away"} for shape in ("spherical", "tied_spherical")}
SINGULAR_MATRIX = SINGULAR | {"collinear columns", "columns twice", "fewer rows than features", "two points"}
# Single precision has no numbers such as 1e140.
WIDE_ONLY = ("a constant column far away", "columns of many sizes")


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in poor_rows() for dtype in TYPES if dtype == "float64" or case not in WIDE_ONLY],
)
def test_poor_rows_leave_parameters_that_are_numbers(case, floor, dtype):
    rows, k = poor_rows()[case]
    rows = rows.astype(dtype)
    models = {name: Mixture(Gaussian(name, *FLOORS[floor]), k) for name in SHAPES}
    if floor != "none":
        models |= {f"t {name}": Mixture(StudentT(name, "each", *FLOORS[floor]), k) for name in ("full", "diag")}
    for name, model in models.items():
        shape = name.split()[-1]
        singular = SINGULAR_MATRIX if shape in ("full", "tied") else SINGULAR - ISOTROPIC.get(shape, set())
        if floor != "reg_covar" and case in singular:
            with pytest.raises(DataError, match=r"no covariance that could be inverted.*set reg_covar \(now 0\)"):
                steps(model, rows, 3)
            continue
        params, objectives = steps(model, rows, 3)
        assert tree.all_finite(params), name
        assert np.isfinite(objectives).all(), name
        assert params.weights.min() >= 0, name
        assert smallest_eigenvalue(shape, params.components.covariances) > 0, name
        assert np.isfinite(model.posterior(params, Chunk(rows))).all(), name


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_a_matrix_that_only_rounding_makes_positive_is_a_collapse(covariance):
    x = np.random.default_rng(0).normal(size=(300, 3))
    rows = np.c_[x, 2 * x[:, 0] - x[:, 1]]
    model = Mixture(Gaussian(covariance, 0.0), 2)
    # Rows to start from that are no such matrix.
    sample = rows + 0.01 * np.random.default_rng(1).normal(size=rows.shape)
    params, objectives = steps(model, rows, 10, sample)
    assert params.components.repaired.all()
    # Without a floor the likelihood has no bound; what is kept has one, and goes up.
    assert np.diff(objectives).min() > -1e-8 * np.abs(objectives).max()


@pytest.mark.parametrize("make", [lambda: Mixture(Gaussian(), 2), lambda: KMeans(2)])
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_sizes_whose_squares_are_beyond_double_precision_are_refused(make, size):
    with pytest.raises(DataError, match=r"feature\(s\) 0, 1, 2 have values from .* beyond double precision"):
        daskem.fit(make(), rows_of(3, 100) * size)


def test_an_estimator_fits_what_is_just_within():
    for size in (1e-150, 1e150):
        mixture = daskem.GaussianMixture(2, random_state=0, reg_covar=0.0).fit(rows_of(3, 200) * size)
        assert np.isfinite(mixture.covariances_).all()


def test_no_warning_of_numpy_comes_out_of_poor_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", daskem.errors.DaskEMWarning)
        for rows, k in poor_rows().values():
            for model in (Mixture(Gaussian(), k), KMeans(k)):
                try:
                    daskem.fit(model, rows, stop=daskem.MaxSteps(3))
                except DaskEMError:
                    continue


def test_forms_agree_wherever_a_component_is_referred_to():
    rows = rows_of(5, 300)
    model = Mixture(Gaussian(reg_covar=0.0), 3)
    params, _ = steps(model, rows, 2)
    elsewhere = replace(params.components, reference=params.components.means + 40.0)
    here, there = (model.family.log_prob(p, Chunk(rows)).copy() for p in (params.components, elsewhere))
    np.testing.assert_allclose(here, there, rtol=1e-12)
