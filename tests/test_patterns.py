"""Distinct rows in place of all: the same fit, whatever the family, weights, labels, holes and scheduler."""

from __future__ import annotations

import logging

import dask
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client, LocalCluster

import daskem
from daskem import tree
from daskem.cli import main
from daskem.data import units
from daskem.engine import patterns
from daskem.errors import DataError, OptionError
from daskem.models import (
    Bernoulli,
    Categorical,
    Gaussian,
    KMeans,
    Mixture,
    MonteCarlo,
    Multinomial,
    Poisson,
    Product,
)
from daskem.testing.trial import bits

N, K = 1_600, 2
RNG = np.random.default_rng(3)
COMPONENT = RNG.integers(K, size=N)
BINARY = (RNG.random((N, 4)) < np.array([[0.8, 0.7, 0.3, 0.2], [0.2, 0.3, 0.8, 0.6]])[COMPONENT]).astype(float)
CODES = np.column_stack([RNG.binomial(2, 0.2 + 0.5 * COMPONENT), RNG.binomial(1, 0.8 - 0.5 * COMPONENT)]).astype(float)
COUNTS = RNG.poisson(np.array([[0.5, 1.5], [2.0, 0.3]])[COMPONENT]).astype(float)
TALLIES = RNG.multinomial(3, [0.2, 0.3, 0.5], size=N).astype(float)
MIXED = np.column_stack([BINARY[:, :2], COUNTS[:, :1]])
DATA = {
    "bernoulli": (Bernoulli(), BINARY),
    "categorical": (Categorical(), CODES),
    "multinomial": (Multinomial(), TALLIES),
    "poisson": (Poisson(), COUNTS),
    "product": (Product({"a": Bernoulli(), "b": Poisson()}, {"a": [0, 1], "b": [2]}), MIXED),
}
SIDES = {
    "plain": {},
    "weights": {"sample_weight": RNG.integers(0, 4, N) / 3.0},
    "labels": {"y": np.where(RNG.random(N) < 0.2, COMPONENT, -1)},
    "probabilities": {"y": np.array([[1.0, 1.0], [0.2, 0.9], [1.0, 0.0]])[RNG.integers(3, size=N)]},
    "both": {"sample_weight": RNG.random(N) + 0.1, "y": np.where(RNG.random(N) < 0.2, COMPONENT, -1)},
}


def fit(model, data, compress, **options):
    options = {"algorithm": daskem.BatchEM(), "stop": daskem.MaxSteps(8), **options}
    return daskem.fit(model, data, compress=compress, **options)


def assert_same(a, b):
    assert a.n_steps == b.n_steps
    np.testing.assert_allclose([i.objective for i in a.trace], [i.objective for i in b.trace], rtol=1e-10)
    np.testing.assert_allclose([i.weight for i in a.trace], [i.weight for i in b.trace], rtol=1e-12)
    for (name, mine), (_, other) in zip(tree.leaves(a.params), tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-12, err_msg=name)


def assert_compressed_the_same(model, data, **options):
    small = fit(model, data, "always", **options)
    assert small.patterns is not None
    assert_same(small, fit(model, data, "never", **options))
    return small


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", DATA)
def test_the_fit_is_that_of_all_rows(name, side):
    family, data = DATA[name]
    found = assert_compressed_the_same(Mixture(family, K), data, **SIDES[side])
    if side == "plain":
        assert found.patterns == len(np.unique(data, axis=0))


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "poisson", "product"])
def test_holes_are_equal_to_each_other(name):
    family, data = DATA[name]
    data = np.where(RNG.random(data.shape) < 0.1, np.nan, data)
    start = fit(Mixture(family, K), data[np.isfinite(data).all(axis=1)], "never").params
    found = assert_compressed_the_same(Mixture(family, K), data, params=start)
    assert found.patterns == len(np.unique(np.nan_to_num(data, nan=-1), axis=0))


def test_other_models_take_distinct_rows_when_told_to():
    assert_compressed_the_same(Mixture(Gaussian("full"), K), COUNTS)
    assert_compressed_the_same(KMeans(K), COUNTS)
    assert fit(KMeans(K), np.repeat(COUNTS, 50, axis=0), "auto").patterns is None


def test_zeros_of_both_signs_are_one_value():
    data = BINARY - 0.5
    data[data < 0] = -0.0
    data[::2][data[::2] == 0] = 0.0
    assert fit(Mixture(Gaussian("diag", 0.1), K), data, "always", stop=daskem.MaxSteps(1)).patterns == 16


def test_rows_that_share_a_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(patterns, "_hash", lambda words: np.zeros(len(words), np.uint64))
    assert assert_compressed_the_same(Mixture(Bernoulli(), K), BINARY, **SIDES["labels"]).patterns > 16


def test_values_beyond_a_byte_in_some_rows_alone():
    data = np.where(np.arange(N)[:, None] < N - 200, COUNTS, COUNTS + 300)
    found = assert_compressed_the_same(Mixture(Poisson(), K), data)
    assert found.patterns == len(np.unique(data, axis=0))


def test_it_is_automatic_where_it_pays(caplog):
    many = np.tile(BINARY, (45, 1))
    with caplog.at_level(logging.INFO, "daskem"):
        found = fit(Mixture(Bernoulli(), K), many, "auto")
    assert found.patterns == found.summary()["patterns"] == 16
    assert "16 of 72000 rows are distinct" in caplog.text
    assert found.trace[0].weight == 72_000
    # Few rows, many distinct rows, and algorithms that take a part of the rows in each step.
    assert fit(Mixture(Bernoulli(), K), BINARY, "auto").patterns is None
    counts = RNG.poisson(40.0, (72_000, 6)).astype(float)
    assert fit(Mixture(Poisson(), K), counts, "auto", stop=daskem.MaxSteps(1)).patterns is None
    stepwise = daskem.StepwiseEM()
    assert fit(Mixture(Bernoulli(), K), many, "auto", algorithm=stepwise, stop=daskem.MaxSteps(1)).patterns is None


def test_all_rows_are_kept_where_too_many_are_distinct(caplog):
    counts = RNG.poisson(40.0, (N, 4)).astype(float)
    with caplog.at_level(logging.INFO, "daskem"):
        found = fit(Mixture(Poisson(), K), counts, "always")
    assert found.patterns is None
    assert "more than 200 of 1600 rows are distinct" in caplog.text
    assert_same(found, fit(Mixture(Poisson(), K), counts, "never"))


def test_a_late_surprise_overflows_too(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 10)
    monkeypatch.setattr(patterns, "PENDING", 8)
    data = np.concatenate([BINARY, RNG.poisson(40.0, (N // 2, 4)).astype(float)])
    assert fit(Mixture(Poisson(), K), data, "always", stop=daskem.MaxSteps(1)).patterns is None


def test_a_row_that_the_family_cannot_have_is_still_named():
    data = np.tile(BINARY, (2, 1))
    data[2_321, 1] = 2.0
    start = fit(Mixture(Bernoulli(), K), BINARY, "never").params
    with pytest.raises(DataError, match="row 2321 cannot be fitted"):
        fit(Mixture(Bernoulli(), K), data, "always", params=start)


def test_a_tolerance_per_row_is_that_of_all_rows():
    found = [fit(Mixture(Bernoulli(), K), BINARY, c, stop=daskem.Gain("statistical")) for c in ("always", "never")]
    assert_same(*found)
    assert found[0].reason == found[1].reason


def test_several_starts():
    many = assert_compressed_the_same(Mixture(Bernoulli(), K), BINARY, n_init=3)
    assert len(many.objectives) == 3


def test_acceleration():
    """An extrapolation amplifies rounding on its way; where it ends it does not."""
    found = [
        fit(Mixture(Bernoulli(), K), BINARY, compress, algorithm=daskem.Squarem(), stop=daskem.MaxPasses(60))
        for compress in ("always", "never")
    ]
    assert found[0].objective == pytest.approx(found[1].objective, rel=1e-7)


def test_what_cannot_be_asked_for():
    with pytest.raises(OptionError, match="auto, never, always"):
        fit(Mixture(Bernoulli(), K), BINARY, "yes")
    with pytest.raises(OptionError, match="draws for each row"):
        fit(MonteCarlo(Mixture(Bernoulli(), K)), BINARY, "always")


def test_the_bits_are_the_same_on_any_scheduler(monkeypatch, tmp_path):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)
    zarr.create_array(str(tmp_path / "x.zarr"), data=BINARY, chunks=(100, 4))
    zarr.create_array(str(tmp_path / "w.zarr"), data=SIDES["both"]["sample_weight"], chunks=(100,))

    def run():
        return fit(Mixture(Bernoulli(), K), str(tmp_path / "x.zarr"), "always", sample_weight=str(tmp_path / "w.zarr"))

    with dask.config.set(scheduler="synchronous"):
        first = run()
    assert len(first.plan.units) > 4
    assert first.patterns == 16
    assert bits(run().params) == bits(first.params)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        assert bits(run().params) == bits(first.params)


def test_a_checkpoint_goes_on_with_distinct_rows(tmp_path):
    model, options = Mixture(Bernoulli(), K), {"stop": daskem.MaxSteps(8)}
    whole = fit(model, BINARY, "always", **options)

    def interrupt(info, params):
        if info.step == 3:
            raise KeyboardInterrupt

    kept = {"checkpoint": tmp_path / "kept", "checkpoint_interval": 0, **options}
    with pytest.raises(KeyboardInterrupt):
        fit(model, BINARY, "always", callbacks=[interrupt], **kept)
    rest = fit(model, BINARY, "always", **kept)
    assert rest.patterns == 16
    assert bits(rest.params) == bits(whole.params)


def test_a_fit_that_has_ended_says_the_same_again(tmp_path):
    options = {"checkpoint": tmp_path / "kept", "callbacks": [lambda info, params: steps.append(info.step)]}
    steps: list[int] = []
    first, second = (fit(Mixture(Bernoulli(), K), BINARY, "always", **options) for _ in range(2))
    assert len(steps) == 8
    assert first.patterns == second.patterns == 16
    said = [{**found.summary(), "seconds": None, "plan": None} for found in (first, second)]
    assert said[0] == said[1]
    assert bits(second.params) == bits(first.params)


def test_on_the_command_line(tmp_path):
    np.save(tmp_path / "x.npy", BINARY)
    output = str(tmp_path / "m.safetensors")
    command = ["fit", "bernoulli-mixture", str(tmp_path / "x.npy"), "-k", "2", "-o", output, "--compress", "always"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    assert "16 of 1,600 rows are distinct" in found.output
