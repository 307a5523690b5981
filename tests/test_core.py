"""Chunk, Scratch and require: what every model and the engine rely on."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskem.chunk import Derived
from daskem.core import (
    Chunk,
    Expectation,
    Family,
    HasLogPrior,
    HasSurrogate,
    HasVector,
    Model,
    Scratch,
    require,
)
from daskem.errors import ContractError, DaskEMError, MissingCapabilityError
from daskem.testing import TwoCoins


def chunk(n: int = 5, **fields: object) -> Chunk:
    return Chunk(np.arange(2.0 * n).reshape(n, 2), **fields)  # type: ignore[arg-type]


def test_weight_of_a_chunk() -> None:
    assert len(chunk()) == 5
    assert chunk().total_weight == 5.0
    assert chunk(weight=np.array([0.0, 0.5, 1.0, 2.0, 0.0])).total_weight == 3.5
    assert chunk(0).total_weight == 0.0
    assert type(chunk(0, weight=np.zeros(0)).total_weight) is float


def test_rng_depends_on_seed_step_and_start_alone() -> None:
    def draw(seed: int, start: int, step: int) -> list[float]:
        return chunk(seed=seed, start=start).rng(step).random(3).tolist()

    first = draw(1, 100, 2)
    assert draw(1, 100, 2) == first
    assert all(draw(*other) != first for other in ((2, 100, 2), (1, 101, 2), (1, 100, 3)))


@given(
    n=st.integers(1, 30),
    cut=st.integers(0, 30),
    size=st.integers(1, 9),
    start=st.integers(0, 2**40),
    step=st.integers(0, 2**20),
)
def test_uniform_does_not_depend_on_where_chunks_begin(n: int, cut: int, size: int, start: int, step: int) -> None:
    cut = min(cut, n)
    whole = chunk(n, start=start, seed=3).uniform(step, size)
    parts = [
        chunk(cut, start=start, seed=3).uniform(step, size),
        chunk(n - cut, start=start + cut, seed=3).uniform(step, size),
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.shape == (n, size)
    assert ((whole >= 0) & (whole < 1)).all()


def test_uniform_differs_by_row_step_and_seed() -> None:
    draws = [chunk(50, seed=seed).uniform(step, 3) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert len(np.unique(np.concatenate(draws))) == 3 * 50 * 3


def test_uniform_and_rng_never_share_numbers() -> None:
    rows = chunk(50)
    assert not np.intersect1d(rows.uniform(0, 4), rows.rng(0).random(200)).size


def test_chunk_travels() -> None:
    sent = pickle.loads(pickle.dumps(chunk(weight=np.ones(5), start=7, seed=9)))
    np.testing.assert_array_equal(sent.rows, chunk().rows)
    assert (sent.start, sent.seed, sent.labels) == (7, 9, None)


def test_scratch_gives_the_same_memory_again() -> None:
    scratch = Scratch()
    first = scratch.empty("a", (4, 3))
    assert np.shares_memory(first, scratch.empty("a", (2, 3)))
    assert not np.shares_memory(first, scratch.empty("b", (4, 3)))
    assert scratch.empty("a", (2, 3)).flags.c_contiguous
    assert scratch.empty("a", (2, 3)).dtype == np.float64


def test_scratch_makes_room_when_it_must() -> None:
    scratch = Scratch()
    first = scratch.empty("a", (4,))
    larger, other = scratch.empty("a", (5,)), scratch.empty("a", (5,), np.float32)
    assert (larger.shape, other.dtype) == ((5,), np.float32)
    assert not np.shares_memory(first, larger)
    assert not np.shares_memory(larger, other)
    assert scratch.empty("a", (0, 3)).shape == (0, 3)
    assert scratch.empty("scalar", ()).shape == ()


def test_scratch_keeps_a_value_for_its_owner() -> None:
    scratch, made = Scratch(), []

    def make() -> int:
        made.append(1)
        return len(made)

    owner, equal = [1], [1]
    assert [scratch.keep("a", owner, make) for _ in range(3)] == [1, 1, 1]
    assert scratch.keep("a", equal, make) == 2, "an equal owner is not the same owner"
    assert scratch.keep("b", equal, make) == 3
    assert scratch.keep("a", owner, make) == 4, "only the last owner's value is kept"


def test_what_follows_from_parameters_is_made_once_for_all_tasks() -> None:
    derived, made = Derived(), []
    scratches = [Scratch(derived), Scratch(derived).part("group")]
    params = [[0.0], [0.0]]

    def ask(i: int) -> int:
        return scratches[i % 2].derived("kernel", params[i % 4 // 2], lambda: made.append(i) or len(made))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(400)))
    assert len(made) == 2
    assert [len(set(found[i::4])) for i in range(4)] == [1, 1, 1, 1]
    assert found[0] == found[1] != found[2] == found[3]
    # Sent elsewhere, it is made there.
    assert pickle.loads(pickle.dumps(derived)).of(params[0], "kernel", lambda: "new") == "new"
    # A chunk by hand may meet any number of parameters, and keeps what the last ones led to.
    alone = Scratch()
    assert [alone.derived("kernel", params[i], lambda: object()) is not None for i in (0, 1, 0)] == [True] * 3
    assert len(alone._kept) == 1


def test_require_gives_the_model_back() -> None:
    class WithPrior(TwoCoins):
        def log_prior(self, params: object) -> float:
            return 0.0

    model = WithPrior()
    assert require(model, HasLogPrior, "penalised fits") is model


class Bare:
    """A model with nothing but what a model must have."""

    def init(self, sample: Chunk, rng: np.random.Generator) -> float:
        return 1.0

    def e_step(self, params: float, chunk: Chunk) -> Expectation:
        return Expectation(float(len(chunk)), 0.0, chunk.total_weight)

    def m_step(self, stats: float, params: float) -> float:
        return stats


def test_require_says_what_to_implement() -> None:
    with pytest.raises(
        MissingCapabilityError,
        match=r"Bare cannot be used for SQUAREM: .* no method from_vector, to_vector\..*daskem\.core\.HasVector",
    ) as caught:
        require(Bare(), HasVector, "SQUAREM")
    assert isinstance(caught.value, (ContractError, DaskEMError, TypeError))


def test_protocols_tell_models_from_families() -> None:
    assert isinstance(Bare(), Model)
    assert not isinstance(Bare(), (Family, HasSurrogate))
