"""Generated mixtures: the same bits whatever the chunks and the workers, and the distribution that the truth says."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import zarr
from scipy.spatial.distance import pdist

from daskem.data import Dataset, Source, open_dataset
from daskem.data.generated import create_store
from daskem.errors import DataError, OptionError, PlanError
from daskem.generate import SyntheticSource, generate_mixture, make_truth
from daskem.models import Gaussian, GaussianParams, Mixture, MixtureParams
from daskem.persist import load_model
from daskem.predict import score

KNOWN = (Mixture, MixtureParams, Gaussian, GaussianParams)


def synthetic(n_rows=10_000, dtype="float64", **options):
    return SyntheticSource(make_truth(3, 5, seed=1), n_rows, np.dtype(dtype), seed=1, **options)


def test_a_row_does_not_depend_on_the_rows_it_is_read_with():
    source = synthetic()
    whole = source.read(0, 10_000)
    for start, stop in ((0, 1), (777, 9_001), (4_095, 4_097), (9_999, 10_000)):
        assert np.array_equal(source.read(start, stop), whole[start:stop])
        assert np.array_equal(source.labels(start, stop), source.labels(0, 10_000)[start:stop])


def test_rows_follow_the_truth():
    source = synthetic(n_rows=60_000)
    rows, labels, truth = source.read(0, 60_000), source.labels(0, 60_000), source.truth
    for k in range(3):
        mine = rows[labels == k]
        # Five standard errors of a proportion, a mean and a covariance of sds of at most about two.
        assert abs(len(mine) / 60_000 - truth.weights[k]) < 5 * 0.5 / np.sqrt(60_000)
        assert np.abs(mine.mean(axis=0) - truth.means[k]).max() < 5 * 2 / np.sqrt(len(mine))
        assert np.abs(np.cov(mine.T) - truth.covariances[k]).max() < 5 * 4 * np.sqrt(2 / len(mine))


def test_separation_is_the_distance_of_the_nearest_means_in_root_mean_square_sds():
    truth = make_truth(6, 4, separation=7.0, seed=3)
    assert pdist(truth.means).min() == pytest.approx(7.0)
    assert np.trace(truth.covariances, axis1=1, axis2=2) == pytest.approx(4.0)


def test_seeds_differ():
    assert not np.array_equal(make_truth(2, 2, seed=0).means, make_truth(2, 2, seed=1).means)
    truth = make_truth(2, 2)
    rows = [SyntheticSource(truth, 100, np.dtype("f8"), seed=seed).read(0, 100) for seed in (0, 1)]
    assert not np.array_equal(*rows)


def test_sorted_rows_come_component_by_component_in_the_same_shares():
    labels = synthetic(order="sorted").labels(0, 10_000)
    assert (np.diff(labels) >= 0).all()
    assert np.bincount(labels) / 10_000 == pytest.approx(make_truth(3, 5, seed=1).weights, abs=1e-4)


@pytest.mark.parametrize(
    ("layout", "scheduler"),
    [({"chunk_rows": 1_000}, "threads"), ({"chunk_rows": 700, "shard_rows": 2_100}, "synchronous")],
)
def test_the_bits_of_a_store_depend_neither_on_chunks_nor_on_workers(tmp_path, layout, scheduler):
    with dask.config.set(scheduler=scheduler):
        truth = generate_mixture(tmp_path / "out.zarr", 5_000, 4, 3, seed=5, **layout)
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    source = SyntheticSource(truth, 5_000, np.dtype("float32"), seed=5)
    assert np.array_equal(group["x"][:], source.read(0, 5_000))
    assert np.array_equal(group["labels"][:], source.labels(0, 5_000))
    assert group["x"].chunks == (layout["chunk_rows"], 4)
    assert group["x"].shards == ((layout["shard_rows"], 4) if "shard_rows" in layout else None)
    assert group.attrs["daskem:status"] == "complete"


def test_a_source_needs_no_store_to_be_scored_and_the_truth_is_a_model_file(tmp_path):
    path = tmp_path / "truth.safetensors"
    truth = generate_mixture(
        tmp_path / "out.zarr", 4_000, 3, 2, dtype="float64", seed=2, truth_path=path, columns=["a", "b", "c"]
    )
    loaded = load_model(path, KNOWN)
    assert loaded.params.components.means == pytest.approx(truth.means, rel=1e-12)
    assert loaded.params.components.covariances == pytest.approx(truth.covariances, rel=1e-9, abs=1e-12)
    stored = open_dataset(str(tmp_path / "out.zarr"))
    assert stored.rows.columns == ("a", "b", "c")
    source = SyntheticSource(truth, 4_000, np.dtype("float64"), seed=2)
    assert isinstance(source, Source)
    drawn = score(loaded.model, loaded.params, Dataset(source))
    assert drawn == score(loaded.model, loaded.params, stored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int32"}, "dtype='int32' is not one of"),
        ({"n_rows": 0}, "n_rows=0 is not positive"),
        ({"n_components": 0}, "n_components=0 is not positive"),
        ({"separation": -1.0}, r"separation=-1.0 is not positive"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"order": "reversed"}, "neither 'shuffled' nor 'sorted'"),
        ({"chunk_rows": 0}, "chunk_rows=0 is not positive"),
        ({"chunk_rows": 10, "shard_rows": 25}, "not a multiple of chunk_rows=10"),
        ({"columns": ["a"]}, "1 column names were given for 2 features"),
        ({"columns": ["a", "a"]}, "columns=.* name a feature twice"),
        ({"truth_path": "/nowhere/truth.safetensors"}, "missing or read-only"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, message):
    values = {"n_rows": 100, "n_features": 2, "n_components": 2} | options
    with pytest.raises(OptionError, match=message):
        generate_mixture(tmp_path / "out.zarr", **values)
    assert not (tmp_path / "out.zarr").exists()


def test_a_store_that_cannot_be_made_again_is_left_alone(tmp_path):
    url = tmp_path / "out.zarr"
    generate_mixture(url, 100, 2, 2)
    with pytest.raises(PlanError):
        generate_mixture(url, 100, 2, 2, seed=1, overwrite=True, memory_limit="1MB")
    assert zarr.open_group(url, mode="r").attrs["daskem:status"] == "complete"
    assert zarr.open_array(url / "x", mode="r").shape == (100, 2)


def test_a_store_that_lacks_a_shard_is_not_complete(tmp_path):
    output = create_store(tmp_path / "out.zarr", (25, 2), "f4", 5, shard_rows=10)
    for start, stop in ((0, 10), (20, 25)):
        output.write(start, {"x": np.ones((stop - start, 2), "f4"), "labels": np.ones(stop - start, "i8")})
    with pytest.raises(DataError, match=r"lacks 1 chunks of 'x': \(1, 0\)"):
        output.finish()


def test_a_store_is_replaced_only_when_asked_to(tmp_path):
    url = tmp_path / "out.zarr"
    generate_mixture(url, 100, 2, 2)
    with pytest.raises(OptionError, match="exists already"):
        generate_mixture(url, 100, 2, 2, seed=1)
    generate_mixture(url, 50, 3, 2, overwrite=True)
    assert zarr.open_array(url / "x", mode="r").shape == (50, 3)
