"""Connects to a Dask cluster, or starts one on this machine, for the duration of a ``with`` block."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, Security, rpc
from distributed.versions import VersionMismatchWarning

from daskem.errors import DaskEMWarning, OptionError

__all__ = ["CONNECT_SECONDS", "WORKER_SECONDS", "connect"]

# How long a scheduler may take to answer before it counts as not there.
CONNECT_SECONDS = 10
# How long the first worker of a cluster that has just begun may take: Python loads slowly from a shared file system.
WORKER_SECONDS = 300
# Dask's profiler, and its logs of messages with all parameters in them, would take tens of megabytes of each process,
# which the plan has for rows.
LEAN = {"distributed.worker.profile.enabled": False, "distributed.admin.low-level-log-length": 100}
# Packages whose code or objects tasks carry to workers, or that workers compute with.
COMPARED = ("python", "daskem", "numpy", "scipy", "zarr", "dask", "distributed", "cloudpickle", "msgpack")


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
        If both were asked for, the address is empty, no scheduler answers within `CONNECT_SECONDS`, no worker comes,
        or workers have another version of Python or of daskem. What else differs is a warning.
    """
    if scheduler is not None and workers:
        raise OptionError("choose either the address of a scheduler or a number of workers to start, not both.")
    if scheduler is not None:
        from_file = scheduler.endswith(".json")
        with _reach(_address_in(scheduler) if from_file else scheduler) as client:
            if from_file:
                _await_worker(client)
            _check_versions(client)
            yield client
    elif workers:
        # Any port for the dashboard: the usual one may be taken, and nobody was told of it.
        with (
            dask.config.set(LEAN),
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
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
        kind = asyncio.run(asyncio.wait_for(_identity(address), CONNECT_SECONDS))["type"]
        if kind == "Scheduler":
            return _client(address)
    except (TimeoutError, OSError, ValueError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {address} within {CONNECT_SECONDS} s ({type(error).__name__}). "
            "Check the address and port, that the scheduler runs, and that no firewall is between; its dashboard has "
            "another port than itself."
        ) from error
    except Exception as error:
        raise OptionError(
            f"what answers at {address} is not a Dask scheduler ({type(error).__name__}). Check the address and port; "
            "the dashboard of a scheduler has another port than itself."
        ) from error
    raise OptionError(f"at {address} is a {kind} of Dask. Give the address of its scheduler.")


async def _identity(address: str) -> dict[str, Any]:
    """Return what a scheduler says of itself; a client would wait for ever for the first word of anything else."""
    async with rpc(address, connection_args=Security().get_connection_args("client")) as server:
        return dict(await server.identity())


def _client(address: str) -> Client:
    with warnings.catch_warnings():
        # Said by `_check_versions`, in one line.
        warnings.simplefilter("ignore", VersionMismatchWarning)
        return Client(address, timeout=CONNECT_SECONDS)


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


def _check_versions(client: Client) -> None:
    """Refuse workers that cannot take the tasks of this process, and tell of what else differs."""
    found = client.get_versions(packages=list(COMPARED[1:]))
    here = _compared(found["client"])
    differing: dict[str, str] = {}
    for address, info in sorted(found["workers"].items()):
        for name, version in _compared(info).items():
            if version != here[name]:
                told = f"{name} is {version or 'missing'} on worker {address} and {here[name] or 'missing'} here"
                differing.setdefault(name, told)
    if not differing:
        return
    told = f"{'; '.join(differing.values())}. Give workers and this process the same environment."
    if differing.keys() & {"python", "daskem"}:
        raise OptionError(f"the workers of {client.scheduler.address} cannot take tasks of this process: {told}")
    warnings.warn(f"results may differ in their last bits, or tasks fail: {told}", DaskEMWarning, stacklevel=2)


def _compared(info: dict[str, Any]) -> dict[str, str | None]:
    packages = info["packages"]
    # Releases of one minor version of Python read each other's bytecode.
    return {name: packages[name] for name in COMPARED} | {"python": ".".join(packages["python"].split(".")[:2])}
