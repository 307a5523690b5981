"""Columns that no group of a product names may hold anything: every way through daskem says what it says without."""

from __future__ import annotations

from functools import cache

import dask.array as da
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import daskem
from daskem import OnlineFit, diagnose, fit
from daskem.cli import main
from daskem.cli.own import load
from daskem.data import open_dataset
from daskem.errors import NonFiniteError, OptionError
from daskem.models import Bernoulli, Gaussian, Mixture, MonteCarlo, Poisson, Product
from daskem.predict import predict_rows, score
from daskem.selection import select
from daskem.testing.trial import bits

N = 1_000
RNG = np.random.default_rng(7)
WHICH = RNG.integers(2, size=N)
# Columns 1 and 4 are in no group.
ROWS = np.column_stack(
    [RNG.normal(3.0 * WHICH), RNG.normal(size=N), RNG.random(N) < 0.2 + 0.6 * WHICH, RNG.poisson(1 + WHICH), np.ones(N)]
)
USED, UNUSED = [0, 2, 3], [1, 4]
# What columns 1 and 4 hold instead, and in how many of the rows.
STRANGE = {
    "no numbers": ([np.nan, -np.inf], 0.3),
    "nothing": ([np.nan, 1e300], 1.0),
    "other numbers": ([3.0, 5.0], 0.3),
}
STOP = daskem.MaxSteps(3)


def product(missing: bool = False) -> Product:
    families = {"size": Gaussian(missing=missing), "flag": Bernoulli(), "n": Poisson()}
    return Product(families, {"size": [0], "flag": [2], "n": [3]})


def strange(case: str) -> np.ndarray:
    values, share = STRANGE[case]
    rows = ROWS.copy()
    rows[np.ix_(np.random.default_rng(1).random(N) < share, UNUSED)] = values
    return rows


def store(path, rows):
    zarr.create_array(path, data=rows, chunks=(300, 2))
    return str(path)


WAYS = {
    "default": {},
    "far rows": {"init_sample": "k-means||"},
    "samples first": {"n_init": 2, "algorithm": daskem.Progressive()},
}


@cache
def bits_without(way: str, missing: bool) -> list[tuple[str, str, bytes]]:
    return bits(fit(Mixture(product(missing), 2), ROWS, stop=STOP, **WAYS[way]).params)


@pytest.mark.parametrize("case", STRANGE)
@pytest.mark.parametrize(("way", "missing"), [(way, way == "default") for way in WAYS] + [("default", False)])
def test_they_change_no_bit_of_a_fit(way, missing, case):
    found = fit(Mixture(product(missing), 2), strange(case), stop=STOP, **WAYS[way])
    assert bits(found.params) == bits_without(way, missing)


@pytest.mark.parametrize("case", STRANGE)
def test_they_change_no_bit_out_of_core(case, tmp_path):
    model = Mixture(product(), 2)
    path, plain = (store(tmp_path / name, x) for name, x in (("x.zarr", strange(case)), ("plain.zarr", ROWS)))
    expected = bits(fit(model, plain, stop=STOP).params)
    for kept in ("none", "memory"):
        assert bits(fit(model, path, stop=STOP, cache=kept).params) == expected
    skipped = fit(model, path, stop=STOP, on_bad_unit="skip")
    assert (bits(skipped.params), skipped.left_out) == (expected, ())
    lazy = [fit(model, da.from_array(x, chunks=(300, 5)), stop=STOP).params for x in (strange(case), ROWS)]
    assert bits(lazy[0]) == bits(lazy[1])


@pytest.mark.parametrize("case", STRANGE)
def test_they_change_no_result_of_a_row(case, tmp_path):
    model, rows = Mixture(product(True), 2), strange(case)
    params = fit(model, ROWS, stop=STOP).params
    holes = np.random.default_rng(2).random(N) < 0.1
    plain, rows = (np.where(holes[:, None] & (np.arange(5) == 0), np.nan, x) for x in (ROWS, rows))
    weight = np.r_[0.0, np.ones(N - 1)]
    for what in ("labels", "proba", "log_prob"):
        found, expected = (predict_rows(model, params, open_dataset(x), what, 2, lazy=False) for x in (rows, plain))
        np.testing.assert_array_equal(found, expected)
    data = open_dataset(store(tmp_path / "x.zarr", rows), sample_weight=weight)
    imputed = predict_rows(model, params, data, "imputed", 2, lazy=False)
    assert np.isfinite(imputed[:, USED]).all()
    np.testing.assert_array_equal(imputed[:, UNUSED], rows[:, UNUSED])
    assert score(model, params, data)[0] == pytest.approx(
        score(model, params, open_dataset(plain, sample_weight=weight))[0], rel=1e-12
    )


def test_a_row_without_a_value_in_a_group_is_none_whatever_else_it_holds():
    model = Mixture(product(True), 2)
    rows = ROWS.copy()
    rows[:200, USED] = np.nan
    blank = rows.copy()
    blank[:200, UNUSED] = np.nan
    assert bits(fit(model, rows, stop=STOP).params) == bits(fit(model, blank, stop=STOP).params)


def test_distinct_rows_are_those_of_the_groups():
    family = Product({"flag": Bernoulli(), "n": Poisson()}, {"flag": [2], "n": [3]})
    found = fit(Mixture(family, 2), strange("no numbers"), stop=STOP, compress="always")
    assert found.patterns == len(np.unique(ROWS[:, [2, 3]], axis=0))


def test_every_other_way_to_look_at_rows():
    model, rows = Mixture(product(), 2), strange("no numbers")
    found, expected = (diagnose(fit(model, x, stop=STOP), x) for x in (rows, ROWS))
    np.testing.assert_array_equal(found.information, expected.information)
    chosen = select([model, Mixture(product(), 1)], rows, stop=STOP, on_bad_unit="skip")
    assert [one.bic for one in chosen.candidates] == [
        one.bic for one in select([model, Mixture(product(), 1)], ROWS, stop=STOP).candidates
    ]
    assert bits(OnlineFit(model).update(rows).params) == bits(OnlineFit(model).update(ROWS).params)
    assert MonteCarlo(model).used_columns == (0, 2, 3)
    # A model of all columns sees the same rows.
    with pytest.raises(NonFiniteError, match="feature 1"):
        select([model, Mixture(Gaussian(), 1)], rows, stop=STOP)


def test_what_a_group_names_is_examined_as_ever(tmp_path):
    rows = strange("no numbers")
    rows[765, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"rows 765:766 hold 1 row.*nan in feature 0"):
        fit(Mixture(product(), 2), rows)
    rows[765, 0] = -np.inf
    with pytest.raises(NonFiniteError, match=r"rows 765:766 hold 1 row.*-inf in feature 0"):
        fit(Mixture(product(True), 2), store(tmp_path / "x.zarr", rows))
    with pytest.raises(OptionError, match="column 9; the data have 5"):
        fit(Mixture(Product({"a": Bernoulli()}, {"a": [9]}), 2), strange("no numbers"))


def test_the_estimator_and_the_command_line(tmp_path):
    rows, options = strange("no numbers"), {"families": dict(product().families), "columns": dict(product().columns)}
    mixed = daskem.MixedMixture(2, random_state=0, **options)
    assert bits(mixed.fit(rows).result_.params) == bits(mixed.fit(ROWS).result_.params)
    assert np.isfinite(mixed.score(rows))

    def run(*args):
        done = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="daskem")
        assert done.exit_code == 0, done.output

    groups = [f"--group={text}" for text in ("size=gaussian:0", "flag=bernoulli:2", "n=poisson:3")]
    for name, x in (("strange", rows), ("plain", ROWS)):
        data, model = store(tmp_path / f"{name}.zarr", x), tmp_path / f"{name}.safetensors"
        run("fit", "mixed-mixture", data, "-k", 2, *groups, "-o", model)
        run("predict", model, data, "-o", tmp_path / f"{name}-out.zarr")
        run("report", model, data, "-o", tmp_path / f"{name}.html")
    found, expected = (load(str(tmp_path / f"{name}.safetensors")).params for name in ("strange", "plain"))
    assert bits(found) == bits(expected)
