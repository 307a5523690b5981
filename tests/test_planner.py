"""A plan is made before anything is read, and what cannot fit is refused with figures and a remedy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import dask
import numpy as np
import pytest
import zarr
from fakes import Balls, FakeSource, clouds, no_reading
from hypothesis import given
from hypothesis import strategies as st

from daskem import Chunk, MaxSteps, fit
from daskem.core import Footprint
from daskem.data import Dataset, open_dataset, units
from daskem.engine import parse_bytes, planner, start_engine
from daskem.engine.executor import Executor, find_executor
from daskem.engine.planner import count_tasks, make_plan
from daskem.errors import OptionError, PlanError
from daskem.models import Bernoulli, Gaussian, KMeans, Mixture, Poisson, StudentT
from daskem.testing.trial import bits

GB = 1 << 30
HERE = Executor(1, 4, 16 * GB)
WORKERS = Executor(3, 2, 4 * GB, base=GB // 4, cluster=True)


def wide(n: int, d: int, chunk: int = 1, dtype: str = "f4") -> Dataset:
    """Rows that take no memory and must not be read."""
    return Dataset(FakeSource(np.broadcast_to(np.zeros((), dtype), (n, d)), chunk, on_read=no_reading))


@dataclass(frozen=True)
class Heavy(Balls):
    """A model whose figures are given."""

    workspace: int = 0
    stats: int = 0

    def footprint(self, n_features: int, dtype: np.dtype) -> Footprint:
        return Footprint(self.block_rows, self.workspace, self.stats, 8)


@pytest.mark.parametrize(("mebibytes", "kept"), [(8, 0), (31, 0), (32, 4 * 32), (63, 4 * 63), (64, 0), (128, 0)])
def test_freed_blocks_are_kept_where_the_allocator_would_not(mebibytes, kept, monkeypatch):
    monkeypatch.setattr(planner, "keeps_freed_blocks", lambda: True)
    data = wide(10**7, 64, chunk=mebibytes << 12)
    plan = make_plan(data, Balls(), HERE, cache="none")
    bare = make_plan(data, Balls(), replace(WORKERS, memory=16 * GB))
    assert (plan.spent, bare.spent) == (kept << 20, 0)
    if kept:
        assert plan.peak - replace(plan, spent=0).peak == plan.spent
        # It is what is left when all else has its memory.
        scarce = plan.peak - plan.spent // 2
        assert make_plan(data, Balls(), HERE, memory_limit=scarce, cache="none").spent == 0
        needs = make_plan(data, Balls(), HERE, memory_limit=scarce, cache="none", memory=lambda sizes: plan.spent // 4)
        assert (needs.spent, needs.algorithm) == (0, plan.spent // 4)
        cached = make_plan(data, Balls(), HERE, cache="memory")
        assert (cached.spent, cached.cached_units) == (0, len(cached.units))


@pytest.mark.parametrize(
    ("data", "model", "remedy"),
    [
        (wide(10**9, 5_000), Mixture(Gaussian("full"), 100_000), "Use fewer components or features, or a simpler cov"),
        (wide(10**9, 64), Heavy(workspace=20 * GB), "Use fewer components or features"),
        (wide(10**9, 64, chunk=10**8), Balls(), "Rechunk the store to fewer rows per chunk, or select fewer columns"),
    ],
)
@pytest.mark.parametrize("executor", [HERE, WORKERS])
def test_what_cannot_fit_is_refused_unread_with_figures_and_a_remedy(data, model, remedy, executor):
    with pytest.raises(PlanError, match=remedy) as raised:
        make_plan(data, model, executor)
    message = str(raised.value)
    assert "Nothing was read." in message
    limit = "2.58 GB" if executor is WORKERS else "10.3 GB"
    for part in (f"may use {limit}", "a process needs", "reader", "workspace", "statistics", "raise memory_limit"):
        assert part in message


# Fifty that are too large for a process of 2 GB, by its statistics, its parameters, its blocks or its chunks.
OVERSIZED = [
    *((Mixture(Gaussian("full"), k), d, 1) for k, d in [(10**5, 50), (10**4, 200), (10**3, 600), (100, 2_000)]),
    *((Mixture(Gaussian("full"), k), 5_000, 1) for k in (5, 10, 100, 10**3, 10**4, 10**5)),
    *((Mixture(Gaussian("tied"), k), d, 1) for k, d in [(10**5, 1_000), (10**4, 5_000), (10**5, 5_000), (10, 10_000)]),
    *((Mixture(Gaussian("diag"), k), d, 1) for k, d in [(10**5, 500), (10**5, 1_000), (3 * 10**4, 2_000)]),
    *((Mixture(Gaussian("diag"), k), 5_000, 1) for k in (10**4, 2 * 10**4, 5 * 10**4, 10**5)),
    *((Mixture(Gaussian("spherical"), 10**5), d, 1) for d in (1_000, 2_000, 3_000, 5_000)),
    *((KMeans(k), d, 1) for k, d in [(10**5, 1_000), (10**5, 2_000), (10**5, 5_000), (5 * 10**4, 5_000)]),
    *((Mixture(StudentT("full"), k), d, 1) for k, d in [(10**5, 50), (10**3, 600), (100, 2_000), (10, 5_000)]),
    *((Mixture(Bernoulli(), k), 5_000, 1) for k in (2 * 10**4, 5 * 10**4, 10**5)),
    *((Mixture(Poisson(), k), 5_000, 1) for k in (2 * 10**4, 5 * 10**4, 10**5)),
    *((KMeans(8), d, 2**32 // d) for d in (1, 16, 64, 512, 5_000)),
    *((Mixture(Gaussian("diag"), 8), d, 2**31 // d) for d in (1, 4, 16, 64, 256, 5_000)),
]


@pytest.mark.parametrize(("model", "d", "chunk"), OVERSIZED)
@pytest.mark.parametrize("executor", [replace(HERE, memory=2 * GB), replace(WORKERS, memory=2 * GB)])
def test_configurations_that_are_too_large_are_refused_unread(model, d, chunk, executor):
    with pytest.raises(PlanError, match=r"a process needs [\d.,]+ [GTP]B .*Nothing was read\."):
        make_plan(wide(10**10, d, chunk), model, executor)


def test_a_fit_that_cannot_fit_reads_nothing():
    with pytest.raises(MemoryError, match="Nothing was read"):
        fit(Mixture(Gaussian("full"), 100_000), wide(10**9, 5_000))
    with pytest.raises(PlanError, match="may use 1 MB"):
        fit(Balls(), wide(1000, 4), memory_limit="1MB")


def test_fewer_threads_are_tried_before_refusing():
    model = Heavy(workspace=GB)
    plans = [make_plan(wide(10**7, 8), model, HERE, memory_limit=gb * GB) for gb in (8, 4, 3, 2)]
    assert [plan.slots for plan in plans] == [4, 3, 2, 1]
    assert all(plan.peak <= plan.limit for plan in plans)
    with pytest.raises(PlanError, match="1 tasks x"):
        make_plan(wide(10**7, 8), model, HERE, memory_limit=GB)


def test_reads_become_shorter_before_refusing(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", shape=(10**6, 16), chunks=(10**4, 16), dtype="f4", fill_value=1.0)
    data = open_dataset(tmp_path / "x.zarr", allow_missing=True)
    usual = make_plan(data, Balls(), WORKERS)
    assert usual.finer == 1
    scarce = make_plan(data, Balls(), WORKERS, memory_limit=usual.peak - usual.reader // 2)
    assert scarce.finer > 1
    assert scarce.peak <= scarce.limit
    assert scarce.units == usual.units
    shorter = replace(data, finer=scarce.finer)
    assert shorter.piece_rows() < data.piece_rows()
    assert shorter.piece_units() == data.piece_units()


def test_shorter_reads_change_no_bit(tmp_path):
    rows = clouds(400_000, d=8)
    zarr.create_array(tmp_path / "x.zarr", data=rows, chunks=(10_000, 8))
    data = open_dataset(tmp_path / "x.zarr")
    model = Mixture(Gaussian(), 2)
    usual, short = (start_engine(d, model, cache="none") for d in (data, replace(data, finer=16)))
    short = replace(short, data=replace(data, finer=16), parts=(replace(data, finer=16),) * len(short.parts))
    params = model.init(Chunk(rows[:1000]), np.random.default_rng(0))
    assert len(replace(data, finer=16).cuts(0, len(rows))) > len(data.cuts(0, len(rows))) > 1
    (one,), (other,) = (engine.expect(model, [params]) for engine in (usual, short))
    assert bits(one) == bits(other)


def test_the_threads_of_workers_are_theirs():
    model = Heavy(workspace=2 * GB)
    with pytest.raises(PlanError, match="2 tasks x"):
        make_plan(wide(10**7, 8), model, WORKERS)


def test_starts_that_share_a_pass_need_memory_each():
    one, four = (make_plan(wide(10**7, 8), Heavy(workspace=1 << 20, stats=1 << 20), HERE, members=n) for n in (1, 4))
    assert four.task - four.reader == 4 * (one.task - one.reader)
    assert four.tree == 4 * one.tree
    assert four.driver == 4 * one.driver


@pytest.mark.parametrize("executor", [HERE, WORKERS])
def test_the_default_limit_is_a_share_of_the_memory_there_is(executor):
    assert make_plan(wide(100, 4), Balls(), executor).limit == int(0.6 * executor.memory)


def test_large_statistics_go_up_a_narrow_tree():
    light, heavy = (make_plan(wide(10**8, 8), Heavy(stats=s), HERE) for s in (8, 64 << 20))
    assert (light.arity, heavy.arity) == (8, 2)
    assert heavy.tasks == count_tasks(len(heavy.units), 2)


# Cache


def cached(data: Dataset, mode: str, executor: Executor = HERE, limit: int = 4 * GB):
    return make_plan(data, Balls(), executor, cache=mode, memory_limit=limit)


@pytest.mark.parametrize("executor", [HERE, WORKERS])
@pytest.mark.parametrize(("n", "auto", "memory"), [(10**6, "all", "all"), (10**9, "none", "some")])
def test_what_is_kept(executor, n, auto, memory):
    plans = {mode: cached(wide(n, 16), mode, executor) for mode in ("none", "auto", "memory")}
    n_units = len(plans["none"].units)
    kept = {mode: plan.cached_units for mode, plan in plans.items()}
    assert kept["none"] == 0
    assert kept["auto"] == {"all": n_units, "none": 0}[auto]
    assert kept["memory"] == n_units if memory == "all" else 0 < kept["memory"] < n_units
    for plan in plans.values():
        size = sum(len(unit) for unit in plan.units[: plan.cached_units]) * 64
        # Whole units, so that processes may hold one more or less than each other, and the last may be short.
        largest = max(map(len, plan.units)) * 64
        assert size <= plan.cache * plan.processes <= size + (plan.processes + 1) * largest
        assert plan.peak <= plan.limit


def test_more_workers_keep_more():
    one, three = (cached(wide(10**9, 16), "memory", replace(WORKERS, processes=n)) for n in (1, 3))
    assert 2.9 < three.cached_units / one.cached_units < 3.1


def test_rows_of_this_process_are_not_kept_twice():
    data = Dataset(FakeSource(clouds(1000), in_process=True))
    assert cached(data, "memory").cached_units == 0


def test_a_part_of_the_units_may_be_kept_while_the_rest_streams(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 14)
    reads: list[int] = []
    rows = clouds(20_000)
    data = Dataset(FakeSource(rows, 100, on_read=lambda a, b: reads.append(a)))
    start = Balls().init(Chunk(rows), np.random.default_rng(0))
    # A large limit, so that what this process happens to hold does not matter, of which half the rows are a share.
    monkeypatch.setattr(planner, "CACHE_SHARE", rows.nbytes / 2 / (1 << 40))
    engine = start_engine(data, Balls(), cache="memory", memory_limit=1 << 40)
    plan = engine.plan
    assert 0 < plan.cached_units < len(plan.units)
    loaded = sorted(reads)
    assert loaded == [unit.start for unit in plan.units[: plan.cached_units]]
    reads.clear()
    kept = engine.expect(Balls(), [start])[0]
    assert sorted(reads) == [unit.start for unit in plan.units[plan.cached_units :]]
    streamed = start_engine(data, Balls(), cache="none").expect(Balls(), [start])[0]
    assert kept.stats.x.tobytes() == streamed.stats.x.tobytes()
    assert kept.objective == streamed.objective


def test_an_unknown_cache_is_refused():
    with pytest.raises(OptionError, match="cache='disk' is not one of 'auto', 'none', 'memory'"):
        fit(Balls(), wide(100, 4), cache="disk")


# Figures


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("2GB", 2 * 10**9),
        ("2 GB", 2 * 10**9),
        ("2g", 2 * 10**9),
        ("2GiB", 2 * 2**30),
        ("1.5kB", 1500),
        ("1.5 KiB", 1536),
        ("0.5TiB", 2**39),
        ("3e2MB", 300 * 10**6),
        (2.5e9, 2_500_000_000),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "two", "-1GB", "0", "nan", "inf", "2GBB", "2 XB", None, "1e400"])
def test_what_is_not_a_size(text):
    with pytest.raises(OptionError, match=r"is not a size\. Give a number of bytes, or text such as '2GB'"):
        parse_bytes(text)


@given(leaves=st.integers(1, 5000), arity=st.integers(2, 9))
def test_tasks_are_counted(leaves, arity):
    level, tasks = leaves, leaves
    while level > 1:
        level = len(range(0, level, arity))
        tasks += level
    assert count_tasks(leaves, arity) == tasks


def test_a_plan_says_what_it_will_cost():
    text = str(cached(wide(10**6, 64), "auto"))
    assert "data      1,000,000 rows x 64 features, 256 MB" in text
    assert "units," in text
    assert "threads of this process, 4 tasks at once" in text
    assert "peak" in text
    assert "of 4.29 GB per process" in text
    assert "3 worker processes, 2 tasks at once in each" in str(cached(wide(10**6, 64), "none", WORKERS))


def test_figures_are_plain_numbers():
    plan = cached(wide(10**6, 64), "auto")
    figures = plan.as_dict()
    assert all(type(value) is int for value in figures.values())
    assert figures["peak"] == plan.peak
    assert figures["units"] == len(plan.units)
    assert figures["data"] == 256 * 10**6


def test_a_model_without_a_footprint_gets_modest_blocks():
    @dataclass(frozen=True)
    class Plain:
        init = Balls.init

    for d in (1, 64, 10**5):
        plan = make_plan(wide(1000, d), Plain(), HERE)
        assert plan.block_rows & (plan.block_rows - 1) == 0
        assert plan.block_rows == 1 or plan.block_rows * d * 4 <= 1 << 20


def test_a_fit_carries_its_plan():
    result = fit(Balls(), clouds(500), stop=MaxSteps(1), memory_limit="4GB")
    assert result.plan.limit == 4 * 10**9
    assert not result.plan.cluster
    assert result.summary()["plan"]["n_rows"] == 500


def test_the_local_executor_is_as_wide_as_dask_is_told():
    with dask.config.set(num_workers=3):
        assert find_executor().slots == 3
    with dask.config.set(scheduler="sync"):
        assert (find_executor().slots, find_executor().scheduler) == (1, "synchronous")
