"""The same passes on a cluster of worker processes: same bits, nothing left behind, deaths survived."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import time
from types import SimpleNamespace

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.delayed import Delayed
from distributed import Client, LocalCluster, get_task_stream
from fakes import Balls, Centers, Deadly, FakeSource, Stranger, bits, clouds
from zarr.storage import LocalStore

import daskem
from daskem import BatchEM, Chunk, MaxSteps
from daskem.data import Dataset, dataset, open_dataset, units
from daskem.engine import arithmetic, spans, start_engine
from daskem.engine.arithmetic import describe_arithmetic, warn_of_unlike
from daskem.engine.executor import Executor
from daskem.engine.sampling import draw_sample
from daskem.errors import DaskEMWarning, NonFiniteError, PlanError
from daskem.models import Gaussian, Mixture
from daskem.predict import predict_rows, predict_to_store
from daskem.testing.trial import bits as bits_of

fit = functools.partial(daskem.fit, algorithm=BatchEM())
ROWS = clouds(4_000)
START = Centers(np.full(3, 1 / 3), ROWS[:3])
MODEL = Balls()


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=":0", memory_limit="2GiB"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "x.zarr"
    zarr.create_array(LocalStore(path), data=ROWS, chunks=(100, 4))
    return str(path)


@pytest.fixture(scope="module")
def expected() -> bytes:
    """The bits of two steps, one task at a time in this process."""
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)
        return bits(fit(MODEL, Dataset(FakeSource(ROWS, 100)), params=START, stop=MaxSteps(2), cache="none").params)


def two_steps(data, **options):
    return fit(options.pop("model", MODEL), data, params=START, stop=MaxSteps(2), **{"cache": "none", **options})


# Where work happens


@pytest.mark.parametrize("cache", ["none", "memory", "auto"])
def test_the_ambient_client_is_used_and_gives_the_same_bits(client, store, expected, cache):
    with get_task_stream(client) as stream:
        result = two_steps(store, model=Stranger(pid=os.getpid()), cache=cache)
    assert bits(result.params) == expected
    plan = result.plan
    assert plan.cluster
    assert (plan.processes, plan.slots) == (2, 1)
    tasks = [record for record in stream.data if "expect_unit" in str(record["key"])]
    assert len(tasks) == 2 * len(plan.units)
    assert len({record["worker"] for record in tasks}) == 2
    assert plan.cached_units == (0 if cache == "none" else len(plan.units))


def test_bits_do_not_depend_on_the_number_of_workers(cluster, client, store, expected):
    one = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
    with dask.annotate(workers=[one]), get_task_stream(client) as stream:
        result = two_steps(store)
    assert bits(result.params) == expected
    assert {record["worker"] for record in stream.data} == {one}


def test_the_latency_of_a_step_covers_what_the_workers_did_for_it(client, store):
    began = time.perf_counter()
    with get_task_stream(client) as stream:
        result = two_steps(store)
    elapsed = time.perf_counter() - began
    tasks = [record for record in stream.data if "expect_unit" in str(record["key"])]
    computed = [(run, task["worker"]) for task in tasks for run in task["startstops"] if run["action"] == "compute"]
    runs = sorted((run["start"], run["stop"], worker) for run, worker in computed)
    # One step after the other: no task of a step begins before all of the one before have ended.
    n_units = len(result.plan.units)
    assert len(runs) == 2 * n_units
    for info, step in zip(result.trace, (runs[:n_units], runs[n_units:]), strict=True):
        for worker in {worker for *_, worker in step}:
            mine = [(start, stop) for start, stop, at in step if at == worker]
            assert info.seconds >= max(stop for _, stop in mine) - mine[0][0]
    assert sum(info.seconds for info in result.trace) <= result.seconds <= elapsed


@pytest.mark.parametrize("chunks", [(100, 4), (100, 3), (1_000, 4)])
def test_a_dask_array_is_computed_by_the_workers(client, expected, chunks):
    rows = da.from_array(ROWS, chunks=chunks)
    result = two_steps(rows, model=Stranger(pid=os.getpid()))
    assert result.plan.cluster
    if chunks[0] == 100:
        assert bits(result.params) == expected
    np.testing.assert_allclose(result.params.means, means_of(expected), rtol=1e-11)


def means_of(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw)[3:].reshape(3, 4)


def test_rows_of_this_process_stay_in_it(client):
    with get_task_stream(client) as stream:
        result = two_steps(ROWS)
    assert not result.plan.cluster
    assert stream.data == []


def test_mini_batches_are_read_by_a_client_of_this_context_alone(store):
    algorithm = daskem.StepwiseEM(batch_rows=300, held_out=200)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
        client.as_current(),
    ):
        result = daskem.fit(Mixture(Gaussian("diag"), 2), store, algorithm=algorithm, stop=daskem.MaxPasses(1))
    assert result.plan.cluster


def test_a_fit_within_a_task_does_not_wait_for_its_own_thread(store):
    def job() -> bool:
        return two_steps(store).plan.cluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(job).result(timeout=60) is False


def test_a_scheduler_that_is_asked_for_by_name_wins(client, store, expected):
    with dask.config.set(scheduler="threads"), get_task_stream(client) as stream:
        result = two_steps(store)
    assert not result.plan.cluster
    assert stream.data == []
    assert bits(result.params) == expected


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_nothing_stays_on_the_cluster(client, store, cache):
    two_steps(store, cache=cache)
    gc.collect()
    # The client and its workers drop what is released when they are told to: ask again, a bounded number of times.
    held = (client.has_what().values() for _ in range(1_000))
    assert any(all(keys == () for keys in workers) and not client.futures for workers in held)


def test_nothing_is_persisted_or_scattered_unasked(client, store, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("not asked for")

    for name in ("persist", "scatter"):
        monkeypatch.setattr(client, name, forbidden)
    monkeypatch.setattr(dask, "persist", forbidden)
    assert two_steps(store).plan.cached_units == 0
    with pytest.raises(AssertionError, match="not asked for"):
        two_steps(store, cache="memory")


def test_several_starts_share_passes_on_a_cluster(client, store, expected):
    with get_task_stream(client) as stream:
        result = fit(
            MODEL,
            store,
            params=[START, Centers(START.weights, ROWS[5:8])],
            stop=MaxSteps(2),
            cache="none",
        )
    assert len([1 for record in stream.data if "expect_unit" in str(record["key"])]) == 2 * len(result.plan.units)
    if result.objectives[0] == max(result.objectives):
        assert bits(result.params) == expected


# Deaths


@pytest.mark.parametrize(("cache", "step"), [("none", 2), ("memory", 2)])
def test_a_worker_that_dies_in_the_midst_changes_no_bit(client, store, expected, tmp_path, cache, step):
    flag = tmp_path / "died"
    before = set(client.run(os.getpid).values())
    result = two_steps(store, model=Deadly(flag=str(flag), step=step, row=2_345), cache=cache)
    assert flag.exists()
    assert bits(result.params) == expected
    client.wait_for_workers(2)
    after = set(client.run(os.getpid).values())
    assert len(before - after) == 1
    assert len(after) == 2


# Graphs


def test_a_pass_over_ten_thousand_chunks_is_a_small_graph(monkeypatch, tmp_path):
    monkeypatch.undo()
    array = zarr.create_array(
        LocalStore(tmp_path / "many.zarr"), shape=(10_000 * 250, 64), chunks=(250, 64), dtype="f4"
    )
    data = open_dataset(array, allow_missing=True)
    submitted: list[Delayed] = []
    # What is returned has no results in it, which ends each pass here.
    monkeypatch.setattr(Executor, "compute_all", lambda self, nodes, slots: submitted.extend(nodes) or [None])
    model = Mixture(Gaussian("diag"), 16)
    params = model.init(gaussian_rows(), np.random.default_rng(0))
    engine = start_engine(data, model, cache="none")
    for n_starts in (1, 4):
        submitted.clear()
        with pytest.raises(AttributeError):
            engine.expect(model, [params] * n_starts)
        (node,) = submitted
        graph = dict(node.__dask_graph__())
        assert len(graph) <= engine.plan.tasks + 2
        assert engine.plan.tasks < 100
        assert len(cloudpickle.dumps(graph)) < 100_000 + len(cloudpickle.dumps([params] * n_starts))


def gaussian_rows() -> Chunk:
    return Chunk(np.random.default_rng(0).standard_normal((500, 64)))


def test_parameters_are_one_node_of_the_graph(client, store, monkeypatch):
    sent: list[Delayed] = []
    compute_all = Executor.compute_all

    def note(self, nodes, slots):
        sent.extend(nodes)
        return compute_all(self, nodes, slots)

    monkeypatch.setattr(Executor, "compute_all", note)
    two_steps(store)
    for node in sent:
        graph = dict(node.__dask_graph__())
        assert len([key for key in graph if str(key).startswith("daskem-ExpectTask")]) == 1
        assert len([key for key in graph if str(key).startswith("daskem-Dataset")]) == 1


# Errors, results


def test_bad_rows_are_named_from_a_worker(client, tmp_path):
    bad = ROWS.copy()
    bad[1_234, 2] = np.nan
    zarr.create_array(LocalStore(tmp_path / "bad.zarr"), data=bad, chunks=(100, 4))
    for cache in ("none", "memory"):
        with pytest.raises(NonFiniteError, match=r"bad.zarr, chunk \(12, 0\), rows 1234:1235 hold 1 row"):
            two_steps(str(tmp_path / "bad.zarr"), cache=cache)
    with pytest.raises(NonFiniteError, match=r"bad.zarr, chunk \(12, 0\), rows 1234:1235 hold 1 row"):
        predict_rows(MODEL, START, open_dataset(tmp_path / "bad.zarr"), "labels", 3, lazy=False)


@pytest.mark.parametrize("what", ["labels", "proba", "log_prob"])
def test_results_of_workers_are_those_of_threads(client, store, what):
    data = open_dataset(store)
    lazy = predict_rows(MODEL, START, data, what, 3, lazy=True)
    there = predict_rows(MODEL, START, data, what, 3, lazy=False)
    with dask.config.set(scheduler="threads"):
        here = predict_rows(MODEL, START, data, what, 3, lazy=False)
    np.testing.assert_array_equal(there, here)
    np.testing.assert_array_equal(lazy.compute(), here)


def test_workers_write_results(client, store, tmp_path, monkeypatch):
    monkeypatch.setattr("daskem.predict.WRITE_BYTES", 1 << 13)
    out = str(tmp_path / "out.zarr")
    with get_task_stream(client) as stream:
        predict_to_store(MODEL, START, open_dataset(store), out, ["labels", "proba"], 3)
    assert len({record["worker"] for record in stream.data}) == 2
    group = zarr.open_group(out, mode="r")
    assert group.attrs["daskem:status"] == "complete"
    assert group["labels"].nchunks > 4
    with dask.config.set(scheduler="threads"):
        for what in ("labels", "proba"):
            np.testing.assert_array_equal(
                group[what][:], predict_rows(MODEL, START, open_dataset(store), what, 3, lazy=False)
            )


def test_samples_drawn_by_workers_are_those_drawn_here(client, store, monkeypatch):
    monkeypatch.setattr(dataset, "PIECE_BYTES", 1 << 11)
    there = start_engine(open_dataset(store), MODEL, cache="none").sample(300, np.random.default_rng(1))
    with dask.config.set(scheduler="threads"):
        here = start_engine(open_dataset(store), MODEL, cache="none").sample(300, np.random.default_rng(1))
    np.testing.assert_array_equal(there.rows, here.rows)


def test_workers_hold_no_more_of_a_sample_than_they_have_room_for(client, store, monkeypatch):
    engine = start_engine(open_dataset(store), MODEL, cache="none")
    together = []
    compute_all = Executor.compute_all

    def note(self, nodes, slots):
        together.append(len(nodes))
        return compute_all(self, nodes, slots)

    monkeypatch.setattr(Executor, "compute_all", note)
    rows = [draw_sample(engine, 3_000, missing=False).rows.read(0, 3_000)]
    one_unit = engine.plan.sizes.sample_bytes(3_000) // len(engine.plan.units)
    tight = dataclasses.replace(engine.plan, limit=engine.plan.peak + 3 * one_unit)
    rows += [draw_sample(dataclasses.replace(engine, plan=tight), 3_000, missing=False).rows.read(0, 3_000)]
    units = len(engine.plan.units)
    assert together[0] == units
    assert sum(together) == 2 * units
    assert max(together[1:]) <= 2 * 3 < units
    np.testing.assert_array_equal(*rows)


def test_passes_are_spans_on_the_scheduler(client, store):
    two_steps(store)
    names = client.run_on_scheduler(span_names)
    # Not one for each: a pass that arrives before the tasks of the last one are forgotten is put into their span.
    assert any(part.startswith("daskem step") for name in names for part in name), names


def test_many_passes_are_few_spans_and_task_groups(client, store, monkeypatch):
    monkeypatch.setattr(spans, "SINGLE", 8)
    before = client.run_on_scheduler(kept_of_passes)
    daskem.fit(Mixture(Gaussian("diag"), 2), store, algorithm=BatchEM(), stop=MaxSteps(33), seed=0, cache="none")
    shown, groups = np.subtract(client.run_on_scheduler(kept_of_passes), before)
    # One for each of the first passes, though Dask puts some into the span before; then 9, 17, 33 begin a shared one.
    assert 1 <= shown <= 8 + 3
    # Of each span: statistics of units, their sums, the model with its parameters, and the data.
    assert groups <= 4 * shown


def kept_of_passes(dask_scheduler):
    shown = [s for s in dask_scheduler.extensions["spans"].spans.values() if s.name[0].startswith("daskem step")]
    return len(shown), sum(len(span.groups) for span in shown)


def span_names(dask_scheduler):
    return [span.name for span in dask_scheduler.extensions["spans"].spans.values()]


def test_a_cluster_without_workers_is_refused(store):
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0") as empty,
        Client(empty),
        pytest.raises(PlanError, match=r"has no workers\. Start some"),
    ):
        two_steps(store)


# Workers that are not alike


def test_workers_that_compute_with_something_else_are_named():
    usual, other = describe_arithmetic(), "x86_64, numpy 1.0, openblas 0.2 Prescott"
    warn_of_unlike({"tcp://a:1": usual, "tcp://b:2": usual})
    with pytest.warns(DaskEMWarning, match=r"2 of 3 with .*numpy.*; but tcp://c:3: x86_64, numpy 1.0") as told:
        warn_of_unlike({"tcp://a:1": usual, "tcp://c:3": other, "tcp://b:2": usual})
    assert "tcp://a:1" not in str(told[0].message)
    with pytest.warns(DaskEMWarning, match=r"tcp://w0, .* and 3 more: "):
        warn_of_unlike({f"tcp://w{i}": other if i < 8 else usual for i in range(20)})


def test_workers_of_one_kind_say_the_same(client, store):
    assert len(set(client.run(describe_arithmetic).values())) == 1
    for part in ("numpy", "scipy", "exp "):
        assert part in describe_arithmetic()


def test_a_fit_warns_of_a_worker_that_is_not_like_the_others(client, store, expected):
    one = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
    client.run(_another_numpy, workers=[one])
    try:
        with pytest.warns(DaskEMWarning, match="workers compute with different .*numpy 0.0"):
            assert bits(two_steps(store).params) == expected
    finally:
        client.run(_own_numpy, workers=[one])


def _another_numpy() -> None:
    arithmetic.np = SimpleNamespace(__version__="0.0", lib=np.lib)


def _own_numpy() -> None:
    arithmetic.np = np


# Algorithms that see parts of the rows

ALGORITHMS = {
    "anderson": daskem.Anderson(),
    "incremental": daskem.IncrementalEM(),
    "progressive": daskem.Progressive(first=200),
    "squarem": daskem.Squarem(),
    "variance-reduced": daskem.VarianceReducedEM(batch_rows=300),
    # One task a mini-batch, and several: a second group of pieces begins at 4,096 rows each.
    "stepwise": daskem.StepwiseEM(batch_rows=300, held_out=200),
}


def algorithm_bits(store: str) -> dict[str, object]:
    model = Mixture(Gaussian(), 3)
    start = model.init(Chunk(ROWS[:400]), np.random.default_rng(0))
    run = functools.partial(daskem.fit, model, store, params=start, stop=daskem.MaxPasses(4), cache="none")
    return {name: bits_of(run(algorithm=algorithm).params) for name, algorithm in ALGORITHMS.items()}


@pytest.mark.parametrize("n_workers", [1, 3])
def test_every_algorithm_gives_the_same_bits_on_any_number_of_workers(store, monkeypatch, n_workers):
    monkeypatch.setattr(dataset, "PIECE_BYTES", 1 << 12)
    expected = algorithm_bits(store)
    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.run(_small_pieces)
        assert algorithm_bits(store) == expected


def _small_pieces() -> None:
    dataset.PIECE_BYTES = 1 << 12
