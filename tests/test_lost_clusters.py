"""Clusters that are lost in the midst of a fit: one error that says what to do, and the same bits on the next one."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from fakes import Centers, Deadly, clouds

import daskem
from daskem import BatchEM, MaxSteps
from daskem.data import units
from daskem.engine import remote
from daskem.errors import ClusterError
from daskem.models import Gaussian, Mixture
from daskem.testing.trial import bits

ROWS = clouds(4_000)
CHUNK = 500


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)


@pytest.fixture
def store(tmp_path):
    path = str(tmp_path / "rows.zarr")
    zarr.create_array(path, data=ROWS, chunks=(CHUNK, ROWS.shape[1]))
    return path


@contextmanager
def dask_process(command: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a scheduler or a worker as on another machine: nobody starts it again."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_" + command, *options, "--no-dashboard"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def scheduler(tmp_path):
    with dask_process("scheduler", "--host", "127.0.0.1", "--port", "0") as process:
        process.address = next(line.split()[-1] for line in process.stderr if "Scheduler at:" in line)
        yield process


@pytest.fixture
def worker(scheduler):
    with dask_process("worker", scheduler.address, "--nthreads", "1", "--no-nanny") as process:
        yield process


def kill_after(steps, victim):
    def callback(info, params):
        if info.step == steps:
            victim.kill()
            victim.wait()

    return callback


@pytest.mark.parametrize("victim", ["scheduler", "worker"])
def test_a_cluster_that_is_lost_is_one_error_and_the_next_one_goes_on(
    scheduler, worker, store, tmp_path, monkeypatch, victim
):
    monkeypatch.setattr(remote, "LOST_SECONDS", 1.0)
    monkeypatch.setattr(remote, "LOOK_SECONDS", 0.2)
    fit = functools.partial(
        daskem.fit, Mixture(Gaussian(), 3), store, algorithm=BatchEM(), stop=MaxSteps(6), cache="none"
    )
    told = {
        "scheduler": rf"the Dask scheduler at {scheduler.address} (went away|has not answered)",
        "worker": rf"the Dask scheduler at {scheduler.address} has had no workers for \d s\. Look into the logs",
    }
    callback = kill_after(3, {"scheduler": scheduler, "worker": worker}[victim])
    with Client(scheduler.address) as client:
        client.wait_for_workers(1)
        with pytest.raises(ClusterError, match=told[victim]) as caught:
            fit(checkpoint=tmp_path / "kept", callbacks=[callback])
    assert caught.value.__notes__ == [
        f"The fit is committed to {tmp_path / 'kept'}, after 3 steps; run the same again to go on."
    ]
    resumed = fit(checkpoint=tmp_path / "kept", resume="must")
    assert resumed.n_steps == 6
    assert bits(resumed.params) == bits(fit().params)


def test_rows_that_no_worker_survives_are_named(store):
    start = Centers(np.full(3, 1 / 3), ROWS[:3])
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster,
        Client(cluster),
        pytest.raises(ClusterError, match=r"rows\.zarr, chunk.* \(4, 0\).*, rows 2000:2500: 4 workers died") as caught,
    ):
        daskem.fit(Deadly(step=1, row=2_345), store, params=start, algorithm=BatchEM(), stop=MaxSteps(2), cache="none")
    assert "--memory-limit" in str(caught.value)


def test_deaths_that_no_rows_are_the_reason_of_do_not_end_a_fit(store, tmp_path, caplog):
    start = Centers(np.full(3, 1 / 3), ROWS[:3])
    model = Deadly(flag=str(tmp_path / "deaths"), times=4, step=1, row=2_345)
    fit = functools.partial(daskem.fit, model, store, params=start, algorithm=BatchEM(), stop=MaxSteps(2), cache="none")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        killed = fit()
        assert (tmp_path / "deaths").read_text() == "xxxx"
        assert bits(killed.params) == bits(fit().params)
    assert "4 workers died one after the other, of nothing that they worked on; trying again" in caplog.text
