"""Values from a Dask cluster, any process of which may die at any moment."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from dask.delayed import Delayed
from distributed import Client, Future, KilledWorker, default_client, wait

from daskem.engine.graph import rows_of
from daskem.errors import ClusterError

__all__ = ["DeadlyTasksError", "compute_remotely"]

# How long a cluster may be without any worker, or without its scheduler, while it should work, and how often to look.
LOST_SECONDS = 300.0
LOOK_SECONDS = 5.0


class DeadlyTasksError(Exception):
    """Tasks that no worker survives: one, or several that are deadly only together.

    Attributes
    ----------
    keys, deaths, worker : names of the tasks, how many workers died of them, and which was the last one.
    """

    def __init__(self, keys: Sequence[str], error: KilledWorker) -> None:
        super().__init__(str(error))
        self.keys, self.deaths, self.worker = keys, error.allowed_failures + 1, error.last_worker.address


def compute_remotely(nodes: Sequence[Delayed]) -> list[Any]:
    """Return the values of delayed `nodes` from the cluster of the ambient client.

    Workers that die are Dask's business: what they had is computed again elsewhere, three times by default.

    Raises
    ------
    ClusterError
        If the scheduler goes away, or for `LOST_SECONDS` does not answer or has no workers: Dask would wait for ever.
    DeadlyTasksError
        If each worker died that worked on certain tasks.
    """
    client = default_client()
    address = client.scheduler.address
    try:
        try:
            return _compute(client, nodes)
        except KilledWorker as error:
            raise DeadlyTasksError(_find_deadly(client, nodes, error), error) from error
    except CancelledError as error:
        raise ClusterError(
            f"the Dask scheduler at {address} went away ({type(error).__name__}). Its log says why; start a cluster "
            "again, and fit again."
        ) from error


def _compute(client: Client, nodes: Sequence[Delayed]) -> list[Any]:
    futures = client.compute(list(nodes))
    try:
        _wait(client, futures)
        return list(client.gather(futures))
    finally:
        # The traceback of an error would keep them, and their values on the cluster.
        for future in futures:
            future.release()


def _wait(client: Client, futures: Sequence[Future]) -> None:
    """Return when all futures are done, or one has failed."""
    address, alive = client.scheduler.address, time.monotonic()
    pending: Any = futures
    while pending and not any(future.status == "error" for future in futures):
        try:
            pending = wait(pending, timeout=LOOK_SECONDS).not_done
        except TimeoutError:
            alive = time.monotonic() if _has_workers(client) else alive
            _check_alive(client, address, time.monotonic() - alive)


def _has_workers(client: Client) -> bool:
    try:
        return client.status == "running" and bool(client.nthreads())
    except OSError:
        return False


def _check_alive(client: Client, address: str, seconds: float) -> None:
    if seconds < LOST_SECONDS:
        return
    lost = "has had no workers" if client.status == "running" else "has not answered"
    raise ClusterError(
        f"the Dask scheduler at {address} {lost} for {seconds:.0f} s. Look into the logs of the jobs or machines that "
        "should run it, start them again, and fit again."
    )


def _find_deadly(client: Client, nodes: Sequence[Delayed], error: KilledWorker) -> list[str]:
    """Return which tasks kill their workers; Dask blames all that a worker had when it died.

    Those that were there at each death are run again, one by one.
    """
    graph = nodes[0].dask if len(nodes) == 1 else {key: task for node in nodes for key, task in node.dask.items()}
    suspects = [
        key
        for key, deaths in _at_deaths(client).most_common()
        if deaths > error.allowed_failures and key in graph and rows_of(key)
    ]
    for key in suspects:
        if _is_deadly(client, Delayed(key, graph)):
            return [key]
    return suspects or [str(error.task)]


def _is_deadly(client: Client, task: Delayed) -> bool:
    """Return whether workers die that have nothing else to do than this task; one death may be chance."""
    before, end = _at_deaths(client)[task.key], time.monotonic() + LOST_SECONDS
    future = client.compute(task)
    try:
        while time.monotonic() < end and not future.done():
            with suppress(TimeoutError):
                wait(future, timeout=LOOK_SECONDS / 10)
            if _at_deaths(client)[task.key] >= before + 2:
                return True
        return future.status == "error" and isinstance(future.exception(), KilledWorker)
    finally:
        future.release()


def _at_deaths(client: Client) -> Counter[str]:
    """Return the tasks that workers had when they died, and how often that happened."""
    events = (event for _, event in client.get_events("all") if isinstance(event, dict))
    removed = (event for event in events if event.get("action") == "remove-worker" and not event.get("expected"))
    return Counter(str(key) for event in removed for key in event.get("processing-tasks", ()))
