"""Nodes of Dask graphs: values that tasks share, calls, and reduction trees of a fixed shape.

Calls are made by the layer, all that run side by side at once: merging the graphs of one node after the other would
take longer than many a pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph

__all__ = ["calls", "calls_on", "node", "reduction", "rows_of"]

# Of a task on rows: function, first row, row after the last, and what makes the name unique.
ON_ROWS = re.compile(r"\w+-(\d+)-(\d+)-\w+")


def node(value: Any) -> Delayed:
    """Return a node of the graph for a value that several tasks use."""
    # One node of the graph, whoever uses it: scattered values die with their worker, embedded ones are sent each time.
    return delayed(value, traverse=False, name=f"daskem-{type(value).__name__}-{uuid4().hex}")


def calls(function: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> list[Delayed]:
    """Return the tasks ``function(*each)``; arguments are nodes, lists of nodes, or values."""
    return _layer(function, [(function.__name__, each) for each in arguments])


def calls_on(function: Callable[..., Any], runs: Sequence[Sequence[Any]], *shared: Any) -> list[Delayed]:
    """Return the tasks ``function(*run, *shared)``, whose names say which rows of the data they read.

    A run begins with a part of the data, the first row and the row after the last.
    """
    return _layer(function, [(f"{function.__name__}-{run[1]}-{run[2]}", (*run, *shared)) for run in runs])


def rows_of(key: Any) -> tuple[int, int] | None:
    """Return which rows the task of that name reads; None if it is not one of `calls_on`."""
    match = ON_ROWS.fullmatch(str(key))
    return (int(match[1]), int(match[2])) if match else None


def reduction(nodes: Sequence[Delayed], arity: int, function: Callable[..., Any], *first: Any) -> Delayed:
    """Build a tree of ``function(*first, *run)`` over runs of nodes.

    Its shape depends on positions alone, so that results do not depend on arrival.
    """
    while len(nodes) > 1:
        nodes = calls(function, [(*first, *nodes[i : i + arity]) for i in range(0, len(nodes), arity)])
    return nodes[0]


def _layer(function: Callable[..., Any], named: Sequence[tuple[str, Sequence[Any]]]) -> list[Delayed]:
    layer, used, keys = uuid4().hex, dict[Any, Delayed](), dict[int, Any]()

    def reference(argument: Any) -> Any:
        if isinstance(argument, list):
            return [reference(one) for one in argument]
        if argument is None or isinstance(argument, (bool, int)):
            return argument
        if id(argument) not in keys:
            # Dask would look into other values for tasks and their names.
            own = argument if isinstance(argument, Delayed) else node(argument)
            used.setdefault((id(own.dask), own.__dask_layers__()), own)
            keys[id(argument)] = own.key
        return keys[id(argument)]

    tasks = {f"{name}-{layer}_{i}": (function, *map(reference, each)) for i, (name, each) in enumerate(named)}
    graph = HighLevelGraph.from_collections(layer, tasks, dependencies=list(used.values()))
    return [Delayed(key, graph, layer=layer) for key in tasks]
