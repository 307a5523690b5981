"""What zarrs decodes has the same bits as what zarr decodes, and the same faults are found in it."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

import daskem
from daskem.algorithms import BatchEM
from daskem.data import decoding, open_dataset, open_source
from daskem.data.decoding import SMALL_BYTES, ZARRS, fastest
from daskem.errors import DataError
from daskem.models import Gaussian, Mixture

pytest.importorskip("zarrs")

N, D = 130, 6
LAYOUTS = {
    "zstd": {"chunks": (10, D)},
    "checked": {"chunks": (10, D), "compressors": [ZstdCodec(checksum=True)]},
    "crc32c": {"chunks": (16, D), "compressors": [Crc32cCodec()]},
    "blosc": {"chunks": (16, 4), "compressors": [BloscCodec(cname="lz4")]},
    "gzip": {"chunks": (16, D), "compressors": [GzipCodec()]},
    "plain": {"chunks": (7, 2), "compressors": None},
    "sharded": {"chunks": (5, 3), "shards": (20, D)},
    "fortran": {"chunks": (10, D), "filters": [TransposeCodec(order=(1, 0))]},
    "v2": {"chunks": (10, 4), "zarr_format": 2},
    "v2-blosc": {"chunks": (10, 4), "zarr_format": 2, "compressors": numcodecs.Blosc()},
}


def table(dtype: str) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 100, (N, D)).astype(dtype)


def make(path, layout: str = "zstd", dtype: str = "f4") -> zarr.Array:
    array = zarr.create_array(path, shape=(N, D), dtype=dtype, **LAYOUTS[layout])
    array[...] = table(dtype)
    return array


def decoder(array: zarr.Array) -> str:
    return type(array.async_array.codec_pipeline).__name__


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "bool", "i1", "u2", "i8"])
def test_zarrs_decodes_what_was_stored(layout, dtype, tmp_path):
    make(tmp_path / "x", layout, dtype)
    array = zarr.open_array(tmp_path / "x", mode="r")
    assert decoder(array) != "ZarrsCodecPipeline"
    assert decoder(fastest(array)) == "ZarrsCodecPipeline"
    x = table(dtype)
    for columns in (None, [4, 0, 3], range(1, 5)):
        source = open_source(tmp_path / "x", columns=columns, rows=slice(3, None))
        expected = x[3:, :] if columns is None else x[3:, list(columns)]
        for start, stop in itertools.combinations((0, 1, 7, 17, 50, N - 3), 2):
            got = pickle.loads(pickle.dumps(source)).read(start, stop)
            assert got.dtype == source.dtype
            np.testing.assert_array_equal(got, expected[start:stop])


def test_zarrs_reads_the_only_column_of_an_array(tmp_path):
    array = zarr.create_array(tmp_path / "w", shape=(N,), chunks=(16,), dtype="f8")
    array[:] = np.arange(N)
    np.testing.assert_array_equal(open_source(tmp_path / "w", ndim=1).read(5, 50)[:, 0], np.arange(5, 50))


@pytest.mark.parametrize("layout", ["checked", "crc32c"])
def test_a_flipped_bit_is_found_by_zarrs_too(layout, tmp_path):
    make(tmp_path / "x", layout)
    path = tmp_path / "x" / "c" / "2" / "0"
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1
    path.write_bytes(damaged)
    source = open_source(tmp_path / "x")
    assert decoder(fastest(source.array)) == "ZarrsCodecPipeline"
    with pytest.raises(DataError, match=r"chunk \(2, 0\) .* cannot be read"):
        source.read(0, N)


def test_a_chunk_that_is_left_out_is_fill_values(tmp_path):
    array = zarr.create_array(tmp_path / "x", shape=(N, D), chunks=(10, D), dtype="f4", fill_value=7)
    array[:20] = table("f4")[:20]
    got = open_source(tmp_path / "x", allow_missing=True).read(0, N)
    np.testing.assert_array_equal(got[:20], table("f4")[:20])
    assert (got[20:] == 7).all()


def test_zarr_decodes_what_zarrs_is_not_asked_for(tmp_path, monkeypatch):
    memory = make(MemoryStore())
    large = zarr.create_array(tmp_path / "large", shape=(SMALL_BYTES, 1), chunks=(SMALL_BYTES // 4 + 1, 1), dtype="f4")
    swapped = zarr.create_array(tmp_path / "swapped", shape=(N, D), dtype=">f4", zarr_format=2)
    unknown = zarr.create_array(
        tmp_path / "unknown", shape=(N, D), dtype="f4", zarr_format=2, compressors=numcodecs.LZMA()
    )
    columns = zarr.create_array(tmp_path / "columns", shape=(N, D), dtype="f4", zarr_format=2, order="F")
    for array in (memory, large, swapped, unknown, columns):
        assert fastest(array) is array
    small = make(tmp_path / "small")
    with zarr.config.set({"codec_pipeline.path": ZARRS}):
        assert fastest(small) is small
    monkeypatch.setattr(decoding, "_is_installed", lambda: False)
    assert fastest(small) is small


def test_the_settings_of_zarr_are_the_users(tmp_path):
    array = make(tmp_path / "x")
    before = zarr.config.to_dict()
    with ThreadPoolExecutor(8) as pool:
        decoders = set(pool.map(lambda _: decoder(fastest(array)), range(400)))
    assert decoders == {"ZarrsCodecPipeline"}
    assert zarr.config.to_dict() == before


@pytest.mark.parametrize(("installed", "chunk", "said"), [(False, 1, True), (True, 1, False), (False, 2, False)])
def test_many_small_chunks_are_told_of(installed, chunk, said, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(decoding, "_is_installed", lambda: installed)
    array = zarr.create_array(tmp_path / "x", shape=(10_000, 1), chunks=(chunk, 1), dtype="f4")
    caplog.set_level("INFO", "daskem")
    open_source(array, allow_missing=True)
    assert ("has 10000 chunks of 1 KB" in caplog.text) is said


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_reads_by_zarr(tmp_path):
    array = make(tmp_path / "x")
    source = open_source(array)
    before = source.read(0, N)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply_async(source.read, (0, N)).get(60), before)
    assert decoder(fastest(array)) == "ZarrsCodecPipeline"


def test_fits_have_the_same_bits_whatever_decodes(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((4_000, 3))
    array = zarr.create_array(tmp_path / "x", shape=rows.shape, chunks=(100, 3), dtype="f8")
    array[:] = rows
    model = Mixture(Gaussian("full"), 3)
    fits = []
    for installed in (True, False):
        monkeypatch.setattr(decoding, "_is_installed", lambda installed=installed: installed)
        data = open_dataset(tmp_path / "x")
        assert (fastest(data.rows.array) is data.rows.array) is not installed
        fits.append(daskem.fit(model, data, algorithm=BatchEM(), stop=daskem.MaxSteps(3), seed=1, cache="none"))
    for (_, one), (_, other) in zip(*(daskem.tree.leaves(fit.params) for fit in fits), strict=True):
        np.testing.assert_array_equal(one, other)
