"""Every case keeps every property; and every property is seen to fail on a model that breaks it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, CountStats, Poisson, PoissonMixture, PoissonMixtureParams, count_table, counts

from daskem import tree
from daskem.algorithms.batch import BatchEM
from daskem.core import Chunk, Expectation, Footprint, StepInfo
from daskem.errors import ContractError, OptionError
from daskem.testing import (
    ALGORITHM_PROPERTIES,
    FAMILY_PROPERTIES,
    MODEL_PROPERTIES,
    AlgorithmTrial,
    ModelTrial,
    Property,
    check_algorithm,
    check_family,
    check_model,
    family_model,
    model_trial,
    toy_problem,
)


def suite(model: Any) -> dict[str, Property]:
    """Return the properties that apply to a model, those of its family included where it is made of one."""
    made_of_family = type(model) is type(family_model(getattr(model, "family", None)))
    properties = {**MODEL_PROPERTIES, **FAMILY_PROPERTIES} if made_of_family else MODEL_PROPERTIES
    return {name: one for name, one in properties.items() if one.applies(model)}


def pairs() -> list[Any]:
    """Return every case with every property."""
    return [
        pytest.param(case, one, id=f"{case.name}-{name}")
        for case in CASES
        for name, one in suite(case.model).items()
        if name not in case.skip
    ]


@pytest.mark.parametrize(("case", "one"), pairs())
def test_case_keeps_property(case: Case, one: Property) -> None:
    one.check(model_trial(case.model, case.chunk()))


# One way to break each property. A property that has none here would be a check that cannot fail.


class Mean(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        return replace(found, stats=tree.scale(found.stats, 1.0 / max(len(chunk), 1)))


class NoRecord(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Any:
        return super().e_step(params, chunk).stats


class Smoothed(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        return replace(found, stats=CountStats(found.stats.n + 1e-3, found.stats.x))


class Neighbours(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        cross = float(chunk.rows[1:, 0] @ chunk.rows[:-1, 0])
        return replace(found, stats=replace(found.stats, x=found.stats.x + 1e-3 * cross))


class Unweighted(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, replace(chunk, weight=None))
        return replace(found, weight=chunk.total_weight)


class CountsRows(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        return replace(found, objective=found.objective - 1e-3 * len(chunk))


class SquareWeight(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        return replace(found, objective=found.objective - 1e-3 * float(weight @ weight))


class WritesRows(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        chunk.rows[:] = np.maximum(chunk.rows, 0.0)
        return super().e_step(params, chunk)


@dataclass(frozen=True)
class Counting(PoissonMixture):
    calls: list[int] = field(default_factory=list)

    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        self.calls.append(1)
        found = super().e_step(params, chunk)
        return replace(found, objective=found.objective * (1.0 + 1e-15 * len(self.calls)))


class LeaksScratch(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        lent = chunk.scratch.empty("n", (2,))
        lent[:] = found.stats.n
        return replace(found, stats=CountStats(lent, found.stats.x))


class StaysFloat32(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        return replace(found, stats=tree.map_leaves(lambda leaf: leaf.astype(chunk.rows.dtype), found.stats))


class Located(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        return replace(found, objective=found.objective + 1e-6 * chunk.start)


class Explodes(PoissonMixture):
    def m_step(self, stats: CountStats, params: Any) -> PoissonMixtureParams:
        return replace(super().m_step(stats, params), rates=params.rates * np.array([1.0, np.nan]))


class Overshoots(PoissonMixture):
    def m_step(self, stats: CountStats, params: Any) -> PoissonMixtureParams:
        new = super().m_step(stats, params)
        return replace(new, rates=new.rates * 1.5)


class Additive(PoissonMixture):
    def m_step(self, stats: CountStats, params: Any) -> PoissonMixtureParams:
        return super().m_step(replace(stats, x=stats.x + 1.0), params)


class Wanders(PoissonMixture):
    def m_step(self, stats: CountStats, params: Any) -> PoissonMixtureParams:
        return replace(super().m_step(stats, params), rates=params.rates[::-1] * 2.0)


class StopsShort(PoissonMixture):
    def m_step(self, stats: CountStats, params: Any) -> PoissonMixtureParams:
        return tree.lerp(params, super().m_step(stats, params), 0.5)


class WrongPosterior(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        found = super().e_step(params, chunk)
        return replace(found, stats=replace(found.stats, x=found.stats.x * 1.01))


@dataclass(frozen=True)
class HoldsFunction(PoissonMixture):
    link: Any = field(default_factory=lambda: lambda x: x)


class RatesNotLogged(PoissonMixture):
    def to_vector(self, params: Any) -> np.ndarray:
        return np.concatenate([super().to_vector(params)[:1], params.rates])


class HalfScores(PoissonMixture):
    def scores(self, params: Any, chunk: Chunk) -> np.ndarray:
        return 0.5 * super().scores(params, chunk)


class SameNames(PoissonMixture):
    def parameter_names(self, params: Any) -> list[str]:
        return ["log weight ratio", "log rate", "log rate"]


class ImproperPosterior(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        return PoissonMixture(self.n_components).e_step(params, chunk)

    def posterior(self, params: Any, chunk: Chunk) -> np.ndarray:
        return super().posterior(params, chunk) * 0.99


class NoConstant(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        return PoissonMixture(self.n_components).e_step(params, chunk)

    def log_prob(self, params: Any, chunk: Chunk) -> np.ndarray:
        return super().log_prob(params, chunk) + 1.0


class FlatSample(PoissonMixture):
    def sample(self, params: Any, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rows, latent = super().sample(params, n, rng)
        return rows[:, 0], latent


class MovesToRates(PoissonMixture):
    def moves(self, params: Any, sample: Chunk, rng: np.random.Generator) -> list[tuple[str, Any]]:
        return [(what, new.rates) for what, new in super().moves(params, sample, rng)]


class SmallFootprint(PoissonMixture):
    def footprint(self, n_features: int, dtype: np.dtype) -> Footprint:
        return Footprint(block_rows=1024, workspace=0, stats=24, params=1000)


BREAKS = {
    "e_step_returns_the_record": NoRecord(),
    "additive": Mean(),
    "empty_is_zero": Smoothed(),
    "row_order_does_not_matter": Neighbours(),
    "duplicate_is_weight_two": Unweighted(),
    "zero_weight_is_absent": CountsRows(),
    "linear_in_weight": SquareWeight(),
    "inputs_untouched": WritesRows(),
    "same_bits": Counting(),
    "scratch_is_private": LeaksScratch(),
    "float32_rows": StaysFloat32(),
    "start_does_not_matter": Located(),
    "params_are_finite": Explodes(),
    "objective_never_falls": Overshoots(),
    "m_step_is_scale_free": Additive(),
    "m_step_ascends": Wanders(),
    "m_step_maximises": StopsShort(),
    "fisher_identity": WrongPosterior(),
    "scores_are_gradients": HalfScores(),
    "every_coordinate_has_a_name": SameNames(),
    "pickles": HoldsFunction(),
    "vector_round_trip": RatesNotLogged(),
    "posterior_sums_to_one": ImproperPosterior(),
    "log_prob_sums_to_objective": NoConstant(),
    "sample_is_like_the_rows": FlatSample(),
    "moves_are_params": MovesToRates(),
    "footprint_suffices": SmallFootprint(),
}


def start() -> tuple[Chunk, PoissonMixtureParams]:
    """Return rows, and parameters made without the broken model's help."""
    chunk = Case("", None, counts).chunk()
    return chunk, PoissonMixture().init(chunk, np.random.default_rng(0))


@pytest.mark.parametrize("name", MODEL_PROPERTIES)
def test_property_sees_its_violation(name: str) -> None:
    chunk, params = start()
    good, broken = ModelTrial(PoissonMixture(), chunk, params), ModelTrial(BREAKS[name], chunk, params)
    MODEL_PROPERTIES[name].check(good)
    with pytest.raises(ContractError, match=type(BREAKS[name]).__name__):
        MODEL_PROPERTIES[name].check(broken)


def test_check_model_says_what_is_wrong_in_words() -> None:
    with pytest.raises(ContractError) as caught:
        check_model(Mean(), counts(np.random.default_rng(1), 100))
    text = str(caught.value)
    assert "Mean breaks" in text
    assert "e_step(A) + e_step(B) != e_step(A + B). Leaf stats.n differs by" in text
    assert "Statistics must be sums over rows, not means." in text


def test_check_model_tells_what_it_checked() -> None:
    chunk = Case("", None, counts).chunk()
    checked = check_model(PoissonMixture(), chunk, skip=["fisher_identity"])
    assert set(MODEL_PROPERTIES) - set(checked) == {"fisher_identity"}
    with pytest.raises(OptionError, match=r"additiv.*names no property"):
        check_model(PoissonMixture(), chunk, skip=["additiv"])


def test_what_a_family_lacks_is_passed_over() -> None:
    case = next(case for case in CASES if case.skip)
    assert set(MODEL_PROPERTIES) - set(check_model(case.model, case.chunk())) == case.skip


class NeedsRows(PoissonMixture):
    def e_step(self, params: Any, chunk: Chunk) -> Expectation:
        if not len(chunk):
            raise ZeroDivisionError("no rows")
        return super().e_step(params, chunk)


class Crashes(PoissonMixture):
    def posterior(self, params: Any, chunk: Chunk) -> np.ndarray:
        return super().posterior(params, chunk) if chunk.rows.dtype == np.float64 else chunk.rows.nothing


def test_an_error_of_the_model_is_part_of_the_report() -> None:
    chunk = Case("", None, counts).chunk()
    with pytest.raises(ContractError, match=r"e_step of no rows raised ZeroDivisionError \(no rows\)") as caught:
        check_model(NeedsRows(), chunk)
    assert isinstance(caught.value.__cause__, ContractError)
    with pytest.raises(ContractError, match=r"breaks 1 of .*\n  float32_rows: raised AttributeError") as caught:
        check_model(Crashes(), chunk)
    assert isinstance(caught.value.__cause__, AttributeError)


# Families.


class NormalisesResp(Poisson):
    def stats(self, params: Any, chunk: Chunk, resp: np.ndarray) -> CountStats:
        return super().stats(params, chunk, resp / np.maximum(resp.sum(axis=1, keepdims=True), 1e-300))


class Standardises(Poisson):
    def log_prob(self, params: Any, chunk: Chunk) -> np.ndarray:
        return super().log_prob(params, chunk) - chunk.rows.mean()


def as_if_contiguous(chunk: Chunk) -> Chunk:
    size, d = chunk.rows.itemsize, chunk.rows.shape[1]
    return replace(chunk, rows=np.lib.stride_tricks.as_strided(chunk.rows, strides=(d * size, size)))


class ReadsMemory(Poisson):
    def log_prob(self, params: Any, chunk: Chunk) -> np.ndarray:
        return super().log_prob(params, as_if_contiguous(chunk))

    def terms(self, params: Any, chunk: Chunk) -> Any:
        return super().terms(params, as_if_contiguous(chunk))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (NormalisesResp(), "stats_are_linear_in_resp"),
        (Standardises(), "log_prob_is_per_row"),
        (ReadsMemory(), "layout_does_not_matter"),
    ],
)
def test_family_property_sees_its_violation(family: Any, name: str) -> None:
    rows = count_table(np.random.default_rng(3), 60).astype(float)
    with pytest.raises(ContractError, match=name):
        check_family(family, rows)


def test_check_family_passes_a_good_one() -> None:
    rows = count_table(np.random.default_rng(3), 60).astype(float)
    assert set(FAMILY_PROPERTIES) < set(check_family(Poisson(), rows, n_components=3))


# Algorithms.


@pytest.mark.parametrize("algorithm", [BatchEM()], ids=lambda algorithm: type(algorithm).__name__)
@pytest.mark.parametrize("name", ALGORITHM_PROPERTIES)
def test_algorithm_keeps_property(algorithm: Any, name: str) -> None:
    ALGORITHM_PROPERTIES[name].check(AlgorithmTrial(algorithm, toy_problem, np.array([0.4, 0.6])))


@dataclass(frozen=True)
class ToyState:
    params: np.ndarray
    step: int = 0


@dataclass(frozen=True)
class NamelessState:
    theta: np.ndarray
    step: int = 0


@dataclass(frozen=True)
class ToyEM:
    """Batch EM with places to break it at."""

    def init(self, problem: Any, params: Any) -> Any:
        return ToyState(params)

    def step(self, problem: Any, state: Any) -> tuple[Any, StepInfo]:
        found = problem.expect(state.params)
        params = problem.maximize(found.stats, state.params)
        info = StepInfo(
            state.step + 1,
            problem.objective(found, state.params),
            found.weight,
            state.step + 1.0,
            0.0,
            problem.change(state.params, params),
        )
        return ToyState(params, state.step + 1), info


class Nameless(ToyEM):
    def init(self, problem: Any, params: Any) -> Any:
        return NamelessState(params)

    def step(self, problem: Any, state: Any) -> Any:
        new, info = super().step(problem, ToyState(state.theta, state.step))
        return NamelessState(new.params, new.step), info


class WritesState(ToyEM):
    def step(self, problem: Any, state: Any) -> Any:
        new, info = super().step(problem, state)
        state.params[:] = new.params
        return new, info


class Uncounted(ToyEM):
    def step(self, problem: Any, state: Any) -> Any:
        new, info = super().step(problem, state)
        return new, replace(info, step=1)


class TwoPasses(ToyEM):
    def step(self, problem: Any, state: Any) -> Any:
        problem.expect(state.params, part=[0])
        return super().step(problem, state)


class ReportsTheEnd(ToyEM):
    def step(self, problem: Any, state: Any) -> Any:
        new, info = super().step(problem, state)
        return new, replace(info, objective=info.objective + 1e-3)


@dataclass(frozen=True)
class Remembers(ToyEM):
    """Slows down with the number of steps it made, which it does not keep in the state."""

    made: dict[str, int] = field(default_factory=lambda: {"steps": 0})

    def __reduce__(self) -> Any:
        return Remembers, ()

    def step(self, problem: Any, state: Any) -> Any:
        new, info = super().step(problem, state)
        self.made["steps"] += 1
        return replace(new, params=tree.lerp(state.params, new.params, 1.0 / self.made["steps"])), info


class Standstill(ToyEM):
    def step(self, problem: Any, state: Any) -> Any:
        new, info = super().step(problem, state)
        return replace(new, params=state.params), info


ALGORITHM_BREAKS = {
    "state_is_a_record": Nameless(),
    "step_is_pure": WritesState(),
    "info_is_complete": Uncounted(),
    "passes_are_counted": TwoPasses(),
    "objective_is_at_the_start_of_the_step": ReportsTheEnd(),
    "run_can_be_resumed": Remembers(),
    "run_improves": Standstill(),
}


@pytest.mark.parametrize("name", ALGORITHM_PROPERTIES)
def test_algorithm_property_sees_its_violation(name: str) -> None:
    broken = ALGORITHM_BREAKS[name]
    ALGORITHM_PROPERTIES[name].check(AlgorithmTrial(ToyEM(), toy_problem, np.array([0.4, 0.6])))
    with pytest.raises(ContractError, match=type(broken).__name__):
        ALGORITHM_PROPERTIES[name].check(AlgorithmTrial(broken, toy_problem, np.array([0.4, 0.6])))


def test_check_algorithm() -> None:
    assert check_algorithm(BatchEM()) == tuple(ALGORITHM_PROPERTIES)
    with pytest.raises(ContractError, match=r"(?s)TwoPasses breaks 1 of 7.*reports 1\.0 passes, 1\.125 were made"):
        check_algorithm(TwoPasses())


def test_several_members_share_a_pass() -> None:
    problem = toy_problem()
    members = [np.array([0.4, 0.6]), np.array([0.2, 0.9])]
    together = problem.expect_each(members)
    assert problem.passes == 1.0
    assert [found.objective for found in together] == [problem.expect(params).objective for params in members]
