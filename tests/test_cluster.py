"""Clusters that cannot work: what answers is no scheduler, workers differ, or do not see the data."""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client, LocalCluster
from pyarrow import parquet

import daskem
from daskem.cli import main
from daskem.data import open_dataset, units
from daskem.engine.cluster import connect
from daskem.errors import DaskEMWarning, DataError, OptionError
from daskem.models import Gaussian, Mixture
from daskem.predict import predict_to_store


def fail(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.fixture
def short_wait(monkeypatch):
    monkeypatch.setattr("daskem.engine.cluster.CONNECT_SECONDS", 1.0)


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def http_server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def talker(words):
    """Yield the port of a server that says `words` to whoever comes, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak():
            with closing(server.accept()[0]) as peer:
                peer.sendall(words)
                while peer.recv(1 << 16):
                    pass

        thread = threading.Thread(target=speak)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    "server",
    [
        http_server,
        lambda: talker(b""),
        lambda: talker(b"SSH-2.0-OpenSSH_9.2p1\r\n" * 9),
        lambda: talker(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    ],
    ids=["HTTP", "silent", "SSH", "HTTP at once"],
)
def test_what_answers_but_is_not_dask_is_one_error_and_does_not_hang(server, short_wait, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((10, 2)))
    with server() as port:
        address = f"tcp://127.0.0.1:{port}"
        model = tmp_path / "m.safetensors"
        said = fail("fit", "kmeans", tmp_path / "x.npy", "-k", 2, "-o", model, "--scheduler", address)
    assert address in said
    assert "Dask scheduler" in said
    assert "Check the address and port" in said
    assert not model.exists()


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:1", "tcp://no-such-host.invalid:8786"])
def test_an_address_that_cannot_be_one(address, short_wait):
    with pytest.raises(OptionError, match="no Dask scheduler answers at"), connect(address):
        pass


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster:
        yield cluster


def test_the_address_of_a_worker_is_not_that_of_its_scheduler(cluster):
    worker = cluster.workers[0].worker_address
    with pytest.raises(OptionError, match="is a Worker of Dask"), connect(worker):
        pass


def pretend(place, name, version):
    """Make importlib find another version of a package first, in the worker where this runs."""
    info = Path(place) / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    sys.path.insert(0, str(place))


@contextmanager
def another(tmp_path, name):
    """Yield the address of a cluster with one worker that says it has another version of a package."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.run(pretend, str(tmp_path), name, "0.0.1")
        yield cluster.scheduler_address


def test_another_daskem_on_the_workers_is_refused(tmp_path):
    with (
        another(tmp_path, "daskem") as address,
        pytest.raises(OptionError, match=r"daskem is 0\.0\.1 on worker tcp:.*same environment"),
        connect(address),
    ):
        pass


def test_another_version_of_what_computes_is_a_warning(tmp_path):
    with (
        another(tmp_path, "scipy") as address,
        pytest.warns(DaskEMWarning, match=r"scipy is 0\.0\.1 on worker"),
        connect(address),
    ):
        pass


def test_workers_of_the_same_environment_are_taken_without_a_word(cluster):
    with connect(cluster.scheduler_address) as client:
        assert len(client.scheduler_info()["workers"]) == 2


# Below a process's own directory, as a local disk is below a machine's own root.
ONLY_HERE = "/proc/self/cwd"


@pytest.fixture
def apart(cluster, tmp_path, monkeypatch):
    """Yield a client whose workers see another directory at `ONLY_HERE` than this process; theirs is empty."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    with Client(cluster) as client:
        before = client.run(os.getcwd)
        client.run(os.chdir, str(there))
        yield client
        for worker, place in before.items():
            client.run(os.chdir, place, workers=[worker])
        assert not list(there.iterdir()), "something was half made where workers look"


ROWS = np.random.default_rng(0).normal(5.0, 1.0, (4_000, 2))


def write_zarr(version):
    def write(path):
        zarr.create_array(path, data=ROWS, chunks=(500, 2), zarr_format=version)

    return write


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"] = ROWS


WRITERS = {
    "v3.zarr": write_zarr(3),
    "v2.zarr": write_zarr(2),
    "x.npy": lambda path: np.save(path, ROWS),
    "x.parquet": lambda path: parquet.write_table(pyarrow.table({"a": ROWS[:, 0], "b": ROWS[:, 1]}), path),
    "x.h5": write_hdf5,
}


@pytest.mark.parametrize("name", WRITERS)
def test_data_that_workers_do_not_see_are_an_error_not_fill_values(apart, name):
    WRITERS[name](name)
    with pytest.raises(DataError, match=rf"there is nothing at {ONLY_HERE}/{name}.* on {platform.node()}.*same path"):
        daskem.fit(Mixture(Gaussian(), 2), f"{ONLY_HERE}/{name}", seed=0)


def test_one_worker_that_sees_nothing_is_enough_for_the_error(apart, monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)
    write_zarr(3)("x.zarr")
    apart.run(os.chdir, os.getcwd(), workers=[next(iter(apart.run(os.getpid)))])
    with pytest.raises(DataError, match="there is nothing at"):
        daskem.fit(daskem.models.KMeans(2), f"{ONLY_HERE}/x.zarr", seed=0, cache="none")


def test_an_output_that_workers_do_not_see_is_not_written_elsewhere(apart, tmp_path):
    write_zarr(3)("x.zarr")
    data = open_dataset(tmp_path / "here" / "x.zarr")
    result = daskem.fit(Mixture(Gaussian(), 2), data, seed=0)
    with pytest.raises(DataError, match=rf"output {ONLY_HERE}/out.zarr: there is nothing at .*same path"):
        predict_to_store(result.model, result.params, data, f"{ONLY_HERE}/out.zarr", ["labels"], 2)
    with pytest.raises(DataError, match="never finished"):
        open_dataset(f"{ONLY_HERE}/out.zarr")
