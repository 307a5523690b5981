"""Values from a Dask cluster, any process of which may die at any moment."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from dask.delayed import Delayed
from distributed import Client, Future, KilledWorker, default_client, wait
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from daskem.engine.graph import rows_of
from daskem.errors import ClusterError

__all__ = ["DeadlyTasksError", "ask_scheduler", "compute_remotely"]

logger = logging.getLogger("daskem")

# How long a cluster may be without any worker, or without its scheduler, while it should work, and how often to look.
LOST_SECONDS = 300.0
LOOK_SECONDS = 5.0
# How often Dask may give up on deaths that no task is the reason of.
ATTEMPTS = 3


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

    Workers that die are Dask's business: what they had is computed again elsewhere, three times by default. Then each
    task that may be the reason is run again alone; if none is, all is tried again, `ATTEMPTS` times.

    Raises
    ------
    ClusterError
        If the scheduler goes away, or for `LOST_SECONDS` does not answer or has no workers: Dask would wait for ever.
    DeadlyTasksError
        If each worker died that worked on certain tasks.
    """
    with ask_scheduler() as client:
        for _ in range(ATTEMPTS - 1):
            try:
                return _compute(client, nodes)
            except KilledWorker as error:
                for task in _suspects(client, nodes, error):
                    if _is_deadly(client, task):
                        raise DeadlyTasksError([task.key], error) from error
                # Workers are lost to something else, such as a batch system that wants its nodes back.
                logger.warning(
                    "%d workers died one after the other, of nothing that they worked on; trying again",
                    error.allowed_failures + 1,
                )
        try:
            return _compute(client, nodes)
        except KilledWorker as error:
            keys = [task.key for task in _suspects(client, nodes, error)] or [str(error.task)]
            raise DeadlyTasksError(keys, error) from error


@contextmanager
def ask_scheduler() -> Iterator[Client]:
    """Give the ambient client.

    Raises
    ------
    ClusterError
        If its scheduler goes away meanwhile.
    """
    client = default_client()
    address = client.scheduler.address
    try:
        yield client
    except (CancelledError, ClosedClientError, CommClosedError) as error:
        raise ClusterError(_gone(address, type(error).__name__)) from error


def _gone(address: str, how: str) -> str:
    return f"the Dask scheduler at {address} went away ({how}). Its log says why; start a cluster again, and fit again."


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
    watch, pending = _Watch(client), futures
    while pending and not any(future.status == "error" for future in futures):
        try:
            pending = tuple(wait(pending, timeout=LOOK_SECONDS).not_done)
        except TimeoutError:
            watch.look()


class _Watch:
    """Sees whether a cluster on which something is waited for is still there."""

    def __init__(self, client: Client) -> None:
        self.client, self.address, self.alive = client, client.scheduler.address, time.monotonic()

    def look(self) -> None:
        """Raise ClusterError if the cluster is gone, or had no workers for too long."""
        # A client that cannot reach its scheduler closes itself; work given to it meanwhile is never done.
        if self.client.status in ("closing", "closed"):
            raise ClusterError(_gone(self.address, "the client is closed"))
        if self._has_workers():
            self.alive = time.monotonic()
        seconds = time.monotonic() - self.alive
        if seconds >= LOST_SECONDS:
            lost = "has had no workers" if self.client.status == "running" else "has not answered"
            raise ClusterError(
                f"the Dask scheduler at {self.address} {lost} for {seconds:.0f} s. Look into the logs of the jobs or "
                "machines that should run it, start them again, and fit again."
            )

    def _has_workers(self) -> bool:
        try:
            return self.client.status == "running" and bool(self.client.nthreads())
        except OSError:
            return False


def _suspects(client: Client, nodes: Sequence[Delayed], error: KilledWorker) -> list[Delayed]:
    """Return the tasks that were there at each death; Dask blames all that a worker had when it died."""
    graphs = {id(node.dask): node.dask for node in nodes}
    graph = {key: task for own in graphs.values() for key, task in own.items()}
    return [
        Delayed(key, graph)
        for key, deaths in _at_deaths(client).most_common()
        if deaths > error.allowed_failures and key in graph and rows_of(key)
    ]


def _is_deadly(client: Client, task: Delayed) -> bool:
    """Return whether workers die that have nothing else to do than this task; one death may be chance."""
    before, watch = _at_deaths(client)[task.key], _Watch(client)
    future = client.compute(task)
    try:
        while not future.done():
            try:
                wait(future, timeout=LOOK_SECONDS / 10)
            except TimeoutError:
                watch.look()
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
