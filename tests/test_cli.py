"""The command line as a user meets it: results, files, exit codes, and one line for each error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import click
import numpy as np
import pyarrow
import pytest
import zarr
from click.testing import CliRunner
from pyarrow import parquet
from rich.console import Console
from sklearn.mixture import GaussianMixture

from daskem.cli import main
from daskem.cli.demo import match
from daskem.cli.fitting import describe_fit
from daskem.cli.models import KINDS, FitSpec
from daskem.cli.own import KNOWN
from daskem.core import Event, StepInfo
from daskem.data import open_dataset
from daskem.errors import DaskEMError
from daskem.fit import fit
from daskem.generate import generate_mixture
from daskem.models import SHAPES
from daskem.persist import load_model, save_model
from daskem.report.progress import PassProgress, duration, size, steps_left

N_ROWS, N_FEATURES, K = 3_000, 3, 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a directory with data, their truth, and a fitted mixture and k-means."""
    place = tmp_path_factory.mktemp("cli")
    generate_mixture(
        place / "data.zarr",
        N_ROWS,
        N_FEATURES,
        K,
        separation=6.0,
        dtype="float64",
        chunk_rows=1_000,
        columns=["a", "b", "c"],
        truth_path=place / "truth.safetensors",
    )
    data = str(place / "data.zarr")
    for kind in ("gaussian-mixture", "kmeans"):
        succeed("fit", kind, data, "-k", K, "-o", place / f"{kind}.safetensors", "--quiet")
    return place


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="daskem")


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def fail(*args):
    """Return the one line that a failing command writes to standard error."""
    result = run(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("daskem: error: ")
    assert "Traceback" not in result.output
    return last


def test_generate_writes_rows_labels_and_truth(tmp_path):
    out, truth = tmp_path / "out.zarr", tmp_path / "truth.safetensors"
    args = ["--rows", 500, "--features", 2, "--components", 3, "--chunk-rows", 100, "--shard-rows", 200]
    result = succeed("generate", out, *args, "--columns", "u,v", "--truth", truth, "--order", "sorted", "--json")
    assert json.loads(result.stdout)["rows"] == 500
    group = zarr.open_group(out, mode="r")
    assert group["x"].shape == (500, 2)
    assert group["x"].shards == (200, 2)
    assert group["x"].attrs["columns"] == ["u", "v"]
    assert truth.exists()
    assert "exists already" in fail("generate", out, *args)


def test_fit_tells_the_fit_and_saves_it(place, tmp_path):
    output = tmp_path / "m.safetensors"
    result = succeed("fit", "gaussian-mixture", place / "data.zarr", "-k", K, "-o", output)
    assert "converged after" in result.stdout
    assert "converged after" not in result.stderr
    assert "daskem: keeping 1 of 1 units" in result.stderr
    assert "mean[a]" in result.stdout
    assert "step 1" in result.stderr
    assert "rows/s" in result.stderr
    assert "step" not in result.stdout.splitlines()[-1]
    assert output.exists()


def test_fit_gives_json_alone_on_standard_output(place, tmp_path):
    output = tmp_path / "m.safetensors"
    result = succeed("fit", "kmeans", place / "data.zarr", "-k", K, "-o", output, "--json", "--rows", ":2000")
    figures = json.loads(result.stdout)
    assert figures["converged"] is True
    assert figures["data"]["shape"] == [2_000, N_FEATURES]
    assert figures["plan"]["n_rows"] == 2_000
    assert len(figures["components"]) == K
    assert figures["options"]["n_components"] == K
    assert "step 1" in result.stderr


def test_quiet_is_silent(place, tmp_path):
    result = succeed("fit", "kmeans", place / "data.zarr", "-k", K, "-o", tmp_path / "m.safetensors", "--quiet")
    assert result.output == ""


def test_options_of_the_fit_reach_the_model(place, tmp_path):
    output = tmp_path / "m.safetensors"
    options = ["--covariance", "diag", "--reg-covar", "0.5", "--on-collapse", "raise", "--max-iter", 2, "--tol", 0]
    result = succeed(
        "fit", "gaussian-mixture", place / "data.zarr", "-k", K, "-o", output, *options, "--columns", "c,0"
    )
    assert "not converged: 2 passes were made" in result.stderr
    described = json.loads(succeed("inspect", output, "--json").stdout)
    family = described["model"]["fields"]["family"]["fields"]
    assert (family["covariance"], family["reg_covar"], family["on_collapse"]) == ("diag", 0.5, "raise")
    assert described["metadata"]["data"]["columns"] == ["c", "a"]
    assert described["metadata"]["steps"] == 2


@pytest.mark.parametrize("covariance", SHAPES)
def test_every_shape_of_covariance_can_be_fitted_and_shown(place, tmp_path, covariance):
    output = tmp_path / "m.safetensors"
    options = ["-k", K, "-o", output, "--covariance", covariance, "--max-iter", 2, "--tol", 0]
    succeed("fit", "gaussian-mixture", place / "data.zarr", *options)
    assert "sd[" in succeed("inspect", output).stdout


def test_weights_and_labels_are_read_beside_the_rows(place, tmp_path):
    np.save(tmp_path / "w.npy", np.full(N_ROWS, 2.0))
    output, data = tmp_path / "m.safetensors", place / "data.zarr"
    args = ["--weights", tmp_path / "w.npy", "--labels", f"{data}/labels", "--json"]
    figures = json.loads(succeed("fit", "gaussian-mixture", data, "-k", K, "-o", output, *args).stdout)
    assert figures["weight"] == 2 * N_ROWS
    # With every label known, the components are those of the labels, in their order, from the first step on.
    labels = zarr.open_array(data / "labels", mode="r")[:]
    rows = zarr.open_array(data / "x", mode="r")[:]
    for k in range(K):
        assert figures["components"][k]["weight"] == pytest.approx((labels == k).mean())
        assert figures["components"][k]["mean"] == pytest.approx(rows[labels == k].mean(axis=0))


def test_predictions_are_scikit_learns_at_the_same_parameters(place, tmp_path):
    model, output = place / "gaussian-mixture.safetensors", tmp_path / "out.zarr"
    result = succeed("predict", model, place / "data.zarr", "-o", output, "--proba", "--log-prob")
    assert "labels, proba, log_prob of 3,000 rows" in result.stdout
    peer = sklearn_mixture(json.loads(succeed("inspect", model, "--json").stdout), load_mixture(model))
    rows = zarr.open_array(place / "data.zarr" / "x", mode="r")[:]
    group = zarr.open_group(output, mode="r")
    assert group["proba"][:] == pytest.approx(peer.predict_proba(rows), rel=1e-7, abs=1e-12)
    assert group["log_prob"][:] == pytest.approx(peer.score_samples(rows), rel=1e-9)
    assert np.array_equal(group["labels"][:], peer.predict(rows))
    scores = json.loads(succeed("score", model, place / "data.zarr", "--json", "--quiet").stdout)
    assert scores["log_prob_per_row"] == pytest.approx(peer.score(rows), rel=1e-10)
    assert scores["bic"] == pytest.approx(peer.bic(rows), rel=1e-10)
    assert scores["aic"] == pytest.approx(peer.aic(rows), rel=1e-10)


def load_mixture(path):
    return load_model(path, KNOWN)


def sklearn_mixture(described, loaded):
    assert described["components"][0]["weight"] == pytest.approx(loaded.params.weights[0])
    peer = GaussianMixture(K)
    peer.weights_, peer.means_ = loaded.params.weights, loaded.params.components.means
    peer.covariances_ = loaded.params.components.covariances
    peer.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(peer.covariances_)).copy()
    return peer


def test_the_bar_of_predictions_ends_at_its_end(place, tmp_path, monkeypatch):
    """Three units of 1,000 rows are written by one task, since the output has larger chunks."""
    told = []
    monkeypatch.setattr("daskem.data.units.MIN_UNIT_BYTES", 8_000)
    monkeypatch.setattr(PassProgress, "expect_units", lambda progress, n_units: told.append(n_units))
    monkeypatch.setattr(PassProgress, "unit_done", lambda progress: told.append("done"))
    succeed("predict", place / "kmeans.safetensors", place / "data.zarr", "-o", tmp_path / "out.zarr", "--quiet")
    assert told == [1, "done"]
    assert len(open_dataset(str(place / "data.zarr")).units()) == 3


def test_kmeans_labels_and_distances_agree(place, tmp_path):
    output = tmp_path / "out.zarr"
    model = place / "kmeans.safetensors"
    succeed("predict", model, place / "data.zarr", "-o", output, "--transform", "--quiet")
    group = zarr.open_group(output, mode="r")
    distances = group["transform"][:]
    assert np.array_equal(group["labels"][:], distances.argmin(axis=1))
    scores = json.loads(succeed("score", model, place / "data.zarr", "--json").stdout)
    assert scores["inertia"] == pytest.approx((distances.min(axis=1) ** 2).sum())


def test_inspect_shows_stores_outputs_models_and_files(place, tmp_path):
    store = succeed("inspect", place / "data.zarr").stdout
    assert "shape    (3000, 3), float64" in store
    assert "missing  0 of 3 chunks" in store
    assert "columns  a, b, c" in store
    model = succeed("inspect", place / "gaussian-mixture.safetensors").stdout
    assert "converged after" in model
    assert "mean[a]" in model
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    assert json.loads(succeed("inspect", tmp_path / "x.npy", "--json").stdout)["shape"] == [4, 2]


def test_a_model_file_is_known_by_its_content(place, tmp_path):
    for name in ("model", "model.zip"):
        shutil.copy(place / "kmeans.safetensors", tmp_path / name)
        assert json.loads(succeed("inspect", tmp_path / name, "--json").stdout)["kind"] == "model"


def test_columns_are_names_first_and_numbers_where_no_name_fits(tmp_path):
    table = np.random.default_rng(0).standard_normal((20, 3))
    parquet.write_table(pyarrow.table(dict(zip(["3", "2", "a"], table.T, strict=True))), tmp_path / "x.parquet")
    for asked, names in (("3, 2", ["3", "2"]), ("0,2", ["3", "2"]), ("-1", ["a"])):
        args = ["-k", 2, "-o", tmp_path / "m", "--columns", asked, "--json", "--quiet", "--overwrite"]
        figures = json.loads(succeed("fit", "kmeans", tmp_path / "x.parquet", *args).stdout)
        assert figures["data"]["columns"] == names
    assert "has no column 7" in fail("fit", "kmeans", tmp_path / "x.parquet", "-k", 2, "-o", "m", "--columns", "7")
    succeed("generate", tmp_path / "g.zarr", "--rows", 9, "--features", 2, "--columns", "u, v", "--quiet")
    assert zarr.open_array(tmp_path / "g.zarr" / "x", mode="r").attrs["columns"] == ["u", "v"]


def test_components_that_were_repaired_are_counted_once():
    events = [Event(step, component, "kept") for step in (1, 2, 3) for component in (0, 4)]
    data = open_dataset(np.arange(20.0).reshape(10, 2))
    spec = FitSpec(KINDS["kmeans"], {"on_collapse": "reseed"}, 2, 0.1, 3, init="kmeans", algorithm="lloyd")
    result = fit(spec.model(data), data, stop=spec.stop(data))
    result = replace(result, trace=(replace(result.trace[-1], events=tuple(events)),))
    assert "\n2 components had to be repaired, the last: kept\n" in describe_fit(spec, result, data)


def test_inspect_shows_what_cannot_be_used(place, tmp_path):
    output = tmp_path / "out.zarr"
    succeed("predict", place / "kmeans.safetensors", place / "data.zarr", "-o", output, "--quiet")
    group = zarr.open_group(output, mode="r+")
    group.attrs["daskem:status"] = "incomplete"
    (output / "labels" / "c" / "0").unlink()
    described = json.loads(succeed("inspect", output, "--json").stdout)
    assert described["attributes"]["daskem:status"] == "incomplete"
    assert described["arrays"][0]["missing"] == 1
    assert "never finished" in fail("fit", "kmeans", output, "-k", 2, "-o", tmp_path / "m.safetensors")


def test_plan_tells_the_cost_without_reading(place):
    text = succeed("plan", "gaussian-mixture", place / "data.zarr", "-k", K).stdout
    assert "3,000 rows x 3 features" in text
    figures = json.loads(succeed("plan", "kmeans", place / "data.zarr", "-k", K, "--json").stdout)
    assert figures["n_rows"] == N_ROWS
    assert 0 < figures["peak"] <= figures["limit"]


def test_a_plan_counts_what_the_algorithm_keeps(place):
    peaks = {}
    for algorithm in ("batch", "auto", "stepwise"):
        told = succeed(
            "plan",
            "gaussian-mixture",
            place / "data.zarr",
            "-k",
            2,
            "--cache",
            "none",
            "--algorithm",
            algorithm,
            "--json",
        )
        peaks[algorithm] = json.loads(told.stdout)["peak"]
    assert peaks["batch"] < peaks["stepwise"]
    assert "cannot be made" in fail(
        "plan", "gaussian-mixture", place / "data.zarr", "-k", 2, "--algorithm", "stepwise", "--algorithm-set", "foo=1"
    )


@pytest.mark.parametrize("setting", ["batch_rows=abc", "decay=abc"])
def test_settings_of_another_kind_are_one_clear_error(place, tmp_path, setting):
    said = fail(
        "fit", "gaussian-mixture", place / "data.zarr", "-k", 2, "-o", tmp_path / "m.safetensors",
        "--algorithm", "stepwise", "--algorithm-set", setting, "--quiet",
    )  # fmt: skip
    assert f"--algorithm stepwise cannot be made of {setting.replace('=abc', chr(61) + repr('abc'))}" in said


def test_a_bound_has_no_information_criteria(place, tmp_path):
    model = tmp_path / "v.safetensors"
    succeed("fit", "variational-mixture", place / "data.zarr", "-k", 2, "-o", model, "--quiet")
    figures = json.loads(succeed("score", model, place / "data.zarr", "--json").stdout)
    assert "log_prob" in figures
    assert not {"aic", "bic"} & set(figures)


def test_a_cluster_gives_the_same_bits(place, tmp_path):
    """Two worker processes, started for the command."""
    output = tmp_path / "m.safetensors"
    succeed("fit", "gaussian-mixture", place / "data.zarr", "-k", K, "-o", output, "--workers", 2, "--quiet")
    here, there = (load_mixture(path).params for path in (place / "gaussian-mixture.safetensors", output))
    assert np.array_equal(here.components.means, there.components.means)
    assert np.array_equal(here.components.covariances, there.components.covariances)


def test_demo_goes_all_the_way(tmp_path):
    args = ["--rows", 20_000, "--features", 4, "--components", 3, "--memory-limit", "4GB", "--directory", tmp_path]
    figures = json.loads(succeed("demo", *args, "--json", "--quiet").stdout)
    assert figures["labels_agree"] > 0.9
    assert figures["log_prob"]["estimate"] == pytest.approx(figures["log_prob"]["truth"], abs=0.01)
    assert figures["peak_bytes"] > 0
    for component in figures["components"]:
        assert component["mean_error"] < 0.1
        assert component["sd_error"] < 0.1
    assert {path.name for path in tmp_path.iterdir()} == {
        "data.zarr",
        "labels.zarr",
        "model.safetensors",
        "truth.safetensors",
    }


@pytest.mark.parametrize("name", ["data.zarr", "labels.zarr", "model.safetensors", "truth.safetensors"])
def test_demo_refuses_before_work_what_exists(name, place, tmp_path):
    old = place / ("data.zarr" if name.endswith("zarr") else "kmeans.safetensors")
    (shutil.copytree if old.is_dir() else shutil.copy)(old, tmp_path / name)
    assert "exists already" in fail("demo", "--rows", 100, "--features", 2, "--quiet", "--directory", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_demo_prints_truth_beside_estimate_and_leaves_nothing():
    text = succeed("demo", "--rows", 5_000, "--features", 2, "--components", 2, "--memory-limit", "4GB").stdout
    assert "weight  estimate" in text
    assert "memory       peak" in text


def test_means_are_matched_one_to_one():
    truth = np.array([[0.0], [10.0], [11.0]])
    assert match(truth, np.array([[10.6], [0.1], [9.0]])) == [1, 2, 0]


# What section "bad input" of the command line's users meets: (arguments after ``fit``, what the line says).
BAD_FITS = {
    "missing store": (["kmeans", "{tmp}/nope.zarr", "-k", 2], "there is no Zarr store at"),
    "no such array": (["kmeans", "{data}", "-k", 2, "--array", "y"], "has no array 'y'"),
    "unknown column": (["kmeans", "{data}", "-k", 2, "--columns", "a,B"], "has no column 'B'"),
    "no rows": (["kmeans", "{data}", "-k", 2, "--rows", "5:5"], "0 sample"),
    "fewer rows than components": (["kmeans", "{data}", "-k", 9, "--rows", ":5"], "has 5 rows, fewer than the 9"),
    "too many components": (
        ["gaussian-mixture", "{data}", "-k", 2_900, "--memory-limit", "300MB"],
        "but may use 300 MB",
    ),
    "memory limit is no size": (["kmeans", "{data}", "-k", 2, "--memory-limit", "lots"], "memory_limit='lots'"),
    "one-dimensional data": (["kmeans", "{tmp}/one.npy", "-k", 2], "Expected 2D array"),
    "complex data": (["kmeans", "{tmp}/complex.npy", "-k", 2], "complex"),
    "NaN": (["gaussian-mixture", "{tmp}/nan.npy", "-k", 2], "NaN"),
    "negative weights": (["kmeans", "{tmp}/good.npy", "-k", 2, "--weights", "{tmp}/negative.npy"], "negative"),
    "too few weights": (["kmeans", "{data}", "-k", 2, "--weights", "{tmp}/negative.npy"], "40 values"),
    "labels out of range": (
        ["gaussian-mixture", "{tmp}/good.npy", "-k", 2, "--labels", "{tmp}/labels.npy"],
        "labels",
    ),
    "a tolerance of another kind": (["kmeans", "{data}", "-k", 2, "--tol", "statistical"], "about likelihoods"),
    "missing chunk": (["kmeans", "{tmp}/hole.zarr", "-k", 2], "1 of 2 chunks are not in the store: (1, 0)"),
    "an empty address": (["kmeans", "{data}", "-k", 2, "--scheduler", ""], "address of the scheduler is empty"),
    "both an empty address and workers": (
        ["kmeans", "{data}", "-k", 2, "--scheduler", "", "--workers", 2],
        "--scheduler and --workers exclude each other",
    ),
    "both a scheduler and workers": (
        ["kmeans", "{data}", "-k", 2, "--scheduler", "tcp://127.0.0.1:1", "--workers", 2],
        "--scheduler and --workers exclude each other",
    ),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("bad")
    good = np.random.default_rng(0).standard_normal((40, 2))
    np.save(tmp / "good.npy", good)
    np.save(tmp / "one.npy", good[:, 0])
    np.save(tmp / "complex.npy", good * 1j)
    np.save(tmp / "nan.npy", np.where(np.arange(40)[:, None] == 7, np.nan, good))
    np.save(tmp / "negative.npy", good[:, 0])
    np.save(tmp / "labels.npy", np.full(40, 5))
    zarr.create_array(tmp / "hole.zarr", data=good, chunks=(20, 2))
    (tmp / "hole.zarr" / "c" / "1" / "0").unlink()
    return tmp


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_input_gives_one_line_and_no_output(case, place, bad, tmp_path):
    args, message = BAD_FITS[case]
    args = [str(arg).format(tmp=bad, data=place / "data.zarr") for arg in args]
    assert message in fail("fit", *args, "-o", tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_missing_chunks_may_be_allowed(bad, tmp_path):
    args = ["fit", "kmeans", bad / "hole.zarr", "-k", 2, "-o", tmp_path / "m.safetensors", "--allow-missing"]
    assert "daskem: warning: " in succeed(*args).stderr


def test_an_output_that_exists_is_refused_before_work(place, tmp_path):
    model, output = place / "kmeans.safetensors", tmp_path / "out.zarr"
    before = model.read_bytes()
    # The data do not exist: had they been looked at first, the line would say so.
    assert "exists already" in fail("fit", "kmeans", "nope.zarr", "-k", 2, "-o", model)
    assert model.read_bytes() == before
    assert "missing or read-only" in fail("fit", "kmeans", "nope.zarr", "-k", 2, "-o", tmp_path / "no" / "m")
    assert "is a directory" in fail("fit", "kmeans", "nope.zarr", "-k", 2, "-o", tmp_path, "--overwrite")
    succeed("predict", model, place / "data.zarr", "-o", output)
    assert "exists already" in fail("predict", model, place / "data.zarr", "-o", output)
    succeed("predict", model, place / "data.zarr", "-o", output, "--overwrite")


@pytest.mark.parametrize("array", ["", "/x"])
def test_predictions_never_replace_the_data(array, place, tmp_path):
    data = tmp_path / "data.zarr"
    shutil.copytree(place / "data.zarr", data)
    args = ["predict", place / "kmeans.safetensors", f"{data}{array}", "-o", data, "--overwrite"]
    assert "one inside the other" in fail(*args)
    assert np.array_equal(zarr.open_array(data / "x", mode="r")[:], zarr.open_array(place / "data.zarr" / "x")[:])


def test_fits_and_reports_never_replace_what_they_are_made_from(place, tmp_path):
    x, weights, model, pipe = (tmp_path / name for name in ("x.npy", "w.npy", "m.safetensors", "pipe"))
    np.save(x, zarr.open_array(place / "data.zarr" / "x")[:])
    np.save(weights, np.ones(N_ROWS))
    shutil.copy(place / "gaussian-mixture.safetensors", model)
    os.mkfifo(pipe)
    fitted = ["fit", "kmeans", x, "-k", 2, "--weights", weights, "--overwrite", "-o"]
    report = ["report", model, x, "--overwrite", "-o"]
    before = [path.read_bytes() for path in (x, weights, model)]
    for args in ([*fitted, x], [*fitted, weights], [*report, x]):
        assert "one inside the other" in fail(*args)
    assert "would replace the model" in fail(*report, model)
    assert "is a device or a pipe" in fail(*fitted, pipe)
    assert [path.read_bytes() for path in (x, weights, model)] == before
    # Beside what it is made from is another matter.
    succeed(*report, tmp_path / "report.html")


def test_columns_by_number_are_remembered(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal([0, 5, 9], size=(300, 3)))
    model = tmp_path / "m.safetensors"
    succeed("fit", "gaussian-mixture", tmp_path / "x.npy", "-k", 2, "--columns", "2,0", "-o", model)
    assert "warning" not in succeed("score", model, tmp_path / "x.npy", "--columns", "2,0").stderr
    told = succeed("score", model, tmp_path / "x.npy", "--columns", "0,2").stderr
    assert "warning: the model was fitted to --columns 2,0; these are 0,2." in told


def test_a_model_is_applied_to_the_features_it_was_fitted_to(place, tmp_path):
    model, data, output = place / "gaussian-mixture.safetensors", place / "data.zarr", tmp_path / "out.zarr"
    line = fail("predict", model, data, "-o", output, "--columns", "a,b")
    assert "has 2 features, but the model has 3. It was fitted to the columns a, b, c." in line
    assert "in this order" in fail("score", model, data, "--columns", "b,a,c")
    assert not output.exists()


def test_results_that_a_model_does_not_have_are_refused(place, tmp_path):
    output = tmp_path / "out.zarr"
    data = place / "data.zarr"
    assert "log_prob" in fail("predict", place / "kmeans.safetensors", data, "-o", output, "--log-prob")
    assert "--transform" in fail("predict", place / "gaussian-mixture.safetensors", data, "-o", output, "--transform")
    assert not output.exists()


def test_files_that_are_no_models_are_refused(place, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"not a model")
    fail("predict", tmp_path / "m.safetensors", place / "data.zarr", "-o", tmp_path / "out.zarr")
    fail("inspect", tmp_path / "m.safetensors")
    assert "there is nothing at" in fail("inspect", tmp_path / "nope")


def test_a_model_of_the_users_own_can_be_inspected(tmp_path):
    class Own:
        pass

    save_model(tmp_path / "m.safetensors", Own(), np.zeros(2), metadata={"note": "mine"})
    text = succeed("inspect", tmp_path / "m.safetensors").stdout
    assert "Own" in text
    assert "mine" in text


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "kmeans", "x.zarr", "-k", "0", "-o", "m"],
        ["fit", "kmeans", "x.zarr", "-o", "m"],
        ["fit", "kmeans", "x.zarr", "-k", "2", "-o", "m", "--rows", "5"],
        ["fit", "kmeans", "x.zarr", "-k", "2", "-o", "m", "--tol", "-1"],
        ["fit", "nothing", "x.zarr"],
        ["generate"],
    ],
)
def test_wrong_usage_exits_with_2(args):
    result = run(*args)
    assert result.exit_code == 2
    assert "Usage: daskem" in result.stderr


def failing(error):
    """Return the group with one more command, which raises `error`."""
    group = type(main)("em", params=main.params, callback=main.callback)

    @group.command("break")
    def command():
        raise error

    return group


def test_an_unexpected_error_is_one_line_unless_debugging():
    group = failing(RuntimeError("two\nlines"))
    result = CliRunner().invoke(group, ["break"])
    assert result.exit_code == 1
    assert (
        result.stderr
        == "daskem: error: RuntimeError: two lines. Run `daskem --debug ...` to see where it comes from.\n"
    )
    result = CliRunner().invoke(group, ["--debug", "break"])
    assert isinstance(result.exception, RuntimeError)


def test_errors_of_click_keep_their_exit_codes():
    assert CliRunner().invoke(failing(click.BadParameter("no")), ["break"]).exit_code == 2
    assert CliRunner().invoke(failing(DaskEMError("no")), ["break"]).exit_code == 1


def test_ctrl_c_exits_with_130():
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["break"])
    assert result.exit_code == 130
    assert result.stderr.startswith("daskem: interrupted")


def test_a_scheduler_that_does_not_answer_is_one_error(place, tmp_path, monkeypatch):
    monkeypatch.setattr("daskem.engine.cluster.CONNECT_SECONDS", 0.2)
    args = ["-k", 2, "-o", tmp_path / "m.safetensors", "--scheduler", "tcp://127.0.0.1:1"]
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in fail("fit", "kmeans", place / "data.zarr", *args)


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "daskem", "inspect", "nope"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "daskem: error: there is nothing at nope that daskem can read. Check the path.\n"


def step(number, objective, change=0.0, seconds=2.0):
    return StepInfo(number, objective, 100.0, float(number), seconds, change)


def test_steps_left_follow_the_decay_of_the_gain():
    assert steps_left([8.0, 4.0, 2.0, 1.0], 0.1) == 4
    assert steps_left([1.0, 0.5], 0.1) is None
    assert steps_left([1.0, 1.5, 2.0], 0.1) is None
    assert steps_left([4.0, 2.0, 0.05], 0.1) == 0
    assert steps_left([4.0, 2.0, 1.0], 0.0) is None


def test_progress_lines_tell_rate_gain_and_time_left():
    progress = PassProgress(1_000_000, 8_000_000, 4, tol=0.1, max_passes=100, quiet=True)
    for number, objective in enumerate([0.0, 8.0, 12.0, 14.0, 15.0], start=1):
        progress(step(number, objective), None)
    line = progress.line(step(5, 15.0))
    assert line == "step 5  pass 5.0  objective 15  gain 1  2 s, 500,000 rows/s, 4 MB/s  about 8 s left"


def test_time_left_is_a_bound_where_steps_do_not_converge_yet():
    progress = PassProgress(10, 80, 1, rule="change", tol=0.1, max_passes=11, quiet=True)
    progress(step(1, -1.0, change=3.0), None)
    assert progress.time_left() == "at most 20 s left"


def test_progress_on_a_terminal_shows_a_bar_and_a_line_a_pass(capsys):
    console = Console(force_terminal=True, width=120, highlight=False)
    with PassProgress(1_000, 8_000, 2, console=console, max_passes=3) as progress:
        for _ in range(3):
            progress.unit_done()
        progress(step(1, -1.5), None)
    shown = capsys.readouterr().out
    assert "step 1" in shown
    assert "objective -1.5" in shown


def test_a_pass_may_turn_out_to_have_another_number_of_units(capsys):
    console = Console(force_terminal=True, width=120, highlight=False)
    with PassProgress(1_000, 8_000, 4, console=console) as progress:
        progress.expect_units(1)
        progress.unit_done()
    assert ", 0 s left of this pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.123, "0.12 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7_500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_sizes():
    assert [size(n) for n in (999, 1_000, 1.5e6, 2e9, 3e15)] == ["999 B", "1 KB", "1.5 MB", "2 GB", "3,000 TB"]
