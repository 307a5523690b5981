"""Models of the user's own: ``module:Name`` is imported because the user names it, never because a file does."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

import click

from daskem import models
from daskem.cli.models import FitSpec, Kind
from daskem.cli.options import made_of
from daskem.core import Model
from daskem.errors import ContractError, OptionError
from daskem.persist import LoadedModel, check_storable, inspect_model, load_model

__all__ = ["KNOWN", "load", "model_option", "own_kind"]

# What a model file may be made of without a word from the user.
KNOWN = tuple(
    cls for cls in (getattr(models, name) for name in models.__all__) if isinstance(cls, type) and is_dataclass(cls)
)
# The methods of the contract, `daskem.core.Model`.
METHODS = ("init", "e_step", "m_step")

model_option = click.option(
    "--model", "own", metavar="MODULE:NAME", help="Where the class of a model of your own is, to read its model file."
)


def own_kind(where: str) -> Kind:
    """Return a model of the user's own, ``module:Name``, as something that can be fitted by name.

    Raises
    ------
    OptionError
        If there is no such module or name.
    """
    make = _find(where)
    own = click.option(
        "--set",
        "settings",
        metavar="NAME=VALUE",
        multiple=True,
        help='An option of the model, as in JSON: --set n_components=3 --set labels=\'["a", "b"]\'.',
    )
    return Kind(where, lambda spec, data: _make(where, make, spec), (own,))


def load(path: str, own: str | None = None) -> LoadedModel:
    """Load a model file made of daskem's classes, and of those of the module that `own` (``module:Name``) names.

    Raises
    ------
    OptionError
        If the file holds a model of the user's own, and `own` does not say where its class is.
    """
    others = [] if own is None else _classes_beside(own)
    needed = _first_unknown(inspect_model(path), {cls.__qualname__ for cls in others})
    if needed is None:
        return load_model(path, (*KNOWN, *others))
    name, module = needed
    if own is None:
        raise OptionError(
            f"{path} holds a {name} of module {module}, which is not daskem's own. Reading a file imports no code: if "
            f"you trust that module, name it again with --model {module}:{name}."
        )
    raise OptionError(f"{path} holds a {name} of module {module}, which {own} does not have. Name it with --model.")


def _find(where: str) -> Callable[..., Any]:
    """Import ``module:Name``, also from the current directory, and return what it is."""
    name = where.partition(":")[2]
    module = _module(where)
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise OptionError(f"module {module.__name__} has no {name!r}; it defines {', '.join(there) or 'nothing'}.")
    found = getattr(module, name)
    if not callable(found):
        raise OptionError(f"{where} is a {type(found).__name__}. Name a class, or a function that returns a model.")
    return found  # type: ignore[no-any-return]


def _module(where: str) -> ModuleType:
    module, _, name = where.partition(":")
    if not (module and name.isidentifier()):
        raise OptionError(f"{where!r} is not MODULE:NAME, such as mymodule:ZeroInflatedPoisson.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise OptionError(
            f"there is no module {module} in {os.getcwd()}, nor among the packages that are installed. Run daskem "
            "where the file is, or set PYTHONPATH."
        ) from error


def _make(where: str, make: Callable[..., Any], spec: FitSpec) -> Model:
    model: Model = made_of(where, make, spec.own["settings"], "--set")
    missing = [name for name in METHODS if not callable(getattr(model, name, None))]
    if missing:
        raise ContractError(
            f"{where} is no model: it has no method {', '.join(missing)}. Implement them as daskem.core.Model "
            "documents, and try them with daskem.testing.check_model."
        )
    check_storable(model)
    return model


def _classes_beside(where: str) -> list[type]:
    """Return the named class, and the records of its module that parameters may be made of."""
    found = _find(where)
    beside = [value for value in vars(_module(where)).values() if isinstance(value, type) and is_dataclass(value)]
    return [*({found} if isinstance(found, type) else set()), *(cls for cls in beside if cls is not found)]


def _first_unknown(described: Mapping[str, Any], others: set[str]) -> tuple[str, str] | None:
    """Return name and module of the first class that a file's description needs beyond daskem's and `others`."""
    names = {cls.__qualname__ for cls in KNOWN}
    waiting = [described["model"], described["params"]]
    while waiting:
        spec = waiting.pop(0)
        if isinstance(spec, dict):
            name, module = str(spec.get("record")), str(spec.get("module"))
            # A class of the user's own may be called like one of daskem's, and mean something else.
            ours = name in names and module.partition(".")[0] == "daskem"
            if "record" in spec and not ours and name not in others:
                return name, module
            waiting += spec.values()
        elif isinstance(spec, list):
            waiting += spec
    return None
