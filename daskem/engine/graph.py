"""Nodes of Dask graphs: values that tasks share, calls, and reduction trees of a fixed shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from uuid import uuid4

from dask.delayed import Delayed, delayed

__all__ = ["call", "node", "reduction"]


def node(value: Any) -> Delayed:
    """Return a node of the graph for a value that several tasks use."""
    # One node of the graph, whoever uses it: scattered values die with their worker, embedded ones are sent each time.
    return delayed(value, traverse=False, name=f"daskem-{type(value).__name__}-{uuid4().hex}")


def call(function: Callable[..., Any], *args: Any) -> Delayed:
    """Return a task of its own, whatever the arguments."""
    node: Delayed = _delayed(function)(*args, dask_key_name=f"{function.__name__}-{uuid4().hex}")
    return node


@cache
def _delayed(function: Callable[..., Any]) -> Any:
    return delayed(function, pure=False)


def reduction(nodes: list[Delayed], arity: int, join_run: Callable[[list[Delayed]], Delayed]) -> Delayed:
    """Build a reduction tree: its shape depends on positions alone, so that results do not depend on arrival."""
    while len(nodes) > 1:
        nodes = [join_run(nodes[i : i + arity]) for i in range(0, len(nodes), arity)]
    return nodes[0]
