"""The trace of a fit as a table of arrays: 100,000 steps take a few megabytes, and no time to be put together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskem.core import Array, Event, StepInfo

__all__ = ["TraceTable"]

NUMBERS = ("objective", "weight", "passes", "seconds", "change", "error")


@dataclass(frozen=True, eq=False)
class TraceTable:
    """A trace of m steps with e events.

    Attributes
    ----------
    step, exact, stage : (m,), `stage` being the place of a text.
    names, numbers : fields of `StepInfo` that are numbers, c of them, and their values (c, m).
    remaining, estimated : (m,) estimates of what is to be gained, and whether there is one.
    events : (4, e) place in the trace, step, component, and the place of a text.
    texts : JSON list of the texts, as bytes: a header would be too short for many.
    """

    step: Array
    exact: Array
    stage: Array
    names: tuple[str, ...]
    numbers: Array
    remaining: Array
    estimated: Array
    events: Array
    texts: Array

    @classmethod
    def of(cls, trace: Sequence[StepInfo]) -> TraceTable:
        """Return the table of a trace."""
        places: dict[str, int] = {}

        def place(text: str) -> int:
            return places.setdefault(text, len(places))

        stage = np.array([place(info.stage) for info in trace], np.int64)
        events = [(i, e.step, e.component, place(e.what)) for i, info in enumerate(trace) for e in info.events]
        return cls(
            np.array([info.step for info in trace], np.int64),
            np.array([info.exact for info in trace], bool),
            stage,
            NUMBERS,
            np.array([[getattr(info, name) for info in trace] for name in NUMBERS], np.float64),
            np.array([math.nan if info.remaining is None else info.remaining for info in trace], np.float64),
            np.array([info.remaining is not None for info in trace], bool),
            np.array(events, np.int64).reshape(-1, 4).T,
            np.frombuffer(json.dumps(list(places)).encode(), np.uint8),
        )

    def steps(self) -> list[StepInfo]:
        """Return the trace.

        Raises
        ------
        ValueError, IndexError, TypeError
            If the arrays do not fit together: a table from a file may be anything.
        """
        texts = json.loads(self.texts.tobytes())
        events: dict[int, list[Event]] = {}
        for at, step, component, what in self.events.T.tolist():
            events.setdefault(at, []).append(Event(step, component, texts[what]))
        rows = zip(
            self.step.tolist(),
            self.numbers.T.tolist(),
            self.exact.tolist(),
            self.remaining.tolist(),
            self.estimated.tolist(),
            self.stage.tolist(),
            strict=True,
        )
        return [
            StepInfo(
                step,
                **dict(zip(self.names, numbers, strict=True)),
                events=tuple(events.get(i, ())),
                exact=exact,
                remaining=remaining if estimated else None,
                stage=texts[stage],
            )
            for i, (step, numbers, exact, remaining, estimated, stage) in enumerate(rows)
        ]
