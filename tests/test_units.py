"""Work units tile the rows, end at stored chunks, and grow with the data rather than with chunks or workers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from daskem.data.units import MANY_UNITS, MAX_UNITS, MIN_UNIT_BYTES, nominal_rows, plan_units, walk

sizes = st.integers(1, 10**10)
widths = st.integers(1, 10**5)


def chunks_of(chunk: int, n: int):
    return lambda row: min(-(-row // chunk) * chunk, n)


@given(n=sizes, row_bytes=widths, chunk=st.integers(1, 10**7))
def test_units_tile_the_rows_and_end_at_chunks(n, row_bytes, chunk):
    units = plan_units(n, row_bytes, chunks_of(chunk, n))
    assert [unit.index for unit in units] == list(range(len(units)))
    assert units[0].start == 0
    assert units[-1].stop == n
    assert all(a.stop == b.start for a, b in pairwise(units))
    assert all(unit.stop % chunk == 0 for unit in units[:-1])
    assert all(len(unit) > 0 for unit in units)
    # A run between two boundaries is never longer than what is aimed at plus the chunk that it ends in.
    assert max(map(len, units)) < nominal_rows(n, row_bytes) + chunk


@given(n=sizes, row_bytes=widths)
def test_units_are_few_and_coarse(n, row_bytes):
    rows = nominal_rows(n, row_bytes)
    assert rows & (rows - 1) == 0
    assert 2 * rows * row_bytes > MIN_UNIT_BYTES or rows == 1
    assert -(-n // rows) <= MAX_UNITS
    # As soon as there are many units, they grow instead, up to a size where a task costs nothing beside its work.
    assert -(-n // rows) <= MANY_UNITS or rows * row_bytes >= 8 * MIN_UNIT_BYTES


@given(n=st.integers(1, 10**8), row_bytes=st.integers(8, 4096), powers=st.lists(st.integers(0, 8), min_size=2))
def test_chunkings_that_divide_a_unit_give_the_same_units(n, row_bytes, powers):
    rows = nominal_rows(n, row_bytes)
    plans = [plan_units(n, row_bytes, chunks_of(max(rows >> power, 1), n)) for power in powers]
    assert all(plan == plans[0] for plan in plans)


def test_small_chunks_make_no_more_units_than_large_ones():
    n, row_bytes = 10_000 * 250, 256
    small, large = (plan_units(n, row_bytes, chunks_of(chunk, n)) for chunk in (250, 62_500))
    assert len(large) <= len(small) <= MANY_UNITS + 1


@given(start=st.integers(0, 10_000), length=st.integers(0, 3_000), step=st.integers(1, 700))
def test_a_walk_cuts_at_absolute_multiples(start, length, step):
    runs = list(walk(start, start + length, step))
    assert [row for a, b in runs for row in range(a, b)] == list(range(start, start + length))
    assert all(a < b for a, b in runs)
    assert all(b % step == 0 for _, b in runs[:-1])
    assert all(b - a <= step for a, b in runs)
