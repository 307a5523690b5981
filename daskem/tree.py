"""Algebra of records of arrays: the vector space in which expected statistics live.

A tree is a frozen dataclass, tuple, list or dict whose leaves are numpy arrays or numbers; ``None`` is an empty tree.
Statistics are added (batch EM), blended (stepwise EM) and subtracted (incremental EM), always leaf by leaf.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from daskem.errors import ContractError

__all__ = [
    "accumulate",
    "add",
    "all_finite",
    "leaves",
    "lerp",
    "map_leaves",
    "max_change",
    "nbytes",
    "reduce",
    "scale",
    "sub",
]

T = TypeVar("T")


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` of every leaf, in field order; paths look like ``stats.xx`` or ``members[2].n``."""
    if tree is None:
        return
    if isinstance(tree, (np.ndarray, np.generic, int, float)):
        yield path, tree
        return
    for name, child in _children(tree, path):
        yield from leaves(child, path + name if path else name.lstrip("."))


def map_leaves(function: Callable[..., Any], tree: T, *others: T) -> T:
    """Apply `function` to corresponding leaves of trees of one structure.

    Raises
    ------
    ContractError
        If the structures or the shapes of two corresponding arrays differ.
    """
    return _map(function, tree, others, "")  # type: ignore[no-any-return]


def add(a: T, b: T) -> T:
    """Return ``a + b``."""
    return _add(a, b, False)  # type: ignore[no-any-return]


def accumulate(total: T, part: T) -> T:
    """Return ``total + part``, reusing the arrays of `total`, which the caller must own."""
    return _add(total, part, True)  # type: ignore[no-any-return]


def sub(a: T, b: T) -> T:
    """Return ``a - b``."""
    return map_leaves(lambda x, y: x - y, a, b)


def scale(tree: T, factor: float) -> T:
    """Return ``factor * tree``."""
    return map_leaves(lambda x: x * factor, tree)


def lerp(a: T, b: T, t: float) -> T:
    """Return ``(1 - t) a + t b``, the blend of stepwise EM; exactly `a` at 0 and exactly `b` at 1."""
    return map_leaves(lambda x, y: (1.0 - t) * x + t * y, a, b)


def reduce(trees: Iterable[T]) -> T:
    """Add in the fixed order of a balanced binary tree over positions: ``((0+1)+(2+3))+...``.

    The order depends on positions only, never on arrival, and nesting a run of 2^m positions in one call gives the bits
    of the flat call: that is why a pass gives the same bits however its work units were grouped. Takes an iterator and
    holds no more than log2 of its length at a time.

    Raises
    ------
    ContractError
        If there is nothing to add: an empty sequence of records has no zero of its own.
    """
    stack: list[tuple[int, T]] = []
    for tree in trees:
        level = 0
        while stack and stack[-1][0] == level:
            tree = add(stack.pop()[1], tree)
            level += 1
        stack.append((level, tree))
    if not stack:
        raise ContractError("nothing to reduce: an empty sequence of records has no zero of its own.")
    total = stack.pop()[1]
    while stack:
        total = add(stack.pop()[1], total)
    return total


def nbytes(tree: Any) -> int:
    """Return the bytes of all leaves, counting a number as 8."""
    return sum(leaf.nbytes if isinstance(leaf, np.ndarray) else 8 for _, leaf in leaves(tree))


def all_finite(tree: Any) -> bool:
    """Return whether no leaf holds NaN or infinity."""
    return all(bool(np.isfinite(leaf).all()) for _, leaf in leaves(tree))


def max_change(old: Any, new: Any) -> float:
    """Return the largest change of a leaf, relative to the largest magnitude in that leaf (at least 1e-300)."""
    change = 0.0
    for (_, a), (_, b) in zip(leaves(old), leaves(new), strict=True):
        a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        if a.size:
            change = max(change, float(np.abs(b - a).max()) / max(float(np.abs(a).max()), 1e-300))
    return change


def _add(a: Any, b: Any, in_place: bool, path: str = "") -> Any:
    # This runs once a block and unit, so that records of one type are walked without the checks of `_map`, which
    # anything else is left to.
    kind: Any = type(a)
    if kind is type(b):
        if kind is float:
            return a + b
        if kind is np.ndarray and a.ndim and a.shape == b.shape:
            return np.add(a, b, out=a if in_place else None)
        if kind is tuple and len(a) == len(b):
            return tuple([_add(x, y, in_place, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))])
        if names := _field_names(kind):  # type: ignore[arg-type]  # a class is hashable
            pairs = [(name, getattr(a, name), getattr(b, name)) for name in names]
            return kind(**{name: _add(x, y, in_place, f"{path}.{name}") for name, x, y in pairs})
    return _map(
        lambda x, y: np.add(x, y, out=x) if in_place and isinstance(x, np.ndarray) and x.ndim else x + y, a, (b,), path
    )


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _children(tree: Any, path: str) -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f".{f.name}", getattr(tree, f.name)) for f in dataclasses.fields(tree)]
    if isinstance(tree, dict):
        return [(f"[{key!r}]", value) for key, value in tree.items()]
    if type(tree) in (tuple, list):
        return [(f"[{i}]", value) for i, value in enumerate(tree)]
    raise ContractError(
        f"{path or 'the record'} is a {type(tree).__name__}, which has no leaf-wise algebra. "
        "Use a frozen dataclass of numpy arrays and numbers (a NamedTuple would be concatenated by '+')."
    )


def _map(function: Callable[..., Any], tree: Any, others: tuple[Any, ...], path: str) -> Any:
    if tree is None:
        return None
    for other in others:
        if type(other) is not type(tree) and not (_is_number(tree) and _is_number(other)):
            raise ContractError(
                f"{path or 'records'}: cannot combine {type(tree).__name__} with {type(other).__name__}. "
                "An E-step must return the same record for every chunk, an empty one included."
            )
    if isinstance(tree, np.ndarray) and tree.ndim:
        for other in others:
            if other.shape != tree.shape:
                raise ContractError(
                    f"{path or 'leaf'}: shapes {tree.shape} and {other.shape} differ. "
                    "Statistics are sums over rows: their shapes must not depend on the number of rows."
                )
        return function(tree, *others)
    if _is_number(tree):
        return function(tree, *others)
    parts = _children(tree, path)
    if isinstance(tree, dict):
        others = tuple({key: other[key] for key in tree if key in other} | other for other in others)
    other_parts = [_children(other, path) for other in others]
    if any([name for name, _ in part] != [name for name, _ in parts] for part in other_parts):
        raise ContractError(f"{path or 'records'}: the two records have different fields or lengths.")
    mapped = [
        _map(function, child, tuple(part[i][1] for part in other_parts), path + name)
        for i, (name, child) in enumerate(parts)
    ]
    if isinstance(tree, dict):
        return dict(zip(tree, mapped, strict=True))
    if isinstance(tree, (tuple, list)):
        return type(tree)(mapped)
    return dataclasses.replace(
        tree, **{f.name: value for f, value in zip(dataclasses.fields(tree), mapped, strict=True)}
    )


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, np.generic)) or (isinstance(x, np.ndarray) and x.ndim == 0)
