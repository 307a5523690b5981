"""The algebra of records: laws, orders of summation, and the errors of records that do not match."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from daskem import tree
from daskem.errors import ContractError


@dataclass(frozen=True)
class Inner:
    xx: np.ndarray
    n: float


@dataclass(frozen=True)
class Record:
    x: np.ndarray
    members: tuple[Inner, ...]
    extra: dict[str, Any]
    count: int = 0
    nothing: None = None


class Pair(NamedTuple):
    a: float
    b: float


# Multiples of 1/8 of moderate size add, subtract and halve without rounding, so that laws hold exactly.
exact = st.integers(-(2**20), 2**20).map(lambda i: i / 8)


def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float64, shape, elements=exact)


records = st.builds(
    Record,
    arrays((2, 3)),
    st.tuples(st.builds(Inner, arrays((2,)), exact), st.builds(Inner, arrays((0,)), exact)),
    st.builds(lambda a, b: {"a": a, "b": b}, arrays((1,)), exact),
    st.integers(-1000, 1000),
)


def values(record: Any) -> list[Any]:
    return [np.asarray(leaf).tolist() for _, leaf in tree.leaves(record)]


def example(offset: float = 0.0) -> Record:
    return Record(np.arange(6.0).reshape(2, 3) + offset, (Inner(np.ones(2), 2.0),), {"a": np.zeros(1)}, 3)


def test_paths() -> None:
    assert [path for path, _ in tree.leaves(example())] == ["x", "members[0].xx", "members[0].n", "extra['a']", "count"]
    assert next(iter(tree.leaves(example(), "stats")))[0] == "stats.x"
    assert list(tree.leaves(None)) == []


@given(records, records, records)
def test_vector_space(a: Record, b: Record, c: Record) -> None:
    assert values(tree.add(a, b)) == values(tree.add(b, a))
    assert values(tree.add(tree.add(a, b), c)) == values(tree.add(a, tree.add(b, c)))
    assert values(tree.sub(tree.add(a, b), b)) == values(a)
    assert values(tree.add(a, tree.scale(a, 0.0))) == values(a)
    assert values(tree.scale(tree.add(a, b), 0.5)) == values(tree.add(tree.scale(a, 0.5), tree.scale(b, 0.5)))


@given(records, records)
def test_lerp_is_exact_at_its_ends(a: Record, b: Record) -> None:
    assert values(tree.lerp(a, b, 0.0)) == values(a)
    assert values(tree.lerp(a, b, 1.0)) == values(b)
    assert values(tree.lerp(a, b, 0.5)) == values(tree.scale(tree.add(a, b), 0.5))


@given(records, records)
def test_accumulate_adds_in_place(a: Record, b: Record) -> None:
    total = tree.map_leaves(lambda leaf: leaf + 0, a)
    result = tree.accumulate(total, b)
    assert values(result) == values(tree.add(a, b))
    assert result.x is total.x


def test_records_may_have_fields_by_keyword_alone() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sums:
        n: float
        x: np.ndarray

    one = Sums(n=1.0, x=np.ones(2))
    for total in (tree.add(one, one), tree.reduce([one, one]), tree.accumulate(Sums(n=1.0, x=np.ones(2)), one)):
        assert (total.n, total.x.tolist()) == (2.0, [2.0, 2.0])


def test_operations_leave_their_inputs_alone() -> None:
    a, b = example(), example(1.0)
    before = values(a), values(b)
    for result in (tree.add(a, b), tree.sub(a, b), tree.scale(a, 2.0), tree.lerp(a, b, 0.3), tree.reduce([a, b])):
        assert not np.shares_memory(result.x, a.x)
        assert not np.shares_memory(result.x, b.x)
    assert (values(a), values(b)) == before


def balanced(parts: list[Any]) -> Any:
    """Write the order of summation out: pair neighbours, level by level."""
    while len(parts) > 1:
        parts = [f"({a}+{b})" for a, b in zip(parts[::2], parts[1::2], strict=False)] + parts[len(parts) // 2 * 2 :]
    return parts[0]


class Word:
    """Adds by writing down what was added to what."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: Word) -> Word:
        return Word(f"({self.text}+{other.text})")


def test_reduce_of_eight_is_a_balanced_tree() -> None:
    words = [np.array([Word(str(i))], dtype=object) for i in range(8)]
    assert tree.reduce(words)[0].text == balanced([str(i) for i in range(8)]) == "(((0+1)+(2+3))+((4+5)+(6+7)))"


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.integers(0, 4),
)
def test_reduce_does_not_depend_on_grouping(numbers: list[float], level: int) -> None:
    run = 2**level
    grouped = [tree.reduce(numbers[i : i + run]) for i in range(0, len(numbers), run)]
    assert tree.reduce(grouped) == tree.reduce(numbers)
    assert tree.reduce(iter(numbers)) == tree.reduce(numbers)


def test_reduce_errs_less_than_a_running_sum() -> None:
    numbers = [0.1] * 4096
    assert abs(tree.reduce(numbers) - math.fsum(numbers)) < abs(sum(numbers[1:], numbers[0]) - math.fsum(numbers)) or (
        tree.reduce(numbers) == math.fsum(numbers)
    )


def test_reduce_of_nothing() -> None:
    with pytest.raises(ContractError, match="nothing to reduce"):
        tree.reduce([])


def test_nbytes_and_finite() -> None:
    assert tree.nbytes(example()) == 8 * (6 + 2 + 1 + 1 + 1)
    assert tree.all_finite(example())
    assert not tree.all_finite(example(np.nan))
    assert not tree.all_finite((1.0, np.inf))
    assert tree.all_finite((np.zeros(0), 1, None))


def test_max_change() -> None:
    old = (np.array([1.0, 10.0]), 100.0)
    assert tree.max_change(old, old) == 0.0
    assert tree.max_change(old, (np.array([1.0, 11.0]), 101.0)) == pytest.approx(0.1)
    assert tree.max_change((np.zeros(0),), (np.zeros(0),)) == 0.0
    assert tree.max_change((0.0,), (1.0,)) > 1e200


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        ((np.zeros(2),), (np.zeros(3),), r"\[0\]: shapes \(2,\) and \(3,\) differ"),
        (example(), Inner(np.zeros(1), 1.0), "cannot combine Record with Inner"),
        ((1.0,), (1.0, 2.0), "different fields or lengths"),
        ({"a": 1.0}, {"b": 1.0}, "different fields or lengths"),
        (Inner(np.zeros(1), 1.0), Inner(np.zeros(1), None), r"\.n: cannot combine float with NoneType"),
        (Pair(1.0, 2.0), Pair(1.0, 2.0), "Pair, which has no leaf-wise algebra.*NamedTuple"),
        (Inner("text", 1.0), Inner("text", 1.0), r"\.xx is a str"),
    ],
)
def test_records_that_do_not_match(a: Any, b: Any, match: str) -> None:
    with pytest.raises(ContractError, match=match):
        tree.add(a, b)


def test_numbers_of_different_types_mix() -> None:
    assert tree.add((1, np.float64(0.5), np.array(2.0)), (2.5, 1, np.array(1.0))) == (3.5, 1.5, 3.0)
