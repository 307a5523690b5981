"""Model files: a fitted model, its options and its parameters, in one safetensors file.

Arrays are safetensors' tensors, named by their path in the record (``params.members.means``). All else is one JSON
document under ``__metadata__["daskem"]``: versions, the model's class and options, how the parameters are put together,
a digest of each tensor, and what the caller adds (summaries of the data and of the trace).

The library safetensors writes; reading is done here, because a file from elsewhere is checked *before* anything is
allocated, and a refusal should say what is wrong with it. A file names classes, it never chooses them: records are
built from the classes that the caller passes, and from nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daskem.core import Array, Params
from daskem.errors import ContractError, FileFormatError, NonFiniteError, OptionError
from daskem.persist.paths import Fetched, Where, any_path, check_writable, kind_of
from daskem.persist.records import DescriptionError, pack, unpack
from daskem.persist.sealed import FileKind, opened, read_document, read_tensors, write_sealed
from daskem.persist.tensors import MAX_HEADER, Header

__all__ = [
    "LoadedModel",
    "check_new_file",
    "check_storable",
    "inspect_model",
    "is_model_file",
    "load_model",
    "save_model",
]

MODEL_FILE = FileKind("daskem", "model", 1)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What a model file holds.

    Attributes
    ----------
    model : the model, with the options it was fitted with.
    params : its parameters.
    metadata : what the caller of `save_model` added.
    """

    model: Any
    params: Params
    metadata: dict[str, Any]


def check_new_file(path: Where, overwrite: bool) -> None:
    """Refuse, before any work, to write a file that exists or whose directory does not.

    Raises
    ------
    OptionError
        If `path` is a directory, exists and `overwrite` is False, or cannot be written.
    """
    target = any_path(path)
    try:
        there = kind_of(target)
        if there == "directory":
            raise OptionError(f"{target} is a directory. Give the name of a file to write, such as model.safetensors.")
        if there == "file" and isinstance(target, Path) and not target.is_file():
            raise OptionError(f"{target} is a device or a pipe. Give the name of a file to write.")
        if there == "file" and not overwrite:
            raise OptionError(f"{target} exists already. Choose another name, or pass --overwrite (overwrite=True).")
        check_writable(target)
    except OSError as error:
        raise OptionError(f"{target} cannot be written: {error}") from error


def check_storable(model: object) -> None:
    """Refuse, before any work, a model that a model file cannot hold.

    Raises
    ------
    ContractError
        Naming the option that cannot be stored.
    """
    pack(model, "model", {}, inline_numbers=True)


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins like a model file, whatever its name: a header's length, then JSON."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def save_model(
    path: Where,
    model: object,
    params: Params,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model file: all of it, or nothing.

    Parameters
    ----------
    path : where; usually ends in ``.safetensors``.
    model : a dataclass whose fields are options (numbers, strings, arrays, further dataclasses), or an object
        without any.
    params : its parameters, a tree (see `daskem.tree`).
    metadata : what else to keep, JSON values and numpy numbers: summaries of the data and of the trace. A float that is
        not finite is kept as a string, JSON having none.
    overwrite : whether to replace an existing file.

    Raises
    ------
    OptionError
        If `check_new_file` refuses `path`, or if the metadata are too long.
    ContractError
        If the model, the parameters or the metadata hold something that cannot be stored; the message says where.
    NonFiniteError
        If a parameter is NaN or infinite.
    """
    target = any_path(path)
    check_new_file(target, overwrite)
    tensors: dict[str, Array] = {}
    document = {
        "model": pack(model, "model", tensors, inline_numbers=True),
        "params": pack(params, "params", tensors, inline_numbers=False),
        "metadata": _plain(dict(metadata or {}), "metadata"),
    }
    for name, tensor in tensors.items():
        if _is_param(name) and not _finite(tensor):
            raise NonFiniteError(
                f"{name} holds NaN or infinity; the model was not saved. Look at the trace of the fit."
            )
    write_sealed(target, MODEL_FILE, document, tensors)


def load_model(path: Where, known: Iterable[type]) -> LoadedModel:
    """Read a model file. Nothing in the file is executed, and no class is imported because the file names it.

    Parameters
    ----------
    path : a file that `save_model` wrote.
    known : the classes that records may be made of: models, families, and their parameters' records.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, not a model file, from a newer version, holds NaN or infinity in a parameter,
        or needs a class that is not in `known`.
    """
    where = opened(any_path(path))
    header, document = _read_document(where)
    tensors = read_tensors(where, header, MODEL_FILE, document["tensors"])
    for name, tensor in tensors.items():
        if _is_param(name) and not _finite(tensor):
            raise FileFormatError(f"{where}: tensor {name!r:.80} holds NaN or infinity. Fit the model again.")
    try:
        model = unpack(document["model"], "model", tensors, tuple(known))
        params = unpack(document["params"], "params", tensors, tuple(known))
    except DescriptionError as fault:
        raise FileFormatError(f"{where}: {fault}") from fault
    if tensors:
        raise FileFormatError(
            f"{where}: tensor {min(tensors)!r:.80} belongs to nothing. The file was not made by daskem."
        )
    return LoadedModel(model, params, document["metadata"])


def inspect_model(path: Where) -> dict[str, Any]:
    """Return what a model file says of itself, without reading a tensor.

    Returns
    -------
    dict
        ``format_version``, ``daskem_version``, ``model`` and ``params`` (how they are put together), ``tensors`` (type,
        shape and sha256 of each) and ``metadata``.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, not a model file or from a newer version.
    """
    where = opened(any_path(path))
    _, document = _read_document(where)
    return {name: value for name, value in document.items() if name != "seal"}


def _read_document(where: Path | Fetched) -> tuple[Header, dict[str, Any]]:
    header, document = read_document(where, MODEL_FILE)
    if not isinstance(document.get("metadata"), dict):
        raise FileFormatError(f"{where}: 'metadata' is missing from the description of the model. Restore a copy.")
    if not {"model", "params"} <= document.keys():
        raise FileFormatError(f"{where}: the model or its parameters are missing from the description. Restore a copy.")
    return header, document


def _is_param(name: str) -> bool:
    # Options may be infinite, such as the bound of a parameter that has none.
    return name.startswith("params")


def _finite(tensor: Array) -> bool:
    return bool(np.isfinite(tensor).all())


def _plain(value: Any, path: str) -> Any:
    """Return `value` in JSON's own types."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist(), path)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(child, f"{path}[{key!r}]") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child, f"{path}[{i}]") for i, child in enumerate(value)]
    raise ContractError(
        f"{path} is a {type(value).__name__}, which JSON cannot hold. Pass numbers, strings, lists and dicts."
    )
