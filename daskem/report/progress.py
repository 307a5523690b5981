"""Progress of passes: a line a pass and a bar on a terminal, the line elsewhere, nothing when asked to be quiet."""

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
    max_passes : the most passes there will be.
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
        max_passes: float = 1,
        objective_name: str = "objective",
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self._rows, self._bytes, self._units = n_rows, n_bytes, n_units
        self._rule, self._tol, self._max_passes = rule, tol, max_passes
        self._objective_name, self._quiet = objective_name, quiet
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._trace: list[StepInfo] = []
        # Steps of the trace that a line has told of.
        self._told = 0
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
        if self._told < len(self._trace):
            self._tell()
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, info: StepInfo, params: Params) -> None:
        """Show a finished step where it ends a pass, or begins a stage on other rows."""
        self._trace.append(info)
        if self._due(info):
            self._tell()
        if self._bar is not None:
            stage = f", {info.stage}" if info.stage else ""
            # Tasks of a step on a part of the rows are no share of a pass.
            total = self._units if info.exact else None
            self._bar.reset(self._task, description=f"pass {info.passes:.1f}{stage}", rate="", total=total)
        self._clock = time.perf_counter()

    def _due(self, info: StepInfo) -> bool:
        """Return whether the steps since the last line are worth one: another pass is over, or another stage began."""
        if not self._told:
            return True
        last = self._trace[self._told - 1]
        # Shares of a pass add up to a whole one up to rounding. Stages on all rows change from step to step.
        another = not info.exact and info.stage != last.stage
        return math.floor(info.passes + 1e-6) > math.floor(last.passes + 1e-6) or another

    def _tell(self) -> None:
        if not self._quiet:
            self._console.print(self.line(self._trace[-1]))
        self._told = len(self._trace)

    def expect_units(self, n_units: int) -> None:
        """Note how many units a pass has, where that turns out to be another number."""
        self._units = n_units
        if self._bar is not None:
            self._bar.update(self._task, total=n_units)

    def unit_done(self) -> None:
        """Note that a pass has one unit less to go."""
        if self._bar is None or self._bar.tasks[0].total is None:
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
        """Return the log line of the last step, its time and rate being those of all steps since the last line."""
        since = self._trace[self._told :] or self._trace[-1:]
        seconds = sum(each.seconds for each in since)
        first = len(self._trace) - len(since)
        before = self._trace[first - 1].passes if first else 0.0
        parts = [f"step {info.step}", f"pass {info.passes:.1f}", *([info.stage] if info.stage else [])]
        parts.append(f"{self._objective_name} {info.objective:.8g}")
        if self._rule == "change":
            parts.append(f"change {info.change:.3g}")
        elif gains := self._gains():
            parts.append(f"gain {gains[-1]:.3g}")
        parts.append(duration(seconds))
        if info.passes > before:
            parts[-1] += f", {self._rate(seconds / (info.passes - before))}"
        return "  ".join([*parts, self.time_left()]).rstrip()

    def time_left(self) -> str:
        """Return how long the fit may still take: extrapolated where steps converge, else the most it can be.

        Nothing while steps see a part of the rows: what they cost says nothing of those to come.
        """
        steps = self._exact()
        if not steps:
            return ""
        recent = steps[-WINDOW:]
        first = len(self._trace) - len(recent)
        before = self._trace[first - 1].passes if first else 0.0
        seconds = sum(info.seconds for info in recent)
        values = [info.change for info in steps] if self._rule == "change" else self._gains()
        expected = steps_left(values, self._tol)
        most = (self._max_passes - recent[-1].passes) * seconds / max(recent[-1].passes - before, 1e-9)
        left = None if expected is None else expected * seconds / len(recent)
        if left is None or left > most:
            return f"at most {duration(most)} left" if most > 0 else ""
        return f"about {duration(left)} left" if left else ""

    def _exact(self) -> list[StepInfo]:
        """Return the steps on all rows since the last step on a part of them."""
        return list(itertools.takewhile(lambda info: info.exact, reversed(self._trace)))[::-1]

    def _gains(self) -> list[float]:
        """Return the gains of the last steps that saw the same rows; objectives of other rows do not compare."""
        last = self._trace[-1]
        alike = self._exact() if last.exact else [i for i in self._trace[-WINDOW:] if i.stage == last.stage]
        return [after.objective - before.objective for before, after in itertools.pairwise(alike)]

    def _rate(self, seconds: float) -> str:
        """Return rows and bytes a second, at so many seconds a pass."""
        seconds = max(seconds, 1e-9)
        rows = self._rows / seconds
        scaled = f"{rows / 1e6:.3g}M" if rows >= 1e6 else f"{rows:,.0f}"
        return f"{scaled} rows/s, {size(self._bytes / seconds)}/s"
