"""A model of the user's own, from its file to its predictions: in Python and on the command line."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from scipy.optimize import brentq

import daskem
from daskem.algorithms import ALGORITHMS
from daskem.cli import main
from daskem.errors import ContractError, OptionError
from daskem.persist import load_model, save_model
from daskem.testing import check_model, zero_inflated_poisson
from daskem.testing.zero_inflated_poisson import ZeroInflatedPoisson

SOURCE = Path(zero_inflated_poisson.__file__)
# McKendrick (1926), as told by Meng (1997), Stat. Methods Med. Res. 6, 3-23: houses by cases of cholera, 0 to 4.
HOUSES = np.array([168.0, 32, 16, 6, 1])
CASES = np.arange(5.0)[:, None]


def code_lines(path: Path) -> int:
    """Return the lines of a file that are neither blank nor docstrings."""
    text = path.read_text()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(1 for i, line in enumerate(text.splitlines(), 1) if line.strip() and i not in skipped)


def counts(n: int = 4_000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, 1)) < 0.3, 0.0, rng.poisson(4.0, (n, 1)))


def maximum_likelihood(rows: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
    """Return zero and rate in closed form: positive counts are a truncated Poisson sample (Meng 1997)."""
    weight = np.ones(len(rows)) if weight is None else weight
    x = rows[:, 0]
    mean = weight[x > 0] @ x[x > 0] / weight[x > 0].sum()
    rate = brentq(lambda rate: rate / -np.expm1(-rate) - mean, 1e-6, 100.0, xtol=1e-14)
    return 1 + weight[x > 0].sum() / weight.sum() / np.expm1(-rate), rate


def test_the_example_is_short_and_keeps_the_contract():
    assert code_lines(SOURCE) <= 35
    assert {"fisher_identity", "m_step_maximises", "posterior_sums_to_one"} < set(
        check_model(ZeroInflatedPoisson(), counts(300))
    )


def test_the_example_finds_the_maximum_in_closed_form():
    result = daskem.fit(
        ZeroInflatedPoisson(), CASES, sample_weight=HOUSES, algorithm=daskem.BatchEM(), stop=daskem.Change(1e-13)
    )
    zero, rate = maximum_likelihood(CASES, HOUSES)
    assert rate == pytest.approx(0.972, abs=5e-4)
    np.testing.assert_allclose([result.params.zero[0], result.params.rate[0]], [zero, rate], rtol=1e-10)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_algorithms_drive_the_example(algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr("daskem.data.units.MIN_UNIT_BYTES", 8_000)
    rows = counts(20_000)
    zarr.create_array(tmp_path / "x.zarr", data=rows, chunks=(1_000, 1))
    result = daskem.fit(
        ZeroInflatedPoisson(), tmp_path / "x.zarr", algorithm=ALGORITHMS[algorithm](), stop=daskem.MaxSteps(60)
    )
    zero, rate = maximum_likelihood(rows)
    # A standard error is 0.004 and 0.02 here.
    np.testing.assert_allclose(result.params.zero, zero, atol=0.004)
    np.testing.assert_allclose(result.params.rate, rate, atol=0.02)


# --- check_model ------------------------------------------------------------------------------------------------------


class Nothing:
    pass


class Fails(ZeroInflatedPoisson):
    def init(self, sample, rng):
        return sample.nothing


class Forgets(ZeroInflatedPoisson):
    def e_step(self, params, chunk):
        return daskem.Expectation(np.zeros(3), 0.0, chunk.total_weight)


@pytest.mark.parametrize("sample", [counts(100).astype(int), counts(100).astype(np.float32), counts(100).tolist()])
def test_a_sample_may_be_anything_like_an_array(sample):
    assert "additive" in check_model(ZeroInflatedPoisson(), sample)


@pytest.mark.parametrize(
    ("model", "sample", "error", "words"),
    [
        (Nothing(), counts(9), ContractError, "Nothing is no model: it has no method init, e_step, m_step"),
        (ZeroInflatedPoisson(), counts(9)[:, 0], OptionError, r"array of shape \(9,\); give some rows"),
        (ZeroInflatedPoisson(), [["a"]], OptionError, "numbers"),
        (Fails(), counts(9), ContractError, "init raised AttributeError"),
        (Forgets(), counts(9), ContractError, "m_step|log_prob sums to"),
    ],
)
def test_what_is_wrong_is_said_in_words(model, sample, error, words):
    with np.errstate(all="ignore"), pytest.raises(error, match=words):
        check_model(model, sample)


# --- on the command line ----------------------------------------------------------------------------------------------

OTHERS = '''
import dataclasses
import numpy as np
from daskem import Expectation
from daskem.models import Gaussian, Mixture

VALUE = 3

class NoSteps:
    def init(self, sample, rng):
        return 0

@dataclasses.dataclass(frozen=True)
class Mean:
    """Has nothing but the three methods."""
    power: float = 1.0
    def init(self, sample, rng):
        return sample.rows.mean(axis=0)
    def e_step(self, params, chunk):
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        gap = chunk.rows - params
        objective = float(-weight @ (gap * gap).sum(axis=1))
        return Expectation((chunk.total_weight, weight @ chunk.rows), objective, chunk.total_weight)
    def m_step(self, stats, params):
        return stats[1] / stats[0]

@dataclasses.dataclass(frozen=True)
class HoldsFunction(Mean):
    link: object = abs

def two(covariance="diag"):
    return Mixture(Gaussian(covariance), 2)
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a working directory with data and two modules of the user's."""
    shutil.copy(SOURCE, tmp_path / "mymodule.py")
    (tmp_path / "others.py").write_text(OTHERS)
    zarr.create_array(tmp_path / "counts.zarr", data=counts(), chunks=(1_000, 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mymodule", "others"):
        sys.modules.pop(name, None)


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="daskem")


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def fail(*args):
    result = run(*args)
    assert result.exit_code == 1, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("daskem: error: ")
    return last


ZIP = "mymodule:ZeroInflatedPoisson"


def test_the_whole_path(place):
    succeed("plan", ZIP, "counts.zarr")
    told = succeed("fit", ZIP, "counts.zarr", "-o", "m.safetensors", "--tol", 1e-9)
    assert "nats per row" in told.stdout
    assert "rate" in told.stdout
    described = json.loads(succeed("inspect", "m.safetensors", "--model", ZIP, "--json").stdout)
    zero, rate = maximum_likelihood(counts())
    assert described["params"]["rate"] == pytest.approx([rate], abs=1e-3)
    assert described["params"]["zero"] == pytest.approx([zero], abs=1e-3)
    assert described["metadata"]["options"]["settings"] == []
    args = ("m.safetensors", "counts.zarr", "--model", ZIP)
    succeed("predict", *args, "-o", "out.zarr", "--proba", "--log-prob")
    group = zarr.open_group("out.zarr", mode="r")
    x, proba = counts()[:, 0], group["proba"][:]
    # A zero is sure with probability z / (z + (1 - z) exp(-rate)), other counts never.
    z, r = described["params"]["zero"][0], described["params"]["rate"][0]
    np.testing.assert_allclose(proba[:, 0], np.where(x == 0, z / (z + (1 - z) * np.exp(-r)), 0.0), rtol=1e-9)
    np.testing.assert_array_equal(group["labels"][:], (x > 0).astype(int))
    figures = json.loads(succeed("score", *args, "--json", "--quiet").stdout)
    assert figures["log_prob"] == pytest.approx(group["log_prob"][:].sum(), rel=1e-12)


def test_a_file_alone_imports_nothing(place):
    succeed("fit", ZIP, "counts.zarr", "-o", "m.safetensors", "--quiet")
    del sys.modules["mymodule"]
    line = fail("predict", "m.safetensors", "counts.zarr", "-o", "out.zarr")
    assert "holds a ZeroInflatedPoisson of module mymodule" in line
    assert f"--model {ZIP}" in line
    assert "ZeroInflatedPoisson" in succeed("inspect", "m.safetensors").stdout
    assert "mymodule" not in sys.modules
    assert "which others:Mean does not have" in fail("score", "m.safetensors", "counts.zarr", "--model", "others:Mean")


def test_a_class_called_like_one_of_daskems_is_not_taken_for_it(place):
    (place / "others.py").write_text(OTHERS.replace("class Mean", "class KMeans").replace("(Mean)", "(KMeans)"))
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    succeed("fit", "others:KMeans", "x.npy", "-o", "m.safetensors", "--quiet")
    assert "holds a KMeans of module others" in fail("score", "m.safetensors", "x.npy")
    scored = succeed("score", "m.safetensors", "x.npy", "--model", "others:KMeans", "--quiet")
    assert "objective per row" in scored.stdout


def test_options_are_set_by_name(place):
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    args = ("x.npy", "-o", "m.safetensors", "--json", "--quiet", "--overwrite")
    figures = json.loads(succeed("fit", "others:Mean", *args, "--set", "power=2.5").stdout)
    assert figures["params"]["params"] == pytest.approx(np.load("x.npy").mean(axis=0).tolist())
    described = json.loads(succeed("inspect", "m.safetensors", "--json").stdout)
    assert described["model"]["fields"]["power"] == 2.5
    # A function that returns a model of daskem's own needs no name to be read again.
    found = json.loads(succeed("fit", "others:two", *args, "--set", "covariance=tied").stdout)
    assert len(found["components"]) == 2
    assert "sd" in succeed("inspect", "m.safetensors").stdout


def test_results_need_their_methods(place):
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    succeed("fit", "others:Mean", "x.npy", "-o", "m.safetensors", "--quiet")
    args = ("m.safetensors", "x.npy", "--model", "others:Mean")
    assert "Mean cannot be used for assigning rows to components: it has no method posterior" in fail(
        "predict", *args, "-o", "out.zarr"
    )
    assert "it has no method log_prob" in fail("predict", *args, "-o", "out.zarr", "--log-prob")
    assert not Path("out.zarr").exists()
    figures = json.loads(succeed("score", *args, "--json", "--quiet").stdout)
    assert figures["objective"] == pytest.approx(-50 * np.load("x.npy").var(axis=0).sum())
    np.save("wide.npy", np.zeros((50, 3)))
    assert "has 3 features, but the model has 2" in fail("score", "m.safetensors", "wide.npy", *args[2:])


BAD = {
    "no such module": ("nowhere:Model", [], "there is no module nowhere in"),
    "no such name": ("mymodule:Other", [], "has no 'Other'; it defines ZipParams, ZeroInflatedPoisson"),
    "no name": ("mymodule:", [], "is not MODULE:NAME"),
    "no class": ("others:VALUE", [], "others:VALUE is a int. Name a class"),
    "no steps": ("others:NoSteps", [], "is no model: it has no method e_step, m_step"),
    "unknown option": (ZIP, ["--set", "rate=3"], "cannot be made: got an unexpected keyword argument 'rate'"),
    "no value": ("others:Mean", ["--set", "power"], "is not NAME=VALUE"),
    "cannot be saved": ("others:HoldsFunction", [], "which a model file cannot hold"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_models_are_refused_before_work(case, place):
    where, more, words = BAD[case]
    assert words in fail("fit", where, "counts.zarr", "-o", "m.safetensors", *more)
    assert not (place / "m.safetensors").exists()


def test_an_error_inside_the_module_is_not_hidden(place):
    (place / "others.py").write_text("import no_such_package_of_mine")
    assert "No module named 'no_such_package_of_mine'" in fail("fit", "others:Mean", "counts.zarr", "-o", "m")


def test_model_files_of_the_library_never_ask_for_a_class(place):
    save_model("m.safetensors", ZeroInflatedPoisson(), zero_inflated_poisson.ZipParams(np.ones(1), np.ones(1)))
    known = (ZeroInflatedPoisson, zero_inflated_poisson.ZipParams)
    assert load_model("m.safetensors", known).model == ZeroInflatedPoisson()
    assert "daskem.testing.zero_inflated_poisson:ZeroInflatedPoisson" in fail("score", "m.safetensors", "counts.zarr")
