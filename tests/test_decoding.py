"""Rows are the same, and damage is found, whoever decodes: the reading thread, zarr's, or zarrs (extra ``fast``)."""

from __future__ import annotations

import asyncio
import threading
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


@pytest.mark.parametrize("store", [LocalStore, MemoryStore, ZipStore])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_chunks_are_the_rows_that_were_stored(tmp_path, layout, store):
    rows = np.random.default_rng(0).standard_normal((950, 3))
    kept = store() if store is MemoryStore else store(tmp_path / "x", **({"mode": "w"} if store is ZipStore else {}))
    array = zarr.create_array(kept, shape=rows.shape, dtype="f8", **{"chunks": (100, 3), **LAYOUTS[layout]})
    array[:] = rows
    if store is ZipStore:
        kept.close()
        array = zarr.open_array(ZipStore(tmp_path / "x", mode="r"), mode="r")
    source = open_source(array, rows=slice(30, 940), columns=[2, 0])
    np.testing.assert_array_equal(source.read(5, 905), rows[35:935][:, [2, 0]])
    np.testing.assert_array_equal(open_source(array).read(0, 950), rows)


def test_small_chunks_are_decoded_by_the_thread_that_reads(noting):
    make, threads = noting
    source, rows = make(1_000)
    np.testing.assert_array_equal(source.read(0, 200_000), rows)
    assert threads == {threading.get_ident()}


def test_large_chunks_are_decoded_by_the_threads_of_zarr(noting):
    make, threads = noting
    source, rows = make(50_000)
    np.testing.assert_array_equal(source.read(0, 200_000), rows)
    assert threads
    assert threading.get_ident() not in threads


def test_where_reads_wait_for_the_store_the_threads_of_zarr_wait_for_several(noting, monkeypatch):
    clock = SimpleNamespace(elapsed=0.0, computed=0.0)

    def perf_counter():
        clock.elapsed += 1.0
        return clock.elapsed

    def process_time():
        clock.computed += 0.5
        return clock.computed

    monkeypatch.setattr(
        "daskem.data.inline.time", SimpleNamespace(perf_counter=perf_counter, process_time=process_time)
    )
    make, threads = noting
    source, rows = make(1_000)
    source.read(0, 1_000)
    assert threads == {threading.get_ident()}
    threads.clear()
    np.testing.assert_array_equal(source.read(0, 200_000), rows)
    assert threads
    assert threading.get_ident() not in threads


def test_small_chunks_are_read_where_an_event_loop_runs(stored):
    """As in the main thread of a notebook."""

    async def read():
        return open_source(stored).read(0, 4_000)

    np.testing.assert_array_equal(asyncio.run(read()), zarr.open_array(stored, mode="r")[:])


def test_several_damaged_chunks_of_one_read_leave_nothing_behind(stored, monkeypatch, caplog):
    monkeypatch.setattr("daskem.data.retry.time.sleep", lambda seconds: None)
    for chunk in ("7", "8", "20"):
        (stored / "c" / chunk / "0").write_bytes(b"no chunk")
    with pytest.raises(DataError, match=r"chunk \(7, 0\) \(rows 700:800\) cannot be read"):
        open_source(stored).read(0, 4_000)
    assert not [record for record in caplog.records if record.name == "asyncio"]
