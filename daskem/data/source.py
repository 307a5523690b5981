"""What a source of rows is: the contract between readers, planner and engine."""

from __future__ import annotations

import os
import platform
import re
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from daskem.core import Array
from daskem.errors import DataError, OptionError

__all__ = ["Source", "absolute", "check_there", "remedy", "spelled_out", "without_password"]

# A user and password within a URL, or where a file system has made a path of one.
SECRET = re.compile(r"(?<=://)[^/@\s]+@|(?<=/)[^/@\s:]+:[^/@\s]+@")


def without_password(text: str) -> str:
    """Return `text` without the users and passwords of the URLs in it: names are logged, saved and shown."""
    return SECRET.sub("", text)


def spelled_out(where: str) -> str:
    """Return a URL as it is, and a path with ~ replaced; the URL of a file is its path.

    Raises
    ------
    OptionError
        If it is empty, which would mean the current directory.
    """
    if not where:
        raise OptionError("an empty path was given. Say where, as in './data.zarr'.")
    if where.startswith("file://"):
        where = url2pathname(urlsplit(where).path)
    return where if "://" in where else os.path.expanduser(where)


def absolute(where: str) -> str:
    """Return a URL as it is, and a path from the root (see `spelled_out`)."""
    where = spelled_out(where)
    return where if "://" in where else os.path.abspath(where)


def remedy(where: object) -> str:
    """Return what to look at when a store does not let in whoever asks; servers say little about the reason."""
    if "://" not in str(where):
        return ""
    return (
        " Look whether the credentials and the endpoint in the environment are those of this store, are not expired, "
        "and allow it."
    )


def check_there(name: str, path: str) -> None:
    """Refuse to use a path that this machine does not see; a URL is the same from everywhere.

    Raises
    ------
    DataError
        Names the machine: a worker may lack what the process that started the work sees.
    """
    if "://" not in path and not os.path.exists(path):
        raise DataError(
            f"{name}: there is nothing at {path} on {platform.node()}. Either it was removed meanwhile, or this "
            "machine does not see it: data and outputs must be at the same path on all machines that work, such as on "
            "a shared file system, or at a URL."
        )


@runtime_checkable
class Source(Protocol):
    """Rows somewhere, in a fixed order, read by runs. Small and picklable: workers get a copy and read by themselves.

    A source of weights is one with a single column, one of labels has one or a column for each component.

    Attributes
    ----------
    name : what errors and logs call it, such as ``Zarr array data.zarr[x]``.
    shape : (rows, features).
    dtype : type of the numbers as stored.
    columns : names of the features where the source has any.
    in_process : whether the rows live in this process (so that sending them to a cluster would copy them all).
    """

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def columns(self) -> tuple[str, ...] | None: ...

    @property
    def in_process(self) -> bool: ...

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``, (stop - start, d), C-contiguous, in the stored type and native byte order.

        The caller does not write to the result, which may be a view of the source.
        """

    def unit_boundary(self, row: int) -> int:
        """Return the first row at or after `row` where a work unit may end: a boundary of shards, else of chunks."""

    def piece_boundary(self, row: int) -> int:
        """Return the first row at or after `row` where a read may end without decoding a chunk twice."""

    def read_bytes(self, rows: int) -> int:
        """Return the peak memory in bytes, result included, of reading a run of `rows` rows."""

    def locate(self, start: int, stop: int) -> str:
        """Return where the rows are, for errors: ``chunk (12, 0)`` or ``chunks (12, 0) to (13, 1)``."""

    def bind(self, start: int, stop: int) -> Any:
        """Return what a task that reads rows ``start:stop`` must be given in a Dask graph.

        Most sources return themselves: one node that all tasks share. A Dask array returns a delayed source that holds
        just the blocks of these rows, addressed by the same absolute row numbers.
        """
