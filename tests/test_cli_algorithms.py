"""``daskem fit --algorithm``: every name, its options, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from daskem.algorithms import ALGORITHMS
from daskem.cli import main
from daskem.data import dataset, units


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 12)
    monkeypatch.setattr(dataset, "PIECE_BYTES", 1 << 12)


@pytest.fixture
def store(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(3_000, 2)) + 6.0 * rng.integers(2, size=(3_000, 1)))
    return str(tmp_path / "x.npy")


def fit(store: str, *options: str) -> tuple[int, str, str]:
    output = str(Path(store).with_name("model.safetensors"))
    run = CliRunner().invoke(main, ["fit", "gaussian-mixture", store, "-k", "2", "-o", output, "--json", *options])
    return run.exit_code, run.stdout, run.stderr


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_by_its_name(store, name):
    options = ["--algorithm-set", "batch_rows=200"] if name == "stepwise" else []
    code, out, err = fit(store, "--algorithm", name, "--max-iter", "6", *options)
    assert code == 0, err
    found = json.loads(out)
    assert sorted(round(component["mean"][0]) for component in found["components"]) == [0, 6]
    assert found["options"]["algorithm"] == name


def test_an_algorithm_of_an_algorithm_by_its_name(store):
    code, out, err = fit(store, "--algorithm", "progressive", "--algorithm-set", "inner=batch", "--max-iter", "6")
    assert code == 0, err
    assert len(json.loads(out)["components"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("stepwise", "decay=0.3"), r"decay=0.3 is not in (0.5, 1]"),
        (("stepwise", "pace=1"), "Its options (--algorithm-set) are: batch_rows, decay, offset"),
        (("batch", "depth=3"), "Its options (--algorithm-set) are: none"),
        (("anderson", "depth"), "--algorithm-set 'depth' is not NAME=VALUE"),
        (("stepwise", "batch_rows=100000"), "larger than the data"),
        (("squarem", "inner=stepwise"), "is no map of parameters"),
        (("progressive", "final=nothing"), "final='nothing' is not an algorithm"),
    ],
)
def test_bad_options_are_one_line(store, options, message):
    code, _, err = fit(store, "--algorithm", options[0], "--algorithm-set", options[1])
    assert code != 0
    assert message in err
    assert "Traceback" not in err
    assert not Path(store).with_name("model.safetensors").exists()
