"""Signals by which a batch system announces the end of a job: the fit is committed and the process leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["SIGNALS", "TRY_AGAIN", "StopSignal", "leave", "stop_signals"]

# EX_TEMPFAIL of sysexits.h: run the same command again.
TRY_AGAIN = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal(KeyboardInterrupt):
    """A signal asked this process to stop; the step in hand is abandoned, as for Ctrl-C."""


@contextmanager
def stop_signals(wanted: bool = True) -> Iterator[None]:
    """Raise `StopSignal` where this thread is when SIGTERM or SIGUSR1 arrives, for as long as the context lasts.

    Only the first one counts: a second must not break off the commit that the first has led to. In a thread other than
    the main one, where Python allows no handlers, signals stay as they were.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise StopSignal(f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(code: int) -> NoReturn:
    """End the process now: tasks that still run in threads would be waited for, and what they find is of no use."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
