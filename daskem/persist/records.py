"""Takes records apart into JSON and arrays, and puts them together again from classes that the caller knows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from daskem.core import Array
from daskem.errors import ContractError

__all__ = ["DescriptionError", "pack", "unpack"]

# Records nest a few levels (a mixture of products of families); a hostile file could nest until the stack is full.
MAX_DEPTH = 32
# What safetensors can hold; complex numbers and long doubles are not parameters of any model here.
KINDS = "biuf"
PYTHON_NUMBERS: dict[str, type[int] | type[float] | type[bool]] = {"bool": bool, "int": int, "float": float}


class DescriptionError(Exception):
    """What is wrong with a description; the reader of the file adds which file."""


def pack(value: Any, path: str, tensors: dict[str, Array], *, inline_numbers: bool, depth: int = 0) -> Any:
    """Return JSON that describes `value`, and put its arrays into `tensors` under their paths.

    Parameters
    ----------
    value : a dataclass, tuple, list, dict, array, number, string or None, nested at will.
    path : how errors and tensors call `value`.
    tensors : receives the arrays.
    inline_numbers : whether Python's numbers stay in the JSON, where people can read them, or become tensors.

    Raises
    ------
    ContractError
        If something in `value` cannot be stored.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: _store(np.asarray(value), path, tensors)}
    if isinstance(value, (bool, int, float)):
        if inline_numbers:
            return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value
        return {"number": _store(np.asarray(value), path, tensors), "type": _number_type(value)}
    if depth > MAX_DEPTH:
        raise ContractError(f"{path:.200} is nested more than {MAX_DEPTH} deep. Use arrays instead of lists of lists.")
    packed = [
        (name, pack(child, path + suffix, tensors, inline_numbers=inline_numbers, depth=depth + 1))
        for name, suffix, child in _children(value, path)
    ]
    if type(value) in (tuple, list):
        return {type(value).__name__: [child for _, child in packed]}
    if isinstance(value, dict):
        return {"dict": [[name, child] for name, child in packed]}
    return {"record": type(value).__qualname__, "module": type(value).__module__, "fields": dict(packed)}


def unpack(spec: Any, path: str, tensors: dict[str, Array], known: Sequence[type], depth: int = 0) -> Any:
    """Return the value that `spec` describes, taking its arrays out of `tensors`.

    Raises
    ------
    DescriptionError
        If the description makes no sense, or needs a class that is not in `known`.
    """
    if spec is None or isinstance(spec, (str, bool, int, float)):
        return spec
    if not isinstance(spec, dict) or depth > MAX_DEPTH:
        raise DescriptionError(
            f"{path:.200} is described in a way that this daskem does not understand; restore a copy."
        )
    for kind, make in _MAKERS.items():
        if kind in spec:
            return make(spec, path, tensors, known, depth)
    raise DescriptionError(
        f"{path:.200} is of a kind that this daskem does not know: {sorted(spec)!r:.80}. Update daskem."
    )


def _store(array: Array, path: str, tensors: dict[str, Array]) -> str:
    if array.dtype.kind not in KINDS or array.dtype.itemsize > 8:
        raise ContractError(f"{path} has type {array.dtype}, which a model file cannot hold. Use float64 or int64.")
    # Fortran order would be written as if it were C order.
    tensors[path] = np.array(array, order="C", dtype=array.dtype.newbyteorder("="))
    return path


def _number_type(value: float) -> str:
    return next(name for name, kind in PYTHON_NUMBERS.items() if isinstance(value, kind))


def _children(value: Any, path: str) -> list[tuple[Any, str, Any]]:
    if type(value) in (tuple, list):
        return [(i, f"[{i}]", child) for i, child in enumerate(value)]
    if type(value) is dict and all(type(key) in (str, int) for key in value):
        return [(key, f"[{key!r}]", child) for key, child in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    if (
        type(value).__module__ != "builtins"
        and not isinstance(value, (type, tuple))
        and getattr(value, "__dict__", None) == {}
    ):
        return []
    raise ContractError(
        f"{path} is a {type(value).__name__}, which a model file cannot hold. "
        "Use a frozen dataclass of arrays, numbers, strings, tuples and further such dataclasses."
    )


def _make_array(spec: dict[str, Any], path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> Array:
    return _take(spec["array"], path, tensors)


def _make_scalar(spec: dict[str, Any], path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> Any:
    return _take_single(spec["scalar"], path, tensors)[()]


def _make_number(spec: dict[str, Any], path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> Any:
    kind = spec.get("type")
    if not isinstance(kind, str) or kind not in PYTHON_NUMBERS:
        raise DescriptionError(f"{path:.200} is a number of unknown type {kind!r:.80}; restore a copy.")
    return PYTHON_NUMBERS[kind](_take_single(spec["number"], path, tensors)[()])


def _make_float(spec: dict[str, Any], path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> float:
    if spec["float"] not in ("nan", "inf", "-inf"):
        raise DescriptionError(f"{path:.200} is not a number but {spec['float']!r:.80}; restore a copy.")
    return float(spec["float"])


def _make_tuple(spec: dict[str, Any], path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> Any:
    return tuple(_make_items(spec["tuple"], path, tensors, known, depth))


def _make_list(spec: dict[str, Any], path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> Any:
    return _make_items(spec["list"], path, tensors, known, depth)


def _make_items(items: Any, path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> list[Any]:
    if not isinstance(items, list):
        raise DescriptionError(f"{path:.200} should be a list; restore a copy.")
    return [unpack(item, f"{path}[{i}]", tensors, known, depth + 1) for i, item in enumerate(items)]


def _make_dict(spec: dict[str, Any], path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> Any:
    pairs = spec["dict"]
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in pairs
    ):
        raise DescriptionError(f"{path:.200} should be a list of keys and values; restore a copy.")
    return {key: unpack(child, f"{path}[{key!r}]", tensors, known, depth + 1) for key, child in pairs}


def _make_record(spec: dict[str, Any], path: str, tensors: dict[str, Array], known: Sequence[type], depth: int) -> Any:
    found = _find_class(spec, path, known)
    fields = spec.get("fields")
    if not isinstance(fields, dict):
        raise DescriptionError(f"{path:.200} has no fields; restore a copy.")
    accepted = {f.name for f in dataclasses.fields(found) if f.init} if dataclasses.is_dataclass(found) else set()
    if unknown := sorted(fields.keys() - accepted):
        raise DescriptionError(
            f"{path:.200}: {found.__qualname__} has no field {unknown[0]!r:.80}. "
            "The file was made by another version of that class; use that one."
        )
    values = {name: unpack(child, f"{path}.{name}", tensors, known, depth + 1) for name, child in fields.items()}
    try:
        return found(**values)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise DescriptionError(
            f"{path:.200}: {found.__qualname__} refuses the values in the file ({error!s:.200})."
        ) from error


def _find_class(spec: dict[str, Any], path: str, known: Sequence[type]) -> type:
    name, module = spec["record"], spec.get("module")
    found = {candidate for candidate in known if candidate.__qualname__ == name}
    if len(found) > 1:
        found = {candidate for candidate in found if candidate.__module__ == module} or found
    if len(found) == 1:
        return found.pop()
    if found:
        raise DescriptionError(
            f"{path:.200}: {name!r:.80} may be any of {len(found)} classes. Pass only one of that name as `known`."
        )
    raise DescriptionError(
        f"{path:.200} is a {name!r:.80} of module {module!r:.80}, which is not among the known classes. "
        "Import that class yourself, if you trust it, and pass it as one of `known`."
    )


def _take(name: Any, path: str, tensors: dict[str, Array]) -> Array:
    if not isinstance(name, str) or name not in tensors:
        raise DescriptionError(
            f"{path:.200} needs tensor {name!r:.80}, which is missing or was used before; restore a copy."
        )
    return tensors.pop(name)


def _take_single(name: Any, path: str, tensors: dict[str, Array]) -> Array:
    array = _take(name, path, tensors)
    if array.shape != ():
        raise DescriptionError(
            f"{path:.200} should be a single number, not an array of shape {array.shape}; restore a copy."
        )
    return array


_MAKERS: dict[str, Callable[[dict[str, Any], str, dict[str, Array], Sequence[type], int], Any]] = {
    "array": _make_array,
    "scalar": _make_scalar,
    "number": _make_number,
    "float": _make_float,
    "tuple": _make_tuple,
    "list": _make_list,
    "dict": _make_dict,
    "record": _make_record,
}
