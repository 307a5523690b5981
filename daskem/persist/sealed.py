"""Files that seal themselves: tensors, and a JSON document that says what they are and holds a digest of each.

One safetensors file is the whole of it, so that there is never a manifest without its arrays: the document lies under
``__metadata__`` and carries its own digest too, its *seal*. A file is written under a temporary name, synced and
renamed, or as one object of a store; it is read with every check before the allocation that depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save, save_file

from daskem.core import Array
from daskem.errors import FileFormatError, OptionError
from daskem.persist.paths import AnyPath, Fetched, replace, sync
from daskem.persist.tensors import MAX_HEADER, Header, read_header, read_tensor

__all__ = ["FileKind", "NewerFileError", "daskem_version", "opened", "read_document", "read_tensors", "write_sealed"]

# Stands in the document for its own digest while that is computed.
BLANK = "0" * 64


class NewerFileError(FileFormatError):
    """A file comes from a newer version of daskem: whole, but not to be understood by this one."""


@dataclass(frozen=True)
class FileKind:
    """A kind of sealed file: the key of its document in the metadata, what it describes, and the newest version."""

    key: str
    what: str
    version: int


def write_sealed(target: AnyPath, kind: FileKind, document: Mapping[str, Any], tensors: dict[str, Array]) -> None:
    """Write a file: all of it, or nothing.

    Raises
    ------
    OptionError
        If the document is longer than a header may be.
    OSError
        If the file cannot be written.
    """
    full = {
        "seal": BLANK,
        "format_version": kind.version,
        "daskem_version": daskem_version(),
        **document,
        "tensors": {name: _describe(tensor) for name, tensor in sorted(tensors.items())},
    }
    text = json.dumps(full, allow_nan=False)
    text = text.replace(BLANK, _digest(text.encode()), 1)
    # Quotes double in length inside the header, and the tensors need entries of their own.
    if 4 * len(text) > MAX_HEADER:
        raise OptionError(
            f"the metadata take {len(text)} bytes, {MAX_HEADER // 4} are allowed. Keep a summary of the trace."
        )
    if not isinstance(target, Path):
        replace(target, save(tensors, metadata={kind.key: text}))
        return
    with _replacing(target) as temporary:
        # safetensors makes a file that only its owner reads; others may read it as they may any that the user makes.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata={kind.key: text})
            temporary.chmod(mode)
        except SafetensorError as error:
            # A full disk, say; safetensors has an exception of its own for that.
            raise OSError(f"{target} cannot be written: {error}") from error


def opened(where: AnyPath) -> Path | Fetched:
    """Return a file to be read in pieces: itself, or what a store gave of it.

    Raises
    ------
    FileFormatError
        If the store does not give it.
    """
    if isinstance(where, Path):
        return where
    try:
        return Fetched(where)
    except OSError as error:
        raise FileFormatError(f"{where} cannot be opened ({error}). Check the path.") from error


def read_document(where: Path | Fetched, kind: FileKind) -> tuple[Header, dict[str, Any]]:
    """Return the header and the document of a file, without reading a tensor.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or not of this kind.
    NewerFileError
        If it comes from a newer version.
    """
    header = read_header(where)
    text = header.metadata.get(kind.key)
    if text is None:
        raise FileFormatError(
            f"{where} is a safetensors file, but not a daskem {kind.what}: it lacks the metadata {kind.key!r}."
        )
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{where}: the description of the {kind.what} is not JSON ({error!s:.200}). Restore a copy."
        ) from error
    if not isinstance(document, dict):
        raise FileFormatError(f"{where}: the description of the {kind.what} is not a JSON object. Restore a copy.")
    _check_version(where, document, kind)
    _check_seal(where, document, text, kind)
    for name, needed in {"daskem_version": str, "tensors": dict}.items():
        if not isinstance(document.get(name), needed):
            raise FileFormatError(
                f"{where}: {name!r} is missing from the description of the {kind.what}. Restore a copy."
            )
    return header, document


def read_tensors(where: Path | Fetched, header: Header, kind: FileKind, described: dict[str, Any]) -> dict[str, Array]:
    """Return the tensors of a file, each checked against its digest in the document.

    Raises
    ------
    FileFormatError
        Naming the tensor that differs.
    """
    if described.keys() != header.tensors.keys():
        raise FileFormatError(
            f"{where}: the tensors are not those that the {kind.what}'s description lists. Restore a copy."
        )
    tensors = {}
    for name, place in header.tensors.items():
        tensor = read_tensor(where, place)
        if _describe(tensor) != described[name]:
            raise FileFormatError(
                f"{where}: tensor {name!r:.80} was changed or damaged (its sha256 differs). Restore a copy."
            )
        tensors[name] = tensor
    return tensors


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a temporary name beside `target`; move what was written there to `target` once it is on disk."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        # The new name is durable only when the directory is.
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _check_version(where: Path | Fetched, document: dict[str, Any], kind: FileKind) -> None:
    found = document.get("format_version")
    if type(found) is not int or found < 1:
        raise FileFormatError(
            f"{where}: format version {found!r:.80} makes no sense. The file is damaged; restore a copy."
        )
    if found > kind.version:
        raise NewerFileError(
            f"{where}: format version {found} is newer than this daskem reads ({kind.version}). It was written by "
            f"daskem {document.get('daskem_version')!r:.80}; update daskem."
        )


def _check_seal(where: Path | Fetched, document: dict[str, Any], text: str, kind: FileKind) -> None:
    seal = document.get("seal")
    if not isinstance(seal, str) or _digest(text.replace(seal, BLANK, 1).encode("utf-8", "replace")) != seal:
        raise FileFormatError(
            f"{where}: the description of the {kind.what} was changed or damaged (its sha256 differs). Restore a copy."
        )


def _describe(tensor: Array) -> dict[str, Any]:
    raw = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8)
    return {"dtype": tensor.dtype.name, "shape": list(tensor.shape), "sha256": _digest(raw)}


def _digest(raw: Any) -> str:
    return hashlib.sha256(raw).hexdigest()


def daskem_version() -> str:
    """Return the version of daskem that is installed."""
    try:
        return version("daskem")
    except PackageNotFoundError:
        return "unknown (not installed)"
