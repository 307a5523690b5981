"""What the documents say is what happens: README and docstrings are run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import daskem
from daskem.cli import main
from daskem.testing import zero_inflated_poisson

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 120


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _ = blocks("python")
    assert len(code.splitlines()) == 12
    names: dict = {}
    exec(code, names)
    printed = capsys.readouterr().out
    assert sorted(names["mixture"].means_[:, 0].round().tolist()) == [-4.0, 0.0, 4.0]
    assert "40,000 rows x 3 features" in printed


def test_the_command_line_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines, _ = blocks("console")
    commands = [shlex.split(line) for line in lines.splitlines()]
    assert len(commands) == 4
    outputs = []
    for program, *arguments in commands:
        assert program == "daskem"
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "labels.zarr" / "proba").is_dir()
    assert "log prob per row" in outputs[-1]


def test_the_example_of_a_model_of_ones_own_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copy(zero_inflated_poisson.__file__, tmp_path / "mymodule.py")
    _, code = blocks("python")
    names = {"np": np, "zarr": zarr, "daskem": daskem, "rng": np.random.default_rng(0)}
    try:
        exec(code, names)
        assert "'fisher_identity'" in capsys.readouterr().out
        _, lines = blocks("console")
        for line in lines.splitlines():
            result = CliRunner().invoke(main, shlex.split(line)[1:])
            assert result.exit_code == 0, result.output
    finally:
        sys.modules.pop("mymodule", None)
    assert (zarr.open_group("zip.zarr", mode="r")["labels"][:] >= 0).all()


def test_ci_runs_the_readmes_test_command():
    demo, tests = (block.strip() for block in blocks("bash"))
    assert demo.endswith("daskem demo")
    script = (ROOT / ".ci" / "run").read_text()
    found = re.search(r"grep -m 1 '(.*)' README.md", script)
    assert found is not None
    matches = [line for line in README.splitlines() if re.search(found[1], line)]
    assert matches[0] == tests


def test_the_change_log_has_this_version():
    assert f"## {daskem.__version__}" in (ROOT / "daskem" / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("module", sorted(m.name for m in pkgutil.walk_packages(daskem.__path__, "daskem.")))
def test_docstring_examples(module):
    if not module.endswith("__main__"):
        assert doctest.testmod(importlib.import_module(module)).failed == 0
