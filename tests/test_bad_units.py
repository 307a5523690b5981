"""Chunks that are missing, damaged or not finite: left out of a fit when asked for, named, and never absorbed."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import daskem
from daskem.algorithms import ALGORITHMS
from daskem.cli import main
from daskem.data import open_dataset, open_source
from daskem.data.fingerprint import fingerprint
from daskem.data.remaining import Remaining
from daskem.data.units import apart
from daskem.engine import without_bad_units
from daskem.errors import CheckpointError, DaskEMWarning, DataError, OptionError
from daskem.models import Gaussian, Mixture
from daskem.predict import predict_to_store

CHUNK, N = 100, 2_000
# Rows of the chunks that `damaged` spoils: missing, cut short, NaN in one row, infinity in one row.
BAD = [(300, 400), (700, 800), (1200, 1300), (1900, 2000)]
GOOD = np.concatenate([np.arange(0, 300), np.arange(400, 700), np.arange(800, 1200), np.arange(1300, 1900)])
model = Mixture(Gaussian(), 2)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, 3)) + 4.0 * rng.integers(2, size=(N, 1))


@pytest.fixture
def damaged(tmp_path, rows):
    """A store with four chunks that cannot be used."""
    rows = rows.copy()
    rows[1250, 1], rows[1999, 0] = np.nan, np.inf
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=rows, chunks=(CHUNK, 3))
    (path / "c" / "3" / "0").unlink()
    chunk = path / "c" / "7" / "0"
    chunk.write_bytes(chunk.read_bytes()[:50])
    return str(path)


def skipping(data, **options):
    with pytest.warns(DaskEMWarning, match="rows are left out"):
        return daskem.fit(model, data, on_bad_unit="skip", **options)


@pytest.mark.parametrize("algorithm", ["batch", "anderson", "auto", "progressive", "stepwise"])
def test_the_fit_is_that_of_the_rows_that_are_left(damaged, rows, algorithm, tmp_path):
    options = {"algorithm": ALGORITHMS[algorithm](), "stop": daskem.MaxPasses(4), "seed": 1}
    found = skipping(damaged, **options)
    assert [(run.start, run.stop) for run in found.left_out] == BAD
    assert [run.where for run in found.left_out] == ["chunk (3, 0)", "chunk (7, 0)", "chunk (12, 0)", "chunk (19, 0)"]
    assert "does not have it" in found.left_out[0].why
    assert "cannot be read" in found.left_out[1].why
    assert "rows 1250:1251 hold 1 row(s) with NaN" in found.left_out[2].why
    zarr.create_array(tmp_path / "good.zarr", data=rows[GOOD], chunks=(CHUNK, 3))
    expected = daskem.fit(model, str(tmp_path / "good.zarr"), **options)
    assert found.objective == pytest.approx(expected.objective, rel=1e-12)
    np.testing.assert_allclose(found.params.components.means, expected.params.components.means, rtol=1e-11)
    assert found.summary()["left_out"][0]["start"] == 300


def test_by_default_they_are_refused(damaged):
    with pytest.raises(DataError, match=r"\(3, 0\)"):
        daskem.fit(model, damaged)


def test_nothing_is_said_of_whole_data(rows):
    assert daskem.fit(model, rows, on_bad_unit="skip").left_out == ()


def test_weights_and_labels_stay_with_their_rows(damaged, rows, tmp_path):
    weight, labels = np.random.default_rng(1).uniform(0.5, 2.0, N), np.full(N, -1)
    labels[:50] = rows[:50, 0] > 2
    sides = {"sample_weight": weight, "y": labels}
    kept = {"sample_weight": weight[GOOD], "y": labels[GOOD]}
    options = {"algorithm": daskem.BatchEM(), "stop": daskem.MaxSteps(3)}
    expected = daskem.fit(model, rows[GOOD], **kept, **options)
    assert skipping(damaged, **sides, **options).objective == pytest.approx(expected.objective, rel=1e-9)
    # A chunk of weights that is missing takes its rows with it.
    zarr.create_array(tmp_path / "w.zarr", data=weight, chunks=(CHUNK,))
    (tmp_path / "w.zarr" / "c" / "0").unlink()
    found = skipping(damaged, sample_weight=str(tmp_path / "w.zarr"), **options)
    assert [(run.start, run.stop) for run in found.left_out] == [(0, 100), *BAD]


def test_what_takes_missing_values_keeps_them(damaged):
    with pytest.warns(DaskEMWarning):
        found = daskem.fit(Mixture(Gaussian(missing=True), 2), damaged, on_bad_unit="skip")
    assert [(run.start, run.stop) for run in found.left_out] == [BAD[0], BAD[1], BAD[3]]


def test_arrays_without_chunks_lose_blocks_and_dask_arrays_theirs(rows):
    rows[1500] = np.nan
    (lost,) = skipping(rows).left_out
    assert lost.start <= 1500 < lost.stop
    found = skipping(da.from_array(rows, chunks=(CHUNK, 3)), stop=daskem.MaxSteps(2))
    assert [(run.start, run.stop) for run in found.left_out] == [(1500, 1600)]


def test_nothing_left_is_an_error(rows):
    with pytest.raises(DataError, match="no stored chunk can be used"):
        daskem.fit(model, rows * np.nan, on_bad_unit="skip")


def test_senseless_options():
    with pytest.raises(OptionError, match="on_bad_unit"):
        daskem.fit(model, np.eye(3), on_bad_unit="ignore")
    with pytest.raises(OptionError, match="Choose one"):
        daskem.fit(model, np.eye(3), on_bad_unit="skip", allow_missing=True)


def test_a_fit_goes_on_without_the_same_rows_alone(damaged, tmp_path):
    options = {"algorithm": daskem.BatchEM(), "checkpoint": str(tmp_path / "kept"), "checkpoint_interval": 0}
    undisturbed = skipping(damaged, algorithm=daskem.BatchEM(), stop=daskem.MaxSteps(6))

    def interrupt(info, params):
        if info.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        skipping(damaged, stop=daskem.MaxSteps(6), callbacks=[interrupt], **options)
    resumed = skipping(damaged, stop=daskem.MaxSteps(6), **options)
    assert resumed.objectives == undisturbed.objectives
    np.testing.assert_array_equal(resumed.params.components.means, undisturbed.params.components.means)
    array = zarr.open_array(damaged)
    array[1250:1251, 1] = 0.0
    with pytest.raises(CheckpointError, match="data"):
        skipping(damaged, stop=daskem.MaxSteps(6), resume="must", **options)


def test_rows_that_remain_are_a_source(damaged, rows):
    source = Remaining(open_source(rows), tuple((int(a), int(b)) for a, b in [(0, 300), (400, 700), (800, 1200)]))
    expected = np.concatenate([rows[:300], rows[400:700], rows[800:1200]])
    assert source.shape == expected.shape
    rng = np.random.default_rng(2)
    for _ in range(100):
        start, stop = np.sort(rng.choice(len(expected) + 1, 2, replace=False))
        np.testing.assert_array_equal(source.read(int(start), int(stop)), expected[start:stop])
    stored = without_bad_units(open_dataset(damaged, allow_missing=None), model)[0]
    # A row that begins a run, or a chunk within one, may begin a read.
    assert [stored.rows.piece_boundary(row) for row in (0, 1, 300, 301, 650, 1600)] == [0, 100, 300, 400, 700, 1600]
    assert stored.rows.locate(250, 350) == "chunk (2, 0) to chunk (4, 0)"
    assert fingerprint(stored)["rows"]["kept"] == [[0, 300], [400, 700], [800, 1200], [1300, 1900]]


def test_estimators_and_the_command_line_do_so_too(damaged, tmp_path):
    mixture = daskem.GaussianMixture(2, on_bad_unit="skip", random_state=0)
    with pytest.warns(DaskEMWarning, match="400 of 2000 rows"):
        mixture.fit(damaged)
    assert sum(map(len, mixture.result_.left_out)) == 400
    left_out = np.zeros(N, bool)
    for start, stop in BAD:
        left_out[start:stop] = True
    with pytest.warns(DaskEMWarning, match="400 of 2000 rows"):
        labels, centers = mixture.fit_predict(damaged), daskem.KMeans(2, on_bad_unit="skip", random_state=0)
    with pytest.warns(DaskEMWarning, match="400 of 2000 rows"):
        assert mixture.fit_transform(damaged).shape == (N, 2)
    with pytest.warns(DaskEMWarning, match="400 of 2000 rows"):
        # Lazy, as the rows are.
        found = centers.fit(damaged).labels_.compute()
    for rows in (labels.compute(), found):
        assert rows.shape == (N,)
        np.testing.assert_array_equal(rows == -1, left_out)
    command = ["fit", "gaussian-mixture", damaged, "-k", "2", "-o", str(tmp_path / "m.safetensors")]
    assert CliRunner().invoke(main, command).exit_code == 1
    done = CliRunner().invoke(main, [*command, "--on-bad-unit", "skip", "--json"])
    assert done.exit_code == 0, done.output
    assert "400 of 2000 rows are left out" in done.stderr
    assert [run["start"] for run in json.loads(done.stdout)["left_out"]] == [start for start, _ in BAD]


def test_runs_and_what_lies_between_them():
    assert list(apart(2, 20, [(0, 4), (6, 8), (19, 30)])) == [
        *((2, 4, True), (4, 6, False), (6, 8, True), (8, 19, False), (19, 20, True))
    ]
    assert list(apart(3, 5, [])) == [(3, 5, False)]
    assert list(apart(3, 5, [(0, 9)])) == [(3, 5, True)]


@pytest.mark.parametrize("write_bytes", [1 << 12, 8 << 20])
def test_a_prediction_writes_nothing_for_their_rows_and_the_rest_as_ever(
    damaged, rows, tmp_path, monkeypatch, write_bytes
):
    monkeypatch.setattr("daskem.predict.WRITE_BYTES", write_bytes)
    result = skipping(damaged, seed=1)
    zarr.create_array(tmp_path / "whole.zarr", data=rows, chunks=(CHUNK, 3))
    what = ["labels", "proba", "log_prob"]
    with pytest.warns(DaskEMWarning, match=r"400 of 2000 rows are left out, in 4 place\(s\); .*chunk \(3, 0\)"):
        left_out = predict_to_store(
            *(model, result.params, open_dataset(damaged, allow_missing=None), tmp_path / "out.zarr", what, 2),
            on_bad_unit="skip",
        )
    assert [(run.start, run.stop) for run in left_out] == BAD
    predict_to_store(model, result.params, open_dataset(tmp_path / "whole.zarr"), tmp_path / "all.zarr", what, 2)
    found, expected = (zarr.open_group(tmp_path / name, mode="r") for name in ("out.zarr", "all.zarr"))
    bad = np.setdiff1d(np.arange(N), GOOD)
    assert np.all(found["labels"][:][bad] == -1)
    for name in what:
        values = found[name][:]
        np.testing.assert_array_equal(values[GOOD], expected[name][:][GOOD])
        assert name == "labels" or np.isnan(values[bad]).all()
    assert [run["where"] for run in found.attrs["daskem:left_out"]] == [run.where for run in left_out]


def test_the_command_predicts_without_them(damaged, tmp_path):
    fitted, out = str(tmp_path / "m.safetensors"), str(tmp_path / "out.zarr")
    skip = ["--on-bad-unit", "skip"]
    runner = CliRunner()
    assert runner.invoke(main, ["fit", "gaussian-mixture", damaged, "-k", "2", "-o", fitted, *skip]).exit_code == 0
    taken = runner.invoke(main, ["predict", fitted, damaged, "-o", damaged, *skip])
    assert "one inside the other" in taken.output
    refused = runner.invoke(main, ["predict", fitted, damaged, "-o", out])
    assert refused.exit_code == 1
    assert "(3, 0)" in refused.output
    done = runner.invoke(main, ["predict", fitted, damaged, "-o", out, *skip, "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    assert [run["start"] for run in json.loads(done.stdout)["left_out"]] == [start for start, _ in BAD]
    again = runner.invoke(main, ["predict", fitted, damaged, "-o", out, *skip])
    assert again.exit_code == 1
    # Refused before the pass that looks for bad chunks.
    assert "exists already" in again.output
    assert "left out" not in again.output
