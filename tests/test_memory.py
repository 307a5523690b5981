"""What a fit is measured to take is no more than its plan says, and no more than the limit it was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from daskem.algorithms import ALGORITHMS

# Runs in a fresh interpreter, since the peak of a process never falls. Prints what was planned and what was measured.
SCRIPT = """
import json, resource, sys
import dask
import dask.array as da
from daskem import MaxPasses, fit
from daskem.algorithms import ALGORITHMS
from daskem.data import open_dataset
from daskem.models import Gaussian, KMeans, Mixture

store, model, options = sys.argv[1], eval(sys.argv[2]), json.loads(sys.argv[3])
dask.config.set(num_workers=2)
lazy = options.pop("lazy", False)
data = da.from_zarr(store) if lazy else store
algorithm = ALGORITHMS[options.pop("algorithm", "batch")]()
result = fit(model, data, algorithm=algorithm, stop=MaxPasses(4), seed=1, **options)
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({**result.plan.as_dict(), "measured": peak}))
"""
ROWS, FEATURES = 400_000, 64
LARGE_ROWS = 1 << 17


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """100 MB of rows, not compressed in chunks of 8 MB and of 32 MiB, compressed in chunks of 128 KB and in shards."""
    folder = tmp_path_factory.mktemp("memory")
    block = np.random.default_rng(0).standard_normal((8 * 4_096, FEATURES)).astype("f4")
    layouts = {"plain": {"chunks": (32_768, FEATURES), "compressors": None}}
    layouts["large"] = {"chunks": (LARGE_ROWS, FEATURES), "compressors": None}
    layouts["small"] = {"chunks": (512, FEATURES)}
    layouts["sharded"] = {"chunks": (4_096, FEATURES), "shards": (8 * 4_096, FEATURES)}
    for name, layout in layouts.items():
        array = zarr.create_array(LocalStore(folder / name), shape=(ROWS, FEATURES), dtype="f4", **layout)
        step = array.chunks[0] if name == "large" else len(block)
        for start in range(0, ROWS, step):
            rows = np.resize(block, (min(step, ROWS - start), FEATURES))
            array[start : start + step] = rows + np.float32(start / ROWS)
    return folder


def measure(store: object, model: str, **options: object) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(store), model, json.dumps(options)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return json.loads(done.stdout)


SHAPES = [
    ("plain", "Mixture(Gaussian('full'), 8)", {"cache": "none"}),
    ("plain", "Mixture(Gaussian('diag'), 64)", {"cache": "none"}),
    ("sharded", "KMeans(16)", {"cache": "none"}),
    ("small", "KMeans(16)", {"cache": "none"}),
    ("plain", "KMeans(16)", {"cache": "memory"}),
    ("plain", "KMeans(16)", {"cache": "none", "lazy": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("store", "model", "options"), SHAPES)
def test_the_measured_peak_is_within_the_plan(stores, store, model, options):
    figures = measure(stores / store, model, memory_limit="1GB", **options)
    assert figures["measured"] <= figures["peak"] <= figures["limit"]
    if options["cache"] == "memory":
        assert figures["cached_units"] == figures["units"]
    else:
        # A plan that reserved everything would be kept too; streaming must take little beside the rows.
        assert figures["peak"] - figures["base"] < 3 * 4 * ROWS * FEATURES


@pytest.mark.slow
def test_what_is_kept_of_large_chunks_is_within_the_plan(stores):
    model = "Mixture(Gaussian('diag'), 16)"
    figures = measure(stores / "large", model, memory_limit="2GB", cache="none")
    assert figures["spent"] == figures["slots"] * 4 * LARGE_ROWS * FEATURES
    assert figures["measured"] <= figures["peak"] <= figures["limit"]
    limit = figures["peak"] - figures["spent"] // 2
    scarce = measure(stores / "large", model, memory_limit=limit, cache="none")
    assert scarce["spent"] == 0
    assert scarce["measured"] <= scarce["peak"] <= scarce["limit"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"batch"}))
def test_what_algorithms_keep_is_within_the_plan(stores, algorithm):
    figures = measure(
        stores / "plain", "Mixture(Gaussian('diag'), 8)", memory_limit="1GB", cache="none", algorithm=algorithm
    )
    assert figures["measured"] <= figures["peak"] <= figures["limit"]


@pytest.mark.slow
def test_a_cache_of_a_part_keeps_within_the_limit(stores):
    free = measure(stores / "plain", "KMeans(16)", cache="none")
    limit = free["peak"] + 50_000_000
    figures = measure(stores / "plain", "KMeans(16)", cache="memory", memory_limit=limit)
    assert 0 < figures["cached_units"] < figures["units"]
    assert figures["measured"] <= limit
