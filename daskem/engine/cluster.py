"""Connects to a Dask cluster, or starts one on this machine, for the duration of a ``with`` block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, LocalCluster

from daskem.errors import OptionError

__all__ = ["CONNECT_SECONDS", "WORKER_SECONDS", "connect"]

# How long a scheduler may take to answer before it counts as not there.
CONNECT_SECONDS = 10
# How long the first worker of a cluster that has just begun may take: Python loads slowly from a shared file system.
WORKER_SECONDS = 300


@contextmanager
def connect(scheduler: str | None = None, workers: int | None = None) -> Iterator[Client | None]:
    """Make a Dask cluster the place where passes run.

    Parameters
    ----------
    scheduler : address of a running scheduler, such as ``tcp://10.0.0.1:8786``, or its scheduler file (``*.json``),
        with which clusters in batch jobs begin: then `WORKER_SECONDS` are allowed for the first worker.
    workers : number of single-threaded worker processes to start on this machine, and to stop at the end. Each may use
        an equal share of the machine's memory.

    Yields
    ------
    Client or None
        The connected client; None where neither was asked for, and passes run in threads of this process.

    Raises
    ------
    OptionError
        If both were asked for, the address is empty, no scheduler answers within `CONNECT_SECONDS`, or no worker comes.
    """
    if scheduler is not None and workers:
        raise OptionError("choose either the address of a scheduler or a number of workers to start, not both.")
    if scheduler is not None:
        from_file = scheduler.endswith(".json")
        with _reach(_address_in(scheduler) if from_file else scheduler) as client:
            if from_file:
                _await_worker(client)
            yield client
    elif workers:
        # No dashboard: its port may be taken, and nobody was told of it.
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            yield client
    else:
        yield None


def _reach(address: str) -> Client:
    if not address.strip():
        raise OptionError(
            "the address of the scheduler is empty; perhaps a variable that should hold it is not set. Give an address "
            "such as tcp://host:8786, or leave it out to run on this machine."
        )
    try:
        return Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {address} within {CONNECT_SECONDS} s ({type(error).__name__}). "
            "Check the address and port, that the scheduler runs, and that no firewall is between."
        ) from error


def _address_in(path: str) -> str:
    try:
        return str(json.loads(Path(path).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"{path} is no scheduler file ({type(error).__name__}: {error}). `dask scheduler --scheduler-file` writes "
            "one; it must be in a directory that this machine sees."
        ) from error


def _await_worker(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        raise OptionError(
            f"no worker has come to the scheduler at {client.scheduler.address} within {WORKER_SECONDS} s. "
            "Look into the log of the job that should start them."
        ) from error
