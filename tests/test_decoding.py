"""Where the user has told zarr to decode by zarrs (extra ``fast``), fits are the same, and damage is found."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import daskem
from daskem.algorithms import BatchEM
from daskem.data import open_dataset, open_source
from daskem.errors import DataError
from daskem.models import Gaussian, Mixture

ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}


@pytest.fixture
def stored(tmp_path):
    rows = np.random.default_rng(0).standard_normal((4_000, 3))
    array = zarr.create_array(tmp_path / "x", shape=rows.shape, chunks=(100, 3), dtype="f8")
    array[:] = rows
    return tmp_path / "x"


def test_fits_have_the_same_bits_whatever_decodes(stored):
    pytest.importorskip("zarrs")
    fits = []
    for setting in ({}, ZARRS):
        with zarr.config.set(setting):
            data = open_dataset(stored)
            assert (type(data.rows.array.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline") is bool(setting)
            model = Mixture(Gaussian("full"), 3)
            fits.append(daskem.fit(model, data, algorithm=BatchEM(), stop=daskem.MaxSteps(3), seed=1, cache="none"))
    for (_, one), (_, other) in zip(*(daskem.tree.leaves(fit.params) for fit in fits), strict=True):
        np.testing.assert_array_equal(one, other)


def test_damage_is_found_whatever_decodes(stored, monkeypatch):
    pytest.importorskip("zarrs")
    monkeypatch.setattr("daskem.data.retry.time.sleep", lambda seconds: None)
    (stored / "c" / "7" / "0").write_bytes(b"no chunk")
    with zarr.config.set(ZARRS):
        source = open_source(stored)
    with pytest.raises(DataError, match=r"chunk \(7, 0\) \(rows 700:800\) cannot be read"):
        source.read(0, 4_000)
