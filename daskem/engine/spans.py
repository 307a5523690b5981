"""Spans of a run on the Dask dashboard: few, however many passes there are, for Dask keeps each one for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import dask
from dask.delayed import Delayed
from dask.utils import key_split
from distributed import Future, span

from daskem.engine.remote import ask_scheduler

__all__ = ["Spans"]

# Passes that have a span each, a power of two. Then one span has as many passes as there were before it.
SINGLE = 64


class Spans:
    """The spans of one run's passes; what the scheduler keeps of them grows with the logarithm of their number."""

    def __init__(self) -> None:
        self._passes = 0
        self._annotations: dict[str, Any] = {}
        self._held: list[Future] = []

    @contextmanager
    def next(self, step: int, work: Delayed) -> Iterator[None]:
        """Give a context in which the next pass, which computes `work`, belongs to its span."""
        self._passes += 1
        alone = self._passes <= SINGLE
        begins = alone or (self._passes - 1).bit_count() == 1
        if begins:
            with span(f"daskem step {step}" if alone else f"daskem step {step} and later"):
                self._annotations = dask.get_annotations()
        with dask.annotate(**self._annotations):
            if begins and not alone:
                self._hold(work)
            yield

    def _hold(self, work: Delayed) -> None:
        """Keep the task groups of passes alive, which would be new ones, never forgotten, in each pass of the span."""
        names = sorted({key_split(key) for key in work.dask})
        with ask_scheduler() as client:
            self._held = [client.submit(_nothing, key=f"{name}-{uuid4().hex}") for name in names]


def _nothing() -> None:
    """Do nothing."""
