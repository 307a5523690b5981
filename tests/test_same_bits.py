"""The same bits from any number of workers and threads, by any scheduler, with and without a worker that is killed."""

from __future__ import annotations

import hashlib
import os
import signal

import dask
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from fakes import clouds

import daskem
from daskem import BatchEM, MaxSteps
from daskem.data import open_dataset, units
from daskem.models import Gaussian, Mixture
from daskem.predict import predict_rows
from daskem.testing.trial import bits

ROWS = clouds(6_000)
MODEL = Mixture(Gaussian(), 3)
LOCAL = [("synchronous", 1), ("threads", 1), ("threads", 2)]
CLUSTERS = [(workers, threads) for workers in (1, 2, 3) for threads in (1, 2)]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("rows") / "rows.zarr")
    zarr.create_array(path, data=ROWS, chunks=(500, ROWS.shape[1]))
    return path


def digest(store, cluster=None):
    """Return one sha256 of parameters, trace and responsibilities of a fit, a worker of the cluster killed in it."""

    def kill(info, params):
        if cluster is not None and info.step == 2:
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

    result = daskem.fit(MODEL, store, algorithm=BatchEM(), stop=MaxSteps(5), seed=1, cache="none", callbacks=[kill])
    resp = predict_rows(MODEL, result.params, open_dataset(store), "proba", 3, lazy=False)
    trace = np.array([(info.objective, info.weight, info.change) for info in result.trace])
    return hashlib.sha256(repr((bits(result.params), trace.tobytes(), resp.tobytes())).encode()).hexdigest()


@pytest.fixture
def expected(store, small_units):
    with dask.config.set(scheduler="synchronous"):
        return digest(store)


@pytest.mark.parametrize(("scheduler", "threads"), LOCAL)
def test_schedulers_of_this_process(store, expected, scheduler, threads):
    with dask.config.set(scheduler=None if scheduler == "threads" else scheduler, num_workers=threads):
        assert digest(store) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "threads"), CLUSTERS)
def test_clusters_whole_and_with_a_worker_killed(store, expected, workers, threads):
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, host="127.0.0.1", dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        assert digest(store) == expected
        assert digest(store, cluster) == expected
