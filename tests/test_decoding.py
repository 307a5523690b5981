"""Rows are the same, and damage is found, whoever decodes: the reading thread, zarr's, or zarrs (extra ``fast``)."""

from __future__ import annotations

import asyncio
import functools
import itertools
import pickle
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import ClassVar

import numcodecs
import numcodecs.abc
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, ZipStore

import daskem
from daskem.algorithms import BatchEM
from daskem.data import open_dataset, open_source
from daskem.data.small_chunks import LATELY, TRIALS, Pace
from daskem.errors import DataError
from daskem.models import Gaussian, Mixture

ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}


LAYOUTS = {
    "v2": {"zarr_format": 2},
    "v2 columns": {"zarr_format": 2, "order": "F"},
    "v3": {},
    "feature chunks": {"chunks": (100, 2)},
    "sharded": {"shards": (400, 3)},
}


class Noting(numcodecs.abc.Codec):
    """A codec that changes nothing, and notes in which threads it decodes."""

    codec_id = "noting"
    threads: ClassVar[set[int]] = set()

    def encode(self, buf):
        return buf

    def decode(self, buf, out=None):
        self.threads.add(threading.get_ident())
        return numcodecs.compat.ndarray_copy(buf, out)


@pytest.fixture
def noting(tmp_path, monkeypatch):
    """Return a function that makes a store of one chunk size, and the threads in which its chunks are decoded."""
    numcodecs.register_codec(Noting)
    monkeypatch.setattr(Noting, "threads", set())

    def make(chunk_rows):
        rows = np.arange(600_000.0).reshape(200_000, 3)
        array = zarr.create_array(
            tmp_path / "noting",
            shape=rows.shape,
            chunks=(chunk_rows, 3),
            dtype="f8",
            zarr_format=2,
            compressors=Noting(),
        )
        array[:] = rows
        return open_source(tmp_path / "noting"), rows

    return make, Noting.threads


@pytest.fixture
def stored(tmp_path):
    rows = np.random.default_rng(0).standard_normal((4_000, 3))
    array = zarr.create_array(tmp_path / "x", shape=rows.shape, chunks=(100, 3), dtype="f8")
    array[:] = rows
    return tmp_path / "x"


def test_fits_have_the_same_bits_whatever_decodes(stored):
    pytest.importorskip("zarrs")
    fits = []
    for setting in ({}, ZARRS):
        with zarr.config.set(setting):
            data = open_dataset(stored)
            assert (type(data.rows.array.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline") is bool(setting)
            model = Mixture(Gaussian("full"), 3)
            fits.append(daskem.fit(model, data, algorithm=BatchEM(), stop=daskem.MaxSteps(3), seed=1, cache="none"))
    for (_, one), (_, other) in zip(*(daskem.tree.leaves(fit.params) for fit in fits), strict=True):
        np.testing.assert_array_equal(one, other)


def test_damage_is_found_whatever_decodes(stored, monkeypatch):
    pytest.importorskip("zarrs")
    monkeypatch.setattr("daskem.data.retry.time.sleep", lambda seconds: None)
    (stored / "c" / "7" / "0").write_bytes(b"no chunk")
    with zarr.config.set(ZARRS):
        source = open_source(stored)
    with pytest.raises(DataError, match=r"chunk \(7, 0\) \(rows 700:800\) cannot be read"):
        source.read(0, 4_000)


@pytest.fixture
def elsewhere():
    """A thread beside the main one, as those are that read for a pass."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def ident_of(elsewhere):
    return elsewhere(threading.get_ident)


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("store", [LocalStore, MemoryStore, ZipStore])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_chunks_are_the_rows_that_were_stored(tmp_path, monkeypatch, elsewhere, layout, store, way):
    always = SimpleNamespace(choose=lambda n_chunks: way, noted=[])
    always.note = lambda *args: always.noted.append(args)
    monkeypatch.setattr("daskem.data.small_chunks._pace_of", lambda name: always)
    rows = np.random.default_rng(0).standard_normal((950, 3))
    kept = store() if store is MemoryStore else store(tmp_path / "x", **({"mode": "w"} if store is ZipStore else {}))
    array = zarr.create_array(kept, shape=rows.shape, dtype="f8", **{"chunks": (100, 3), **LAYOUTS[layout]})
    array[:] = rows
    if store is ZipStore:
        kept.close()
        array = zarr.open_array(ZipStore(tmp_path / "x", mode="r"), mode="r")
    source = open_source(array, rows=slice(30, 940), columns=[2, 0])
    np.testing.assert_array_equal(elsewhere(source.read, 5, 905), rows[35:935][:, [2, 0]])
    np.testing.assert_array_equal(elsewhere(open_source(array).read, 0, 950), rows)
    assert {noted[0] for noted in always.noted} == {way}


def test_many_small_chunks_are_first_decoded_by_the_thread_that_reads(noting, elsewhere):
    make, threads = noting
    source, rows = make(1_000)
    np.testing.assert_array_equal(elsewhere(source.read, 0, 200_000), rows)
    assert threads == {ident_of(elsewhere)}


@pytest.mark.parametrize(("chunk_rows", "read_rows"), [(50_000, 200_000), (1_000, 2_000)])
def test_few_or_large_chunks_are_decoded_by_the_threads_of_zarr(noting, elsewhere, chunk_rows, read_rows):
    make, threads = noting
    source, rows = make(chunk_rows)
    np.testing.assert_array_equal(elsewhere(source.read, 0, read_rows), rows[:read_rows])
    assert threads
    assert ident_of(elsewhere) not in threads


def test_signals_find_no_loop_of_ours_in_the_main_thread(noting):
    make, threads = noting
    source, rows = make(1_000)
    np.testing.assert_array_equal(source.read(0, 200_000), rows)
    assert threads
    assert threading.get_ident() not in threads


def test_the_other_way_is_taken_where_it_was_faster(noting, monkeypatch, elsewhere):
    """As where every chunk of a network file system keeps one waiting."""
    make, threads = noting
    source, rows = make(1_000)
    # The clock is asked before a read and after it.
    times = itertools.chain.from_iterable((0.0, cost) for cost in [8.0, 1.0] * LATELY + [1.0])
    monkeypatch.setattr("daskem.data.small_chunks.time", SimpleNamespace(perf_counter=lambda: next(times)))
    for _ in range(2 * LATELY):
        elsewhere(source.read, 0, 8_000)
    threads.clear()
    # Another source of the same array, as every task of a worker has.
    np.testing.assert_array_equal(elsewhere(pickle.loads(pickle.dumps(source)).read, 0, 200_000), rows)
    assert threads
    assert ident_of(elsewhere) not in threads


def test_small_chunks_are_read_where_an_event_loop_runs(stored, elsewhere):
    async def read():
        return open_source(stored).read(0, 4_000)

    for call in (asyncio.run, functools.partial(elsewhere, asyncio.run)):
        np.testing.assert_array_equal(call(read()), zarr.open_array(stored, mode="r")[:])


def test_the_event_loop_of_the_thread_that_reads_stays_its_own(stored, elsewhere):
    def read():
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        open_source(stored).read(0, 4_000)
        kept = asyncio.get_event_loop() is loop
        asyncio.set_event_loop(None)
        loop.close()
        return kept

    assert elsewhere(read)


def test_several_damaged_chunks_of_one_read_leave_nothing_behind(stored, monkeypatch, caplog, elsewhere):
    monkeypatch.setattr("daskem.data.retry.time.sleep", lambda seconds: None)
    for chunk in ("7", "8", "20"):
        (stored / "c" / chunk / "0").write_bytes(b"no chunk")
    with pytest.raises(DataError, match=r"chunk \(7, 0\) \(rows 700:800\) cannot be read"):
        elsewhere(open_source(stored).read, 0, 4_000)
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize("layout", [{}, {"shards": (6_400, 4)}, {"shards": (64_000, 4)}])
@pytest.mark.parametrize("chunk_rows", [32, 1_600, 6_400])
def test_the_memory_of_a_read_is_planned_however_small_its_chunks(tmp_path, elsewhere, chunk_rows, layout):
    rows = np.random.default_rng(0).standard_normal((64_000, 4))
    array = zarr.create_array(tmp_path / "x", shape=rows.shape, chunks=(chunk_rows, 4), dtype="f8", **layout)
    array[:] = rows
    source = open_source(tmp_path / "x")
    # What is loaded once is no part of a read.
    elsewhere(source.read, 0, 6_400)
    tracemalloc.start()
    try:
        elsewhere(source.read, 0, len(rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.nbytes < peak <= source.read_bytes(len(rows))


def spend(pace, costs, n):
    """Let n reads pass, of one chunk or a hundred; return the seconds of each way."""
    spent = [0.0, 0.0]
    for i in range(n):
        amount = 1 if i % 3 else 100
        way = pace.choose(amount)
        pace.note(way, amount, amount * costs[way])
        spent[way] += amount * costs[way]
    return spent


@pytest.mark.parametrize("fast", [0, 1])
def test_trials_of_the_slower_way_take_little_of_the_time(fast):
    costs, pace = [5.0, 5.0], Pace()
    costs[fast] = 1.0
    spend(pace, costs, 2 * LATELY)
    spent = spend(pace, costs, 10_000)
    assert 0.5 * TRIALS * sum(spent) < spent[1 - fast] <= 1.1 * TRIALS * sum(spent)


def test_threads_do_not_all_try_the_slower_way_at_once():
    pace = Pace()
    spend(pace, [1.0, 20.0], 3_000)
    assert sum(pace.choose(10) for _ in range(32)) <= 1


def test_what_has_become_slow_is_left_and_one_bad_time_is_not_enough():
    pace = Pace()
    spend(pace, [1.0, 2.0], 2 * LATELY)
    pace.note(0, 1, 50.0)
    assert pace.choose(100) == 0
    spend(pace, [9.0, 2.0], 2 * LATELY)
    spent = spend(pace, [9.0, 2.0], 1_000)
    assert spent[0] <= 1.1 * TRIALS * sum(spent)
