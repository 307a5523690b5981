"""Progress of passes: a bar a pass on a terminal, a line a pass elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from daskem.core import Params, StepInfo
from daskem.engine.planner import size

__all__ = ["PassProgress", "duration", "size", "steps_left"]

# Steps whose decay is looked at: few, because EM slows down on its way.
WINDOW = 4


def steps_left(values: Sequence[float], tol: float) -> float | None:
    """Return how many more steps it takes until `values`, gains or changes of the last steps, fall below `tol`.

    EM converges linearly, so that gains end up as a geometric sequence, whose ratio the last steps tell (Dempster,
    Laird & Rubin 1977, section 3). None where there are too few steps, or the last ones did not shrink.
    """
    if values and abs(values[-1]) <= tol:
        return 0.0
    recent = [value for value in values if value > 0][-WINDOW:]
    if len(recent) < 3 or recent[-1] >= recent[0] or tol <= 0:
        return None
    ratio = (recent[-1] / recent[0]) ** (1 / (len(recent) - 1))
    return math.ceil(math.log(tol / recent[-1]) / math.log(ratio))


def duration(seconds: float) -> str:
    """Return a length of time for people: ``0.42 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class PassProgress:
    """Shows passes while they run; a callback of `daskem.fit`, and a context manager around the work.

    Parameters
    ----------
    n_rows, n_bytes, n_units : what a pass goes through.
    rule, tol : what ends the fit: a "gain" of the objective, or a "change" of the parameters, below `tol`.
    max_steps : the most steps there will be.
    objective_name : what the objective is, with its unit.
    quiet : show nothing.
    console : where to; standard error by default.
    """

    def __init__(
        self,
        n_rows: int,
        n_bytes: int,
        n_units: int,
        *,
        rule: Literal["gain", "change"] = "gain",
        tol: float = 0.0,
        max_steps: int = 1,
        objective_name: str = "objective",
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self._rows, self._bytes, self._units = n_rows, n_bytes, n_units
        self._rule, self._tol, self._max_steps = rule, tol, max_steps
        self._objective_name, self._quiet = objective_name, quiet
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._trace: list[StepInfo] = []
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._clock = time.perf_counter()

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("start", total=self._units, rate="")
            self._bar.start()
        self._clock = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, info: StepInfo, params: Params) -> None:
        """Show a finished step."""
        self._trace.append(info)
        if not self._quiet:
            self._console.print(self.line(info))
        if self._bar is not None:
            self._bar.reset(self._task, description=f"step {info.step + 1}", rate="")
        self._clock = time.perf_counter()

    def expect_units(self, n_units: int) -> None:
        """Note how many units a pass has, where that turns out to be another number."""
        self._units = n_units
        if self._bar is not None:
            self._bar.update(self._task, total=n_units)

    def unit_done(self) -> None:
        """Note that a pass has one unit less to go."""
        if self._bar is None:
            return
        done = self._bar.tasks[0].completed + 1
        # A pass ends before its M-step does; what begins after that is another pass, such as one of the start.
        if done > self._units:
            self._bar.reset(self._task)
            self._clock, done = time.perf_counter(), 1
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        share = done / self._units
        left = f"{duration(seconds / share - seconds)} left of this pass"
        self._bar.update(self._task, advance=1, rate=f"{self._rate(seconds / share)}, {left}")

    def line(self, info: StepInfo) -> str:
        """Return the log line of a step."""
        parts = [f"step {info.step}", f"{self._objective_name} {info.objective:.8g}"]
        if self._rule == "change":
            parts.append(f"change {info.change:.3g}")
        elif len(self._trace) > 1:
            parts.append(f"gain {self._gains()[-1]:.3g}")
        parts.append(f"{duration(info.seconds)}, {self._rate(info.seconds)}")
        return "  ".join([*parts, self.time_left()]).rstrip()

    def time_left(self) -> str:
        """Return how long the fit may still take: extrapolated where steps converge, else the most it can be."""
        most = self._max_steps - len(self._trace)
        values = [info.change for info in self._trace] if self._rule == "change" else self._gains()
        expected = steps_left(values, self._tol)
        per_step = sum(info.seconds for info in self._trace[-WINDOW:]) / max(1, len(self._trace[-WINDOW:]))
        if expected is None or expected > most:
            return f"at most {duration(most * per_step)} left" if most > 0 else ""
        return f"about {duration(expected * per_step)} left" if expected else ""

    def _gains(self) -> list[float]:
        objectives = [info.objective for info in self._trace]
        return [after - before for before, after in itertools.pairwise(objectives)]

    def _rate(self, seconds: float) -> str:
        seconds = max(seconds, 1e-9)
        rows = self._rows / seconds
        scaled = f"{rows / 1e6:.3g}M" if rows >= 1e6 else f"{rows:,.0f}"
        return f"{scaled} rows/s, {size(self._bytes / seconds)}/s"
