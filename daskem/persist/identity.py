"""What makes two fits the same fit, and by what two that are not differ; which classes a fit's records are made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from daskem.core import Array
from daskem.persist.records import pack
from daskem.persist.sealed import daskem_version

__all__ = ["classes_in", "describe", "differences", "digest", "record_classes"]

# Rooms whose records a state may hold, whatever the model; their modules count only where they are loaded.
ROOMS = ("daskem.algorithms", "daskem.core", "daskem.models", "daskem.persist")
# Differences that a message lists.
LISTED = 3


def describe(**values: Any) -> dict[str, Any]:
    """Return JSON by which values can be told from others: their fields, and a digest of each array.

    Raises
    ------
    ContractError
        If a value cannot be described, so that another one could not be told from it.
    """
    tensors: dict[str, Array] = {}
    told = {name: pack(value, name, tensors, inline_numbers=True) for name, value in values.items()}
    digests = {
        name: f"{tensor.dtype.str}{tensor.shape} sha256 {hashlib.sha256(tensor.tobytes()).hexdigest()}"
        for name, tensor in tensors.items()
    }
    # As a file gives it back.
    return json.loads(json.dumps(_with_digests(told, digests)))  # type: ignore[no-any-return]


def digest(**values: Any) -> str:
    """Return a digest of values (see `describe`) and of the version of daskem that makes something of them."""
    told = {"daskem": daskem_version(), **describe(**values)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def differences(saved: Any, now: Any) -> str:
    """Return in words where two descriptions differ; empty where they do not."""
    found = list(_differences(saved, now, ""))
    more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return "; ".join(found[:LISTED]) + more


def record_classes(*values: Any) -> tuple[type, ...]:
    """Return the records that states of a fit may be made of.

    Those of the library, and those in the modules where the classes of `values` (model, algorithm, parameters) and of
    what these hold are defined. Looks at modules that are loaded; imports nothing.
    """
    modules = {cls.__module__ for value in values for kind in classes_in(value) for cls in kind.__mro__}
    modules |= {name for name in sys.modules if any(name == room or name.startswith(f"{room}.") for room in ROOMS)}
    namespaces = [vars(sys.modules[name]).values() for name in sorted(modules) if name in sys.modules]
    found = {kind: None for value in values for kind in classes_in(value)}
    found |= {item: None for namespace in namespaces for item in namespace if isinstance(item, type)}
    return tuple(kind for kind in found if dataclasses.is_dataclass(kind))


def _with_digests(told: Any, digests: dict[str, str]) -> Any:
    if isinstance(told, dict):
        if told.keys() in ({"array"}, {"scalar"}):
            return {kind: digests[name] for kind, name in told.items()}
        return {name: _with_digests(child, digests) for name, child in told.items()}
    return [_with_digests(child, digests) for child in told] if isinstance(told, (list, tuple)) else told


def _differences(saved: Any, now: Any, path: str) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*saved, *now)):
            # How records are written down says nothing to a reader of the message.
            below = path if name in ("fields", "tuple", "list") else f"{path}.{name}".lstrip(".")
            yield from _differences(saved.get(name), now.get(name), below)
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for i, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from _differences(one, other, f"{path}[{i}]")
    elif type(saved) is not type(now) or saved != now:
        yield f"{path} was {_short(saved)}, is now {_short(now)}"


def _short(value: Any) -> str:
    if isinstance(value, dict) and "record" in value:
        return str(value["record"])
    return f"{value!r:.100}"


def classes_in(value: Any) -> Iterator[type]:
    """Yield the classes of a value and of what its fields hold, Python's own aside."""
    if value is None or type(value).__module__ == "builtins":
        for child in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            yield from classes_in(child)
        return
    yield type(value)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from classes_in(getattr(value, field.name))
