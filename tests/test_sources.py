"""Every kind of source reads what numpy says, under any selection, and refuses what it cannot read."""

from __future__ import annotations

import logging
import pickle
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import scipy.sparse
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath
from zarr.storage import LocalStore, MemoryStore, WrapperStore, ZipStore

from daskem.data import Source, missing_chunks, open_source
from daskem.data.array_sources import ArraySource, FileSource
from daskem.errors import ContractError, DataError, OptionError

N, D = 103, 6
NAMES = [f"f{i}" for i in range(D)]
DTYPES = ("float32", "float64", "int16", "bool", "float16")
# (format, chunks, shards): plain, features chunked apart, sharded, old format, one chunk.
LAYOUTS = {
    "v3": (3, (10, D), None),
    "v3-features": (3, (10, 2), None),
    "v3-sharded": (3, (5, D), (20, D)),
    "v3-sharded-features": (3, (5, 2), (20, 4)),
    "v2": (2, (10, 4), None),
    "v3-one-chunk": (3, (200, D), None),
}


def table(dtype: str, n: int = N, d: int = D) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 100, (n, d)).astype(dtype)


def zarr_array(store, x, layout="v3", **options) -> zarr.Array:
    form, chunks, shards = LAYOUTS[layout]
    z = zarr.create_array(
        store, shape=x.shape, dtype=x.dtype, chunks=chunks[: x.ndim], shards=shards, zarr_format=form, **options
    )
    z[...] = x
    return z


def make_zarr(path: Path, x: np.ndarray, layout: str) -> str:
    zarr_array(path / "x.zarr", x, layout)
    return str(path / "x.zarr")


def make_memmap(path: Path, x: np.ndarray) -> np.memmap:
    out = np.memmap(path / "raw.bin", x.dtype, "w+", offset=24, shape=x.shape)
    out[...] = x
    out.flush()
    return np.memmap(path / "raw.bin", x.dtype, "r", offset=24, shape=x.shape)


def make_npy(path: Path, x: np.ndarray) -> Path:
    np.save(path / "x.npy", x)
    return path / "x.npy"


def make_parquet(path: Path, x: np.ndarray) -> str:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for part, (a, b) in enumerate([(0, 40), (40, len(x))]):
        columns = {name: pa.array(x[a:b, i]) for i, name in enumerate(NAMES)}
        (path / "parts").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), path / "parts" / f"{part}.parquet", row_group_size=17)
    return str(path / "parts")


def make_hdf5(path: Path, x: np.ndarray, chunks: tuple[int, int] | None = (10, 4)) -> str:
    with pytest.importorskip("h5py").File(path / "x.h5", "w") as file:
        file.create_dataset("g/x", data=x, chunks=chunks)
    return str(path / "x.h5")


def make_xarray(path: Path, x: np.ndarray):
    xarray = pytest.importorskip("xarray")
    return xarray.DataArray(da.from_array(x, chunks=(10, 4)), dims=("row", "band"), coords={"band": NAMES})


KINDS = {
    **{layout: lambda path, x, layout=layout: make_zarr(path, x, layout) for layout in LAYOUTS},
    "numpy": lambda path, x: x,
    "numpy-fortran": lambda path, x: np.asfortranarray(x),
    "big-endian": lambda path, x: x.astype(x.dtype.newbyteorder(">")),
    "memmap": make_memmap,
    "memmap-view": lambda path, x: make_memmap(path, np.vstack([x[:7], x]))[7:],
    "memmap-transposed": lambda path, x: make_memmap(path, np.ascontiguousarray(x.T)).T,
    "npy": make_npy,
    "npy-fortran": lambda path, x: make_npy(path, np.asfortranarray(x)),
    "npy-big-endian": lambda path, x: make_npy(path, x.astype(x.dtype.newbyteorder(">"))),
    "dask": lambda path, x: da.from_array(x, chunks=((50, 0, 3, 50), 4)),
    "parquet": make_parquet,
    "hdf5": make_hdf5,
    "hdf5-contiguous": lambda path, x: make_hdf5(path, x, None),
    "xarray": make_xarray,
}


def read_bound(source: Source, start: int, stop: int) -> np.ndarray:
    bound = source.bind(start, stop)
    bound = bound.compute(scheduler="sync") if dask.is_dask_collection(bound) else bound
    return bound.read(start, stop)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_numpy_says(kind, dtype, tmp_path):
    x = table(dtype)
    stored = KINDS[kind](tmp_path, x)
    rng = np.random.default_rng(2)
    for columns in (None, [4, 0, 3], [2], [5, 1], range(1, 5)):
        low, high = sorted(rng.choice(N + 1, 2, replace=False).tolist())
        source = open_source(stored, rows=slice(low, high), columns=columns)
        expected = x[low:high, :] if columns is None else x[low:high, list(columns)]
        copy = pickle.loads(pickle.dumps(source))
        assert source.shape == expected.shape
        assert source.dtype == np.dtype(dtype)
        assert source.dtype.isnative
        for a, b in [(0, len(expected)), *np.sort(rng.integers(0, len(expected) + 1, (3, 2))).tolist()]:
            if a == b:
                continue
            for got in (source.read(a, b), copy.read(a, b), read_bound(source, a, b)):
                np.testing.assert_array_equal(got, expected[a:b])
                assert got.dtype == source.dtype
                assert got.flags.c_contiguous


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("numpy", "numpy-fortran", "big-endian")])
def test_boundaries_are_those_of_the_stored_chunks(kind, tmp_path):
    source = open_source(KINDS[kind](tmp_path, table("float32")), rows=slice(7, 98))
    edges = {
        "v3": (10, 10), "v3-features": (10, 10), "v3-sharded": (20, 5), "v3-sharded-features": (20, 5), "v2": (10, 10),
        "v3-one-chunk": (200, 200), "hdf5": (10, 10), "xarray": (10, 10),
    }  # fmt: skip
    cuts = {"dask": [0, 50, 53, 103], "parquet": [0, 17, 34, 40, 57, 74, 91, 103]}
    unit, piece = edges.get(kind, (1, 1))
    for row in range(1, 92):
        expected_unit, expected_piece = (
            min(next(c for c in cuts.get(kind, range(0, 401, step)) if c >= row + 7), 98) - 7 for step in (unit, piece)
        )
        assert source.unit_boundary(row) == expected_unit
        assert source.piece_boundary(row) == expected_piece


@pytest.mark.parametrize("kind", KINDS)
def test_in_process_is_said_of_memory_only(kind, tmp_path):
    source = open_source(KINDS[kind](tmp_path, table("float32")))
    assert source.in_process == (kind in ("numpy", "numpy-fortran", "big-endian"))


def test_a_zarr_store_in_memory_is_in_process():
    assert open_source(zarr_array(MemoryStore(), table("float32"))).in_process


def test_millions_of_chunks_cost_nothing():
    z = zarr.create_array(MemoryStore(), shape=(10_000_000, 2), chunks=(1, 2), dtype="f4")
    source = open_source(z, rows=slice(5_000_000, 5_000_003), allow_missing=True)
    assert source.unit_boundary(2) == 2
    assert source.locate(0, 3) == "chunks (5000000, 0) to (5000002, 0)"


def test_file_sources_embed_nothing(tmp_path):
    x = np.zeros((50_000, 8))
    for stored in (make_npy(tmp_path, x), np.load(make_npy(tmp_path, x), mmap_mode="r"), make_memmap(tmp_path, x)):
        source = open_source(stored)
        assert isinstance(source, FileSource)
        assert len(pickle.dumps(source)) < 2_000


def test_private_changes_of_a_memory_map_are_read_from_this_process(tmp_path):
    changed = np.load(make_npy(tmp_path, table("float64")), mmap_mode="c")
    changed[3, 2] = -1.0
    source = open_source(changed)
    assert isinstance(source, ArraySource)
    assert source.read(3, 4)[0, 2] == -1.0


def test_a_file_that_was_cut_is_an_error(tmp_path):
    source = open_source(make_npy(tmp_path, table("float64")))
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match="too early"):
        source.read(0, N)


class CountingStore(WrapperStore):
    """Counts what is fetched, (key, start, stop), metadata and listings aside."""

    def __init__(self, store):
        super().__init__(store)
        self.fetched = Counter()

    def note(self, key, byte_range):
        if not key.endswith(("zarr.json", ".zarray", ".zgroup", ".zattrs")):
            place = (getattr(byte_range, "start", None), getattr(byte_range, "end", None))
            # A range counted from the end of a shard is its index.
            if byte_range is None or place[0] is not None:
                self.fetched[(key, *place)] += 1

    async def get(self, key, prototype, byte_range=None):
        self.note(key, byte_range)
        return await super().get(key, prototype, byte_range)

    # Newer releases of zarr ask for all inner chunks of a shard at once, and may fetch neighbours in one request.
    async def get_ranges(self, key, byte_ranges, **options):
        for byte_range in byte_ranges:
            self.note(key, byte_range)
        async for group in super().get_ranges(key, byte_ranges, **options):
            yield group


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [None, [0, 5], [3]])
def test_a_pass_fetches_each_chunk_once(layout, columns):
    memory = MemoryStore()
    x = table("float32")
    zarr_array(memory, x, layout)
    store = CountingStore(memory)
    source = open_source(zarr.open_array(store, mode="r+"), columns=columns)
    start, parts = 0, []
    while start < N:
        stop = source.piece_boundary(start + 1)
        parts.append(source.read(start, stop))
        start = stop
    np.testing.assert_array_equal(np.vstack(parts), x if columns is None else x[:, columns])
    assert set(store.fetched.values()) == {1}
    chunk = LAYOUTS[layout][1]
    touched = {column // chunk[1] for column in (columns or range(D))}
    # A shard that holds a single chunk along the rest is fetched whole; every other fetch is one chunk.
    assert len(store.fetched) == -(-N // chunk[0]) * len(touched)


def test_runs_of_several_chunks_fetch_each_once():
    memory = MemoryStore()
    zarr_array(memory, table("float32"), "v3-sharded")
    store = CountingStore(memory)
    source = open_source(zarr.open_array(store, mode="r+"))
    for start in range(0, N, 15):
        source.read(start, min(start + 15, N))
    assert set(store.fetched.values()) == {1}
    assert len(store.fetched) == 21


@pytest.mark.parametrize("layout", ["v3-features", "v3-sharded", "v2"])
def test_missing_chunks_are_refused_with_their_coordinates(layout, tmp_path, caplog):
    x = table("float32")
    path = make_zarr(tmp_path, x, layout)
    z = zarr.open_array(path, mode="r")
    unit = (z.shards or z.chunks)[0]
    (tmp_path / "x.zarr" / z.metadata.encode_chunk_key((1, 0))).unlink()
    with pytest.raises(DataError, match=r"1 of \d+ chunks .*: \(1, 0\)\..*fill value.*allow_missing=True"):
        open_source(path)
    caplog.set_level(logging.WARNING, "daskem")
    source = open_source(path, allow_missing=True)
    assert "1 of" in caplog.text
    assert missing_chunks(source) == [(1, 0)]
    assert not source.read(unit, 2 * unit)[:, 0].any()
    # Neither of these touches the chunk that is missing.
    assert open_source(path, rows=slice(0, unit)).shape == (unit, D)
    if z.chunks[1] < D:
        assert open_source(path, columns=[D - 1]).shape == (N, 1)


def test_missing_chunks_are_listed_up_to_twenty(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", shape=(300, 2), chunks=(10, 2), dtype="f4")
    with pytest.raises(DataError, match=r"30 of 30 chunks .*\(19, 0\) and 10 more"):
        open_source(tmp_path / "x.zarr")


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize(("form", "name"), [(2, "v2"), (3, "v2"), (3, "default")])
def test_missing_chunks_are_found_under_every_key_encoding(form, name, separator):
    group = zarr.create_group(MemoryStore(), zarr_format=form)
    encoding = {"name": name, "separator": separator}
    z = group.create_array("a", shape=(40, 4), chunks=(10, 2), dtype="f4", chunk_key_encoding=encoding)
    group.create_array("ab", shape=(40, 4), chunks=(10, 2), dtype="f4")[...] = 1
    z[10:30] = 1
    source = open_source(group, array="a", allow_missing=True)
    assert missing_chunks(source) == [(0, 0), (0, 1), (3, 0), (3, 1)]


def test_urls_are_read_and_listed(tmp_path):
    x = table("float32")
    make_zarr(tmp_path, x, "v3")
    np.testing.assert_array_equal(open_source(f"file://{tmp_path}/x.zarr").read(0, N), x)
    url = f"memory://{tmp_path.name}/x.zarr"
    zarr_array(url, x)
    assert missing_chunks(open_source(url)) == []
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}/x.zarr/c/2/0")
    with pytest.raises(DataError, match=r"1 of 11 chunks .*\(2, 0\)"):
        open_source(url)


@pytest.mark.parametrize("layout", ["v3", "v2"])
def test_a_damaged_chunk_is_named(layout, tmp_path):
    path = make_zarr(tmp_path, table("float64"), layout)
    z = zarr.open_array(path, mode="r")
    chunk = tmp_path / "x.zarr" / z.metadata.encode_chunk_key((4, 0))
    chunk.write_bytes(b"not what the codec wrote")
    source = open_source(path, rows=slice(5, None))
    with pytest.raises(DataError, match=r"x\.zarr: .*chunk.*\(4, .* \(rows 40:50\)") as caught:
        source.read(0, 80)
    assert caught.value.__cause__ is not None
    np.testing.assert_array_equal(source.read(0, 35), table("float64")[5:40])


def test_groups_give_their_arrays_by_name(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    x = table("int16")
    for name in ("a", "b"):
        group.create_array(name, data=x)
    group.create_group("deep").create_array("c", data=x)
    group.create_array("weights", data=x[:, 0])
    for stored, array in [
        (tmp_path / "g.zarr", "b"),
        (str(tmp_path / "g.zarr" / "b"), None),
        (tmp_path / "g.zarr", "deep/c"),
        (group, "a"),
        (tmp_path / "g.zarr" / "deep", None),
        (LocalStore(tmp_path / "g.zarr"), "a"),
    ]:
        np.testing.assert_array_equal(open_source(stored, array=array).read(0, N), x)
    with pytest.raises(DataError, match=r"holds 'a' \(103, 6\), 'b' \(103, 6\), 'weights' \(103,\)\. Say which"):
        open_source(group)
    with pytest.raises(DataError, match="has no array 'z'; it holds 'a'"):
        open_source(group, array="z")
    with pytest.raises(DataError, match="no array 'z'; it holds 'a'"):
        open_source(tmp_path / "g.zarr" / "z")
    with pytest.raises(DataError, match=r"'deep' in Zarr group .* is a group; it holds 'c'"):
        open_source(group, array="deep")
    with pytest.raises(OptionError, match="is an array already"):
        open_source(group["a"], array="b")


def test_nothing_there(tmp_path):
    for path in ("nope", "nope.zarr", "nope/x", "nope.npy", "nope.h5", "nope.parquet"):
        with pytest.raises(DataError, match=r"there is no .* at .*nope"):
            open_source(tmp_path / path)
    (tmp_path / "text.csv").write_text("1,2\n")
    with pytest.raises(DataError, match="not a file that can be read"):
        open_source(tmp_path / "text.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Zarr store"):
        open_source(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot open nosuch://"):
        open_source("nosuch://bucket/x.zarr")


def test_columns_by_name(tmp_path):
    x = table("float32")
    zarr_array(tmp_path / "named.zarr", x, attributes={"columns": NAMES})
    frame = pytest.importorskip("xarray").DataArray(x, dims=("row", "band"), coords={"band": NAMES}).to_pandas()
    for stored in (tmp_path / "named.zarr", make_parquet(tmp_path, x), make_xarray(tmp_path, x), frame):
        source = open_source(stored, columns=["f5", "f1"])
        assert source.columns == ("f5", "f1")
        np.testing.assert_array_equal(source.read(3, 60), x[3:60, [5, 1]])
        assert open_source(stored).columns == tuple(NAMES)
        with pytest.raises(OptionError, match=r"no column 'f5x'; its columns are 'f0', .*, 'f5'\. Did you mean 'f5'"):
            open_source(stored, columns=["f5x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["a"]}, "does not name its columns"),
        ({"columns": [6]}, "no column 6: it has 6"),
        ({"columns": [1, -5]}, "twice"),
        ({"columns": [True]}, "flatnonzero"),
        ({"columns": [1.5]}, "neither an index nor a name"),
        ({"columns": slice(2)}, "not a slice"),
        ({"rows": slice(0, 10, 2)}, "step 1"),
        ({"rows": [1, 2]}, "step 1"),
        ({"array": "x"}, "Zarr groups and HDF5 files only"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(OptionError, match=message):
        open_source(table("float32"), **options)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones(5), ValueError, r"Expected 2D array, got 1D array instead.*Reshape your data"),
        (np.float64(1.0), ValueError, "got scalar array instead"),
        (np.ones((2, 3, 4)), ValueError, "3 dimensions"),
        (np.ones((4, 0)), ValueError, r"0 feature\(s\) \(shape=\(4, 0\)\) while a minimum of 1 is required"),
        (np.ones((0, 3)), ValueError, r"Found array with 0 sample\(s\)"),
        (np.ones((4, 2), complex), ValueError, "Complex data not supported"),
        (np.full((4, 2), "a"), ValueError, "not numbers"),
        (np.zeros((4, 2), "M8[s]"), ValueError, "not numbers"),
        (np.zeros((4, 2), [("a", "f4")]), ValueError, "structured"),
        (np.ones((4, 2), np.longdouble), ValueError, "not numbers"),
        (np.array([[1.0, {"foo": "bar"}]], dtype=object), TypeError, "argument must be .* string.* number"),
        (np.array([[1.0, "b"]], dtype=object), ValueError, "could not convert"),
        ([[1.0, 2.0], [3.0]], ValueError, "cannot be made an array"),
        (scipy.sparse.csr_array(np.eye(3)), TypeError, "Sparse data was passed"),
        (np.ma.masked_less(np.arange(6.0).reshape(3, 2), 2), TypeError, "masked"),
    ],
)
def test_arrays_that_cannot_be_used(x, error, message):
    with pytest.raises(error, match=message) as caught:
        open_source(x)
    assert isinstance(caught.value, DataError)


def test_stored_types_that_cannot_be_used_are_refused_unread():
    memory = MemoryStore()
    zarr.create_array(memory, shape=(4, 2), chunks=(2, 2), dtype="c8")
    store = CountingStore(memory)
    with pytest.raises(DataError, match="Complex data"):
        open_source(zarr.open_array(store, mode="r+"))
    assert not store.fetched
    with pytest.raises(DataError, match="not numbers"):
        open_source(da.zeros((4, 2), chunks=2, dtype=object))
    with pytest.raises(DataError, match="3 dimensions"):
        open_source(da.zeros((4, 2, 2)))


def test_what_looks_like_an_array_is_taken_as_one():
    np.testing.assert_array_equal(open_source([[1, 2], [3, 4]]).read(0, 2), [[1, 2], [3, 4]])
    objects = open_source(np.array([[1, 2.5]], dtype=object))
    assert objects.dtype == np.float64
    assert objects.read(0, 1).tolist() == [[1.0, 2.5]]


@pytest.mark.parametrize("kind", ["v3", "numpy", "dask", "npy", "hdf5"])
def test_weights_are_one_column(kind, tmp_path):
    x = table("float32")[:, 0]
    if kind == "v3":
        stored = zarr_array(tmp_path / "w.zarr", x)
    elif kind == "dask":
        stored = da.from_array(x, chunks=30)
    elif kind == "hdf5":
        stored = make_hdf5(tmp_path, x, None)
    else:
        stored = KINDS[kind](tmp_path, x)
    options = {"array": "g/x"} if kind == "hdf5" else {}
    source = open_source(stored, what="weights", ndim=1, rows=slice(5, 99), **options)
    assert source.shape == (94, 1)
    np.testing.assert_array_equal(source.read(3, 60), x[8:65, None])
    np.testing.assert_array_equal(read_bound(source, 3, 60), x[8:65, None])
    with pytest.raises(DataError, match="one number a row"):
        open_source(table("float32"), what="weights", ndim=1)
    with pytest.raises(DataError, match="Expected 2D array"):
        open_source(stored, **options)


def test_unknown_chunk_sizes_cost_one_announced_pass(caplog):
    x = table("float64")
    passes = Counter()

    def count(block):
        passes["blocks"] += 1
        return block

    lazy = da.from_array(x, chunks=(10, D)).map_blocks(count, meta=x[:0])
    lazy = lazy[da.from_array(x[:, 0] > 50, chunks=10)]
    caplog.set_level(logging.INFO, "daskem")
    source = open_source(lazy)
    assert "chunk sizes are unknown" in caplog.text
    assert passes["blocks"] == 11
    assert np.isnan(lazy.shape[0])
    expected = x[x[:, 0] > 50]
    assert source.shape == expected.shape
    np.testing.assert_array_equal(read_bound(source, 5, 30), expected[5:30])


def test_opening_and_binding_a_dask_array_compute_nothing():
    computed = []

    def note(block, block_info=None):
        computed.append(block_info[0]["chunk-location"])
        return block

    x = table("float64")
    lazy = da.from_array(x, chunks=(10, 3)).map_blocks(note, dtype=x.dtype, meta=x[:0])
    source = open_source(lazy, rows=slice(15, 90))
    bound = source.bind(10, 30)
    assert computed == []
    rows = bound.compute(scheduler="sync")
    assert sorted(computed) == [(i, j) for i in (2, 3, 4) for j in (0, 1)]
    np.testing.assert_array_equal(rows.read(10, 30), x[25:45])
    with pytest.raises(ContractError, match="Bind the rows"):
        rows.read(0, 5)
    computed.clear()
    source.read(10, 12)
    assert sorted(computed) == [(2, 0), (2, 1)]


def test_blocks_that_are_not_what_dask_promises():
    lazy = da.zeros((20, 2), chunks=(10, 2))
    wrong = open_source(lazy.map_blocks(lambda b: b[:-1], meta=np.zeros((0, 2))))
    with pytest.raises(DataError, match=r"chunk 1 has shape \(9, 2\)"):
        wrong.bind(10, 20).compute(scheduler="sync")
    sparse = open_source(lazy.map_blocks(scipy.sparse.csr_matrix, meta=np.zeros((0, 2))))
    with pytest.raises(TypeError, match="csr_matrix, not a dense"):
        sparse.bind(0, 10).compute(scheduler="sync")


def test_parquet_says_what_it_cannot_read(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"a": [1, 2, None], "b": [0.5, None, 1.5], "s": ["x", "y", "z"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"column 's' is string, not a number\. Choose numeric columns"):
        open_source(tmp_path / "t.parquet")
    np.testing.assert_array_equal(open_source(tmp_path / "t.parquet", columns="b").read(0, 3), [[0.5], [np.nan], [1.5]])
    with pytest.raises(DataError, match="'a' has 1 nulls in row group 0"):
        open_source(tmp_path / "t.parquet", columns=["a"]).read(0, 3)
    mixed = open_source(tmp_path / "t.parquet", columns=["b", "a"])
    np.testing.assert_array_equal(mixed.read(1, 3), [[np.nan, 2.0], [1.5, np.nan]])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"cannot read .*broken"):
        open_source(tmp_path / "broken.parquet")


def test_parquet_files_that_others_pass_over_are_no_rows(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    x = table("float32")
    pa = pytest.importorskip("pyarrow")
    for name in ("part-0.parquet", "_temporary/0/part-0.parquet", ".ipynb_checkpoints/part-0.parquet"):
        (tmp_path / "pq" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({f: x[:, i] for i, f in enumerate(NAMES)}), tmp_path / "pq" / name)
    np.testing.assert_array_equal(open_source(tmp_path / "pq").read(0, N), x)
    assert open_source(tmp_path / "pq").shape == x.shape


def test_the_index_of_a_data_frame_is_no_feature(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(table("float32")[:, :2], columns=["a", "b"]).iloc[[2, 0, 3]]
    frame.to_parquet(tmp_path / "shuffled.parquet")
    frame.rename_axis("star").to_parquet(tmp_path / "named.parquet")
    for name in ("shuffled", "named"):
        source = open_source(tmp_path / f"{name}.parquet")
        assert source.columns == ("a", "b")
        np.testing.assert_array_equal(source.read(0, 3), frame.to_numpy())
    np.testing.assert_array_equal(open_source(tmp_path / "named.parquet", columns="star").read(0, 3), [[2], [0], [3]])


def test_text_in_columns_that_are_not_chosen_does_no_harm():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1.0, 2.0], "name": ["x", "y"], "b": [3, 4]})
    source = open_source(frame, columns=["b", "a"])
    assert source.columns == ("b", "a")
    np.testing.assert_array_equal(source.read(0, 2), [[3, 1], [4, 2]])
    np.testing.assert_array_equal(open_source(frame, columns=[2], rows=slice(1, 2)).read(0, 1), [[4]])
    with pytest.raises(OptionError, match="nope"):
        open_source(frame, columns=["nope"])


def test_paths_are_spelled_out(tmp_path, monkeypatch):
    x = table("float32")
    path = make_zarr(tmp_path, x, "v3")
    monkeypatch.setenv("HOME", str(tmp_path))
    for where in (f"file://{path}", "~/x.zarr"):
        np.testing.assert_array_equal(open_source(where).read(0, N), x)
    with pytest.raises(OptionError, match="an empty path"):
        open_source("")


def test_chunks_may_lie_behind_a_link(tmp_path):
    x = table("float32")
    path = Path(make_zarr(tmp_path, x, "v3"))
    (path / "c").rename(tmp_path / "elsewhere")
    (path / "c").symlink_to(tmp_path / "elsewhere")
    np.testing.assert_array_equal(open_source(path).read(0, N), x)


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path):
    x = table("float32")
    path = Path(make_zarr(tmp_path, x, "v3"))
    for name in ("latest", "previous"):
        (path / "c" / name).symlink_to(path)
    np.testing.assert_array_equal(open_source(path).read(0, N), x)


def test_a_store_that_cannot_list_is_no_broken_one():
    class Silent(WrapperStore):
        def list_prefix(self, prefix):
            return self._store.list_prefix("nothing begins so")

    memory = MemoryStore()
    zarr_array(memory, x := table("float32"))
    silent = zarr.open_array(Silent(memory), mode="r")
    with pytest.raises(DataError, match=r"does not say what it holds.*allow_missing=True"):
        open_source(silent)
    np.testing.assert_array_equal(open_source(silent, allow_missing=True).read(0, N), x)


def test_a_path_of_any_file_system_is_one():
    path = UPath("memory://paths/x.zarr")
    zarr_array(str(path), x := table("float32"))
    np.testing.assert_array_equal(open_source(path).read(0, N), x)


def test_a_source_has_the_shape_that_is_asked_for():
    two = open_source(table("float32")[:, :2])
    with pytest.raises(DataError, match=r"weights .* must be one number a row, but its shape is \(103, 2\)"):
        open_source(two, what="weights", ndim=1)


@pytest.mark.parametrize("options", [{"rows": slice(0, 1e3)}, {"columns": 1.0}], ids=repr)
def test_selections_are_of_whole_numbers(options):
    with pytest.raises(OptionError, match=r"rows=slice|columns=1\.0"):
        open_source(table("float32"), **options)


def test_hdf5_datasets_are_chosen_by_name(tmp_path):
    h5py = pytest.importorskip("h5py")
    x = table("float32")
    path = make_hdf5(tmp_path, x)
    with h5py.File(path, "r+") as file:
        file.create_dataset("y", data=x[:, :2])
        with pytest.raises(DataError, match="open for writing"):
            open_source(file["y"])
    with h5py.File(path, "r") as file:
        source = open_source(file["y"])
        np.testing.assert_array_equal(open_source(file, array="/g/x").read(0, N), x)
        np.testing.assert_array_equal(open_source(file["g"]).read(0, N), x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(0, N), x[:, :2])
    np.testing.assert_array_equal(open_source(path, array="/g/x").read(0, N), x)
    with pytest.raises(DataError, match=r"holds 'g/x' \(103, 6\), 'y' \(103, 2\)\. Say which"):
        open_source(path)
    with pytest.raises(DataError, match="no dataset 'z'; it holds 'g/x'"):
        open_source(path, array="z")


@pytest.mark.parametrize("kind", ["v3", "v3-sharded", "features", "fortran", "npy", "npy-fortran", "hdf5"])
@pytest.mark.parametrize("columns", [None, [0, 2, 31]])
def test_reading_stays_within_the_memory_that_is_planned(kind, columns, tmp_path):
    x = np.random.default_rng(0).standard_normal((32_768, 32))
    if kind.startswith("npy"):
        stored = KINDS[kind](tmp_path, x)
    elif kind == "hdf5":
        stored = make_hdf5(tmp_path, x, (8192, 32))
    else:
        shape = {"chunks": (2048, 16 if kind == "features" else 32), "shards": None}
        shape |= {"shards": (8192, 32)} if kind == "v3-sharded" else {}
        shape |= {"zarr_format": 2, "order": "F"} if kind == "fortran" else {}
        stored = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, dtype="f8", **shape)
        stored[:] = x
    source = open_source(stored, columns=columns)
    source.read(0, 10)
    for rows in (8192, 24_576):
        tracemalloc.start()
        source.read(0, rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        slack = 300_000
        assert rows * source.row_bytes <= peak <= source.read_bytes(rows) + slack
        assert source.read_bytes(rows) <= 3 * peak + slack


def test_zip_stores_are_read(tmp_path):
    x = table("float32")
    with ZipStore(tmp_path / "x.zip", mode="w") as store:
        zarr_array(store, x)
    source = open_source(tmp_path / "x.zip")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(0, N), x)


def test_a_source_is_its_own_source():
    source = open_source(table("float32"))
    assert open_source(source) is source
    with pytest.raises(OptionError, match="source already"):
        open_source(source, columns=[0])


def test_dask_query_planning_is_refused():
    lazy = da.zeros((20, 2), chunks=(10, 2))
    with dask.config.set({"array.query-planning": True}), pytest.raises(DataError, match=r"array\.query-planning"):
        open_source(lazy)


def test_other_collections_are_refused():
    with pytest.raises(TypeError, match="to_dask_array"):
        open_source(dask.delayed(np.ones)((4, 2)))
    xarray = pytest.importorskip("xarray")
    with pytest.raises(TypeError, match="Choose one DataArray"):
        open_source(xarray.Dataset({"x": (("a", "b"), np.ones((4, 2)))}))


@given(n=st.integers(1, 60), chunk=st.integers(1, 20), cuts=st.lists(st.integers(0, 60), max_size=6))
@settings(deadline=None, max_examples=60)
def test_any_chunking_and_any_cuts_give_the_rows_back(n, chunk, cuts):
    x = np.arange(2 * n, dtype=np.int32).reshape(n, 2) + 1
    z = zarr.create_array(MemoryStore(), shape=x.shape, chunks=(chunk, 1), dtype="i4")
    z[:] = x
    lazy = da.from_array(x, chunks=(chunk, 2))
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    for source in (open_source(z), open_source(lazy)):
        parts = [read_bound(source, a, b) for a, b in pairwise(edges)]
        np.testing.assert_array_equal(np.vstack(parts), x)


def test_a_password_in_a_url_is_no_part_of_the_name():
    store = zarr.create_array("memory://somebody:hidden@place/x.zarr", data=np.ones((4, 2)), overwrite=True)
    source = open_source("memory://somebody:hidden@place/x.zarr")
    assert "hidden" not in source.name
    assert source.name == "Zarr array memory://place/x.zarr"
    assert "hidden" not in open_source(store).name
