"""The command line for every family: fitted, shown, applied, and refused what the family does not take."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pytest
import zarr
from click.testing import CliRunner
from pyarrow import parquet

import daskem
from daskem.cli import main
from daskem.cli.models import FAMILIES, KINDS
from daskem.cli.own import load

N = 600
RNG = np.random.default_rng(7)
WHICH = RNG.integers(2, size=N)


def flags() -> np.ndarray:
    return (RNG.random((N, 3)) < np.array([[0.9, 0.8, 0.2], [0.2, 0.1, 0.7]])[WHICH]).astype(float)


def unit_rows() -> np.ndarray:
    rows = RNG.normal(size=(N, 3)) + np.array([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])[WHICH]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Rows, more options, and what the table shows, by kind.
FITS = {
    "gaussian": (lambda: RNG.normal(size=(N, 2)) + 5 * WHICH[:, None], ["--covariance", "tied_diag"], "mean[a]"),
    "student-t": (lambda: RNG.standard_t(3, (N, 2)) + 9 * WHICH[:, None], ["--dof", "shared"], "dof"),
    "bernoulli": (flags, ["--pseudo-count", 0.5, "--weight-prior", 2], "probability[a]"),
    "categorical": (lambda: RNG.integers(3, size=(N, 2)) * WHICH[:, None], ["--levels", "3,4"], "probability[b=2]"),
    "multinomial": (lambda: RNG.multinomial(9, [0.2, 0.8], N) + 3.0 * WHICH[:, None], [], "probability[b]"),
    "poisson": (lambda: RNG.poisson(3 + 9 * WHICH[:, None], (N, 2)), [], "rate[b]"),
    "exponential": (lambda: RNG.exponential(1 + 9 * WHICH[:, None], (N, 2)), [], "scale[b]"),
    "gamma": (lambda: RNG.gamma(3, 1 + 9 * WHICH[:, None], (N, 2)), ["--max-shape", 1e3], "shape[b]"),
    "von-mises-fisher": (unit_rows, ["--max-concentration", 1e3], "concentration"),
}


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="daskem")


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def fail(*args):
    result = run(*args)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def store(path, rows):
    array = zarr.create_array(path, data=np.asarray(rows, float), chunks=(100, rows.shape[1]))
    array.attrs["columns"] = list("abcdefgh"[: rows.shape[1]])
    return path


@pytest.fixture
def table(tmp_path):
    """A file of mixed columns with names."""
    columns = {
        "G": RNG.normal(size=N) + 6 * WHICH,
        "BP": RNG.normal(size=N) - 6 * WHICH,
        "id": np.arange(N) * 1.0,
        "seen": flags()[:, 0],
        "visits": RNG.poisson(2 + 6 * WHICH).astype(float),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def test_every_family_has_a_command():
    assert {f"{name}-mixture" for name in FAMILIES} | {"mixed-mixture", "kmeans"} == set(KINDS)
    assert set(FITS) == set(FAMILIES)
    for group in ("fit", "plan"):
        text = succeed(group, "--help").stdout
        assert all(name in text for name in KINDS)
        for name in KINDS:
            assert "-k INTEGER" in succeed(group, name, "--help").stdout


@pytest.mark.parametrize("family", FITS)
def test_a_mixture_of_every_family_goes_all_the_way(family, tmp_path):
    make, more, word = FITS[family]
    data, model, output = store(tmp_path / "x.zarr", make()), tmp_path / "m.safetensors", tmp_path / "out.zarr"
    kind = f"{family}-mixture"
    assert json.loads(succeed("plan", kind, data, "-k", 2, *more, "--json").stdout)["n_rows"] == N
    told = succeed("fit", kind, data, "-k", 2, "-o", model, *more).stdout
    assert word in told
    assert word in succeed("inspect", model).stdout
    figures = json.loads(succeed("inspect", model, "--json").stdout)
    assert sum(component["weight"] for component in figures["components"]) == pytest.approx(1.0)
    succeed("predict", model, data, "-o", output, "--proba", "--log-prob", "--quiet")
    group, loaded = zarr.open_group(output, mode="r"), load(str(model))
    chunk = daskem.Chunk(zarr.open_array(data, mode="r")[:])
    np.testing.assert_allclose(group["proba"][:], loaded.model.posterior(loaded.params, chunk), atol=1e-12)
    np.testing.assert_allclose(group["log_prob"][:], loaded.model.log_prob(loaded.params, chunk), rtol=1e-9)
    scores = json.loads(succeed("score", model, data, "--json", "--quiet").stdout)
    assert scores["log_prob"] == pytest.approx(group["log_prob"][:].sum(), rel=1e-10)
    assert scores["parameters"] == loaded.model.n_parameters(loaded.params)
    assert "but the model has" in fail("score", model, store(tmp_path / "y.zarr", np.ones((9, 5))))


def test_options_reach_the_family(tmp_path):
    data, model = store(tmp_path / "x.zarr", flags()), tmp_path / "m.safetensors"
    options = ["--pseudo-count", 0.5, "--weight-prior", 2, "--on-collapse", "raise", "--init", "random"]
    succeed("fit", "bernoulli-mixture", data, "-k", 2, "-o", model, *options, "--quiet")
    loaded = load(str(model)).model
    assert (loaded.weight_prior, loaded.init_method) == (2.0, "random")
    assert loaded.family == daskem.models.Bernoulli(0.5, "raise")
    args = ["student-t-mixture", store(tmp_path / "y.zarr", FITS["student-t"][0]()), "-k", 2, "-o", model]
    succeed("fit", *args, "--dof", 4, "--covariance", "diag", "--overwrite", "--quiet")
    assert load(str(model)).model.family == daskem.models.StudentT("diag", 4.0)
    assert run("fit", *args, "--dof", "many").exit_code == 2
    assert run("fit", "categorical-mixture", data, "-k", 2, "-o", model, "--levels", "2,x").exit_code == 2


def test_groups_of_columns_have_families_of_their_own(table, tmp_path):
    path = table
    model, output = tmp_path / "m.safetensors", tmp_path / "out.zarr"
    groups = ["--group", "colour=gaussian:G,BP", "--group", "flags=bernoulli:seen", "--group", "n=poisson:4"]
    args = ["mixed-mixture", path, "-k", 2, "--covariance", "diag", "--pseudo-count", 1, *groups]
    succeed("plan", *args)
    told = succeed("fit", *args, "-o", model).stdout
    for word in ("colour.mean[G]", "colour.sd[BP]", "flags.probability[seen]", "n.rate[visits]"):
        assert word in told
    family = load(str(model)).model.family
    assert family.columns == {"colour": (0, 1), "flags": (3,), "n": (4,)}
    assert family.families["colour"].covariance == "diag"
    assert family.families["flags"].pseudo_count == 1
    succeed("predict", model, path, "-o", output, "--quiet")
    labels = zarr.open_group(output, mode="r")["labels"][:]
    assert max((labels == WHICH).mean(), (labels != WHICH).mean()) > 0.99
    mixed = daskem.MixedMixture(
        2, families=dict(family.families), columns={"colour": ["G", "BP"], "flags": ["seen"], "n": ["visits"]}
    ).fit(path)
    shown = json.loads(succeed("inspect", model, "--json").stdout)["components"]
    means = sorted(component["colour.mean"][0] for component in shown)
    np.testing.assert_allclose(means, np.sort(mixed.groups_["colour"].means[:, 0]), atol=0.05)


BAD_GROUPS = {
    "no family": ("colour:G", "is not NAME=FAMILY:COLUMN"),
    "unknown family": ("colour=normal:G", "a family of gaussian, student-t"),
    "no columns": ("colour=gaussian:", "is not NAME=FAMILY:COLUMN"),
    "unknown column": ("colour=gaussian:RP", "no column 'RP'; it has the columns G, BP, id, seen, visits"),
    "column out of range": ("colour=gaussian:9", "no column '9'"),
    "column twice": ("colour=gaussian:G,0", "named twice"),
}


@pytest.mark.parametrize("case", BAD_GROUPS)
def test_groups_that_cannot_be(case, table, tmp_path):
    group, words = BAD_GROUPS[case]
    output = tmp_path / "m.safetensors"
    assert words in fail("fit", "mixed-mixture", table, "-k", 2, "-o", output, "--group", group)
    assert not output.exists()


@pytest.mark.parametrize(
    ("family", "value", "words"),
    [
        ("bernoulli", 2.0, "takes 0, 1 or NaN"),
        ("categorical", 0.5, "takes"),
        ("multinomial", -1.0, "takes whole numbers"),
        ("poisson", 1.5, "takes whole numbers"),
        ("exponential", -1.0, "takes positive"),
        ("gamma", 0.0, "takes positive"),
        ("von-mises-fisher", 3.0, "takes unit vectors"),
    ],
)
def test_rows_that_a_family_does_not_take(family, value, words, tmp_path):
    rows = np.asarray(FITS[family][0](), float)
    rows[321, 1] = value
    line = fail("fit", f"{family}-mixture", store(tmp_path / "x.zarr", rows), "-k", 2, "-o", tmp_path / "m")
    assert words in line
    assert "321" in line
    assert "chunk (3, 0)" in line


def test_label_probabilities_beside_the_rows(tmp_path):
    data = store(tmp_path / "x.zarr", flags())
    hints = np.where(np.arange(2) == WHICH[:, None], 0.9, 0.1)
    zarr.create_array(tmp_path / "hints.zarr", data=hints, chunks=(50, 2))
    args = ["bernoulli-mixture", data, "-k", 2, "-o", tmp_path / "m.safetensors"]
    figures = json.loads(succeed("fit", *args, "--labels", tmp_path / "hints.zarr", "--json", "--quiet").stdout)
    ones = [component["probability"][0] for component in figures["components"]]
    np.testing.assert_allclose(ones, [0.9, 0.2], atol=0.07)
    args[3] = 3
    assert "2 columns, but the model has 3" in fail("fit", *args, "--labels", tmp_path / "hints.zarr", "--overwrite")
