"""Settings of this process that last from the first of their concurrent holders to the last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Held"]


class Held:
    """A setting that is made when nobody holds it, and undone when the last of the concurrent holders has left.

    Parameters
    ----------
    make : makes the setting and returns what undoes it, from whichever thread that is called.
    """

    def __init__(self, make: Callable[[], Callable[[], object]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._holders = 0
        self._undo: Callable[[], object] = make

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Return a context in which the setting is in force."""
        with self._lock:
            if self._holders == 0:
                self._undo = self._make()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._undo()
