"""When to stop: rules over the trace of steps. Tolerances are per row, so that they do not depend on their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from daskem.core import StepInfo, StopRule
from daskem.errors import OptionError

__all__ = ["ROUNDING", "AnyOf", "Change", "Gain", "MaxPasses", "MaxSeconds", "MaxSteps", "decrease", "rounding_of"]

# A fall of the objective below this, relative to its size, is rounding: sums of 10^9 float64 terms err by some 1e-12,
# objectives of float32 blocks by some 1e-8 (measured: 8e-9).
ROUNDING, FLOAT32_ROUNDING = 1e-10, 1e-6
# A fall within so many standard errors is chance, where a model draws.
ERRORS = 4


def rounding_of(dtype: np.dtype[Any]) -> float:
    """Return the relative size below which a fall of the objective is rounding, by the type computed in."""
    return FLOAT32_ROUNDING if dtype == np.float32 else ROUNDING


def decrease(trace: Sequence[StepInfo], rounding: float = ROUNDING) -> float:
    """Return by how much (nats per row) the last step began below the one before, 0.0 for mere rounding or chance."""
    if len(trace) < 2 or not (trace[-2].exact and trace[-1].exact):
        return 0.0
    before, after = trace[-2].objective, trace[-1].objective
    slack = rounding * max(1.0, abs(before)) + ERRORS * _chance(trace)
    return max(0.0, before - after) if before - after > slack else 0.0


@dataclass(frozen=True)
class Gain:
    """Stop when there is too little to gain: an algorithm's estimate of it, else the last step's gain, is below `tol`.

    A fall of the objective beyond rounding is not convergence.

    Parameters
    ----------
    tol : nats per row; with `relative`, a share of the objective's magnitude. "statistical" stands for p / (2 n), by
        which chance alone lifts the maximum over n rows with p parameters: to go on would fit noise.
    relative : whether `tol` is relative.
    rounding : relative size below which a fall of the objective is rounding.
    falls : whether a fall by less than `tol` ends a fit too: where a floor on variances makes M-steps miss the maximum.
    """

    tol: float | Literal["statistical"] = 1e-3
    relative: bool = False
    rounding: float = ROUNDING
    falls: bool = False
    converged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tol != "statistical":
            _check_not_negative("tol", self.tol)

    def resolve(self, precision: float, floor: bool = False) -> Gain:
        """Return the rule with a number for its tolerance, `precision` (see `Problem.precision`) if "statistical".

        With `floor`, for a model that may fall (see `daskem.core.HasFloor`).
        """
        return replace(self, tol=precision if self.tol == "statistical" else self.tol, falls=self.falls or floor)

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        if self.tol == "statistical":
            raise OptionError("Gain('statistical') must be resolved by Problem.precision; daskem.fit does it.")
        last = trace[-1]
        limit = self.tol * (abs(last.objective) if self.relative else 1.0)
        if last.remaining is not None:
            told = f"further steps would gain about {last.remaining:.3g} nats per row, less than {limit:.3g}"
            return told if last.remaining < limit else None
        if len(trace) < 2 or not (last.exact and trace[-2].exact):
            return None
        if decrease(trace, self.rounding) and not self.falls:
            return None
        gain = abs(last.objective - trace[-2].objective) + 2 * _chance(trace)
        return f"the gain of a step, {gain:.3g} nats per row, fell below {limit:.3g}" if gain < limit else None


@dataclass(frozen=True)
class Change:
    """Stop when the parameters move by no more than `tol` (in the measure of `Problem.change`)."""

    tol: float
    converged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_not_negative("tol", self.tol)

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        if not trace[-1].exact:
            return None
        moved = trace[-1].change
        return f"the parameters moved by {moved:.3g}, at most {self.tol:.3g}" if moved <= self.tol else None


@dataclass(frozen=True)
class MaxSteps:
    """Stop after `n` steps. That is a budget, not convergence."""

    n: int
    converged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise OptionError(f"max_iter={self.n} is not positive; at least one step is needed.")

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        return f"{self.n} steps were made" if len(trace) >= self.n else None


@dataclass(frozen=True)
class MaxPasses:
    """Stop after the step during which `n` passes over the data are over. That is a budget, not convergence."""

    n: float
    converged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.n > 0:
            raise OptionError(f"max_iter={self.n} is not positive; at least one pass is needed.")

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        # Shares of a pass add up to a whole one up to rounding.
        return f"{trace[-1].passes:.4g} passes were made" if trace[-1].passes >= self.n - 1e-6 else None


@dataclass(frozen=True)
class MaxSeconds:
    """Stop after the step during which `seconds` of wall-clock time are over. That is a budget, not convergence."""

    seconds: float
    converged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise OptionError(f"max_seconds={self.seconds} is not positive.")

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        spent = sum(info.seconds for info in trace)
        return f"{self.seconds:g} seconds were over (after {spent:.3g})" if spent >= self.seconds else None


@dataclass(frozen=True)
class AnyOf:
    """Stop as soon as one of `rules` says so; `which` tells whose reason it was."""

    rules: tuple[StopRule, ...]

    def resolve(self, precision: float, floor: bool = False) -> AnyOf:
        """Return the rules, each `Gain` resolved."""
        return AnyOf(tuple(rule.resolve(precision, floor) if isinstance(rule, Gain) else rule for rule in self.rules))

    def which(self, trace: Sequence[StepInfo]) -> tuple[StopRule, str] | None:
        """Return the first rule that says stop, and its reason."""
        for rule in self.rules:
            reason = rule(trace)
            if reason is not None:
                return rule, reason
        return None


def _chance(trace: Sequence[StepInfo]) -> float:
    """Return the standard error of the last difference of objectives."""
    return math.hypot(trace[-2].error, trace[-1].error)


def _check_not_negative(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise OptionError(f"{name}={value} is negative or not a number; 0 means never to stop for this reason.")
