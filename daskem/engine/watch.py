"""Tells how many units of a pass are done while it runs in threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dask.callbacks import Callback

from daskem.engine.rows import write_unit
from daskem.engine.tasks import expect_unit, map_unit

__all__ = ["watch_units"]

# Tasks are named after the functions they call.
NAMES = tuple(f"{task.__name__}-" for task in (expect_unit, map_unit, write_unit))


@contextmanager
def watch_units(done: Callable[[], Any]) -> Iterator[None]:
    """Call `done` whenever a unit has been through, for the duration of a ``with`` block.

    A cluster's scheduler does not report to this process, so that nothing is called for work that runs there.
    """

    def posttask(key: Any, *_: Any) -> None:
        if str(key).startswith(NAMES):
            done()

    with Callback(posttask=posttask):
        yield
