"""A mixture whose workers stay in the midst of a pass: what happens to their job then happens at a known moment."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

from daskem.models import Gaussian, Mixture

# Blocks that a worker has seen when it stays: in its second or third pass.
STAY_AT = 60
seen = itertools.count(1)


class Held(Mixture):
    """A mixture that waits in an E-step as long as the file `DASKEM_HELD` is there; not in a job that was requeued.

    A file beside it, ``*.reached``, tells that a worker waits.
    """

    def e_step(self, params: Any, chunk: Any) -> Any:
        if next(seen) == STAY_AT and "SLURM_RESTART_COUNT" not in os.environ:
            stay(os.environ.get("DASKEM_HELD"))
        return super().e_step(params, chunk)


def stay(file: str | None, seconds: float = 180) -> None:
    if file is None or not os.path.exists(file):
        return
    Path(f"{file}.reached").touch()
    for _ in range(round(seconds / 0.1)):
        if not os.path.exists(file):
            return
        threading.Event().wait(0.1)
    raise RuntimeError(f"{file} is still there")


def gaussians() -> Held:
    return Held(Gaussian(), 8)
