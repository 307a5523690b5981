"""Where tasks run: threads of this process, or the workers of the Dask cluster that is connected."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import dask
import psutil
from dask.delayed import Delayed
from dask.system import CPU_COUNT
from distributed import Client, get_worker
from distributed.system import MEMORY_LIMIT

from daskem.engine.allocator import trim
from daskem.engine.blas import one_blas_thread
from daskem.engine.remote import ask_scheduler, compute_remotely
from daskem.engine.spans import Spans
from daskem.errors import PlanError

__all__ = ["Executor", "bytes_held", "find_executor", "resident_bytes"]

# How often a cluster is asked for its workers, until the answer has all of them.
ASKED = 10


@dataclass(frozen=True)
class Executor:
    """What the planner must know of the place where tasks run, and how to run them there.

    Attributes
    ----------
    processes : number of processes that tasks run in.
    slots : tasks that run at once in each.
    memory : bytes that the smallest process may use.
    base : resident bytes of a process before work.
    spare : tasks beyond `slots` that keep cores busy while others wait for a disk; none where the user set `slots`.
    cluster : whether a Dask cluster does the work.
    scheduler : name of the local scheduler, where there is no cluster.
    """

    processes: int
    slots: int
    memory: int
    base: int = 0
    spare: int = 0
    cluster: bool = False
    scheduler: str = "threads"
    _spans: Spans = field(default_factory=Spans, repr=False, compare=False)

    def compute_all(self, nodes: Sequence[Any], slots: int) -> list[Any]:
        """Return the values of delayed `nodes`, running at most `slots` tasks at once in a process."""
        if self.cluster:
            return compute_remotely(nodes)
        # One task at a time needs no threads.
        scheduler = self.scheduler if slots > 1 else "synchronous"
        with one_blas_thread():
            return list(dask.compute(*nodes, scheduler=scheduler, num_workers=slots))

    def span(self, step: int, work: Delayed) -> AbstractContextManager[None]:
        """Return a context in which a pass that computes `work` shows on the dashboard of a cluster."""
        return self._spans.next(step, work) if self.cluster else nullcontext()

    def keep(self, nodes: list[Any], slots: int) -> list[Any]:
        """Return `nodes` whose values stay where they were computed; a lost worker's are computed again."""
        if self.cluster:
            with ask_scheduler():
                return list(dask.persist(*nodes))
        return list(dask.persist(*nodes, scheduler=self.scheduler, num_workers=slots))

    def load(self, nodes: list[Any], slots: int) -> list[Any]:
        """Return the values of `nodes` where tasks can use them: themselves here, on a cluster where they were made."""
        return self.keep(nodes, slots) if self.cluster else self.compute_all(nodes, slots)


def find_executor(*, local: bool = False) -> Executor:
    """Return the cluster of the ambient Dask client if there is one, else the threads of this process.

    Parameters
    ----------
    local : the data live in this process, so that no cluster is looked for.
    """
    scheduler = dask.config.get("scheduler", None)
    if not local and scheduler in (None, "dask.distributed", "distributed"):
        try:
            # A task that waited for tasks of its own cluster would hold the thread that they need, unless it has said
            # that it waits: what makes a client current, such as `distributed.worker_client`, does.
            client = Client.current(allow_global=not _in_task())
        except ValueError:
            pass
        else:
            with ask_scheduler():
                return _cluster(client)
    if scheduler in ("sync", "synchronous", "single-threaded"):
        return Executor(1, 1, MEMORY_LIMIT, scheduler="synchronous")
    threads = dask.config.get("num_workers", None)
    if threads:
        return Executor(1, int(threads), MEMORY_LIMIT)
    return Executor(1, CPU_COUNT, MEMORY_LIMIT, spare=1 if CPU_COUNT > 1 else 0)


def _in_task() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


def _cluster(client: Any) -> Executor:
    workers: list[Any] = []
    # The client refreshes this by itself, without the workers, and may do so just before it answers: ask again.
    for _ in range(ASKED):
        info = client.scheduler_info(n_workers=-1)
        workers = list(info["workers"].values())
        if len(workers) == info["n_workers"]:
            break
    if not workers:
        raise PlanError(
            f"the Dask cluster at {client.scheduler.address} has no workers. "
            "Start some, or wait for them with client.wait_for_workers(1), and fit again."
        )
    processes, slots = len(workers), max(worker["nthreads"] for worker in workers)
    # A worker without a limit of its own shares its machine, taken to be like this one, with the others there.
    hosts = Counter(worker["host"] for worker in workers)
    limits = [worker["memory_limit"] or MEMORY_LIMIT / hosts[worker["host"]] for worker in workers]
    # What workers hold already, such as libraries and the user's own persisted arrays, is not daskem's to use.
    held = client.run(bytes_held, on_error="ignore").values()
    return Executor(processes, slots, math.floor(min(limits)), base=max(held, default=0), cluster=True)


def bytes_held() -> int:
    """Return what this process takes and has in use: what earlier work has freed is given back first."""
    trim()
    return resident_bytes()


def resident_bytes() -> int:
    """Return what this process takes, daskem and all that it needs being imported."""
    return int(psutil.Process().memory_info().rss)
