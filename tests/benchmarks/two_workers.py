"""A store larger than both workers: memory of each, and whether Dask had to spill, pause or restart (README.md)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from distributed import Client, LocalCluster
from measure import parser, peak_rss, seconds, start, temporary
from stores import make_store

import daskem
from daskem.algorithms import Auto, BatchEM, MaxSteps
from daskem.data import open_dataset
from daskem.engine import parse_bytes
from daskem.models import Gaussian, Mixture
from daskem.predict import predict_to_store

# Of a worker's memory, that may be used; at 70 % Dask begins to spill.
SHARE = 0.7
# What a worker says when memory gets short, and what its nanny says when it ends it.
TROUBLE = ("Pausing", "memory leak", "Unmanaged memory", "exceeded", "Restarting", "Spill")


def logged(client: Client) -> list[str]:
    """Return the lines that workers and nannies logged."""
    logs = [*client.get_worker_logs().values(), *client.get_worker_logs(nanny=True).values()]
    return [text for log in logs for _, text in log]


def spilled(client: Client) -> int:
    """Return the bytes that workers hold on disk."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(int(worker["metrics"]["spilled_bytes"]["disk"]) for worker in workers)


def work(store: Path, out: Path, components: int, steps: int | None, memory_limit: int) -> Any:
    """Fit a mixture by `steps` of batch EM; or by the default algorithm, and write labels and densities of all rows."""
    data, model = open_dataset(store), Mixture(Gaussian("diag"), components)
    if steps is not None:
        stop = MaxSteps(steps)
        return daskem.fit(model, data, algorithm=BatchEM(), stop=stop, seed=0, memory_limit=memory_limit)
    result = daskem.fit(model, data, algorithm=Auto(), seed=0, memory_limit=memory_limit)
    written = ["labels", "log_prob"]
    predict_to_store(model, result.params, data, str(out), written, components, memory_limit=memory_limit)
    return result


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--size", type=parse_bytes, default="8GB", help="size of the store, times --scale")
    options.add_argument("--worker-memory", default="1GB", help="of each of two workers")
    options.add_argument("--components", type=int, default=8, help="components of the mixture")
    options.add_argument("--features", type=int, default=64, help="columns of the store")
    options.add_argument("--chunk", type=parse_bytes, default="32MiB", help="size of a chunk")
    options.add_argument(
        "--steps", type=int, help="of batch EM, and nothing else; without it, Auto fits, and results are written"
    )
    chosen = options.parse_args(arguments)
    report = start("two workers: a store larger than all of them")
    row_bytes, limit = 4 * chosen.features, int(SHARE * parse_bytes(chosen.worker_memory))
    chunk_rows = chosen.chunk // row_bytes
    n_rows = max(1, -(-int(chosen.size * chosen.scale) // (chunk_rows * row_bytes))) * chunk_rows
    with (
        temporary(chosen.directory) as directory,
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=chosen.worker_memory, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        store = make_store(directory / "x.zarr", n_rows, chosen.features, chunk_rows, "zstd", chosen.seed)
        before = set(client.run(os.getpid).values())
        out, how = directory / "out.zarr", (chosen.components, chosen.steps, limit)
        took = seconds(lambda: report.say(f" {work(store, out, *how).reason}"))
        nbytes = n_rows * row_bytes / 1e9
        report.say(f" {n_rows:,} x {chosen.features} float32, {nbytes:.3g} GB: {took:.3g} s")
        for address, peak in client.run(peak_rss).items():
            report.check(f"peak of {address}", peak / 1e9, limit / 1e9, unit=" GB")
        report.check("workers that were restarted", len(before - set(client.run(os.getpid).values())), 0)
        report.check("bytes spilled", spilled(client), 0)
        lines = logged(client)
        said = [line for line in lines if any(word in line for word in TROUBLE)]
        report.check("log lines of workers", len(lines), 1, at_least=True)
        report.check("log lines of paused or spilling workers", len(said), 0)
        report.say("".join(f"    {line}\n" for line in said[:10]))
        if chosen.steps is None:
            labels = zarr.open_group(out, mode="r")["labels"]
            report.check("rows without a label", int(np.sum(labels[:] < 0)), 0)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
