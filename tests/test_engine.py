"""A pass counts each row once, decodes each chunk once, and gives the same bits wherever it runs."""

from __future__ import annotations

import functools
import gc
import os
import re
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from fakes import Balls, Centers, CountingStore, FakeSource, Watched, bits, clouds
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController, threadpool_limits
from zarr.storage import LocalStore, MemoryStore

import daskem
from daskem import BatchEM, MaxSteps, tree
from daskem.core import Chunk, Expectation
from daskem.data import Dataset, dataset, open_dataset, units
from daskem.engine import DataProblem, passes, start_engine
from daskem.engine.blas import one_blas_thread
from daskem.engine.tasks import combine
from daskem.errors import ContractError, NonFiniteError
from daskem.models import Gaussian, Mixture
from daskem.starts import draw_start

fit = functools.partial(daskem.fit, algorithm=BatchEM())
N, D = 3_000, 4
MODEL = Balls()


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Small data make as many units, of as many pieces, as large data would."""
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)
    monkeypatch.setattr(dataset, "PIECE_BYTES", 1 << 11)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clouds(N, D)


@pytest.fixture(scope="module")
def start(rows) -> Centers:
    return Centers(np.full(3, 1 / 3), rows[:3])


def engine_of(data: Any, model: Any = MODEL, **options: Any):
    options = {"cache": "none", **options}
    return start_engine(data if isinstance(data, Dataset) else open_dataset(data), model, **options)


def counted(rows: np.ndarray, **layout: Any) -> tuple[zarr.Array, CountingStore]:
    store = CountingStore(MemoryStore())
    array = zarr.create_array(store, shape=rows.shape, dtype=rows.dtype, compressors=None, **layout)
    array[:] = rows
    store.fetched.clear()
    return array, store


def twice(data: Any, start: Centers, **options: Any) -> Centers:
    return fit(MODEL, data, params=start, stop=MaxSteps(2), **{"cache": "none", **options}).params


# Decoding


@pytest.mark.parametrize("chunks", [(100, D), (128, D), (37, D), (37, 3), (1999, 1), (N, D), (1, D)])
def test_each_chunk_is_decoded_once_a_pass(rows, start, chunks):
    array, store = counted(rows, chunks=chunks)
    engine = engine_of(array)
    assert not store.fetched
    for n in (1, 2):
        engine.expect(MODEL, [start] * n)
        assert len(store.whole) == -(-N // chunks[0]) * -(-D // chunks[1])
        assert set(store.whole.values()) == {n}


@pytest.mark.parametrize(("chunks", "shards"), [((50, D), (500, D)), ((7, 2), (91, 4))])
def test_each_inner_chunk_of_a_shard_is_decoded_once_a_pass(rows, start, chunks, shards):
    array, store = counted(rows, chunks=chunks, shards=shards)
    engine_of(array).expect(MODEL, [start])
    inner = -(-N // chunks[0]) * -(-D // chunks[1])
    # Where a read asks for all of a shard, zarr fetches it whole.
    per_shard = (shards[0] // chunks[0]) * (shards[1] // chunks[1])
    whole = dict(store.whole)
    assert set(whole.values()) <= {1}
    assert set(store.ranges.values()) <= {1}
    assert not {key for key, _ in store.ranges} & set(whole)
    assert len(store.ranges) >= inner - per_shard * len(whole) > 0


def test_blocks_that_straddle_chunks_cost_no_second_decoding(rows, start):
    array, store = counted(rows, chunks=(37, D), shards=None)
    model = Balls(block_rows=128)
    engine = engine_of(array, model)
    assert max(map(len, engine.plan.units)) > engine.plan.block_rows > 37
    engine.expect(model, [start])
    assert set(store.whole.values()) == {1}


def test_a_step_of_batch_em_is_one_pass(rows, start):
    array, store = counted(rows, chunks=(100, D))
    result = fit(MODEL, array, params=start, stop=MaxSteps(4), cache="none")
    assert set(store.whole.values()) == {4}
    assert len(store.whole) == 30
    assert [info.passes for info in result.trace] == [1, 2, 3, 4]


def test_what_follows_from_parameters_is_made_once_a_pass(rows, monkeypatch):
    made = []
    make = Gaussian.kernel
    monkeypatch.setattr(Gaussian, "kernel", lambda *args: made.append(args) or make(*args))
    model = Mixture(Gaussian(), 3)
    start = model.init(Chunk(rows), np.random.default_rng(0))
    made.clear()
    result = fit(model, rows, params=start, stop=MaxSteps(4), cache="none")
    assert len(result.plan.units) > 4
    assert len(made) == 4


def test_several_starts_share_their_passes_and_keep_their_bits(rows):
    array, store = counted(rows, chunks=(100, D))
    starts = [Centers(np.full(3, 1 / 3), rows[[i, i + 10, i + 20]]) for i in range(3)]
    together = fit(MODEL, array, params=starts, stop=MaxSteps(3), cache="none")
    assert set(store.whole.values()) == {3}
    alone = [fit(MODEL, array, params=start, stop=MaxSteps(3), cache="none") for start in starts]
    assert together.objectives == tuple(result.objective for result in alone)
    assert len(set(together.objectives)) == 3
    assert bits(together.params) == bits(max(alone, key=lambda result: result.objective).params)
    engine = engine_of(array)
    each = engine.expect(MODEL, starts)
    for one, s in zip(each, starts, strict=True):
        assert_same_bits(one, engine.expect(MODEL, [s])[0])


def test_kept_rows_are_decoded_once_a_fit(rows, start):
    array, store = counted(rows, chunks=(100, D))
    streamed = twice(array, start)
    store.fetched.clear()
    kept = twice(array, start, cache="memory")
    assert set(store.whole.values()) == {1}
    assert bits(kept) == bits(streamed)


# Completeness


class Shrinking(FakeSource):
    """Rows of which the last were cut off after planning."""

    def read(self, start: int, stop: int) -> np.ndarray:
        return super().read(start, min(stop, N - 5))


def test_rows_that_are_lost_end_the_pass(rows, start):
    with pytest.raises(ContractError, match=r"counted 29\d\d rows of 23 units where there are 3000 rows in 23 units"):
        engine_of(Dataset(Shrinking(rows, 100))).expect(MODEL, [start])


def test_a_unit_that_is_counted_twice_ends_the_pass(rows, start, monkeypatch):
    engine = engine_of(Dataset(FakeSource(rows, 100)))
    monkeypatch.setattr(passes, "combine", lambda *partials: combine(*partials, partials[-1]))
    with pytest.raises(ContractError, match="Its sums are wrong and were discarded"):
        engine.expect(MODEL, [start])


def test_a_pass_may_be_over_chosen_units(rows, start):
    engine = engine_of(Dataset(FakeSource(rows, 100)))
    some = engine.expect(MODEL, [start], units=[3, 1])[0]
    one, three = (engine.expect(MODEL, [start], units=[i])[0] for i in (1, 3))
    assert some.weight == len(engine.plan.units[1]) + len(engine.plan.units[3])
    assert_same_bits(some, tree.add(three, one))


# Bits


def assert_same_bits(a: Expectation, b: Expectation) -> None:
    for (path, x), (_, y) in zip(tree.leaves(a), tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


@pytest.mark.parametrize("scheduler", [{"num_workers": n} for n in (1, 2, 4)] + [{"scheduler": "synchronous"}])
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_bits_do_not_depend_on_threads_or_cache(rows, start, scheduler, cache):
    data = Dataset(FakeSource(rows, 100))
    with dask.config.set(scheduler):
        result = fit(MODEL, data, params=start, stop=MaxSteps(2), cache=cache)
    assert result.plan.slots == scheduler.get("num_workers", 1)
    assert len(result.plan.units) > 8
    with dask.config.set(scheduler="synchronous"):
        assert bits(result.params) == bits(twice(data, start))


def test_bits_do_not_depend_on_chunks_that_align_with_units(rows, start):
    nominal = units.nominal_rows(N, rows[0].nbytes)
    reference = bits(twice(Dataset(FakeSource(rows, nominal, in_process=True)), start))
    for chunk in (1, nominal // 8, nominal // 2, nominal):
        assert bits(twice(Dataset(FakeSource(rows, chunk)), start)) == reference
        assert bits(twice(Dataset(FakeSource(rows, chunk, 2 * chunk if chunk < nominal else 0)), start)) == reference
    assert bits(twice(rows, start)) == reference
    assert bits(twice(da.from_array(rows, chunks=(nominal // 2, 2)), start)) == reference


def test_chunks_of_whole_multiples_of_a_unit_keep_the_bits(rows, start):
    # Segments of a nominal unit are added pairwise in the order in which the tree would add units of their own.
    nominal = units.nominal_rows(N, rows[0].nbytes)
    reference = bits(twice(Dataset(FakeSource(rows, nominal)), start))
    for chunk in (2 * nominal, 4 * nominal, 8 * nominal, N):
        assert bits(twice(Dataset(FakeSource(rows, chunk)), start)) == reference


@given(chunk=st.integers(1, N), n=st.integers(10, N))
def test_sums_agree_for_all_chunkings(chunk, n):
    rows = clouds(n, D)
    start = Centers(np.full(3, 1 / 3), rows[:3])
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)
        one = engine_of(Dataset(FakeSource(rows, chunk))).expect(MODEL, [start])[0]
    whole = MODEL.e_step(start, Chunk(rows))
    assert one.weight == n
    for (path, a), (_, b) in zip(tree.leaves(one), tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max(), err_msg=path)


# Where work happens


def test_rows_are_handed_to_the_model_in_blocks_at_absolute_offsets(rows, start):
    seen = []
    model = Watched(watch=lambda params, chunk: seen.append((chunk.start, len(chunk), chunk.seed, chunk.step)))
    engine_of(Dataset(FakeSource(rows, 100)), model, seed=7).expect(model, [start], step=9)
    at = sorted(seen)
    assert sum(n for _, n, _, _ in at) == N
    assert all((a + n) % 64 == 0 or (a + n) % 100 == 0 for a, n, _, _ in at)
    assert {(seed, step) for *_, seed, step in at} == {(7, 9)}


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("limits", [None, 3])
def test_blas_has_one_thread_in_concurrent_tasks_and_gets_its_threads_back(rows, start, three_blas_threads, limits):
    seen, both = [], threading.Barrier(2, timeout=20)

    def watch(params: Centers, chunk: Chunk) -> None:
        if chunk.start % 1000 == 0:
            seen.append(blas_threads())
        if chunk.start in (0, engine.plan.units[1].start):
            both.wait()
            seen.append(blas_threads())

    model = Watched(watch=watch)
    with threadpool_limits(limits, "blas"), dask.config.set(num_workers=2):
        engine = engine_of(Dataset(FakeSource(rows, 100)), model)
        engine.expect(model, [start])
        assert blas_threads() == {3}
    assert len(seen) >= 4
    assert all(threads == {1} for threads in seen)


@pytest.fixture
def three_blas_threads():
    """BLAS at three threads, without a limit in force that only the thread that set it may change."""
    before = ThreadpoolController().info()
    limiter = []
    setter = threading.Thread(target=lambda: limiter.append(ThreadpoolController().limit(limits=3, user_api="blas")))
    setter.start()
    setter.join()
    assert blas_threads() == {3}
    yield
    resetter = threading.Thread(target=limiter[0].restore_original_limits)
    resetter.start()
    resetter.join()
    assert ThreadpoolController().info() == before


def test_the_first_task_to_end_does_not_set_the_others_loose(three_blas_threads):
    inside, entered, left = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with one_blas_thread():
            inside.set()
            assert entered.wait(timeout=20)
        left.set()

    def second() -> set[int]:
        assert inside.wait(timeout=20)
        with one_blas_thread():
            entered.set()
            assert left.wait(timeout=20)
            return blas_threads()

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(first), pool.submit(second)]
        assert runs[1].result() == {1}
        runs[0].result()
        # The thread that set the limit and the one that left last both live on, as those of a Dask worker do.
        assert blas_threads() == {3}


@pytest.mark.parametrize("limits", [None, 3])
def test_blas_gets_its_threads_back_after_an_error(rows, start, three_blas_threads, limits):
    def fail(params: Centers, chunk: Chunk) -> None:
        raise ZeroDivisionError("wrong")

    model = Watched(watch=fail)
    with threadpool_limits(limits, "blas"), dask.config.set(num_workers=1):
        with pytest.raises(ZeroDivisionError, match="wrong"):
            engine_of(Dataset(FakeSource(rows, 100)), model).expect(model, [start])
        assert blas_threads() == {3}


@dataclass(frozen=True)
class Keeper(Balls):
    """A model that keeps what it computed of a chunk, as kernels do, and lets the chunk be watched."""

    def e_step(self, params: Centers, chunk: Chunk) -> Expectation:
        KEPT.append(weakref.ref(chunk.scratch.keep("row sums", chunk, lambda: chunk.rows.sum(axis=1))))
        KEPT.append(weakref.ref(chunk))
        return super().e_step(params, chunk)


KEPT: list[weakref.ref] = []


def test_a_task_lets_go_of_its_rows_when_it_ends(rows, start):
    engine = engine_of(Dataset(FakeSource(rows, 100)), Keeper())
    KEPT.clear()
    gc.disable()
    try:
        with dask.config.set(scheduler="synchronous"):
            engine.expect(Keeper(), [start])
            engine.gather(lambda chunk: Keeper().e_step(start, chunk).weight)
        assert len(KEPT) > 100
        assert [ref for ref in KEPT if ref() is not None] == []
    finally:
        gc.enable()


# Bad numbers


@pytest.fixture
def one_bad_chunk(rows):
    bad = rows.copy()
    bad[1234:1237, 2] = [np.nan, np.inf, np.nan]
    bad[1250, 1] = np.inf
    return bad


def check_message(error: Exception) -> None:
    assert re.search(r"Input X contains NaN: .*bad.zarr, chunk \(12, 0\), rows 1234:1251 hold", str(error))
    assert "the first has nan in feature 2" in str(error)


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("model", [MODEL, Mixture(Gaussian("full"), 2), Mixture(Gaussian("diag"), 2)])
def test_a_bad_number_is_found_in_the_pass_and_named(one_bad_chunk, rows, tmp_path, model, cache):
    zarr.create_array(tmp_path / "bad.zarr", data=one_bad_chunk, chunks=(100, D))
    params = model.init(Chunk(rows), np.random.default_rng(0))
    with pytest.raises(NonFiniteError) as raised:
        fit(model, tmp_path / "bad.zarr", params=params, cache=cache)
    check_message(raised.value)
    with pytest.raises(NonFiniteError) as raised:
        engine_of(tmp_path / "bad.zarr").gather(len)
    check_message(raised.value)


@pytest.mark.parametrize("model", [MODEL, Mixture(Gaussian("full"), 2), Mixture(Gaussian("diag"), 2)])
def test_bad_numbers_in_rows_of_weight_zero_do_no_harm(one_bad_chunk, rows, model):
    weight = np.isfinite(one_bad_chunk).all(axis=1).astype(float)
    weight[:300] = 0
    one_bad_chunk[:300] = np.nan
    params = model.init(Chunk(rows), np.random.default_rng(0))
    ill = fit(model, Dataset(FakeSource(one_bad_chunk, 100), FakeSource(weight[:, None])), params=params)
    cleaned = np.where(weight[:, None] > 0, one_bad_chunk, 1.5)
    well = fit(model, Dataset(FakeSource(cleaned, 100), FakeSource(weight[:, None])), params=params)
    assert ill.trace[0].weight == weight.sum()
    for (path, a), (_, b) in zip(tree.leaves(ill.params), tree.leaves(well.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, err_msg=path)


def test_a_start_may_be_drawn_beside_bad_rows_of_weight_zero(one_bad_chunk):
    weight = np.isfinite(one_bad_chunk).all(axis=1).astype(float)
    data = Dataset(FakeSource(one_bad_chunk, 100), FakeSource(weight[:, None]))
    for init_sample in ("auto", 500, "k-means||"):
        assert np.isfinite(draw_start(engine_of(data), MODEL, init_sample).rows).all()


def test_values_too_large_to_be_squared_are_not_called_nan(rows, start):
    large = rows.copy()
    large[700, 1] = 1e200
    with pytest.raises(NonFiniteError, match=r"rows 700:704 of fake rows \(chunk \(7, 0\)\) is -inf, though all their"):
        engine_of(Dataset(FakeSource(large, 100))).expect(MODEL, [start])


@dataclass(frozen=True)
class NanSums(Balls):
    def e_step(self, params: Centers, chunk: Chunk) -> Expectation:
        good = super().e_step(params, chunk)
        good.stats.x[1, 1] = np.nan
        return good


def test_statistics_that_are_nan_are_the_models_fault(rows, start):
    message = r"NanSums.e_step returned NaN or infinity in stats.x for rows \d+:\d+ of fake rows"
    with pytest.raises(NonFiniteError, match=message):
        engine_of(Dataset(FakeSource(rows, 100)), NanSums()).expect(NanSums(), [start])


# Samples


def sorted_rows(chunk: int, on_read=lambda start, stop: None) -> Dataset:
    return Dataset(FakeSource(np.sort(np.linspace(0, 1, N))[:, None], chunk, on_read=on_read))


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_sample_sees_sorted_data_from_end_to_end():
    sample = engine_of(sorted_rows(50)).sample(120, rng()).rows[:, 0]
    assert 110 <= len(sample) <= 130
    assert (np.histogram(sample, 6, (0, 1))[0] > 5).all()
    assert len(np.unique(sample)) == len(sample)


def test_a_sample_is_determined_by_its_generator():
    one, same, other = (
        engine_of(sorted_rows(50)).sample(120, np.random.default_rng(seed)).rows.tobytes() for seed in (1, 1, 2)
    )
    assert one == same != other


def test_a_sample_reads_a_part_of_large_units(monkeypatch):
    monkeypatch.setattr(passes, "PIECE_BYTES", 1 << 8)
    read = []
    data = sorted_rows(2, lambda start, stop: read.append(stop - start))
    assert len(engine_of(data).sample(30, rng()).rows) >= 30
    assert sum(read) < N / 4


def test_all_rows_are_the_sample_of_few_rows(rows):
    sample = engine_of(Dataset(FakeSource(rows, 100))).sample(N, rng())
    np.testing.assert_array_equal(sample.rows, rows)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("size", [200, N])
def test_rows_of_weight_zero_are_never_drawn(size, local):
    rows = np.arange(N, dtype=float)[:, None]
    weight = (rows % 3 > 0).astype(float) * (1 + rows % 2)
    sample = engine_of(
        Dataset(FakeSource(rows, 100, in_process=local), FakeSource(weight), FakeSource(rows % 5))
    ).sample(size, rng())
    assert len(sample) > size / 2
    assert (sample.rows[:, 0] % 3 > 0).all()
    np.testing.assert_array_equal(sample.weight, weight[sample.rows[:, 0].astype(int), 0])
    np.testing.assert_array_equal(sample.labels, sample.rows[:, 0] % 5)


def test_a_sample_of_rows_in_this_process_does_not_copy_them_all():
    rows = np.ones((200_000, 10))
    engine = engine_of(Dataset(FakeSource(rows, in_process=True)))
    with dask.config.set(scheduler="synchronous"):
        tracemalloc.start()
        engine.sample(50, rng())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < rows.nbytes / 4


def test_problem_falls_back_to_what_the_model_has(rows, start):
    problem = DataProblem(MODEL, engine_of(Dataset(FakeSource(rows, 100))))
    state, info = BatchEM().step(problem, BatchEM().init(problem, start))
    assert info.change == tree.max_change(start, state.params)
    assert info.events == ()
    assert problem.n_units == len(problem.engine.plan.units)


def test_stores_on_disk_are_read_by_path(rows, start, tmp_path):
    zarr.create_array(LocalStore(tmp_path / "x.zarr"), data=rows, chunks=(100, D))
    assert bits(twice(os.fspath(tmp_path / "x.zarr"), start)) == bits(twice(Dataset(FakeSource(rows, 100)), start))


def test_an_array_that_a_model_has_in_two_places_is_added_once(monkeypatch):
    # One unit of many blocks.
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 20)

    @dataclass(frozen=True)
    class Twice:
        def e_step(self, params, chunk):
            total = np.array([chunk.rows.sum()])
            return Expectation((total, total), 0.0, chunk.total_weight)

    rows = np.ones((40_000, 1))
    engine = start_engine(open_dataset(rows), Twice())
    assert len(engine.plan.units) == 1
    assert engine.plan.block_rows < len(rows)
    (found,) = engine.expect(Twice(), [None])
    assert [float(part[0]) for part in found.stats] == [40_000.0, 40_000.0]
