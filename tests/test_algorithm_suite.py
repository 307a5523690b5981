"""Every algorithm keeps the contract, reaches batch EM's optimum, and counts the rows that it reads."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from cases import CASES
from fakes import Balls, Centers, FakeSource, clouds
from sklearn.base import clone
from zarr.storage import LocalStore

import daskem
from daskem import tree
from daskem.algorithms import (
    ALGORITHMS,
    Anderson,
    Auto,
    BatchEM,
    Gain,
    IncrementalEM,
    MaxPasses,
    MaxSteps,
    Progressive,
    Squarem,
    StepwiseEM,
    VarianceReducedEM,
    decrease,
    variance_reduced,
)
from daskem.algorithms.points import Point, evaluate, may_gain
from daskem.core import Batch, Chunk, Sizes, has_floor
from daskem.data import Dataset, dataset, open_dataset, units
from daskem.engine import DataProblem, start_engine
from daskem.engine.sampling import sampled_rows
from daskem.errors import DataError, MissingCapabilityError, NonFiniteError, OptionError, PlanError
from daskem.models import Gaussian, KMeans, Mixture
from daskem.testing import ALGORITHM_PROPERTIES, CountingProblem, check_algorithm
from daskem.testing.trial import bits

N = 4_000
FREE_ENERGY = "objective_is_at_the_start_of_the_step"
SUITE = [
    pytest.param(BatchEM(), (), id="batch"),
    pytest.param(Squarem(), (), id="squarem"),
    pytest.param(Anderson(), (), id="anderson"),
    pytest.param(Anderson(depth=1), (), id="anderson, shallow"),
    pytest.param(IncrementalEM(), (FREE_ENERGY,), id="incremental"),
    pytest.param(IncrementalEM(blocks=2), (FREE_ENERGY,), id="incremental, two blocks"),
    pytest.param(StepwiseEM(batch_rows=10, held_out=4), (), id="stepwise"),
    pytest.param(StepwiseEM(batch_rows=10, held_out=4, average=True, warm_up=2), (), id="stepwise, averaged"),
    pytest.param(StepwiseEM(batch_rows=10, held_out=4, decay=None, rate=0.3), (), id="stepwise, forgetting"),
    pytest.param(VarianceReducedEM(batch_rows=10), (), id="variance-reduced"),
    pytest.param(VarianceReducedEM(batch_rows=10, rate=1.0), (), id="variance-reduced, fast"),
    pytest.param(Progressive(first=5, growth=2), (), id="progressive"),
    pytest.param(Progressive(BatchEM(), BatchEM(), first=5), (), id="progressive, batch"),
    pytest.param(Auto(), (), id="auto"),
]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Small data make as many units, of as many pieces, as large data would."""
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 13)
    monkeypatch.setattr(dataset, "PIECE_BYTES", 1 << 12)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(3)
    means = np.array([[0.0, 0.0], [2.2, 0.7], [-0.7, 2.8]])
    return means[rng.integers(3, size=N)] + rng.standard_normal((N, 2))


MODEL = Mixture(Gaussian(), 3)


def problem_of(data: Any, model: Any = MODEL, **options: Any) -> DataProblem:
    return DataProblem(model, start_engine(open_dataset(data), model, cache="none", **options))


def start_of(rows: np.ndarray, model: Any = MODEL) -> Any:
    return model.init(Chunk(rows[:400]), np.random.default_rng(0))


# The contract


@pytest.mark.parametrize(("algorithm", "skip"), SUITE)
def test_algorithm_keeps_its_contract(algorithm, skip):
    assert set(check_algorithm(algorithm, skip=skip)) == set(ALGORITHM_PROPERTIES) - set(skip)


def test_every_name_makes_an_algorithm():
    assert {type(make()) for make in ALGORITHMS.values()} >= {type(parameter.values[0]) for parameter in SUITE}


# What they find


@pytest.fixture(scope="module")
def optimum(rows) -> float:
    result = daskem.fit(
        MODEL, rows, params=start_of(rows), algorithm=BatchEM(), stop=[Gain(1e-7), MaxSteps(1_000)], cache="none"
    )
    assert result.converged
    return result.objective


@pytest.mark.parametrize(
    "algorithm",
    [Squarem(), Anderson(), IncrementalEM(), Progressive(first=500), VarianceReducedEM(batch_rows=200)],
    ids=repr,
)
def test_optimum_is_that_of_batch_em_in_fewer_passes(rows, optimum, algorithm):
    start, passes = start_of(rows), {}
    for one in (BatchEM(), algorithm):
        trace = daskem.fit(MODEL, rows, params=start, algorithm=one, stop=MaxPasses(60), cache="none").trace
        good = [info.passes for info in trace if info.exact and info.objective > optimum - 1e-4]
        passes[one] = min(good, default=math.inf)
    assert passes[algorithm] < passes[BatchEM()]


def test_stepwise_comes_near_the_optimum_on_sorted_rows_too(rows, optimum):
    ordered = rows[np.argsort(rows[:, 1])]
    algorithm = StepwiseEM(batch_rows=200, held_out=300, window=8, average=True)
    for data in (rows, ordered):
        result = daskem.fit(MODEL, data, params=start_of(rows), algorithm=algorithm, stop=MaxPasses(8), cache="none")
        found = MODEL.e_step(result.params, Chunk(rows)).objective / N
        assert found > optimum - 8e-3
        assert not any(info.exact for info in result.trace)


def test_monotone_algorithms_never_fall(rows):
    # A rate of 1 with so few rows leads astray: sweeps are forgotten.
    for algorithm in (BatchEM(), Squarem(), Anderson(), IncrementalEM(), VarianceReducedEM(batch_rows=20, rate=1.0)):
        trace = daskem.fit(MODEL, rows, params=start_of(rows), algorithm=algorithm, stop=MaxPasses(12)).trace
        gains = np.diff([info.objective for info in trace])
        assert gains.min() > -1e-12, algorithm


def test_a_sweep_that_leads_down_is_forgotten(rows):
    """Ten rows a mini-batch, and all old statistics replaced: the step is that of batch EM, at half the rate."""
    problem = CountingProblem(MODEL, [Chunk(rows)])
    algorithm = VarianceReducedEM(batch_rows=10, rate=1.0)
    first, _ = algorithm.step(problem, algorithm.init(problem, start_of(rows)))
    second, _ = algorithm.step(problem, first)
    assert second.rate == 0.5
    assert np.allclose(second.params.components.means, plain(problem, first.params).components.means, rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, np.nan])
def test_what_all_rows_show_to_be_worse_is_forgotten(rows, scale):
    """Parameters from elsewhere, or that explain no rows: the step begins again at the anchor."""
    problem = CountingProblem(MODEL, [Chunk(rows)])
    algorithm = VarianceReducedEM(batch_rows=200)
    first, _ = algorithm.step(problem, algorithm.init(problem, start_of(rows)))
    worse = MODEL.init(Chunk(100.0 + rows[:400]), np.random.default_rng(0))
    worse = replace(worse, weights=scale * worse.weights)
    second, info = algorithm.step(problem, replace(first, params=worse, led=True))
    assert second.anchor is first.anchor
    assert (info.objective, info.remaining, second.rate) == (first.anchor.objective, math.inf, first.rate / 2)
    assert bits(second.params) == bits(first.params)
    # It goes on from there.
    info = algorithm.step(problem, second)[1]
    assert info.objective > first.anchor.objective
    assert info.passes == pytest.approx(problem.passes)


@pytest.mark.parametrize("n_batches", [1, 2, 3])
def test_few_mini_batches_are_no_worse_than_batch_em(rows, n_batches):
    problem = CountingProblem(MODEL, [Chunk(rows)])
    found = []
    for algorithm in (BatchEM(), VarianceReducedEM(batch_rows=N // n_batches)):
        state = algorithm.init(problem, start_of(rows))
        for _ in range(12):
            state, info = algorithm.step(problem, state)
        found.append(info)
    assert found[1].passes == pytest.approx(12)
    if n_batches == 1:
        assert found[1].objective == pytest.approx(found[0].objective, abs=1e-12)
    else:
        assert found[1].objective > found[0].objective + 1e-6


@pytest.mark.filterwarnings("ignore:the objective fell by .* reg_covar adds to variances")
@pytest.mark.parametrize("reg_covar", [0.01, 0.1, 1.0])
def test_a_fall_that_batch_em_makes_too_is_no_reason_to_stand_still(rows, reg_covar):
    """A floor on variances makes M-steps miss the maximum: a fit must end by itself all the same."""
    model = Mixture(Gaussian(reg_covar=reg_covar), 3)
    stop = [Gain(1e-5), MaxPasses(100)]
    results = [
        daskem.fit(model, rows, params=start_of(rows, model), algorithm=algorithm, stop=stop, cache="none")
        for algorithm in (BatchEM(), VarianceReducedEM(batch_rows=200))
    ]
    assert results[1].converged
    assert results[1].objective > results[0].objective - 1e-3


def test_mini_batches_are_corrected_about_the_references_of_the_parameters(rows):
    """Tight clusters far apart, whose components are summed about points of their own; these move with the means."""
    tight = np.concatenate([1e-3 * rows[:500], 1e-3 * rows[500:1_000] + 300.0, 1e-3 * rows[1_000:1_500] - 200.0])
    problem = CountingProblem(MODEL, [Chunk(tight)])
    algorithm = VarianceReducedEM(batch_rows=100)
    start = MODEL.init(Chunk(tight), np.random.default_rng(0))

    def moved(by: float) -> Any:
        return replace(start, components=replace(start.components, reference=start.components.reference + by))

    anchor, begin, now = evaluate(problem, start), moved(1e-3), moved(-2e-3)
    sweep = variance_reduced._Sweep(problem, anchor, 0.5, 1, begin, now, None)
    batch = algorithm._batch(problem, 0)
    here, there, seen = (found.stats for found in problem.expect_each([begin, anchor.params, now], batch))
    corrected = sweep._corrected(here, there, seen)
    change = tree.sub(anchor.expectation.stats, there)
    expected = tree.add(seen, MODEL.rebase(change, anchor.params, now))
    for (path, got), (_, want) in zip(tree.leaves(corrected), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * np.abs(want).max(), err_msg=path)


def test_rows_that_are_no_numbers_are_not_taken_for_a_bad_sweep(rows):
    changing = rows.copy()
    problem = problem_of(changing)
    algorithm = VarianceReducedEM(batch_rows=200)
    state, _ = algorithm.step(problem, algorithm.init(problem, start_of(rows)))
    changing[7] = np.nan
    with pytest.raises(NonFiniteError):
        algorithm.step(problem, state)


def test_a_sweep_tells_what_all_rows_say_where_it_began(rows):
    """Mini-batches of unequal sizes, and rows of unequal weights."""
    weight = np.random.default_rng(0).integers(0, 3, N).astype(float)
    data = open_dataset(rows, sample_weight=weight)
    problem = DataProblem(MODEL, start_engine(data, MODEL, cache="none"))
    algorithm = VarianceReducedEM(batch_rows=270, window=3)
    state = algorithm.init(problem, start_of(rows))
    for _ in range(3):
        begin = state.params
        state, info = algorithm.step(problem, state)
        whole = problem.expect(begin)
        for (path, found), (_, true) in zip(tree.leaves(state.anchor.expectation), tree.leaves(whole), strict=True):
            assert np.allclose(found, true, rtol=1e-10, atol=1e-9), path
        assert info.objective == pytest.approx(problem.objective(whole, begin), abs=1e-13)
    batch = Batch(0, 270, window=3)
    shares = [problem.share(replace(batch, index=i)) for i in range(problem.n_batches(batch))]
    assert sum(shares) == pytest.approx(1.0, abs=1e-14)
    assert len(set(shares)) > 1


def plain(problem: Any, params: Any) -> Any:
    """Return where a step of batch EM leads."""
    return problem.maximize(problem.expect(params).stats, params)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mini_batches_correct_every_model(case):
    chunk = case.chunk()
    # So few rows that corrections add up to statistics that no rows have.
    algorithm = VarianceReducedEM(batch_rows=len(chunk) // 12)
    problem = CountingProblem(case.model, [chunk])
    state = algorithm.init(problem, case.model.init(chunk, np.random.default_rng(0)))
    trace = []
    for _ in range(5):
        state, info = algorithm.step(problem, state)
        trace.append(info)
    assert info.passes == pytest.approx(problem.passes)
    # A floor on variances makes M-steps miss the maximum.
    assert has_floor(case.model) or not any(decrease(trace[:n], 1e-6) for n in (2, 3, 4, 5))


def test_the_free_energy_is_a_bound_that_is_met_in_the_end(rows, optimum):
    result = daskem.fit(
        MODEL, rows, params=start_of(rows), algorithm=IncrementalEM(), stop=[Gain(1e-5), MaxPasses(150)], cache="none"
    )
    reached = MODEL.e_step(result.params, Chunk(rows)).objective / N
    assert result.objective <= reached + 1e-12
    assert result.objective == pytest.approx(optimum, abs=1e-4)


def test_k_means_in_stages_is_no_worse(rows):
    algorithms = (BatchEM(), Progressive(first=500))
    batch, staged = (
        daskem.fit(KMeans(6), rows, algorithm=one, stop=[daskem.Change(1e-4), MaxPasses(300)], cache="none", seed=1)
        for one in algorithms
    )
    assert staged.converged
    assert KMeans(6).e_step(staged.params, Chunk(rows)).objective / N > 1.02 * batch.objective


def test_statistical_tolerance_is_p_over_two_n(rows):
    rule = [Gain("statistical"), MaxPasses(500)]
    result = daskem.fit(MODEL, rows, params=start_of(rows), algorithm=BatchEM(), stop=rule, cache="none")
    expected = MODEL.n_parameters(result.params) / (2 * N)
    gains = np.diff([info.objective for info in result.trace])
    assert result.converged
    assert gains[-1] < expected <= gains[-2]


# Passes


def test_one_pass_a_step(rows):
    """Rows are counted where they are read, not by what a step says."""
    for algorithm in (BatchEM(), Anderson(), IncrementalEM()):
        counted = CountingProblem(MODEL, [Chunk(rows[i : i + 500], start=i) for i in range(0, N, 500)])
        state = algorithm.init(counted, start_of(rows))
        for _ in range(6):
            before = counted.passes
            state, info = algorithm.step(counted, state)
            assert info.passes == pytest.approx(counted.passes)
        assert counted.passes - before == pytest.approx(1.0)


def test_squarem_takes_two_passes_where_its_extrapolation_holds(rows):
    counted = CountingProblem(MODEL, [Chunk(rows)])
    algorithm = Squarem()
    state = algorithm.init(counted, start_of(rows))
    used = []
    for _ in range(8):
        before = counted.passes
        state, _ = algorithm.step(counted, state)
        used.append(counted.passes - before)
    assert used[0] == 3
    assert used.count(2) >= 4


class EqualWeights:
    """EM of a mixture whose components weigh the same: the maximum over the rest, which is a map of its own."""

    def image(self, problem: Any, point: Point) -> Any:
        params = problem.maximize(point.expectation.stats, point.params)
        return replace(params, weights=np.full(3, 1 / 3))


@pytest.mark.parametrize("kind", [Squarem, Anderson])
def test_a_map_of_ones_own_is_sped_up(rows, kind):
    problem = CountingProblem(MODEL, [Chunk(rows)])
    params, passes = replace(start_of(rows), weights=np.full(3, 1 / 3)), 0
    point = evaluate(problem, params)
    before = -math.inf
    while point.objective - before > 1e-9:
        before, point, passes = point.objective, evaluate(problem, EqualWeights().image(problem, point)), passes + 1
    algorithm = kind(EqualWeights())
    state, trace = algorithm.init(problem, params), []
    while not trace or (trace[-1].objective < point.objective - 1e-7 and len(trace) < 100):
        state, info = algorithm.step(problem, state)
        trace.append(info)
    assert abs(trace[-1].objective - point.objective) < 1e-6
    assert info.passes < passes / 2
    assert np.allclose(state.params.weights, 1 / 3)


@pytest.mark.parametrize("chunk", [100, 777])
def test_an_epoch_sees_every_row_once(rows, chunk):
    algorithm = StepwiseEM(batch_rows=500, held_out=200, window=3)
    problem = problem_of(Dataset(FakeSource(rows, chunk)), Balls())
    params = Centers(np.full(3, 1 / 3), rows[:3])
    batch = Batch(0, 500, 3, 200)
    n_batches = problem.n_batches(batch)
    parts = [problem.expect(params, replace(batch, index=i)) for i in range(2 * n_batches)]
    held_out = problem.subsample(200)
    everything = Balls().e_step(params, Chunk(rows))
    rest = tree.sub(everything, tree.scale(held_out.expect(params), 200 / N))
    for epoch in (0, 1):
        # Each is scaled to all rows: weighted with what it holds, they add up to the rows that are not held out.
        numbers = range(epoch * n_batches, (epoch + 1) * n_batches)
        total = tree.reduce([tree.scale(parts[i], problem.share(replace(batch, index=i))) for i in numbers])
        for (path, got), (_, want) in zip(tree.leaves(total), tree.leaves(rest), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-7, err_msg=path)
    assert bits(parts[0]) != bits(parts[n_batches])
    assert algorithm.rate_of(1) == 1.0


def test_each_chunk_is_decoded_once_an_epoch(rows):
    read: list[tuple[int, int]] = []
    source = FakeSource(rows, 100, on_read=lambda start, stop: read.append((start, stop)))
    problem = problem_of(Dataset(source), Balls())
    batch = Batch(0, 300, 4)
    n_batches = problem.n_batches(batch)
    params = Centers(np.full(3, 1 / 3), rows[:3])
    for i in range(n_batches):
        problem.expect(params, replace(batch, index=i))
    stream = problem._stream(batch)
    for loading in list(stream._windows.values()):
        loading.result()
    seen = np.zeros(N, int)
    for start, stop in read:
        seen[start:stop] += 1
    # The window after the last one belongs to the next epoch, and is read ahead.
    ahead = sum(len(unit) for group in stream._groups(stream.n_windows) for unit in group)
    assert seen.min() == 1
    assert seen.sum() == N + ahead


# Samples


@pytest.mark.parametrize(("n_rows", "rows", "reach"), [(1_000, 100, 1_000), (1_000, 1_000, 10), (100_000, 700, 300)])
def test_a_sample_does_not_depend_on_how_rows_are_cut(n_rows, rows, reach):
    whole = sampled_rows(0, n_rows, n_rows, rows, reach, seed=4)
    assert len(whole) == len(set(whole.tolist())) == rows
    assert (np.diff(whole) > 0).all()
    cuts = [0, 1, 17, 400, 401, n_rows // 2, n_rows - 3, n_rows]
    parts = [sampled_rows(a, b, n_rows, rows, reach, seed=4) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, sampled_rows(0, n_rows, n_rows, rows, reach, seed=5)) or rows == n_rows


def test_a_small_sample_reads_a_small_part():
    reach, n_rows = 300, 100_000
    chosen = sampled_rows(0, n_rows, n_rows, 640, reach, seed=0)
    assert len(np.unique(chosen // reach)) < 30
    # ... and is spread over all of it.
    assert np.histogram(chosen, bins=10, range=(0, n_rows))[0].tolist() == [64] * 10


def test_a_sample_of_a_sample_is_part_of_it(rows):
    problem = problem_of(rows)
    large = problem.subsample(1_000)
    small = large.subsample(100)
    assert small.n_rows == 100
    inside = {row.tobytes() for row in large.engine.data.rows.read(0, 1_000)}
    assert all(row.tobytes() in inside for row in small.engine.data.rows.read(0, 100))
    assert problem.subsample(1_000) is large


def test_a_sample_stands_for_all_rows(rows):
    problem = problem_of(rows)
    found = problem.subsample(2_000).expect(start_of(rows))
    assert found.weight == pytest.approx(N)
    assert found.objective / N == pytest.approx(problem.expect(start_of(rows)).objective / N, abs=0.05)


def test_weights_and_labels_come_along(rows):
    weight, labels = np.arange(N) / N + 0.5, np.arange(N) % 4 - 1
    problem = problem_of(open_dataset(rows, sample_weight=weight, y=labels))
    drawn = problem.subsample(600).engine.data
    index = sampled_rows(0, N, N, 600, problem.engine.data.piece_rows(), problem.engine.seed)
    np.testing.assert_array_equal(drawn.rows.read(0, 600), rows[index])
    np.testing.assert_array_equal(drawn.weight.read(0, 600)[:, 0], weight[index])
    np.testing.assert_array_equal(drawn.labels.read(0, 600)[:, 0], labels[index])


# The same bits


@pytest.fixture
def store(tmp_path, rows) -> str:
    zarr.create_array(LocalStore(tmp_path / "x.zarr"), data=rows, chunks=(128, 2))
    return str(tmp_path / "x.zarr")


@pytest.mark.parametrize("algorithm", [StepwiseEM(batch_rows=N, held_out=300, window=8), Progressive(first=500)])
def test_bits_do_not_depend_on_scheduler_or_threads(rows, store, algorithm):
    found = set()
    for options in ({"scheduler": "synchronous"}, {"num_workers": 1}, {"num_workers": 3}):
        with dask.config.set(**options):
            result = daskem.fit(MODEL, store, params=start_of(rows), algorithm=algorithm, stop=MaxPasses(4))
            found.add(tuple(bits(result.params)))
    assert len(found) == 1


def test_starts_side_by_side_keep_their_bits(rows, store):
    starts = [start_of(rows), start_of(rows[1_000:])]
    for algorithm in (
        Anderson(),
        IncrementalEM(),
        StepwiseEM(batch_rows=500, held_out=300),
        Progressive(first=500),
        VarianceReducedEM(batch_rows=500),
        # Mini-batches of one run or the other lead too far, where rows have no density.
        VarianceReducedEM(batch_rows=10, rate=1.0),
    ):
        run = functools.partial(daskem.fit, MODEL, store, algorithm=algorithm, stop=MaxPasses(5))
        together = run(params=starts)
        alone = [run(params=start) for start in starts]
        assert together.objectives == tuple(result.objective for result in alone)
        assert bits(together.params) in [bits(result.params) for result in alone]


# What Auto chooses, and says


def test_auto_is_batch_em_on_one_unit(rows, caplog):
    with caplog.at_level(logging.INFO, "daskem"):
        result = daskem.fit(MODEL, rows[:100], stop=MaxPasses(3))
    assert [info.passes for info in result.trace] == [1.0, 2.0, 3.0]
    assert "100 rows in 1 units: BatchEM" in caplog.text


def test_auto_goes_by_samples_where_there_are_rows_enough(rows, caplog):
    with caplog.at_level(logging.INFO, "daskem"):
        daskem.fit(MODEL, rows, stop=MaxPasses(3), cache="none")
        daskem.fit(Mixture(Gaussian(), 25), rows, stop=MaxPasses(3), cache="none")
    assert "units: Progressive" in caplog.text
    assert "units: Anderson" in caplog.text


def test_auto_takes_no_samples_of_what_a_few_steps_settle(caplog):
    clear = clouds(20_000, spread=50.0)
    with caplog.at_level(logging.INFO, "daskem"):
        trace = daskem.fit(MODEL, clear, stop=MaxPasses(3), cache="none").trace
    assert "units: BatchEM" in caplog.text
    assert [info.passes for info in trace] == [1.0, 2.0, 3.0]


def test_auto_takes_mini_batches_where_rows_are_too_few_for_moves_on_a_sample(tmp_path, caplog, monkeypatch):
    """There are 400 rows for each parameter: a sample on which moves can be tried is a good part of them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(140_000, 4)) + 2.0 * rng.integers(4, size=(140_000, 4))
    z = zarr.create_array(LocalStore(tmp_path / "x.zarr"), shape=rows.shape, chunks=(10_000, 4), dtype="f4")
    z[:] = rows
    run = functools.partial(daskem.fit, Mixture(Gaussian(), 24), str(tmp_path / "x.zarr"), cache="none")
    with caplog.at_level(logging.INFO, "daskem"):
        result = run(stop=MaxPasses(7))
    assert "units: VarianceReducedEM" in caplog.text
    objectives = [info.objective for info in result.trace]
    assert sorted(objectives) == objectives
    assert bits(run(stop=MaxPasses(7), algorithm=VarianceReducedEM(rate=0.2)).params) == bits(result.params)
    # A model that knows no moves is not meant, nor is what windows of mini-batches would not fit into.
    sizes = Sizes(
        n_rows=len(rows),
        n_units=14,
        row=16,
        piece=1 << 18,
        stats=4_000,
        params=4_000,
        member=0,
        readers=0,
        room=1 << 20,
    )
    assert Auto().memory(sizes) <= sizes.room
    assert Auto().memory(sizes._replace(room=1 << 30)) >= VarianceReducedEM(rate=0.2).memory(sizes)
    with caplog.at_level(logging.INFO, "daskem"):
        daskem.fit(KMeans(80), str(tmp_path / "x.zarr"), stop=MaxPasses(1), cache="none")
        assert "units: Progressive" in caplog.text
        caplog.clear()
        monkeypatch.setattr(VarianceReducedEM, "memory", lambda algorithm, sizes: sizes.room + 1)
        run(stop=MaxPasses(1))
    assert "units: Progressive" in caplog.text


def test_a_stage_says_its_rows(rows):
    trace = daskem.fit(MODEL, rows, algorithm=Progressive(first=100), stop=MaxPasses(4), cache="none").trace
    stages = list(dict.fromkeys(info.stage for info in trace))
    assert stages == ["250 rows", "1,000 rows", "all rows"]
    assert all(info.exact == (info.stage == "all rows") for info in trace)


def test_what_is_left_of_a_series_of_gains():
    assert may_gain(0.5, 1.0) == pytest.approx(0.5)
    assert may_gain(0.1, 1.0) == pytest.approx(0.1 / 9)
    assert may_gain(1.0, math.inf) == math.inf
    # It grows: a plateau that is left, or rounding.
    assert may_gain(1.0, 0.5) == may_gain(1.0, 0.0) == may_gain(-1.0, 0.5) == pytest.approx(99.0)
    assert may_gain(0.0, 0.0) == 0.0


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepwiseEM(decay=0.5), r"decay=0\.5 is not in \(0\.5, 1\]"),
        (lambda: StepwiseEM(decay=1.1), r"decay=1\.1 is not in"),
        (lambda: StepwiseEM(offset=-1.0), r"offset=-1\.0 must be"),
        (lambda: StepwiseEM(decay=None, rate=0.0), r"rate=0\.0 must be in \(0, 1\]"),
        (lambda: StepwiseEM(batch_rows=0), r"batch_rows=0 must be a whole number"),
        (lambda: StepwiseEM(window=0), r"window=0 must be"),
        (lambda: VarianceReducedEM(batch_rows=0), r"batch_rows=0 must be a whole number"),
        (lambda: VarianceReducedEM(rate=1.5), r"rate=1\.5 must be in \(0, 1\]"),
        (lambda: IncrementalEM(blocks=1), r"blocks=1 must be at least 2"),
        (lambda: Squarem(growth=1.0), r"growth=1\.0 must be larger"),
        (lambda: Anderson(depth=0), r"depth=0 must be at least 1"),
        (lambda: Squarem(StepwiseEM()), r"inner=StepwiseEM\(.* is no map of parameters"),
        (lambda: Anderson(inner=BatchEM), r"inner=<class .*BatchEM'> is no map of parameters"),
        (lambda: Progressive(growth=1), r"growth=1 must be at least 2"),
        (lambda: Progressive("anderson"), r"inner='anderson' is not an algorithm"),
        (lambda: MaxPasses(0), r"not positive"),
    ],
)
def test_options_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_a_batch_or_a_window_larger_than_the_data_is_refused(rows):
    for options, message in (
        ({"batch_rows": N + 1}, "larger than the data"),
        ({"window": 10_000}, "has [0-9]+ pieces"),
    ):
        with pytest.raises(OptionError, match=message):
            daskem.fit(MODEL, rows, algorithm=StepwiseEM(**options), cache="none")


@pytest.mark.parametrize("algorithm", [Squarem(), Anderson(), IncrementalEM(), Progressive(Anderson())])
def test_a_model_without_the_capability_is_refused_before_work(rows, algorithm):
    wanted = "surrogate" if isinstance(algorithm, IncrementalEM) else "from_vector, to_vector"
    with pytest.raises(MissingCapabilityError, match=f"Balls cannot be used for .* it has no method {wanted}"):
        daskem.fit(Balls(), Dataset(FakeSource(rows, 100, on_read=_no_reading)), algorithm=algorithm)


def _no_reading(start: int, stop: int) -> None:
    raise AssertionError("rows were read")


def test_incremental_em_needs_two_units(rows):
    with pytest.raises(OptionError, match="at least two work units"):
        daskem.fit(MODEL, rows[:100], algorithm=IncrementalEM())


def test_memory_of_an_algorithm_is_planned_for(rows):
    many = np.lib.stride_tricks.as_strided(np.zeros(2), shape=(1 << 27, 2), strides=(0, 8))
    with pytest.raises(PlanError, match=r"the algorithm keeps .* beside the E-step.*Nothing was read"):
        daskem.fit(
            MODEL,
            Dataset(FakeSource(many, 1 << 22, on_read=_no_reading)),
            algorithm=StepwiseEM(held_out=1 << 23),
            memory_limit="1GB",
        )
    sizes = Sizes(10**9, 2_000, 400, piece=1 << 24, stats=1 << 20, params=1 << 20, member=7, readers=5, room=1 << 30)
    assert IncrementalEM().memory(sizes) == 64 * (2 << 20)
    assert StepwiseEM().memory(sizes) > 3 * 16 * (1 << 24)
    assert VarianceReducedEM().memory(sizes) == 3 * 16 * (1 << 24) + 12 * (1 << 20) + 2 * 7 - 5
    assert VarianceReducedEM().memory(sizes._replace(member=1)) == 3 * 16 * (1 << 24) + 12 * (1 << 20)
    assert Progressive().memory(sizes) <= 1 << 30


# Streams


def test_partial_fit_is_the_stepwise_algorithm(rows):
    """Mini-batches handed over one by one lead where the algorithm leads that is given the same ones."""
    counted = CountingProblem(MODEL, [Chunk(rows)])
    algorithm = StepwiseEM(batch_rows=500, held_out=100, warm_up=2)
    state, online = algorithm.init(counted, start_of(rows)), daskem.OnlineFit(MODEL, algorithm, params=start_of(rows))
    for index in range(15):
        chunk = counted._chunks(algorithm._batch(counted, index))[0]
        state, _ = algorithm.step(counted, state)
        result = online.update(chunk.rows)
    assert tree.max_change(state.params, result.params) < 1e-9
    assert result.n_steps == 15


@pytest.mark.parametrize("estimator", [daskem.GaussianMixture(3, random_state=0), daskem.KMeans(3, random_state=0)])
def test_estimators_learn_from_a_stream(rows, estimator):
    for start in range(0, N, 500):
        estimator.partial_fit(rows[start : start + 500])
    fitted = type(estimator)(3, random_state=0).fit(rows)
    assert estimator.score(rows) == pytest.approx(fitted.score(rows), rel=0.03)
    assert estimator.predict(rows).shape == (N,)
    assert estimator.n_iter_ == N // 500


CHANGES = {
    "components": (daskem.GaussianMixture(3), {"n_components": 4}, r"n_components changed .*\(n_components=3\)"),
    "shape": (daskem.GaussianMixture(3), {"covariance_type": "diag", "tol": 1.0}, "covariance_type changed"),
    "several": (daskem.StudentTMixture(3), {"dof": 4.0, "means_init": np.eye(3)[:, :2]}, "dof, means_init changed"),
    "clusters": (daskem.KMeans(3), {"n_clusters": 2}, "n_clusters changed since this KMeans"),
    "family": (
        daskem.MixtureModel(3, family=Gaussian()),
        {"family": Gaussian("diag")},
        r"family=Gaussian\(covariance='f",
    ),
    "prior": (daskem.VariationalGaussianMixture(3, tol=1e-3), {"mean_prior": [0.0, 0.0]}, "mean_prior changed"),
}


@pytest.mark.parametrize("way", ["partial_fit", "fit"])
@pytest.mark.parametrize("case", CHANGES)
def test_a_stream_of_another_model_is_refused(rows, case, way):
    estimator, changes, message = CHANGES[case]
    estimator = clone(estimator).set_params(random_state=0)
    getattr(estimator, way)(rows[:500])
    old = {name: estimator.get_params()[name] for name in changes}
    with pytest.raises(OptionError, match=message):
        estimator.set_params(**changes).partial_fit(rows[500:1_000])
    estimator.set_params(**old).partial_fit(rows[500:1_000])
    estimator.set_params(**changes).fit(rows[:500])


def test_what_can_take_effect_in_a_stream_does(rows):
    mixture = daskem.GaussianMixture(3, random_state=0, means_init=rows[:3]).partial_fit(rows[:500])
    # The first have no say in a stream, or are the same; a rate of 1 forgets all but the last mini-batch.
    mixture.set_params(means_init=rows[:3].copy(), tol=0.5, warm_start=True, memory_limit="4GB")
    mixture.set_params(algorithm=StepwiseEM(decay=None, rate=1.0), reg_covar=10.0)
    mixture.partial_fit(rows[500:1_000])
    assert mixture.n_iter_ == 2
    assert mixture.result_.model.family == Gaussian(reg_covar=10.0)
    assert (np.linalg.eigvalsh(mixture.covariances_) > 10.0).all()
    assert mixture.weights_ @ mixture.means_ == pytest.approx(rows[500:1_000].mean(axis=0))


def test_mini_batches_need_not_name_the_columns_again(rows):
    pd = pytest.importorskip("pandas")
    mixed = daskem.MixedMixture(2, families={"b": Gaussian()}, random_state=0)
    mixed.partial_fit(pd.DataFrame(rows[:500], columns=["a", "b"])).partial_fit(da.from_array(rows[500:1_000]))
    assert mixed.result_.model.family.columns == {"b": (1,)}


def test_a_constant_rate_follows_drift():
    rng = np.random.default_rng(0)
    forgetting, settling = (
        daskem.GaussianMixture(1, algorithm=algorithm) for algorithm in (StepwiseEM(decay=None, rate=0.2), StepwiseEM())
    )
    for t in range(200):
        batch = rng.normal(t / 20, 1.0, (300, 1))
        forgetting.partial_fit(batch)
        settling.partial_fit(batch)
    assert abs(forgetting.means_[0, 0] - 10.0) < 0.5 < abs(settling.means_[0, 0] - 10.0)


def test_a_stream_keeps_its_last_good_parameters(rows):
    mixture = daskem.GaussianMixture(3, random_state=0).partial_fit(rows[:500])
    before = mixture.means_.copy()
    with pytest.raises(ValueError, match=r"X has 1 features, but GaussianMixture is expecting 2"):
        mixture.partial_fit(rows[:500, :1])
    with pytest.raises(ValueError, match="0 sample"):
        mixture.partial_fit(rows[:0])
    np.testing.assert_array_equal(mixture.means_, before)
    online = daskem.OnlineFit(MODEL)
    with pytest.raises(DataError, match="fewer than the 3 components"):
        online.update(rows[:2])
    online.run(iter([rows[:500], rows[500:900]]))
    with pytest.raises(DataError, match="mini-batches before it had 2"):
        online.update(rows[:100, :1])
    assert online.run(iter([])) is None
    assert online.params is not None


def test_the_log_of_a_stream_is_as_long_as_asked_for(rows):
    online = daskem.OnlineFit(MODEL, most_logged=2)
    result = online.run(rows[start : start + 500] for start in range(0, 2_000, 500))
    assert [info.step for info in result.trace] == [3, 4]
    assert result.n_steps == result.summary()["steps"] == 4
    assert online.update(rows[:500]).n_steps == 5


def test_fit_forgets_the_stream(rows):
    mixture = daskem.GaussianMixture(3, random_state=0)
    mixture.partial_fit(rows[:500]).fit(rows[:2_000])
    assert mixture.n_iter_ != 1
    mixture.partial_fit(rows[2_000:2_500])
    assert mixture.n_iter_ == 1


def test_noise_is_no_warning(rows):
    """Objectives of mini-batches fall by chance, and nobody should be told that EM went wrong."""
    algorithm = StepwiseEM(batch_rows=100, held_out=50)
    trace = daskem.fit(MODEL, rows, params=start_of(rows), algorithm=algorithm, stop=MaxPasses(4)).trace
    assert np.diff([info.objective for info in trace]).min() < -1e-6
