"""Where files are: paths, and URLs of object stores, which any filesystem of fsspec stands behind."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from upath import UPath

from daskem.data.source import remedy, spelled_out
from daskem.errors import OptionError

__all__ = [
    "AnyPath",
    "Fetched",
    "Where",
    "any_path",
    "check_writable",
    "create",
    "file_names",
    "kind_of",
    "remove",
    "replace",
    "sync",
]

# A `UPath` is an object store's; on the file system there are none but Paths.
AnyPath = Path | UPath
Where = str | os.PathLike[str] | UPath


class Fetched:
    """A file of an object store, its bytes held in memory, where it is read piece by piece."""

    def __init__(self, where: UPath) -> None:
        with _store_errors(where):
            self._raw = where.read_bytes()
        self._where = where

    def __str__(self) -> str:
        return str(self._where)

    def open(self) -> BinaryIO:
        """Return it from its beginning."""
        return BytesIO(self._raw)


def any_path(where: Where) -> AnyPath:
    """Return the place that a path or URL means.

    Raises
    ------
    OptionError
        If it is empty, or no filesystem for such a URL is installed.
    """
    if isinstance(where, UPath):
        return where
    given = spelled_out(os.fspath(where))
    if "://" not in given:
        return Path(given)
    try:
        found = UPath(given)
        _ = found.fs
    except (ImportError, ValueError) as error:
        raise OptionError(f"{given}: {error}. Install the package, or choose another place.") from error
    return found


def file_names(directory: AnyPath) -> list[str]:
    """Return the names of what is in a directory, as it is now."""
    if isinstance(directory, Path):
        return os.listdir(directory)
    with _store_errors(directory):
        try:
            found = directory.fs.ls(directory.path, detail=False, refresh=True)
        except FileNotFoundError:
            # A store has objects, and no directories before them.
            return []
    return [name.rstrip("/").rsplit("/", 1)[-1] for name in found]


def create(where: AnyPath, raw: bytes) -> bool:
    """Write a file unless there is one, as one act; return whether this call did."""
    if isinstance(where, Path):
        with _unfinished(where, raw) as temporary:
            # Linked into place whole: whoever dies while it writes must not leave a file that nobody can read.
            try:
                os.link(temporary, where)
            except FileExistsError:
                return False
        return True
    with _store_errors(where):
        try:
            where.fs.pipe_file(where.path, raw, mode="create")
        except FileExistsError:
            # If the answer was lost and the client asked again, it found what it had written itself.
            return bool(where.read_bytes() == raw)
    return True


def replace(where: AnyPath, raw: bytes) -> None:
    """Write a file: all of it, or nothing."""
    if isinstance(where, Path):
        with _unfinished(where, raw) as temporary:
            os.replace(temporary, where)
        return
    with _store_errors(where):
        where.fs.pipe_file(where.path, raw)


def remove(where: AnyPath) -> None:
    """Delete a file, if it is there."""
    if isinstance(where, Path):
        where.unlink(missing_ok=True)
        return
    with _store_errors(where), suppress(FileNotFoundError):
        where.fs.rm_file(where.path)


def kind_of(where: AnyPath) -> str | None:
    """Return what is there now, ``"file"`` or ``"directory"``; None if there is nothing."""
    if isinstance(where, Path):
        return "directory" if where.is_dir() else "file" if where.exists() else None
    with _store_errors(where):
        try:
            return str(where.fs.info(where.path, refresh=True)["type"])
        except FileNotFoundError:
            return None


def check_writable(where: AnyPath) -> None:
    """See that a file could be made there.

    Raises
    ------
    OSError
        If not.
    """
    if isinstance(where, Path):
        if not (where.parent.is_dir() and os.access(where.parent, os.W_OK | os.X_OK)):
            raise NotADirectoryError(
                f"{where.parent} is not a directory that can be written to: it is missing or read-only"
            )
        return
    # A store tells only when it is asked to write.
    probe = where.with_name(f".{where.name}.{secrets.token_hex(4)}.tmp")
    replace(probe, b"")
    remove(probe)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _unfinished(where: Path, raw: bytes) -> Iterator[Path]:
    temporary = where.with_name(f".{where.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(raw)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _store_errors(where: UPath) -> Iterator[None]:
    """Make one kind of what clients of object stores raise, which have exceptions of their own."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise OSError(f"{where}: {type(error).__name__}: {error}.{remedy(where)}") from error
