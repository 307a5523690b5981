"""Families against truths from outside: scipy's densities and fits, published tables, sums over what is missing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product as every
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from cases import binary, codes, count_table, directions, waits, with_holes, words
from scipy import optimize, stats
from scipy.special import logsumexp

from daskem import fit, models, tree
from daskem.algorithms import Gain, MaxSteps
from daskem.core import Chunk
from daskem.data import open_dataset
from daskem.errors import DataError, DegenerateComponentError, OptionError
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
    StudentT,
    VonMisesFisher,
)
from daskem.models.gamma import shape_of
from daskem.models.repair import AT_BOUND, AT_PRIOR, EMPTY_KEPT, RESEEDED
from daskem.models.von_mises_fisher import concentration_of, log_ive, mean_length
from daskem.persist import load_model, save_model
from daskem.predict import predict_rows, score

# Coombs, Holland & Wiley's seven pathologists and 118 slides (Agresti 2002, Categorical Data Analysis, table 13.1).
CARCINOMA = {
    "0000000": 34, "0000100": 2, "0100000": 6, "0100001": 1, "0100100": 4, "0100101": 5, "1000000": 2, "1010101": 1,
    "1100000": 2, "1100001": 1, "1100100": 2, "1100101": 7, "1100111": 1, "1101001": 1, "1101101": 2, "1101111": 3,
    "1110101": 13, "1110111": 5, "1111101": 10, "1111111": 16,
}  # fmt: skip
# Dayton's four questions about cheating to 319 students (Linzer & Lewis 2011, J. Stat. Softw. 42(10)).
CHEATING = {
    "0000": 207, "0001": 46, "0010": 7, "0011": 5, "0100": 13, "0101": 4, "0110": 1, "0111": 2, "1000": 10, "1001": 3,
    "1010": 1, "1011": 2, "1100": 11, "1101": 4, "1110": 1, "1111": 2,
}  # fmt: skip
# Attitudes towards surveys in the General Social Survey of 1982 (McCutcheon 1987, Latent Class Analysis, table 3.1).
GSS82 = {
    "0000": 419, "0001": 35, "0002": 2, "0010": 71, "0011": 25, "0012": 5, "0100": 270, "0101": 25, "0102": 4,
    "0110": 42, "0111": 16, "0112": 5, "1000": 23, "1001": 4, "1002": 1, "1010": 6, "1011": 2, "1100": 43, "1101": 9,
    "1102": 2, "1110": 9, "1111": 3, "1112": 2, "2000": 26, "2001": 3, "2010": 1, "2011": 2, "2100": 85, "2101": 23,
    "2102": 6, "2110": 13, "2111": 12, "2112": 8,
}  # fmt: skip
# Earthquakes of magnitude 7 or more in each year from 1900 (Zucchini & MacDonald 2009, table 1.1).
EARTHQUAKES = (
    "13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21 22 "
    "26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20 16 21 "
    "21 25 16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11"
)
CLASSES = tuple(getattr(models, name) for name in models.__all__ if not name.isupper())


def table(counts: dict[str, int]) -> Chunk:
    rows = np.array([[float(code) for code in pattern] for pattern in counts])
    return Chunk(rows, np.array([float(count) for count in counts.values()]))


def converged(model: Any, sample: Chunk, seed: int = 0, steps: int = 3000) -> tuple[float, Any]:
    """Return the log-likelihood at which EM in memory comes to rest, and the parameters."""
    params, last = model.init(sample, np.random.default_rng(seed)), -np.inf
    for _ in range(steps):
        found = model.e_step(params, sample)
        if found.objective - last < 1e-9:
            break
        last, params = found.objective, model.m_step(found.stats, params)
    return found.objective, params


def start_of(family: Any, rows: np.ndarray, k: int = 2) -> Any:
    resp = np.random.default_rng(3).dirichlet(np.full(k, 0.5), len(rows))
    return family.init(Chunk(np.ascontiguousarray(rows, float)), resp)


def scipy_gamma(params: Any, k: int, rows: np.ndarray) -> np.ndarray:
    return stats.gamma.logpdf(rows, params.shapes[k], scale=params.scales[k]).sum(axis=1)


# Family, rows, and the log density of component k by other means.
DENSITIES = {
    "bernoulli": (Bernoulli(), binary, lambda p, k, x: stats.bernoulli.logpmf(x, p.probabilities[k]).sum(axis=1)),
    "poisson": (Poisson(), count_table, lambda p, k, x: stats.poisson.logpmf(x, p.rates[k]).sum(axis=1)),
    "exponential": (Exponential(), waits, lambda p, k, x: stats.expon.logpdf(x, scale=p.scales[k]).sum(axis=1)),
    "gamma": (Gamma(), waits, scipy_gamma),
    "categorical": (
        Categorical(),
        codes,
        lambda p, k, x: sum(np.log(p.of_column(j)[k][x[:, j].astype(int)]) for j in range(x.shape[1])),
    ),
    # So many levels are computed with sparse indicators.
    "categorical, many levels": (
        Categorical(levels=60),
        lambda rng, n: np.concatenate([codes(rng, n)[:, :1], rng.integers(60, size=(n, 2))], axis=1),
        lambda p, k, x: sum(np.log(p.of_column(j)[k][x[:, j].astype(int)]) for j in range(x.shape[1])),
    ),
    "multinomial": (
        Multinomial(),
        words,
        lambda p, k, x: stats.multinomial.logpmf(x, x.sum(axis=1), p.probabilities[k] / p.probabilities[k].sum()),
    ),
    "von Mises-Fisher": (
        VonMisesFisher(),
        directions,
        lambda p, k, x: stats.vonmises_fisher(p.directions[k], p.concentrations[k]).logpdf(x),
    ),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_log_density_is_scipys(name: str) -> None:
    family, draw, truth = DENSITIES[name]
    rows = draw(np.random.default_rng(1), 80).astype(float)
    params = start_of(family, rows, 3)
    found = family.log_prob(params, Chunk(rows))
    np.testing.assert_allclose(found, np.stack([truth(params, k, rows) for k in range(3)], axis=1), rtol=1e-10)


@pytest.mark.parametrize(
    "name", ["bernoulli", "poisson", "exponential", "gamma", "categorical", "categorical, many levels"]
)
def test_a_missing_column_is_as_if_it_were_not_there(name: str) -> None:
    family, draw, _ = DENSITIES[name]
    rows = draw(np.random.default_rng(1), 80).astype(float)
    params = start_of(family, rows)
    holed = with_holes(lambda rng, n: rows)(np.random.default_rng(2), 80)
    seen = ~np.isnan(holed)
    full = np.where(seen, holed, rows)
    # What a single column adds: the density of all less that of all the others.
    for k in range(2):
        column = [family_column(family, params, full, j)[:, k] for j in range(rows.shape[1])]
        expected = (np.stack(column, axis=1) * seen).sum(axis=1)
        np.testing.assert_allclose(family.log_prob(params, Chunk(holed))[:, k], expected, rtol=1e-10, atol=1e-12)


def family_column(family: Any, params: Any, rows: np.ndarray, j: int) -> np.ndarray:
    """Return log p of one column, (n, k): all others missing."""
    alone = np.full(rows.shape, np.nan)
    alone[:, j] = rows[:, j]
    return np.array(family.log_prob(params, Chunk(alone)))


def test_a_hole_sums_over_what_it_may_hide() -> None:
    mixture = Mixture(Product({"b": Bernoulli(), "c": Categorical(levels=3)}, {"b": [0, 1], "c": [2]}), 2)
    rng = np.random.default_rng(4)
    rows = np.column_stack([binary(rng, 60)[:, :2], rng.integers(3, size=60)]).astype(float)
    params = mixture.init(Chunk(rows), rng)
    for hole in every([False, True], repeat=3):
        row = np.where(hole, np.nan, rows[:1])
        values = [[0, 1] if hole[0] else [rows[0, 0]], [0, 1] if hole[1] else [rows[0, 1]]]
        values.append([0, 1, 2] if hole[2] else [rows[0, 2]])
        complete = np.array(list(every(*values)), dtype=float)
        expected = logsumexp(mixture.log_prob(params, Chunk(complete)))
        np.testing.assert_allclose(mixture.log_prob(params, Chunk(row)), expected, rtol=1e-12, atol=1e-12)


def test_rows_that_are_wholly_missing_are_not_lost() -> None:
    rows = count_table(np.random.default_rng(5), 50).astype(float)
    more = np.concatenate([rows, np.full((10, 3), np.nan)])
    mixture = Mixture(Poisson(), 2, "random")
    params = mixture.init(Chunk(rows), np.random.default_rng(0))
    found, without = mixture.e_step(params, Chunk(more)), mixture.e_step(params, Chunk(rows))
    np.testing.assert_allclose(found.objective, without.objective)
    np.testing.assert_allclose(mixture.posterior(params, Chunk(more))[50:], np.tile(params.weights, (10, 1)))
    new, old = (mixture.m_step(each.stats, params) for each in (found, without))
    np.testing.assert_allclose(new.components.rates, old.components.rates)


@pytest.mark.parametrize(
    ("counts", "k", "truth"),
    [
        (CARCINOMA, 2, -317.2568),
        (CARCINOMA, 3, -293.705),
        (CARCINOMA, 4, -289.2858),
        (CHEATING, 2, -440.0271),
        (GSS82, 2, -2783.268),
        (GSS82, 3, -2754.545),
    ],
)
def test_latent_classes_reach_the_published_likelihood(counts: dict[str, int], k: int, truth: float) -> None:
    # Linzer & Lewis (2011) and the manual of their poLCA 1.6.
    reached = max(converged(Mixture(Categorical(), k), table(counts), seed)[0] for seed in range(3))
    assert reached == pytest.approx(truth, abs=1e-3)


def test_bernoulli_is_categorical_with_two_levels() -> None:
    sample = table(CARCINOMA)
    first, second = (converged(Mixture(family, 2), sample) for family in (Bernoulli(), Categorical()))
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    ones = np.sort(first[1].components.probabilities, axis=0)
    np.testing.assert_allclose(ones, np.sort(second[1].components.probabilities[:, 1::2], axis=0), atol=1e-4)


def test_carcinoma_classes_are_agrestis() -> None:
    # Agresti (2002), table 13.3: shares of the three classes, and how often pathologist A says yes in each.
    _, params = converged(Mixture(Categorical(), 3), table(CARCINOMA))
    order = np.argsort(params.components.of_column(0)[:, 1])
    np.testing.assert_allclose(params.weights[order], [0.37, 0.18, 0.44], atol=0.01)
    np.testing.assert_allclose(params.components.of_column(0)[order, 1], [0.06, 0.51, 1.0], atol=0.01)


def test_short_runs_of_em_find_the_best_classes_from_every_seed() -> None:
    sample = table(CARCINOMA)
    hits = {}
    for start in ("short_em", "kmeans"):
        reached = [converged(Mixture(Categorical(), 3, start), sample, seed)[0] for seed in range(10)]
        hits[start] = int(np.sum(np.array(reached) > -293.706))
    assert Mixture(Categorical(), 3).init_method is None
    assert hits["short_em"] == 10 > hits["kmeans"]


@pytest.mark.parametrize(("k", "truth"), [(1, 391.9189), (2, 360.369), (3, 356.8489), (4, 356.7337)])
def test_earthquakes_reach_the_published_likelihood(k: int, truth: float) -> None:
    # Zucchini & MacDonald (2009), table 1.2: -log L of independent mixtures.
    rows = np.array(EARTHQUAKES.split(), float)[:, None]
    reached, params = converged(Mixture(Poisson(), k), Chunk(rows), steps=20_000)
    assert -reached == pytest.approx(truth, abs=2e-3)
    if k == 2:
        np.testing.assert_allclose(np.sort(params.components.rates[:, 0]), [15.777, 26.840], atol=0.01)


def test_gamma_fit_is_scipys() -> None:
    rows = np.random.default_rng(6).gamma([0.3, 2.0, 40.0], [5.0, 1e-4, 1e3], (400, 3))
    params = Gamma().init(Chunk(rows), np.ones((400, 1)))
    for j in range(3):
        shape, _, scale = stats.gamma.fit(rows[:, j], floc=0.0)
        assert params.shapes[0, j] == pytest.approx(shape, rel=1e-6)
        assert params.scales[0, j] == pytest.approx(scale, rel=1e-6)


def test_gamma_shapes_solve_the_likelihood_equation() -> None:
    shapes = np.array([1e-4, 1e-2, 0.5, 1.0, 30.0, 1e4, 9e5])
    from_digamma = np.log(shapes) - np.array([float(stats.loggamma.mean(a)) for a in shapes])
    np.testing.assert_allclose(shape_of(from_digamma, 1e6), shapes, rtol=1e-6)
    assert shape_of(np.array([0.0, -1e-17, 1e-9]), 1e6).tolist() == [1e6] * 3


@pytest.mark.parametrize("d", [2, 3, 10, 1000, 100_000])
def test_concentrations_invert_mean_lengths(d: int) -> None:
    concentrations = np.array([1e-6, 1e-2, 1.0, 50.0, 1e3, 1e5, 1e7])
    found = concentration_of(mean_length(concentrations, d), d, 1e8)
    np.testing.assert_allclose(found, concentrations, rtol=1e-7)
    assert concentration_of(np.array([0.0, 1.0]), d, 1e8).tolist() == [1e-8, 1e8]


def test_bessel_functions_of_large_order() -> None:
    # Half-integer orders by their recurrence downwards, I_{v-1} = I_{v+1} + 2 v / x I_v, from far above.
    x = 3.0
    log_ratio, last = 0.0, 0.0
    for v in np.arange(600.5, 0.5, -1.0):
        last = 1.0 / (2.0 * v / x + last)
        if v <= 300.5:
            log_ratio += np.log(last)
    # I_{1/2}(x) = sqrt(2 / (pi x)) sinh x.
    expected = np.log(np.sqrt(2 / (np.pi * x)) * np.sinh(x)) - x + log_ratio - 0.0
    assert float(log_ive(300.5, np.array([x]))[0]) == pytest.approx(expected, rel=1e-11)


def test_von_mises_fisher_maximises_the_likelihood() -> None:
    rows = directions(np.random.default_rng(7), 200)
    family = VonMisesFisher()
    params = family.init(Chunk(rows), np.ones((200, 1)))
    mean = rows.sum(axis=0)
    np.testing.assert_allclose(params.directions[0], mean / np.linalg.norm(mean), rtol=1e-12)

    def minus(log_c: float) -> float:
        law = stats.vonmises_fisher(params.directions[0], float(np.exp(log_c)))
        return -float(law.logpdf(rows).sum())

    best = optimize.minimize_scalar(minus, bounds=(-3.0, 5.0), method="bounded", options={"xatol": 1e-9})
    assert params.concentrations[0] == pytest.approx(float(np.exp(best.x)), rel=1e-6)
    assert params.concentrations[0] == pytest.approx(stats.vonmises_fisher.fit(rows)[1], rel=1e-6)


def test_von_mises_fisher_in_many_dimensions_and_at_high_concentration() -> None:
    rng = np.random.default_rng(8)
    axis = np.zeros(2000)
    axis[0] = 1.0
    rows = axis + 1e-4 * rng.standard_normal((300, 2000))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    family = VonMisesFisher()
    params = family.init(Chunk(rows), np.ones((300, 1)))
    # Near its axis the law is Gaussian with variance 1 / c in each of the d - 1 other directions.
    assert params.concentrations[0] == pytest.approx(1e8, rel=0.02)
    tangential = np.sum((rows - rows @ np.outer(params.directions[0], params.directions[0])) ** 2, axis=1)
    c = params.concentrations[0]
    gaussian = 1999 / 2 * np.log(c / (2 * np.pi)) - c / 2 * tangential
    np.testing.assert_allclose(family.log_prob(params, Chunk(rows))[:, 0], gaussian, rtol=1e-3)


OUTSIDE = {
    "bernoulli": (Bernoulli(), binary, 2.0, "feature 1 is 2, and Bernoulli takes 0, 1 or NaN"),
    "poisson": (Poisson(), count_table, 1.5, "feature 1 is 1.5, and Poisson takes whole numbers"),
    "multinomial": (Multinomial(), words, -1.0, "feature 1 is -1, and Multinomial takes whole numbers"),
    "exponential": (Exponential(), waits, 0.0, "feature 1 is 0, and Exponential takes positive"),
    "gamma": (Gamma(), waits, -3.0, "feature 1 is -3, and Gamma takes positive"),
    "categorical": (Categorical(), codes, 7.0, "feature 1 is 7, and Categorical takes codes from 0 .* has 2 levels"),
    "von Mises-Fisher": (VonMisesFisher(), directions, 3.0, "it has length .* divide each row by its length"),
    "product": (
        Product({"a": Gaussian(), "b": Bernoulli()}, {"a": [0], "b": [2, 1]}),
        binary,
        0.5,
        r"in group 'b' \(columns \[2, 1\]\), feature 1 is 0.5",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_row_outside_the_support_is_named(name: str, tmp_path: Path) -> None:
    family, draw, bad, words_of_error = OUTSIDE[name]
    rows = draw(np.random.default_rng(9), 500).astype(float)
    model = Mixture(family, 2, "random")
    params = model.init(Chunk(rows), np.random.default_rng(0))
    rows[321, 1] = bad
    log_prob = model.log_prob(params, Chunk(rows))
    assert log_prob[321] == -np.inf
    assert np.isfinite(np.delete(log_prob, 321)).all()
    store = zarr.create_array(tmp_path / "rows.zarr", shape=rows.shape, chunks=(50, rows.shape[1]), dtype="f8")
    store[:] = rows
    where = rf"rows\.zarr.*chunk.*row 321 cannot be fitted: {words_of_error}"
    with pytest.raises(DataError, match=where):
        fit(model, tmp_path / "rows.zarr", params=params)
    with pytest.raises(DataError, match=where):
        score(model, params, open_dataset(tmp_path / "rows.zarr"))
    with pytest.raises(DataError, match=where):
        predict_rows(model, params, open_dataset(tmp_path / "rows.zarr"), "labels", 2, lazy=False)
    if name != "categorical":
        with pytest.raises(DataError, match=where):
            fit(model, tmp_path / "rows.zarr")


def test_a_code_that_the_sample_did_not_have_is_an_error() -> None:
    rows = codes(np.random.default_rng(10), 3000)
    params = Mixture(Categorical(), 2).init(Chunk(rows[:100]), np.random.default_rng(0))
    rows[2900, 0] = 3
    with pytest.raises(DataError, match=r"row 2900 .* it has 3 levels"):
        fit(Mixture(Categorical(), 2), rows, params=params)
    found = fit(Mixture(Categorical(levels=(4, 2, 4)), 2), rows, stop=MaxSteps(3))
    assert found.params.components.levels.tolist() == [4, 2, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bernoulli(pseudo_count=-1), "pseudo_count is -1"),
        (lambda: Poisson(on_collapse="hope"), "on_collapse is 'hope'"),
        (lambda: Categorical(levels=0), "levels is 0"),
        (lambda: Categorical(levels=(2, 2.5)), "levels is"),
        (lambda: Gamma(max_shape=np.inf), "max_shape is inf"),
        (lambda: VonMisesFisher(max_concentration=1e12), "max_concentration is"),
        (lambda: Mixture(Bernoulli(), 2, weight_prior=0.5), "weight_prior is 0.5"),
        (lambda: Mixture(Bernoulli(), 2, "best"), "init_method is 'best'"),
        (lambda: Product({}), "families must map"),
        (lambda: Product({"a": Bernoulli}, {"a": [0]}), "Give a family"),
        (lambda: Product({"a": "bernoulli"}, {"a": [0]}), "'a' is 'bernoulli'. Give a family"),
        (lambda: Product({"a": Bernoulli()}, {"b": [0]}), "each group needs both"),
        (lambda: Product({"a": Bernoulli()}, {"a": []}), "give a list of indices or names"),
        (lambda: Product({"a": Bernoulli()}, {"a": [-1]}), "count columns from 0"),
        (lambda: Product({"a": Bernoulli(), "b": Poisson()}, {"a": [0, 1], "b": [1]}), "1 are named twice"),
        (lambda: Product({"a": Bernoulli()}, {"a": ["x", "z"]}).resolved(["x", "y"]), "z, which the data do not have"),
        (lambda: start_of(Product({"a": Bernoulli()}, {"a": [5]}), np.ones((3, 2))), "column 5; the data have 2"),
        (lambda: start_of(Product({"a": Bernoulli()}), np.ones((3, 2))), "the data have no names"),
    ],
)
def test_options_that_cannot_work(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_data_that_cannot_work() -> None:
    with pytest.raises(DataError, match="levels tells of 2 columns, and the data have 3"):
        start_of(Categorical(levels=(2, 2)), np.ones((4, 3)))
    with pytest.raises(DataError, match=r"feature\(s\) \[1\] are missing in all rows"):
        start_of(Poisson(), np.array([[1.0, np.nan]] * 4))
    with pytest.raises(DataError, match="two or more features"):
        start_of(VonMisesFisher(), np.ones((4, 1)))


@pytest.mark.parametrize("name", DENSITIES)
def test_an_empty_component_is_dealt_with_by_the_policy(name: str) -> None:
    family, draw, _ = DENSITIES[name]
    chunk = Chunk(draw(np.random.default_rng(11), 100).astype(float))
    params = start_of(family, chunk.rows, 3)
    shares = np.zeros((100, 3))
    shares[:, :2] = np.random.default_rng(1).dirichlet([1, 1], 100)
    sums = family.stats(params, chunk, shares)
    kept = family.m_step(sums, params)
    assert kept.repaired.tolist() == [0, 0, EMPTY_KEPT]
    for field in family.fields:
        np.testing.assert_array_equal(getattr(kept, field)[2], getattr(params, field)[2])
    assert "empty" in family.events(kept)[0][1]
    assert replace(family, pseudo_count=1.0).m_step(sums, params).repaired[2] == AT_PRIOR
    with pytest.raises(DegenerateComponentError, match="component 2 of 3 has weight 0"):
        replace(family, on_collapse="raise").m_step(sums, params)
    split = replace(family, on_collapse="reseed").m_step(sums, params)
    donor = int(sums.n.argmax())
    assert split.repaired.tolist() == [0, 0, RESEEDED]
    # The halves differ, lie to either side of their donor, and explain the rows nearly as well as it does.
    halves = np.array(family.log_prob(split, chunk))
    assert np.abs(halves[:, 2] - halves[:, donor]).max() > 0.01
    assert np.isfinite(halves).all()
    assert logsumexp(halves[:, [2, donor]], axis=1, b=0.5).mean() > family.log_prob(kept, chunk)[:, donor].mean() - 0.5


@pytest.mark.parametrize(
    ("family", "row"), [(Gamma(), [3.0, 5.0]), (VonMisesFisher(), [0.6, 0.8])], ids=["gamma", "von Mises-Fisher"]
)
def test_equal_rows_stop_at_a_bound(family: Any, row: list[float]) -> None:
    rows = np.array([row] * 20)
    params = family.init(Chunk(rows), np.ones((20, 1)))
    assert params.repaired.tolist() == [AT_BOUND]
    assert np.isfinite(family.log_prob(params, Chunk(rows))).all()
    sums = family.stats(params, Chunk(rows), np.ones((20, 1)))
    with pytest.raises(DegenerateComponentError, match="its parameters are at a bound"):
        replace(family, on_collapse="raise").m_step(sums, params)
    eased = replace(family, pseudo_count=1.0)
    if isinstance(family, VonMisesFisher):
        assert eased.m_step(sums, params).repaired.tolist() == [0]


def test_pseudo_counts_are_further_rows() -> None:
    rows = binary(np.random.default_rng(12), 30)
    more = np.concatenate([rows, np.ones((2, 4)), np.zeros((2, 4))])
    with_prior = Bernoulli(2.0).init(Chunk(rows), np.ones((30, 1)))
    with_rows = Bernoulli().init(Chunk(more), np.ones((34, 1)))
    np.testing.assert_allclose(with_prior.probabilities, with_rows.probabilities)
    counts = count_table(np.random.default_rng(13), 30).astype(float)
    shrunk = Poisson(5.0).init(Chunk(counts), np.repeat([[1.0, 0.0], [0.0, 1.0]], 15, axis=0))
    means = np.stack([counts[:15].mean(axis=0), counts[15:].mean(axis=0)])
    np.testing.assert_allclose(shrunk.rates, (15 * means + 5 * counts.mean(axis=0)) / 20)


def test_a_prior_on_weights_is_a_dirichlets() -> None:
    sample, plain = table(CARCINOMA), Mixture(Bernoulli(), 2)
    params = plain.init(sample, np.random.default_rng(0))
    n = plain.e_step(params, sample).stats
    found = replace(plain, weight_prior=11.0).m_step(n, params)
    np.testing.assert_allclose(found.weights, (n.n + 10.0) / (118.0 + 20.0), rtol=1e-12)
    density = [stats.dirichlet([11.0, 11.0]).logpdf(weights) for weights in ([0.5, 0.5], [0.2, 0.8])]
    prior = [
        replace(plain, weight_prior=11.0).log_prior(replace(params, weights=np.array(w)))
        for w in ([0.5, 0.5], [0.2, 0.8])
    ]
    assert prior[0] - prior[1] == pytest.approx(density[0] - density[1])


def test_a_product_is_the_sum_of_its_parts() -> None:
    rng = np.random.default_rng(14)
    flags, spans = binary(rng, 90), waits(rng, 90)
    rows = np.column_stack([flags[:, 0], spans, flags[:, 1:], np.full(90, 1e300)])
    family = Product({"spans": Gaussian("full"), "flags": Bernoulli()}, {"spans": [1, 2, 3], "flags": [0, 4, 5, 6]})
    resp = rng.dirichlet([1, 1], 90)
    params = family.init(Chunk(rows), resp)
    parts = [Gaussian("full").init(Chunk(spans), resp), Bernoulli().init(Chunk(flags), resp)]
    expected = Gaussian("full").log_prob(parts[0], Chunk(spans)) + Bernoulli().log_prob(parts[1], Chunk(flags))
    np.testing.assert_allclose(family.log_prob(params, Chunk(rows)), expected, rtol=1e-12)
    assert family.n_parameters(params) == 2 * (3 + 6) + 2 * 4
    assert family.n_features(params) == 8
    named = Product(
        {"spans": Gaussian("full"), "flags": Bernoulli()}, {"spans": ["b", "c", "d"], "flags": ["a", 4, 5, 6]}
    )
    assert named.resolved(list("abcdefgh")) == family
    assert hash(named.resolved(list("abcdefgh"))) == hash(family)
    assert not family.handles_missing or Gaussian.handles_missing  # type: ignore[attr-defined]
    alone = Product({"a": Bernoulli(), "c": Poisson()}).resolved(["c", "b", "a"])
    assert alone.columns == {"a": (2,), "c": (0,)}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", [*DENSITIES, "gaussian", "student"])
def test_a_group_of_a_product_is_read_where_it_lies_or_copied_alike(name: str, dtype: str) -> None:
    rng = np.random.default_rng(21)
    own = {"gaussian": (Gaussian("full"), waits), "student": (StudentT("full"), waits)}
    family, draw = own[name] if name in own else DENSITIES[name][:2]
    rows = np.asarray(draw(rng, 400), dtype)
    d, (weight, labels) = rows.shape[1], (rng.random(400), np.where(rng.random(400) < 0.9, -1, 1))
    table = np.column_stack([np.full(400, 7), rows, np.full(400, -1)]).astype(dtype)
    # Neighbours in reverse are picked, hence copied.
    order = np.arange(d)[::-1]
    slices = Mixture(Product({"own": family}, {"own": range(1, d + 1)}), 2, "random")
    picked = Mixture(Product({"own": family}, {"own": order + 1}), 2, "random")
    chunks = Chunk(table, weight, labels), Chunk(table[:, [0, *(order + 1), d + 1]], weight, labels)
    params = slices.init(chunks[0], np.random.default_rng(3))
    found, expected = (model.e_step(params, chunk) for model, chunk in zip((slices, picked), chunks, strict=True))
    assert found.objective == expected.objective
    for (_, here), (_, there) in zip(tree.leaves(found.stats), tree.leaves(expected.stats), strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("columns", [[4, 2], [2, 3], [2, 3, 4]])
def test_a_product_refuses_rows_that_lack_columns_of_it(columns: list[int]) -> None:
    rng = np.random.default_rng(22)
    rows = np.column_stack([waits(rng, 80)[:, :2], rng.integers(2, size=(80, 3))])
    model = Mixture(Product({"g": Gaussian("diag"), "b": Bernoulli()}, {"g": [0, 1], "b": columns}), 2)
    params = fit(model, rows, stop=MaxSteps(1)).params
    for narrow in (rows[:, :3], rows[:, :4]):
        with pytest.raises(DataError, match=r"rows have . columns; these parameters of a product are of 5"):
            model.e_step(params, Chunk(narrow))


@pytest.mark.parametrize("width", [2, 8])
@pytest.mark.parametrize("family", [Gaussian(), StudentT(), Bernoulli(), Poisson(), Categorical(levels=2), None])
def test_parameters_of_other_features_are_refused_before_any_work(family: Any, width: int) -> None:
    rng = np.random.default_rng(23)
    rows = rng.integers(2, size=(60, 8)) + (
        0.1 * rng.random((60, 8)) if isinstance(family, Gaussian | StudentT) else 0.0
    )
    model = models.KMeans(2) if family is None else Mixture(family, 2)
    result, others = fit(model, rows[:, :4], stop=MaxSteps(1)), rows[:, :width]
    asked = [
        lambda: fit(model, others, params=result.params),
        lambda: predict_rows(model, result.params, open_dataset(others), "labels", 2, lazy=False),
    ]
    if family is not None:
        asked += [lambda: result.diagnose(others), lambda: score(model, result.params, open_dataset(others))]
    for ask in asked:
        with pytest.raises(DataError, match=f"has {width} features, but the parameters are of 4"):
            ask()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", DENSITIES)
def test_fitted_out_of_core_saved_and_drawn_from(name: str, dtype: str, tmp_path: Path) -> None:
    family, draw, _ = DENSITIES[name]
    rows = draw(np.random.default_rng(15), 6000).astype(dtype)
    store = zarr.create_array(tmp_path / "rows.zarr", shape=rows.shape, chunks=(700, rows.shape[1]), dtype=dtype)
    store[:] = rows
    model = Mixture(family, 2)
    found = fit(model, tmp_path / "rows.zarr", stop=[Gain(1e-6), MaxSteps(50)])
    in_memory = fit(model, rows, stop=[Gain(1e-6), MaxSteps(50)])
    assert found.objective == pytest.approx(in_memory.objective, rel=1e-12)
    # In rounding: some of these start at their optimum.
    assert found.objective >= found.trace[0].objective - 1e-13 * abs(found.objective)
    save_model(tmp_path / "model.safetensors", model, found.params)
    loaded = load_model(tmp_path / "model.safetensors", CLASSES)
    assert loaded.model == model
    again = score(loaded.model, loaded.params, open_dataset(rows))[0]
    assert again == pytest.approx(score(model, found.params, open_dataset(rows))[0], rel=1e-12)
    # Draws look like the rows: means within five standard errors.
    drawn, _ = model.sample(found.params, 6000, np.random.default_rng(0))
    if name != "multinomial":
        error = rows.std(axis=0) * np.sqrt(2 / 6000)
        assert (np.abs(drawn.mean(axis=0) - rows.mean(axis=0, dtype="f8")) < 5 * error + 0.02).all()


@pytest.mark.parametrize("n_columns", [50, 500, 3000])
def test_constant_columns_cost_single_precision_nothing(n_columns):
    rng = np.random.default_rng(3)
    rows = (rng.random((200, n_columns)) < 0.999).astype(np.float32)
    family = models.Bernoulli()
    params = family.init(Chunk(rows.astype(np.float64)), rng.dirichlet(np.ones(2), len(rows)))
    single, double = (family.log_prob(params, Chunk(rows.astype(dtype))) for dtype in ("f4", "f8"))
    np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-4)


def test_vectors_lead_to_no_parameters_beyond_their_bounds():
    rng = np.random.default_rng(4)
    for family, rows, name, most in (
        (models.Gamma(max_shape=5.0), rng.gamma(3.0, size=(100, 2)), "shapes", 5.0),
        (models.VonMisesFisher(max_concentration=20.0), directions(rng, 100), "concentrations", 20.0),
        (models.StudentT(dof="each"), rng.standard_normal((100, 2)), "dof", 1e4),
    ):
        params = family.init(Chunk(rows), rng.dirichlet(np.ones(2), len(rows)))
        there = family.from_vector(family.to_vector(params) * 50 + 50, params)
        assert getattr(there, name).max() <= most, family


@pytest.mark.parametrize("family", [models.Poisson(), models.Categorical(levels=3)], ids=repr)
def test_k_means_oversampling_makes_up_no_values_for_holes(family):
    rows = np.random.default_rng(5).integers(3, size=(500, 4)).astype(np.float64)
    rows[::7, 1] = np.nan
    result = fit(models.Mixture(family, 2, "kmeans"), rows, init_sample="k-means||", stop=MaxSteps(2))
    assert np.isfinite(result.objective)
