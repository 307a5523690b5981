"""How a fit converged: the objective against passes and against seconds, from a result or from a model file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem.core import Float
from daskem.errors import OptionError
from daskem.fit import FitResult

__all__ = ["Convergence", "plot_convergence"]


@dataclass(frozen=True, eq=False)
class Convergence:
    """The course of a fit, step by step.

    Attributes
    ----------
    objectives : (n,) mean per unit weight at the params that each step started from.
    passes, seconds : (n,) what had been spent when each step ended: passes over the data, wall-clock seconds of steps.
    stages : what the algorithm was about in each step, "" where it has no stages.
    exact : (n,) whether the objective is that of all rows, not of some of them.
    kind : what the objective is.
    """

    objectives: Float
    passes: Float
    seconds: Float
    stages: tuple[str, ...]
    exact: np.ndarray[Any, np.dtype[np.bool_]]
    kind: str = "objective"

    @classmethod
    def of(cls, fitted: FitResult | Mapping[str, Any]) -> Convergence:
        """Return the course of a fit: of its result, or of ``FitResult.summary()`` as a model file keeps it.

        Raises
        ------
        OptionError
            If there is no trace, as in model files that were not made by a fit.
        """
        summary = fitted.summary() if isinstance(fitted, FitResult) else fitted
        trace = summary.get("trace")
        if not trace or not summary.get("objectives"):
            raise OptionError("there is no trace of a fit to show. Fit the model again to have one.")
        return cls(
            np.array(summary["objectives"], np.float64),
            np.array(trace["passes"], np.float64),
            np.cumsum(np.array(trace["seconds"], np.float64)),
            tuple(trace["stages"]),
            np.array(trace["exact"], np.bool_),
            str(summary.get("objective_kind") or "objective"),
        )

    def runs(self) -> list[tuple[slice, str, bool]]:
        """Return runs of steps of one stage: which steps, the stage, and whether their objectives are exact."""
        # Steps on all rows are one stage, whatever each of them tried.
        keys = [
            ("all rows" if exact else stage, bool(exact)) for stage, exact in zip(self.stages, self.exact, strict=True)
        ]
        found, start = [], 0
        for (stage, exact), members in itertools.groupby(keys):
            stop = start + len(list(members))
            found.append((slice(start, stop), stage, exact))
            start = stop
        return found

    def changes(self) -> list[tuple[int, str]]:
        """Return the steps at which another stage begins, and its name; none for a fit in one stage."""
        return [(steps.start, stage) for steps, stage, _ in self.runs()[1:]]


def plot_convergence(fitted: FitResult | Mapping[str, Any], axes: Sequence[Any] | None = None) -> Sequence[Any]:
    """Plot the objective of a fit against passes over the data, and against seconds (extra ``viz``).

    Steps that saw all rows are a line with filled marks; steps on a part of the rows, whose objective is that of the
    part, are hollow marks. A dotted line marks where another stage begins.

    Parameters
    ----------
    fitted : the result of `daskem.fit`, or the metadata of a model file.
    axes : two matplotlib axes to draw in, for passes and for seconds; by default those of a new figure.

    Returns
    -------
    array of Axes
        The two axes; ``axes[0].figure`` is the figure.
    """
    from matplotlib import pyplot

    course = Convergence.of(fitted)
    if axes is None:
        axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")[1]
    for ax, spent, unit in zip(axes, (course.passes, course.seconds), ("passes over the data", "seconds"), strict=True):
        for steps, _, exact in course.runs():
            ax.plot(
                spent[steps],
                course.objectives[steps],
                color="C0" if exact else "C1",
                marker="o",
                markersize=4,
                markerfacecolor="C0" if exact else "none",
                linewidth=1.5 if exact else 0.6,
                label="all rows" if exact else "part of the rows",
            )
        for start, _ in course.changes():
            ax.axvline(spent[start - 1], color="0.6", linestyle=":", linewidth=0.8)
        ax.set_xlabel(unit)
        ax.margins(x=0.04)
    axes[0].set_ylabel(f"{course.kind} per row")
    if not course.exact.all():
        handles = {line.get_label(): line for line in axes[0].get_lines() if not line.get_label().startswith("_")}
        axes[0].legend(handles.values(), handles.keys(), frameon=False)
    return axes
