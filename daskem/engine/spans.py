"""Spans of a run on the Dask dashboard: few, however many passes there are, for Dask keeps each one for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import dask
from dask.delayed import Delayed
from dask.utils import key_split
from distributed import Future, default_client, span

__all__ = ["Spans"]

# Passes that have a span each. Then one span has as many passes as there were before it.
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
        begins = self._passes <= SINGLE or (self._passes - 1) & (self._passes - 2) == 0
        if begins:
            alone = self._passes < SINGLE
            with span(f"daskem step {step}" if alone else f"daskem step {step} and later"):
                self._annotations = dask.get_annotations()
        with dask.annotate(**self._annotations):
            if begins and self._passes > SINGLE:
                self._hold(work)
            yield

    def _hold(self, work: Delayed) -> None:
        """Keep the task groups of passes alive, which would be new ones, never forgotten, in each pass of the span."""
        client = default_client()
        names = sorted({key_split(key) for key in work.dask})
        self._held = [client.submit(_nothing, key=f"{name}-{uuid4().hex}") for name in names]


def _nothing() -> None:
    """Do nothing."""
