"""Zarr on an S3 server of this machine: fits and predictions, a server that fails, and where the secret is not.

Run with ``python -m pytest -m s3``.
"""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cloudpickle
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from safetensors.numpy import load_file
from zarr.storage import ObjectStore

import daskem
from daskem.cli import main
from daskem.cli.own import KNOWN
from daskem.data import open_dataset
from daskem.data.fingerprint import check_unchanged, fingerprint, stamps
from daskem.data.retry import retrying
from daskem.engine.executor import Executor
from daskem.errors import DataError, OptionError
from daskem.generate import generate_mixture
from daskem.models import Gaussian, Mixture
from daskem.persist import load_model
from daskem.predict import predict_to_store
from daskem.testing.trial import bits

SECRET = "a-secret-that-must-not-travel"
ROWS = 4_000


def test_retrying_waits_longer_each_time_and_then_gives_the_last_error(monkeypatch):
    waits = []
    monkeypatch.setattr("daskem.data.retry.time.sleep", waits.append)
    answers = iter([OSError("busy"), ConnectionError("gone"), 3])

    def action():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retrying(action, "x") == 3
    assert waits == [0.1, 0.2]

    def never():
        raise OSError("still busy")

    with pytest.raises(OSError, match="still busy"):
        retrying(never, "x")
    assert len(waits) == 2 + 6


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, ValueError, RuntimeError])
def test_retrying_does_not_wait_for_what_stays(monkeypatch, error):
    monkeypatch.setattr("daskem.data.retry.time.sleep", lambda seconds: pytest.fail("waited"))

    def action():
        raise error("no")

    with pytest.raises(error):
        retrying(action, "x")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    """Yield the port of an S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        # Its first lines are written once it listens.
        for line in process.stderr:
            if "Running on" in line:
                break
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)
        drain.join()
        process.stderr.close()


@pytest.fixture
def bucket(server, monkeypatch):
    """Yield the URL of a bucket of its own with data, credentials and server in the environment only."""
    import s3fs

    given = {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server}",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    name = f"bucket-{os.urandom(4).hex()}"
    fs.call_s3("create_bucket", Bucket=name)
    generate_mixture(f"s3://{name}/data.zarr", ROWS, 3, 2, separation=6.0, dtype="float64", chunk_rows=500)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def run(*args):
    result = CliRunner().invoke(main, ["--debug", *map(str, args)], prog_name="daskem")
    assert result.exit_code == 0, result.output
    return result.output


def fit_and_predict(bucket, place, output):
    model = place / f"{output}.safetensors"
    said = run("fit", "gaussian-mixture", f"{bucket}/data.zarr", "-k", 2, "-o", model, "--max-iter", 10)
    said += run("predict", model, f"{bucket}/data.zarr", "-o", f"{bucket}/{output}.zarr")
    return model, said


def same_as_local(bucket, place, model, output):
    zarr.save_array(place / "copy.zarr", zarr.open_array(f"{bucket}/data.zarr/x", mode="r")[:])
    data = zarr.create_array(
        place / "local.zarr", data=zarr.open_array(place / "copy.zarr", mode="r")[:], chunks=(500, 3)
    )
    assert data.shape == (ROWS, 3)
    local = place / "local.safetensors"
    run("fit", "gaussian-mixture", place / "local.zarr", "-k", 2, "-o", local, "--max-iter", 10, "--quiet")
    run("predict", local, place / "local.zarr", "-o", place / "labels.zarr", "--quiet")
    expected, found = load_file(local), load_file(model)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    expected = zarr.open_group(place / "labels.zarr", mode="r")
    found = zarr.open_group(f"{bucket}/{output}.zarr", mode="r")
    assert sorted(found.array_keys()) == sorted(expected.array_keys())
    for name, array in expected.arrays():
        np.testing.assert_array_equal(found[name][:], array[:], err_msg=name)


@pytest.mark.s3
def test_fit_and_predict_are_those_of_a_local_copy(bucket, tmp_path):
    model, _ = fit_and_predict(bucket, tmp_path, "labels")
    same_as_local(bucket, tmp_path, model, "labels")


class Failing(BaseHTTPRequestHandler):
    """Passes requests on to a server, but answers one in twenty with 503 or 500, or drops the connection."""

    protocol_version = "HTTP/1.1"

    def relay(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if how := self.server.fails():
            if how == "drop":
                self.close_connection = True
                return
            self.send_response(how)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with closing(HTTPConnection("127.0.0.1", self.server.behind, timeout=60)) as behind:
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if "content-length" not in {name.lower() for name, _ in answer.getheaders()}:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay  # noqa: N815

    def log_message(self, *args):
        pass


class FailingServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), Failing)
        self.behind, self.seen, self.failed = behind, 0, 0
        self.chance, self.lock = np.random.default_rng(5), threading.Lock()

    def fails(self):
        with self.lock:
            self.seen += 1
            if self.chance.random() >= 0.05:
                return None
            self.failed += 1
            return (503, 500, "drop")[self.failed % 3]


@contextmanager
def failing_requests(server, monkeypatch):
    """Put a server that fails between this process and `server` for as long as the context lasts."""
    import s3fs

    with FailingServer(server) as failing:
        thread = threading.Thread(target=failing.serve_forever)
        thread.start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{failing.server_address[1]}")
            s3fs.S3FileSystem.clear_instance_cache()
            yield failing
        finally:
            failing.shutdown()
            thread.join()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
            s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.s3
def test_a_server_that_fails_one_request_in_twenty(bucket, server, tmp_path, monkeypatch):
    with failing_requests(server, monkeypatch) as failing:
        model, _ = fit_and_predict(bucket, tmp_path, "labels")
    assert failing.failed >= 3, f"of {failing.seen} requests only {failing.failed} failed: this proves nothing"
    same_as_local(bucket, tmp_path, model, "labels")


@pytest.mark.s3
def test_reads_and_writes_that_break_off_are_done_again(bucket, tmp_path, monkeypatch):
    # Below s3fs's own attempts: what a filesystem says after it has given up.
    import s3fs

    chance, lock, failed = np.random.default_rng(7), threading.Lock(), []

    def flaky(method):
        async def call(self, path, *args, **kwargs):
            with lock:
                fails = "/c/" in path and chance.random() < 0.05
            if fails:
                failed.append(path)
                raise ConnectionResetError("the store dropped the connection")
            return await method(self, path, *args, **kwargs)

        return call

    monkeypatch.setattr("daskem.data.retry.time.sleep", lambda seconds: None)
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_cat_file", flaky(s3fs.S3FileSystem._cat_file))
        patch.setattr(s3fs.S3FileSystem, "_pipe_file", flaky(s3fs.S3FileSystem._pipe_file))
        model, _ = fit_and_predict(bucket, tmp_path, "labels")
    assert failed
    same_as_local(bucket, tmp_path, model, "labels")


@pytest.mark.s3
def test_the_secret_is_in_nothing_that_travels_or_stays(bucket, tmp_path, caplog):
    caplog.set_level("DEBUG", logger="daskem")
    model, said = fit_and_predict(bucket, tmp_path, "labels")
    data = open_dataset(f"{bucket}/data.zarr")
    for place, content in {
        "what is sent to workers": pickle.dumps(data.rows),
        "the model file": model.read_bytes(),
        "the output": (said + caplog.text).encode(),
        "the metadata": str(dict(zarr.open_group(f"{bucket}/labels.zarr", mode="r").attrs)).encode(),
    }.items():
        assert content, place
        assert not re.search(SECRET.encode(), content), f"the secret is in {place}"


@pytest.mark.s3
def test_a_bucket_that_is_not_there(bucket, tmp_path):
    where = "s3://no-such-bucket-here/data.zarr"
    result = CliRunner().invoke(
        main, ["fit", "gaussian-mixture", where, "-k", "2", "-o", str(tmp_path / "m.safetensors")]
    )
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "no-such-bucket-here" in result.output
    assert not list(tmp_path.iterdir())


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with one error of S3, in its form."""

    protocol_version = "HTTP/1.1"

    def refuse(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, code = self.server.answer
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture(params=[(400, "ExpiredToken"), (403, "AccessDenied")], ids=lambda answer: answer[1])
def refusing(request, monkeypatch):
    """Make a server that refuses everything the one that URLs of S3 mean."""
    import s3fs

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.daemon_threads, server.answer = True, request.param
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.setenv(name, "old")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()


@pytest.mark.s3
@pytest.mark.usefixtures("refusing")
def test_credentials_that_have_expired_or_do_not_allow_it(tmp_path):
    zarr.save_array(tmp_path / "x.zarr", np.arange(40.0).reshape(20, 2))
    model = tmp_path / "m.safetensors"
    run("fit", "kmeans", tmp_path / "x.zarr", "-k", 2, "-o", model, "--quiet")
    before = sorted(tmp_path.iterdir())
    for command in (
        ("fit", "kmeans", "s3://a-bucket/x.zarr", "-k", 2, "-o", tmp_path / "other.safetensors", "--quiet"),
        ("fit", "kmeans", tmp_path / "x.zarr", "-k", 2, "-o", "s3://a-bucket/other.safetensors", "--quiet"),
        (
            *("fit", "kmeans", tmp_path / "x.zarr", "-k", 2, "-o", tmp_path / "other.safetensors", "--quiet"),
            "--checkpoint",
            "s3://a-bucket/kept",
        ),
        ("predict", "s3://a-bucket/m.safetensors", tmp_path / "x.zarr", "-o", tmp_path / "out.zarr", "--quiet"),
        ("predict", model, tmp_path / "x.zarr", "-o", "s3://a-bucket/out.zarr", "--quiet"),
    ):
        result = CliRunner().invoke(main, [str(word) for word in command])
        assert result.exit_code == 1
        assert result.output.count("\n") == 1
        assert "s3://a-bucket/" in result.output
        assert "credentials" in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.s3
def test_a_fit_of_remote_data_goes_on_from_its_checkpoint_to_the_same_bits(bucket, server, tmp_path, monkeypatch):
    import s3fs

    model, kept = Mixture(Gaussian(), 2), tmp_path / "kept"
    options = {"algorithm": daskem.BatchEM(), "stop": daskem.MaxSteps(8), "seed": 3}
    url = f"{bucket}/data.zarr"

    def stop(info, params):
        if info.step == 3:
            raise KeyboardInterrupt

    expected = daskem.fit(model, url, **options)
    with failing_requests(server, monkeypatch) as failing:
        with pytest.raises(KeyboardInterrupt):
            daskem.fit(model, url, **options, checkpoint=kept, checkpoint_interval=0, callbacks=[stop])
        s3fs.S3FileSystem.clear_instance_cache()
        result = daskem.fit(model, url, **options, checkpoint=kept, resume="must")
    assert failing.failed
    assert [info.step for info in result.trace] == list(range(1, 9))
    assert bits(result.params) == bits(expected.params)


@pytest.mark.s3
def test_a_fit_that_is_kept_in_the_store_itself_goes_on_to_the_same_bits(bucket, server, tmp_path, monkeypatch):
    def stop(info, params):
        if info.step == 3:
            raise KeyboardInterrupt

    url, kept, model = f"{bucket}/data.zarr", f"{bucket}/kept", f"{bucket}/models/m.safetensors"
    fit = ("fit", "gaussian-mixture", url, "-k", 2, "--max-iter", 8, "--tol", 0, "--algorithm", "batch")
    run(*fit, "-o", tmp_path / "local.safetensors")
    fit = (*fit, "-o", model, "--checkpoint", kept, "--checkpoint-interval", 0)
    with failing_requests(server, monkeypatch) as failing:
        with monkeypatch.context() as patch:
            patch.setattr("daskem.cli.fitting.PassProgress.__call__", lambda self, info, params: stop(info, params))
            result = CliRunner().invoke(main, [str(word) for word in fit])
        assert result.exit_code == 130
        assert f"committed to {kept}, after 3 steps" in result.output
        assert "step 3," in run("status", kept)
        run(*fit, "--resume", "must")
        run("predict", model, url, "-o", f"{bucket}/labels.zarr")
        run("report", model, url, "-o", f"{bucket}/report.html")
        assert f"model file {model}" in run("inspect", model)
    assert failing.failed >= 3, f"of {failing.seen} requests only {failing.failed} failed: this proves nothing"
    expected, found = load_model(tmp_path / "local.safetensors", KNOWN), load_model(model, KNOWN)
    assert bits(found.params) == bits(expected.params)
    result = CliRunner().invoke(main, [str(word) for word in fit])
    assert result.exit_code == 1
    assert f"{model} exists already" in result.output


@pytest.mark.s3
def test_the_secret_is_in_no_graph_checkpoint_or_report(bucket, tmp_path, monkeypatch):
    sent = []
    compute_all = Executor.compute_all

    def note(self, nodes, slots):
        sent.extend(cloudpickle.dumps(dict(node.__dask_graph__())) for node in nodes)
        return compute_all(self, nodes, slots)

    monkeypatch.setattr(Executor, "compute_all", note)
    model, url = tmp_path / "m.safetensors", f"{bucket}/data.zarr"
    kept = ("--checkpoint", tmp_path / "kept", "--checkpoint-interval", 0)
    run("fit", "gaussian-mixture", url, "-k", 2, "-o", model, *kept, "--cache", "none")
    run("predict", model, url, "-o", f"{bucket}/out.zarr")
    run("report", model, url, "--diagnose", "-o", tmp_path / "report.html")
    assert len(sent) > 3
    places = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(places) >= 3
    for place, content in {**places, "the graphs": b"".join(sent)}.items():
        assert SECRET.encode() not in content, f"the secret is in {place}"


@pytest.fixture
def objects(bucket):
    """Return a function that opens a place in the bucket with obstore, whose settings are those of the environment."""
    obstore = pytest.importorskip("obstore.store")
    name = bucket.removeprefix("s3://")
    options = {"client_options": {"allow_http": True}}
    return lambda prefix, **more: ObjectStore(obstore.S3Store(name, prefix=prefix, **options), **more)


@pytest.mark.s3
def test_an_open_store_of_obstore_is_read_and_written_as_by_url(bucket, objects, tmp_path):
    model, _ = fit_and_predict(bucket, tmp_path, "labels")
    store = objects("data.zarr")
    data, by_url = open_dataset(store), open_dataset(f"{bucket}/data.zarr")
    assert data.rows.name == by_url.rows.name == f"Zarr array {bucket}/data.zarr[x]"
    assert data.rows.location == by_url.rows.location
    assert fingerprint(data) == fingerprint(by_url)
    options = {"seed": 0, "checkpoint": tmp_path / "kept"}
    result = daskem.fit(Mixture(Gaussian(), 2), store, **options)
    assert bits(result.params) == bits(daskem.fit(Mixture(Gaussian(), 2), f"{bucket}/data.zarr", seed=0).params)
    fitted = load_model(model, KNOWN)
    predict_to_store(fitted.model, fitted.params, data, objects("written.zarr"), ["labels"], 2)
    expected = zarr.open_group(f"{bucket}/labels.zarr", mode="r")["labels"][:]
    np.testing.assert_array_equal(zarr.open_group(f"{bucket}/written.zarr", mode="r")["labels"][:], expected)
    assert SECRET.encode() not in pickle.dumps(data.rows)
    with pytest.raises(OptionError, match="exists already"):
        predict_to_store(fitted.model, fitted.params, data, objects("written.zarr"), ["labels"], 2)
    with pytest.raises(OptionError, match="one inside the other"):
        predict_to_store(fitted.model, fitted.params, data, objects("data.zarr/x"), ["labels"], 2, overwrite=True)


@pytest.mark.s3
def test_a_chunk_that_obstore_does_not_find_or_that_was_written_anew_is_seen(bucket, objects):
    store = objects("data.zarr")
    before = stamps(open_dataset(store))
    array = zarr.open_group(objects("data.zarr"), mode="r+")["x"]
    array[500:1_000] = array[500:1_000] + 1.0
    with pytest.raises(DataError, match=r"was written to while it was fitted: .*c/1/0"):
        check_unchanged(open_dataset(store), before)
    store.store.delete("x/c/3/0")
    with pytest.raises(DataError, match=r"1 of 8 chunks are not in the store: \(3, 0\)"):
        open_dataset(store)
