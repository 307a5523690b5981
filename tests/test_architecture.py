"""Reads the source and checks what the design fixes: who may import whom, what is documented, how long things are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "daskem"
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"capabilities", "chunk", "core", "errors", "tree"}
BELOW_FIT = BASE | {"algorithms", "data", "engine", "models", "persist"}
ON_FIT = {"estimators", "online", "selection"}
BELOW_CLI = BELOW_FIT | ON_FIT | {"generate", "fit", "inference", "predict", "report", "starts"}
# Which rooms a room may import from, itself aside. A new room needs a row here, and a reason.
MAY_IMPORT = {
    "errors": set(),
    "tree": {"errors"},
    "chunk": set(),
    "capabilities": {"chunk", "errors"},
    "core": {"capabilities", "chunk", "errors", "tree"},
    # Arithmetic in C, below whatever computes.
    "compiled": {"chunk", "errors"},
    "models": BASE | {"compiled"},
    "algorithms": BASE,
    "data": BASE,
    "engine": BASE | {"compiled", "data"},
    "persist": BASE | {"data"},
    "testing": BASE,
    # How a fit begins: checks of what comes with the rows, and the sample that parameters start from.
    "starts": BELOW_FIT,
    # The loop of a fit, over starts that are on their way.
    "runs": BELOW_FIT,
    # What the data say of a model's parameters; a result is asked for it.
    "inference": BELOW_FIT | {"starts"},
    "fit": BELOW_FIT | {"inference", "runs", "starts"},
    # Which of several models: it fits them.
    "selection": BELOW_FIT | {"fit"},
    # What is done with a fitted model, row by row; the estimators and the command line share it.
    "predict": BELOW_FIT | {"starts"},
    # Data with a known truth: written by the engine, the truth saved as a model.
    "generate": BELOW_FIT,
    # The same for rows that come by once, which no loop over the data can go back to.
    "online": BELOW_FIT | {"fit", "starts"},
    "estimators": BELOW_FIT | {"fit", "inference", "online", "predict", "report", "starts"},
    "report": BELOW_FIT | {"fit"},
    "cli": BELOW_CLI,
    "__main__": {"cli"},
    "__init__": BELOW_CLI | {"testing"},
}
# Rooms that may know nothing but these packages (and the standard library).
MAY_KNOW = {
    "errors": set(),
    "tree": {"numpy"},
    "capabilities": {"numpy"},
    "chunk": {"numpy"},
    "core": {"numpy"},
    "compiled": {"numpy"},
    "models": {"numpy", "scipy"},
    "algorithms": {"numpy", "scipy"},
    "testing": {"numpy", "scipy"},
}
# Packages that only these rooms may know.
KNOWN_BY = {
    "dask": {"data", "engine"},
    "distributed": {"data", "engine"},
    "zarr": {"data", "persist"},
    "safetensors": {"persist"},
    "sklearn": {"estimators"},
    "click": {"cli"},
    "matplotlib": {"report"},
}
MAX_FILE_LINES = 500
MAX_BODY_LINES = 60
P90_BODY_LINES = 20

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """Return the room of a module of daskem; daskem itself is ``__init__``."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None, ast.stmt]]:
    """Yield (module, name or None, statement) of every import, those under TYPE_CHECKING included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield "." * node.level + (node.module or ""), alias.name, node


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported_modules(path: Path) -> set[str]:
    """Return what a file imports, ``from daskem import tree`` being ``daskem.tree``."""
    return {
        f"{module}.{name}" if name and is_module(f"{module}.{name}") else module
        for module, name, _ in imports(parse(path))
    }


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def public(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.ClassDef]:
    return isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")


def exported(path: Path) -> list[str] | None:
    for node in parse(path).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def extras() -> set[str]:
    """Return the packages of the optional extras that users install, import names being the same."""
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = [line for extra, lines in optional.items() if extra != "test" for line in lines]
    return {re.match(r"[A-Za-z0-9_-]+", line)[0].replace("-", "_") for line in lines} - {"daskem"}  # type: ignore[index]


@each_file
def test_rooms_import_downwards(path: Path) -> None:
    here = room(module_name(path))
    assert here in MAY_IMPORT, f"daskem/{here} is a new room: say in MAY_IMPORT whom it may know"
    for module in imported_modules(path):
        if module.split(".")[0] == "daskem":
            assert room(module) in MAY_IMPORT[here] | {here}, f"{here} must not import {module}"


@each_file
def test_no_relative_import(path: Path) -> None:
    assert not [module for module, _, _ in imports(parse(path)) if module.startswith(".")]


@each_file
def test_packages_stay_in_their_rooms(path: Path) -> None:
    here = room(module_name(path))
    for module in imported_modules(path):
        package = module.split(".")[0]
        if package in sys.stdlib_module_names or package == "daskem":
            continue
        assert here in KNOWN_BY.get(package, {here}), f"{here} must not import {module}"
        assert package in MAY_KNOW.get(here, {package}), f"{here} must not import {module}"


@each_file
def test_no_private_name_of_another_module(path: Path) -> None:
    tree = parse(path)
    modules = {}
    for module, name, node in imports(tree):
        private = [part for part in f"{module}.{name or ''}".split(".") if re.match(r"_(?!_)", part)]
        assert not private, f"line {node.lineno} imports {private[0]} of {module}"
        for alias in node.names:
            if module.split(".")[0] not in sys.stdlib_module_names:
                modules[(alias.asname or alias.name).split(".")[0]] = module
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            root: ast.expr = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            assert not (isinstance(root, ast.Name) and root.id in modules), f"line {node.lineno} uses {node.attr}"


@each_file
def test_only_extras_are_imported_inside_functions(path: Path) -> None:
    for function in functions(parse(path)):
        for module, _, node in imports(function):
            assert module.split(".")[0] in extras(), f"line {node.lineno} imports {module} inside {function.name}"


@each_file
def test_extras_are_not_imported_at_the_top(path: Path) -> None:
    nested = {id(node) for function in functions(parse(path)) for _, _, node in imports(function)}
    for module, _, node in imports(parse(path)):
        assert module.split(".")[0] not in extras() or id(node) in nested, f"line {node.lineno} imports {module}"


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order of ruff's RUF022."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@each_file
def test_all_is_complete_and_sorted(path: Path) -> None:
    names = exported(path)
    if names is None:
        assert path.name in ("__init__.py", "__main__.py"), "a module needs __all__"
        assert not any(public(node) for node in parse(path).body)
        return
    assert names == sorted(set(names), key=sort_key)
    defined = {node.name for node in parse(path).body if public(node)}
    assert defined <= set(names), f"not in __all__: {sorted(defined - set(names))}"


@each_file
def test_imports_between_modules_are_in_all(path: Path) -> None:
    for module, name, _ in imports(parse(path)):
        if module.split(".")[0] != "daskem" or name is None or is_module(f"{module}.{name}"):
            continue
        target = ROOT.joinpath(*module.split("."))
        source = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
        assert name in (exported(source) or []), f"{module} does not export {name}"


@cache
def contract_methods() -> set[str]:
    """Return what protocols document once for all who implement them."""
    return {
        function.name
        for path in (PACKAGE / "capabilities.py", PACKAGE / "core.py", PACKAGE / "data" / "source.py")
        for node in parse(path).body
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
        for function in functions(node)
    }


def inherited_methods(tree: ast.Module, node: ast.ClassDef | ast.FunctionDef) -> set[str]:
    """Return what the bases of a class document, as far as they are in the same file."""
    bases = {base.id for base in getattr(node, "bases", []) if isinstance(base, ast.Name)}
    above = [other for other in tree.body if isinstance(other, ast.ClassDef) and other.name in bases]
    return {method.name for base in above for method in functions(base) if ast.get_docstring(method)}


@each_file
def test_public_names_are_documented(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    for node in tree.body:
        if not public(node):
            continue
        methods = [child for child in node.body if public(child)] if isinstance(node, ast.ClassDef) else []
        # A protocol of one method says everything there.
        documented = ast.get_docstring(node) or (methods and all(ast.get_docstring(method) for method in methods))
        assert documented, f"{node.name} has no docstring"
        for method in methods:
            # A field of a Source, a step of an Algorithm: said once, in the protocol, or in the abstract class above.
            said = ast.get_docstring(method) or method.name in contract_methods() | inherited_methods(tree, node)
            assert said, f"{node.name}.{method.name} has no docstring"


@each_file
def test_no_long_file_or_function(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    long = {function.name: body_lines(function) for function in functions(parse(path))}
    assert not {name: lines for name, lines in long.items() if lines > MAX_BODY_LINES}


def test_most_functions_are_short() -> None:
    lines = [body_lines(function) for path in FILES for function in functions(parse(path))]
    assert np.percentile(lines, 90) <= P90_BODY_LINES


def import_alone(modules: list[str], says: str) -> subprocess.CompletedProcess[str]:
    """Import `modules` in a process where no extra is installed, and print what `says`."""
    # dask.array and scikit-learn import some of these where they are installed, so absence has to be staged.
    absent = sorted(extras() | {"matplotlib", "pytest", "hypothesis"})
    code = (
        f"import sys, importlib\nsys.modules.update(dict.fromkeys({absent}))\n"
        f"for name in {modules}: importlib.import_module(name)\nprint({says})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_daskem_imports_without_any_extra() -> None:
    modules = [module_name(path) for path in FILES if path.name != "__main__.py"]
    run = import_alone(modules, "'daskem.core' in sys.modules")
    assert (run.stdout, run.stderr) == ("True\n", "")


def test_a_fit_loads_nothing_large_that_it_does_not_use() -> None:
    # Each costs every worker 5 to 40 MB, whatever its data.
    large = ("scipy.stats", "scipy.optimize", "sklearn", "dask.array")
    run = import_alone(
        ["daskem.fit", "daskem.models", "daskem.data"], f"[name for name in {large} if sys.modules.get(name)]"
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")
