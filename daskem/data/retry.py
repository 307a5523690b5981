"""Tries again what a store did not do for a moment: object stores refuse or drop some requests out of many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["retrying"]

logger = logging.getLogger("daskem")

# Seconds before each further attempt; 6.3 s in all, then the store counts as not answering.
WAITS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
# What waiting does not change: no such thing, not allowed, damaged content, a mistake in the call.
PERMANENT = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
)

Value = TypeVar("Value")


def retrying(action: Callable[[], Value], what: str) -> Value:
    """Return the value of `action`, tried again after growing waits while it fails for what may pass.

    Parameters
    ----------
    action : what can be done again without harm: a read, or a write of the same bytes to the same place.
    what : how the log calls it.
    """
    for wait in WAITS:
        try:
            return action()
        except PERMANENT:
            raise
        except Exception as error:
            logger.info("%s: trying again in %g s: %s: %s", what, wait, type(error).__name__, error)
        time.sleep(wait)
    return action()
