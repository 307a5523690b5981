"""The one loop: starts, steps, reasons to end, and what it refuses; and what a fitted model says of rows."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from fakes import Balls, Centers, FakeSource, Sums, Watched, bits, clouds, no_reading
from zarr.storage import LocalStore

import daskem
from daskem import BatchEM, Change, Chunk, Expectation, Gain, GaussianMixture, MaxSeconds, MaxSteps
from daskem.algorithms import batch
from daskem.core import Event, StepInfo
from daskem.data import Dataset, dataset, open_dataset, open_source, units
from daskem.data.writers import Output
from daskem.engine import start_engine
from daskem.engine.sampling import draw_sample
from daskem.errors import DaskEMWarning, DataError, MissingCapabilityError, NonFiniteError, OptionError
from daskem.models import Gaussian, KMeans, Mixture
from daskem.predict import RowFunction, evaluate, predict_rows, predict_to_store, score
from daskem.starts import ROUNDS, check_side_columns, draw_start

# The loop is the same for every algorithm; batch EM's steps are known.
fit = functools.partial(daskem.fit, algorithm=BatchEM())
ROWS = clouds(1_500)
MODEL = Balls()
START = Centers(np.full(3, 1 / 3), ROWS[:3])


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)
    monkeypatch.setattr(dataset, "PIECE_BYTES", 1 << 11)


def stored(chunk: int = 100, rows: np.ndarray = ROWS, **columns: Any) -> Dataset:
    sides = {name: FakeSource(np.asarray(values)[:, None], chunk, name=name) for name, values in columns.items()}
    return Dataset(FakeSource(rows, chunk), **sides)


# The loop


def test_a_fit_ends_where_a_loop_over_all_rows_ends():
    params, objectives = START, []
    for _ in range(5):
        expectation = MODEL.e_step(params, Chunk(ROWS))
        objectives.append(expectation.objective / len(ROWS))
        params = MODEL.m_step(expectation.stats, params)
    result = fit(MODEL, stored(), params=START, stop=MaxSteps(5))
    np.testing.assert_allclose(result.params.means, params.means, rtol=1e-11)
    np.testing.assert_allclose([info.objective for info in result.trace], objectives, rtol=1e-12)
    assert result.objective == result.trace[-1].objective
    assert result.n_steps == 5


def test_callbacks_see_each_step():
    seen = []
    result = fit(
        MODEL, ROWS, params=START, stop=MaxSteps(3), callbacks=[lambda info, params: seen.append((info, params))]
    )
    assert [info.step for info, _ in seen] == [1, 2, 3]
    assert tuple(info for info, _ in seen) == result.trace
    assert bits(seen[-1][1]) == bits(result.params)
    assert len({bits(params) for _, params in seen}) == 3


def test_callbacks_see_the_best_start_also_when_it_has_ended():
    far = Centers(np.full(3, 1 / 3), np.full((3, 4), 30.0) + np.arange(3)[:, None])
    seen: list[StepInfo] = []
    result = fit(
        MODEL,
        stored(),
        params=[fit(MODEL, stored(), params=START, stop=MaxSteps(200)).params, far],
        stop=[Gain(1e-6), MaxSteps(30)],
        callbacks=[lambda info, params: seen.append(info)],
    )
    assert result.n_steps < result.passes == len(seen)
    assert [info.step for info in seen] == list(range(1, len(seen) + 1))
    assert (np.diff([info.objective for info in seen]) >= -1e-9).all()


def test_an_error_of_a_callback_ends_the_fit():
    def stop(info: Any, params: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(MODEL, stored(), params=START, callbacks=[stop])


def test_the_best_of_several_starts_wins():
    bad = Centers(np.full(3, 1 / 3), np.full((3, 4), 30.0) + np.arange(3)[:, None])
    result = fit(MODEL, stored(), params=[bad, START, bad], stop=MaxSteps(3))
    assert len(result.objectives) == 3
    assert result.passes == 3
    assert result.objective == max(result.objectives) == result.objectives[1]
    assert bits(result.params) == bits(fit(MODEL, stored(), params=START, stop=MaxSteps(3)).params)


def test_starts_end_each_for_its_own_reason():
    optimum = fit(MODEL, stored(), params=START, stop=[Change(1e-10), MaxSteps(500)]).params
    seen = []
    model = Watched(watch=lambda params, chunk: seen.append((chunk.start, params.means.tobytes())))
    result = fit(model, stored(), params=[optimum, START], stop=[Gain(1e-9), MaxSteps(6)])
    # The one that has converged is no longer asked for: two passes and six.
    assert len([1 for at, _ in seen if at == 0]) == 2 + 6
    assert result.converged


def test_n_init_draws_as_many_starts():
    result = fit(MODEL, stored(), n_init=4, stop=MaxSteps(2), seed=1)
    assert len(result.objectives) == 4
    assert len(set(result.objectives)) > 1
    assert result.plan.members == 4


def test_a_fit_is_determined_by_its_seed():
    one, same, other = (fit(MODEL, stored(), stop=MaxSteps(2), n_init=2, seed=seed) for seed in (1, 1, 2))
    assert bits(one.params) == bits(same.params) != bits(other.params)


def test_max_steps_is_not_convergence():
    result = fit(MODEL, stored(), params=START, stop=[Gain(0.0), MaxSteps(2)])
    assert not result.converged
    assert result.reason == "2 steps were made"


def test_convergence_says_why():
    result = fit(MODEL, stored(), params=START)
    assert result.converged
    assert "the gain of a step" in result.reason
    assert result.n_steps < 100


def test_a_budget_of_seconds_ends_the_fit(monkeypatch):
    ticks = count(0, 10)
    monkeypatch.setattr(batch.time, "perf_counter", lambda: next(ticks))
    result = fit(MODEL, ROWS, params=START, stop=[MaxSeconds(25), MaxSteps(50)], cache="none")
    assert not result.converged
    assert result.reason.startswith("25 seconds were over (after ")
    assert sum(info.seconds for info in result.trace[:-1]) < 25 <= sum(info.seconds for info in result.trace)


@dataclass(frozen=True)
class Eventful(Balls):
    def events(self, params: Centers) -> tuple[tuple[int, str], ...]:
        return ((2, "was empty and kept"),)


def test_events_are_recorded_and_logged(caplog):
    with caplog.at_level(logging.WARNING, "daskem"):
        result = fit(Eventful(), stored(), params=START, stop=MaxSteps(2))
    assert result.events == (Event(1, 2, "was empty and kept"), Event(2, 2, "was empty and kept"))
    assert "step 1, component 2: was empty and kept" in caplog.text
    assert "step 2, component 2" not in caplog.text
    told = {"component": 2, "what": "was empty and kept", "first": 1, "last": 2, "count": 2}
    assert result.summary()["events"] == [told]


@dataclass(frozen=True)
class Wrong(Balls):
    """A model whose third M-step goes astray."""

    def m_step(self, stats: Sums, params: Centers) -> Centers:
        good = super().m_step(stats, params)
        return replace(good, means=good.means + 1.0) if good.weights.sum() and self.astray(params) else good

    def astray(self, params: Centers) -> bool:
        return not np.array_equal(params.means, ROWS[:3])


def test_a_decrease_is_warned_of_with_step_and_amount():
    with pytest.warns(DaskEMWarning, match="the objective fell by") as caught:
        result = fit(Wrong(), stored(), params=START, stop=[Gain(), MaxSteps(3)])
    fall = result.trace[1].objective - result.trace[2].objective
    assert fall > 0
    assert f"fell by {fall:.3g} nats per row at step 2" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert result.reason == "3 steps were made"


@dataclass(frozen=True)
class WrongButRepaired(Wrong):
    def events(self, params: Centers) -> tuple[tuple[int, str], ...]:
        return ((0, "reseeded"),)


def test_a_decrease_after_a_repair_is_no_surprise():
    result = fit(WrongButRepaired(), stored(), params=START, stop=MaxSteps(3))
    assert result.trace[2].objective < result.trace[1].objective


def test_a_floor_that_is_seen_is_told_once_and_does_not_keep_a_fit_from_converging():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.05, (300, 2)) + np.array([[0, 0], [0.1, 0.1], [0.3, 0]])[rng.integers(0, 3, 300)]
    with pytest.warns(DaskEMWarning, match=r"fell by .*reg_covar adds to variances.*prior='conjugate'") as caught:
        result = fit(Mixture(Gaussian(reg_covar=1e-3), 3), rows)
    assert len(caught) == 1
    assert result.converged
    assert result.n_steps < 50
    assert np.diff([info.objective for info in result.trace]).min() < 0


def test_rounding_of_single_precision_is_not_a_decrease():
    rows = clouds(2_000).astype("f4")
    result = fit(Mixture(Gaussian("diag"), 3), stored(rows=rows), stop=[Change(0.0), MaxSteps(60)])
    assert result.n_steps > 1


def test_a_summary_is_plain():
    summary = fit(MODEL, stored(), params=[START, START], stop=MaxSteps(2)).summary()
    assert summary["steps"] == 2
    assert summary["passes"] == 2
    assert summary["starts"] == [summary["objective"]] * 2
    assert summary["weight"] == len(ROWS)
    assert summary["converged"] is False


# What it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ()}, r"stop=\(\) never stops"),
        ({"n_init": 0}, "n_init=0 must be a whole number, at least 1"),
        ({"n_init": 2.5}, "n_init=2.5 must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"seed": -1}, "seed=-1 must be a whole number, at least 0"),
        ({"params": []}, r"params=\[\]"),
        ({"init_sample": "all"}, "init_sample='all' is neither"),
        ({"init_sample": 0}, "init_sample=0 is neither"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        fit(MODEL, Dataset(FakeSource(ROWS, 100, on_read=no_reading)), **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (-1.0, "sample_weight .* holds negative, NaN or infinite"),
        (np.nan, "weight"),
        (np.inf, "weight"),
        (None, "is zero for all rows: there is nothing to fit"),
    ],
)
def test_weights_that_make_no_sense_are_refused(bad, message):
    weight = np.ones(len(ROWS)) if bad is not None else np.zeros(len(ROWS))
    weight[1_234] = bad or 0.0
    with pytest.raises(DataError, match=message):
        fit(MODEL, stored(weight=weight))
    with pytest.raises(DataError, match="sample_weight"):
        fit(MODEL, ROWS, sample_weight=weight)


@pytest.mark.parametrize(("bad", "ends"), [(-2, "-2 to 0"), (3, "0 to 3")])
def test_labels_out_of_range_are_refused(bad, ends):
    labels = np.zeros(len(ROWS), int)
    labels[1_234] = bad
    with pytest.raises(DataError, match=rf"labels .* range from {ends}\. .* 0 to 3 - 1, or -1 where"):
        fit(MODEL, stored(labels=labels))


def test_one_weight_and_label_a_row():
    with pytest.raises(DataError, match="Give one value per row"):
        fit(MODEL, ROWS, sample_weight=np.ones(7))


def test_a_weight_of_two_is_a_row_twice():
    weight = np.random.default_rng(0).integers(0, 3, len(ROWS))
    weighted = fit(MODEL, stored(weight=weight.astype(float)), params=START, stop=MaxSteps(4))
    repeated = fit(MODEL, np.repeat(ROWS, weight, axis=0), params=START, stop=MaxSteps(4))
    np.testing.assert_allclose(weighted.params.means, repeated.params.means, rtol=1e-11)
    assert weighted.trace[0].weight == weight.sum()


def test_labels_reach_the_model():
    labels = np.where(np.arange(len(ROWS)) % 2, -1, 1)
    result = fit(Mixture(Gaussian("spherical"), 3), stored(labels=labels), stop=MaxSteps(2))
    assert result.params.weights[1] >= 0.5


# Starts


def far_apart(k: int = 6, n: int = 3_000) -> tuple[np.ndarray, np.ndarray]:
    centres = 100.0 * np.arange(k)[:, None] * np.ones(3)
    which = np.sort(np.random.default_rng(3).integers(k, size=n))
    return centres, centres[which] + np.random.default_rng(4).standard_normal((n, 3))


def test_k_means_oversampling_takes_its_passes_and_finds_clusters_apart():
    centres, rows = far_apart()
    reads: list[tuple[int, int]] = []
    data = Dataset(FakeSource(rows, 100, on_read=lambda a, b: reads.append((a, b))))
    engine = start_engine(data, KMeans(6), cache="none", seed=2)
    sample = draw_start(engine, KMeans(6), "k-means||")
    # All passes read each row; drawing the uniform sample that estimates their cost reads each row once at most.
    times = np.zeros(len(rows), int)
    for a, b in reads:
        times[a:b] += 1
    assert set(times) <= {ROUNDS + 1, ROUNDS + 2}
    assert sample.weight.sum() == len(rows)
    assert 6 < len(sample) < 200
    distance = np.linalg.norm(sample.rows[:, None] - centres, axis=2)
    assert (distance.min(axis=1) < 10).all()
    assert set(distance.argmin(axis=1)) == set(range(6))
    result = fit(KMeans(6), data, init_sample="k-means||", seed=2)
    np.testing.assert_allclose(np.sort(result.params.centers[:, 0]), centres[:, 0], atol=1)


def test_k_means_oversampling_draws_as_many_where_few_rows_have_weight():
    _, rows = far_apart(n=30_000)
    weight = np.where(np.random.default_rng(5).random(len(rows)) < 0.01, 1.0, 0.0)
    data = check_side_columns(open_dataset(rows, sample_weight=weight), KMeans(6), None)
    sample = draw_start(start_engine(data, KMeans(6), cache="none", seed=2), KMeans(6), "k-means||")
    # Twelve in each of five rounds, in the mean.
    assert 30 < len(sample) < 100
    assert sample.weight.sum() == weight.sum()


@pytest.mark.parametrize("present", [56, 216, 982])
def test_auto_fits_the_few_rows_that_have_weight(present):
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((200_000, 2)) + 3.0 * rng.integers(2, size=(200_000, 1))
    weight = np.zeros(len(rows))
    weight[rng.choice(len(rows), present, replace=False)] = 1.0
    found = daskem.fit(Mixture(Gaussian("diag"), 2), rows, sample_weight=weight)
    alone = daskem.fit(Mixture(Gaussian("diag"), 2), rows[weight > 0])
    # Each may be a start's own optimum; neither is the debris of samples without weight.
    assert abs(found.objective - alone.objective) < 0.3


def test_mini_batches_without_weight_are_refused():
    rows, weight = clouds(20_000), np.zeros(20_000)
    weight[::500] = 1.0
    with pytest.raises(DataError, match=r"40 of 20,000 rows have a positive weight.* 1,000 rows would hold about 2 of"):
        fit(Mixture(Gaussian(), 2), rows, sample_weight=weight, algorithm=daskem.StepwiseEM())
    with pytest.raises(DataError, match=r"none of its 50 rows has a positive weight"):
        fit(Mixture(Gaussian(), 2), rows, sample_weight=weight, algorithm=daskem.Progressive(growth=400, first=40))


@pytest.mark.parametrize("finer", [2, 8])
def test_samples_do_not_depend_on_how_scarce_memory_is(finer, monkeypatch):
    monkeypatch.setattr(dataset, "PIECE_BYTES", 1 << 16)
    rows = clouds(60_000)
    usual = Dataset(FakeSource(rows, 100))
    drawn = [
        draw_sample(start_engine(data, MODEL, cache="none"), 128, missing=False).rows.values
        for data in (usual, replace(usual, finer=finer))
    ]
    np.testing.assert_array_equal(*drawn)


def test_k_means_oversampling_does_not_depend_on_chunks():
    _, rows = far_apart()
    samples = []
    for chunk in (64, 100, 999, 3_000):
        # The estimate of the cost is drawn by units; all rows are its sample here.
        engine = start_engine(stored(chunk, rows), KMeans(6), cache="none", seed=2, memory_limit="8GB")
        samples.append(draw_start(engine, KMeans(6), "k-means||"))
    for sample in samples:
        np.testing.assert_allclose(sample.rows, samples[0].rows)
        np.testing.assert_array_equal(sample.weight, samples[0].weight)


def test_k_means_oversampling_of_one_distinct_row():
    sample = draw_start(start_engine(stored(rows=np.ones((500, 3))), KMeans(1), cache="none"), KMeans(1), "k-means||")
    np.testing.assert_array_equal(sample.rows, np.ones((1, 3)))
    assert sample.weight == [500]


def test_k_means_oversampling_far_from_the_origin():
    centres, rows = far_apart()
    engine = start_engine(stored(rows=rows + 1e9), KMeans(6), cache="none", seed=2)
    sample = draw_start(engine, KMeans(6), "k-means||")
    assert set(np.linalg.norm(sample.rows[:, None] - 1e9 - centres, axis=2).argmin(axis=1)) == set(range(6))


def test_a_start_is_drawn_from_distinct_rows_that_count_as_often_as_they_occur():
    def drawn(**columns: Any) -> Chunk:
        rows = np.array([[2.0, 1.0], [1.0, 5.0], [2.0, 1.0], [2.0, 1.0]])
        return draw_start(start_engine(stored(rows=rows, **columns), Balls(2), cache="none"), Balls(2), "auto")

    sample = drawn()
    np.testing.assert_array_equal(sample.rows, [[1, 5], [2, 1]])
    np.testing.assert_array_equal(sample.weight, [1, 3])
    assert sample.labels is None
    labelled = drawn(weight=np.array([1.0, 2.0, 3.0, 4.0]), labels=np.array([0, 1, 0, -1]))
    np.testing.assert_array_equal(labelled.rows, [[1, 5], [2, 1], [2, 1]])
    np.testing.assert_array_equal(labelled.labels, [1, -1, 0])
    np.testing.assert_array_equal(labelled.weight, [2, 4, 4])


def test_a_start_depends_neither_on_order_nor_on_repetition():
    weight = np.random.default_rng(1).integers(1, 3, len(ROWS))
    mixed = np.random.default_rng(2).permutation(np.repeat(ROWS, weight, axis=0))
    one = draw_start(start_engine(stored(rows=mixed), MODEL, cache="none"), MODEL, "auto")
    two = draw_start(start_engine(stored(weight=weight.astype(float)), MODEL, cache="none"), MODEL, "auto")
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.weight, two.weight)


# A model of a user's own


@dataclass(frozen=True)
class Rate:
    """Exponential waiting times of two kinds, half of each: all that a user writes."""

    def init(self, sample: Chunk, rng: np.random.Generator) -> np.ndarray:
        return np.array([0.5, 2.0]) / sample.rows.mean()

    def e_step(self, params: np.ndarray, chunk: Chunk) -> Expectation:
        joint = np.log(params / 2) - chunk.rows * params
        log_prob = np.logaddexp(joint[:, 0], joint[:, 1])
        resp = np.exp(joint - log_prob[:, None])
        return Expectation({"n": resp.sum(axis=0), "x": (resp * chunk.rows).sum(axis=0)}, log_prob.sum(), len(chunk))

    def m_step(self, stats: dict[str, np.ndarray], params: np.ndarray) -> np.ndarray:
        return stats["n"] / stats["x"]


def test_a_users_model_works_out_of_core_and_lazily(tmp_path):
    rng = np.random.default_rng(0)
    waits = rng.exponential(1 / np.array([0.2, 5.0])[rng.integers(2, size=20_000)])[:, None]
    zarr.create_array(LocalStore(tmp_path / "w.zarr"), data=waits, chunks=(777, 1))
    results = [
        daskem.fit(Rate(), data, stop=[Gain(1e-8), MaxSteps(300)], cache="none")
        for data in (str(tmp_path / "w.zarr"), da.from_array(waits, chunks=(1_000, 1)), waits)
    ]
    for result in results:
        assert result.converged
        np.testing.assert_allclose(result.params, [0.2, 5.0], rtol=0.05)
        np.testing.assert_allclose(result.params, results[0].params, rtol=1e-9)
    assert len(results[0].plan.units) > 5
    with pytest.raises(
        MissingCapabilityError, match=r"Rate cannot be used for assigning rows: it has no method posterior"
    ):
        predict_rows(Rate(), results[0].params, open_dataset(waits), "labels", 2, lazy=False)


# What a fitted model says of rows


@pytest.fixture(scope="module")
def fitted() -> Centers:
    return fit(MODEL, ROWS, params=START, stop=MaxSteps(5)).params


WHAT = ["labels", "proba", "log_prob"]


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("chunk", [100, 137])
def test_lazy_results_equal_eager_ones(fitted, what, chunk):
    expected = RowFunction(MODEL, fitted, what)(Chunk(ROWS))
    eager = predict_rows(MODEL, fitted, stored(chunk), what, 3, lazy=False)
    lazy = predict_rows(MODEL, fitted, stored(chunk), what, 3, lazy=True)
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype) == (eager.shape, eager.dtype) == (expected.shape, expected.dtype)
    computed = lazy.compute()
    assert computed.dtype == lazy.dtype
    np.testing.assert_array_equal(computed, eager)
    np.testing.assert_allclose(eager, expected, rtol=1e-12, atol=1e-300)


def test_lazy_results_of_a_dask_array_are_computed_when_asked(fitted):
    computed = []

    def note(block: np.ndarray) -> np.ndarray:
        computed.append(len(block))
        return block

    rows = da.from_array(ROWS, chunks=(100, 4)).map_blocks(note, dtype=float, meta=np.empty((0, 0)))
    lazy = predict_rows(MODEL, fitted, open_dataset(rows), "labels", 3, lazy=True)
    assert computed == []
    some = lazy[:50].compute(scheduler="synchronous")
    assert 0 < sum(computed) < len(ROWS)
    np.testing.assert_array_equal(some, predict_rows(MODEL, fitted, open_dataset(ROWS), "labels", 3, lazy=False)[:50])


@pytest.mark.parametrize("chunk", [100, 137])
@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_results_are_written_beside_the_rows(fitted, tmp_path, chunk, scheduler, monkeypatch):
    monkeypatch.setattr(daskem.predict, "WRITE_BYTES", 1 << 13)
    with dask.config.set(scheduler=None if scheduler == "threads" else scheduler):
        predict_to_store(MODEL, fitted, stored(chunk), str(tmp_path / "o.zarr"), WHAT, 3, attributes={"of": "balls"})
    group = zarr.open_group(tmp_path / "o.zarr", mode="r")
    assert dict(group.attrs) == {"of": "balls", "daskem:status": "complete"}
    for what in WHAT:
        assert group[what].chunks[0] % chunk == 0
        assert 1 < group[what].nchunks < 16
        np.testing.assert_array_equal(group[what][:], predict_rows(MODEL, fitted, stored(chunk), what, 3, lazy=False))
    with pytest.raises(OptionError, match="overwrite"):
        predict_to_store(MODEL, fitted, stored(chunk), str(tmp_path / "o.zarr"), WHAT, 3)


def test_an_output_that_broke_off_is_gone_on_with(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(daskem.predict, "WRITE_BYTES", 1 << 13)
    zarr.create_array(tmp_path / "rows.zarr", data=ROWS, chunks=(100, 4))
    write, written = Output.write, []

    def note(self, start, values):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, values)

    def predict(output):
        with dask.config.set(scheduler="synchronous"):
            data = open_dataset(tmp_path / "rows.zarr")
            predict_to_store(MODEL, fitted, data, str(tmp_path / output), WHAT, 3)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", note)
        with pytest.raises(KeyboardInterrupt):
            predict("o.zarr")
        before, written[:] = tuple(written), [None] * 4
        predict("o.zarr")
        assert set(written).isdisjoint(before)
    predict("whole.zarr")
    for what in WHAT:
        found, whole = (zarr.open_group(tmp_path / name, mode="r")[what] for name in ("o.zarr", "whole.zarr"))
        assert found.nchunks == whole.nchunks > 3
        np.testing.assert_array_equal(found[:], whole[:])
    assert len(before) + len(written[4:]) == found.nchunks


def test_an_output_that_broke_off_is_no_data(fitted, tmp_path):
    bad = ROWS.copy()
    bad[1_234, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"chunk \(12, 0\), rows 1234:1235 hold 1 row"):
        predict_to_store(MODEL, fitted, stored(rows=bad), str(tmp_path / "o.zarr"), ["labels"], 3)
    with pytest.raises(DataError, match="never finished"):
        open_source(tmp_path / "o.zarr", array="labels", ndim=1)


def test_unknown_results_are_refused(fitted, tmp_path):
    for what, named in ((["labels", "mood"], "'mood'"), ([], "nothing")):
        with pytest.raises(OptionError, match=f"cannot write .*{named}"):
            predict_to_store(MODEL, fitted, stored(), str(tmp_path / "o.zarr"), what, 3)
    assert not (tmp_path / "o.zarr").exists()


def test_bad_rows_are_named_by_predictions_too(fitted):
    bad = ROWS.copy()
    bad[1_234, 1] = -np.inf
    with pytest.raises(NonFiniteError, match=r"contains infinity: fake rows, chunk \(12, 0\), rows 1234:1235"):
        predict_rows(MODEL, fitted, stored(rows=bad), "labels", 3, lazy=False)
    with pytest.raises(NonFiniteError, match=r"chunk \(12, 0\)"):
        predict_rows(MODEL, fitted, stored(rows=bad), "labels", 3, lazy=True).compute()


def test_scores_are_weighted_sums(fitted):
    weight = np.random.default_rng(0).uniform(0, 2, len(ROWS))
    weight[:200] = 0
    log_prob = MODEL.log_prob(fitted, Chunk(ROWS))
    total, mass = score(MODEL, fitted, stored(weight=weight))
    assert total == pytest.approx(weight @ log_prob, rel=1e-12)
    assert mass == pytest.approx(weight.sum(), rel=1e-12)
    expectation = evaluate(MODEL, fitted, stored(weight=weight))
    assert expectation.objective == pytest.approx(total, rel=1e-12)
    assert expectation.weight == pytest.approx(mass, rel=1e-12)


def test_the_estimator_is_the_same_fit():
    estimator = GaussianMixture(3, algorithm="batch", random_state=0, max_iter=3, tol=0.0, means_init=ROWS[:3])
    with pytest.warns(UserWarning, match=r"."):
        estimator.fit(ROWS)
    assert estimator.n_iter_ == 3


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [("batch", "algorithm='batch' is a name.*such as daskem.algorithms.BatchEM"), (BatchEM, "BatchEM is a class")],
)
def test_the_name_of_an_algorithm_is_none(algorithm, message):
    with pytest.raises(OptionError, match=message):
        fit(MODEL, ROWS, algorithm=algorithm)


def test_an_algorithm_may_be_given():
    result = fit(MODEL, ROWS, params=START, algorithm=BatchEM(), stop=MaxSteps(1))
    assert result.n_steps == 1
