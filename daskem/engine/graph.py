"""Nodes of Dask graphs: values that tasks share, calls, and reduction trees of a fixed shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any
from uuid import uuid4

from dask.delayed import Delayed, delayed

__all__ = ["call", "call_on", "node", "reduction", "rows_of"]

# Of a task on rows: function, first row, row after the last, and what makes the name unique.
ON_ROWS = re.compile(r"\w+-(\d+)-(\d+)-\w+")


def node(value: Any) -> Delayed:
    """Return a node of the graph for a value that several tasks use."""
    # One node of the graph, whoever uses it: scattered values die with their worker, embedded ones are sent each time.
    return delayed(value, traverse=False, name=f"daskem-{type(value).__name__}-{uuid4().hex}")


def call(function: Callable[..., Any], *args: Any) -> Delayed:
    """Return a task of its own, whatever the arguments."""
    return _task(function.__name__, function, args)


def call_on(function: Callable[..., Any], part: Any, start: int, stop: int, *args: Any) -> Delayed:
    """Return the task ``function(part, start, stop, *args)``, whose name says which rows of the data it reads."""
    return _task(f"{function.__name__}-{start}-{stop}", function, (part, start, stop, *args))


def rows_of(key: Any) -> tuple[int, int] | None:
    """Return which rows the task of that name reads; None if it is not one of `call_on`."""
    match = ON_ROWS.fullmatch(str(key))
    return (int(match[1]), int(match[2])) if match else None


def _task(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Delayed:
    node: Delayed = _delayed(function)(*args, dask_key_name=f"{name}-{uuid4().hex}")
    return node


@cache
def _delayed(function: Callable[..., Any]) -> Any:
    return delayed(function, pure=False)


def reduction(nodes: list[Delayed], arity: int, join_run: Callable[[list[Delayed]], Delayed]) -> Delayed:
    """Build a reduction tree: its shape depends on positions alone, so that results do not depend on arrival."""
    while len(nodes) > 1:
        nodes = [join_run(nodes[i : i + arity]) for i in range(0, len(nodes), arity)]
    return nodes[0]
