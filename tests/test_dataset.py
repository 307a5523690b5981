"""Rows reach the model in order, once, in blocks at absolute offsets, whatever they are stored in."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from fakes import FakeSource
from hypothesis import given
from hypothesis import strategies as st

from daskem.data import Dataset, Memory, Unit, dataset, is_array_like, open_dataset
from daskem.data.dataset import blocks, pieces
from daskem.errors import DataError, OptionError

N = 300


def table(n: int = N, d: int = 3, dtype: str = "f8") -> np.ndarray:
    return np.arange(n * d, dtype=dtype).reshape(n, d)


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(dataset, "PIECE_BYTES", 20 * 24)


@st.composite
def runs(draw):
    start = draw(st.integers(0, N - 1))
    return start, draw(st.integers(start + 1, N))


@given(run=runs(), chunk=st.integers(1, 120), block=st.integers(1, 200), piece=st.integers(1, 100), local=st.booleans())
def test_blocks_hold_each_row_once_and_end_at_absolute_multiples(run, chunk, block, piece, local):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "PIECE_BYTES", piece * 24)
        column = table()[:, :1]
        data = Dataset(FakeSource(table(), chunk, in_process=local), FakeSource(column), FakeSource(column))
        walked = list(blocks(data, *run, block, seed=3, step=5))
    assert [c.start for c in walked] == [run[0], *range((run[0] // block + 1) * block, run[1], block)]
    np.testing.assert_array_equal(np.concatenate([c.rows for c in walked]), table()[slice(*run)])
    for c in walked:
        assert c.weight.dtype == np.float64
        assert c.labels.dtype == np.int64
        np.testing.assert_array_equal(c.weight, c.rows[:, 0])
        np.testing.assert_array_equal(c.labels, c.rows[:, 0])
        assert (c.seed, c.step) == (3, 5)


@given(chunk=st.integers(1, 120), piece=st.integers(1, 100), run=runs())
def test_reads_tile_the_rows_and_split_no_chunk(chunk, piece, run):
    reads = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "PIECE_BYTES", piece * 24)
        data = Dataset(FakeSource(table(), chunk, on_read=lambda a, b: reads.append((a, b))))
        got = list(pieces(data, *run))
        longest = data.piece_rows()
    assert [(at, at + len(rows)) for at, rows in got] == reads
    assert [a for a, _ in reads] == [run[0], *(b for _, b in reads[:-1])]
    assert reads[-1][1] == run[1]
    assert all(b % chunk == 0 for _, b in reads[:-1])
    assert all(b - a <= longest + chunk for a, b in reads)


def test_the_next_piece_is_being_read_while_this_one_is_used(short_pieces):
    begun = {start: threading.Event() for start in range(0, N, 20)}
    data = Dataset(FakeSource(table(), 20, on_read=lambda start, stop: begun[start].set()))
    for at, rows in pieces(data, 0, N):
        # Had the read to wait for the use of these rows to end, this would wait in vain.
        assert at + len(rows) == N or begun[at + 20].wait(timeout=20)


def test_no_more_than_one_piece_is_read_ahead(short_pieces):
    begun = []
    data = Dataset(FakeSource(table(), 20, on_read=lambda start, stop: begun.append(start)))
    walk = pieces(data, 0, N)
    for at, _ in walk:
        assert max(begun) <= at + 20


def test_rows_in_this_process_are_not_copied(short_pieces):
    rows = table()
    data = Dataset(FakeSource(rows, in_process=True))
    assert all(np.shares_memory(piece, rows) for _, piece in pieces(data, 0, N))


def test_an_error_of_the_reader_reaches_the_reader_of_the_rows(short_pieces):
    def fail(start: int, stop: int) -> None:
        if start == 100:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(pieces(Dataset(FakeSource(table(), 20, on_read=fail)), 0, N))


def test_a_walk_that_is_broken_off_leaves_no_thread(short_pieces):
    walk = pieces(Dataset(FakeSource(table(), 20)), 0, N)
    next(walk)
    walk.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("daskem-read")]


@pytest.mark.parametrize(
    ("stored", "computed"),
    [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i4", "f8"), ("u1", "f8"), ("?", "f8")],
)
def test_numbers_are_computed_in_the_type_that_holds_them(stored, computed):
    rows = (table(40) % 2).astype(stored)
    chunk = next(blocks(Dataset(FakeSource(rows, 7)), 0, 40, 64))
    assert chunk.rows.dtype == computed
    assert chunk.rows.flags.c_contiguous
    np.testing.assert_array_equal(chunk.rows, rows)


def test_loaded_rows_keep_their_numbers(short_pieces):
    column = table()[:, :1]
    loaded = Dataset(FakeSource(table(), 20), FakeSource(column), FakeSource(column)).load(100, 200)
    assert isinstance(loaded.rows, Memory)
    chunk = next(blocks(loaded, 120, 130, 1000))
    assert chunk.start == 120
    np.testing.assert_array_equal(chunk.rows, table()[120:130])
    np.testing.assert_array_equal(chunk.weight, table()[120:130, 0])
    np.testing.assert_array_equal(chunk.labels, table()[120:130, 0])


def test_one_weight_and_one_label_for_each_row():
    with pytest.raises(DataError, match=r"sample_weight: .* has 299 values, but .* has 300 rows"):
        open_dataset(table(), sample_weight=np.ones(N - 1))
    with pytest.raises(DataError, match=r"labels \(y\): .* has 301 values"):
        open_dataset(table(), y=np.zeros(N + 1, int))


def test_a_slice_of_rows_applies_to_weights_and_labels():
    data = open_dataset(table(), sample_weight=np.arange(N), y=np.arange(N), rows=slice(50, 60))
    chunk = next(blocks(data, 0, 10, 64))
    np.testing.assert_array_equal(chunk.weight, np.arange(50, 60))
    np.testing.assert_array_equal(chunk.labels, np.arange(50, 60))
    np.testing.assert_array_equal(chunk.rows, table()[50:60])


def test_a_data_set_is_taken_as_it_is():
    data = Dataset(FakeSource(table()))
    assert open_dataset(data) is data
    assert not data.in_process
    for options in ({"sample_weight": np.ones(300)}, {"y": np.zeros(300)}, {"columns": [0]}, {"rows": slice(5)}):
        with pytest.raises(OptionError, match=f"{next(iter(options))} cannot be added"):
            open_dataset(data, **options)


def test_weights_of_this_process_go_with_the_units_of_rows_elsewhere():
    weight = np.arange(300.0)[:, None]
    data = Dataset(FakeSource(table(), 10), FakeSource(weight, in_process=True))
    assert not data.in_process
    part = data.bind(Unit(1, 100, 200)).compute(scheduler="synchronous")
    assert part.rows.values is data.rows.values
    np.testing.assert_array_equal(part.weight.read(120, 130), weight[120:130])


def test_what_is_rows_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", table())
    assert is_array_like(table())
    assert is_array_like([[1.0]])
    for lazy in ("x.zarr", tmp_path, np.load(tmp_path / "x.npy", mmap_mode="r"), Dataset(FakeSource(table()))):
        assert not is_array_like(lazy)
