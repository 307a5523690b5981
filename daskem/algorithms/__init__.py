"""How parameters move, and when they stop."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from daskem.algorithms.accelerated import Anderson, AndersonState, EMMap, Squarem, SquaremState
from daskem.algorithms.batch import BatchEM, BatchState
from daskem.algorithms.incremental import IncrementalEM, IncrementalState
from daskem.algorithms.lockstep import step_together
from daskem.algorithms.points import Point
from daskem.algorithms.progressive import Auto, Progressive, ProgressiveState
from daskem.algorithms.stepwise import StepwiseEM, StepwiseState
from daskem.algorithms.stopping import AnyOf, Change, Gain, MaxPasses, MaxSeconds, MaxSteps, decrease, rounding_of
from daskem.algorithms.variance_reduced import VarianceReducedEM, VarianceReducedState
from daskem.core import Algorithm

__all__ = [
    "ALGORITHMS",
    "Anderson",
    "AndersonState",
    "AnyOf",
    "Auto",
    "BatchEM",
    "BatchState",
    "Change",
    "EMMap",
    "Gain",
    "IncrementalEM",
    "IncrementalState",
    "MaxPasses",
    "MaxSeconds",
    "MaxSteps",
    "Point",
    "Progressive",
    "ProgressiveState",
    "Squarem",
    "SquaremState",
    "StepwiseEM",
    "StepwiseState",
    "VarianceReducedEM",
    "VarianceReducedState",
    "decrease",
    "rounding_of",
    "step_together",
]

# By the names that estimators and the command line know.
ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = MappingProxyType(
    {
        "auto": Auto,
        "batch": BatchEM,
        "stepwise": StepwiseEM,
        "incremental": IncrementalEM,
        "squarem": Squarem,
        "anderson": Anderson,
        "progressive": Progressive,
        "variance-reduced": VarianceReducedEM,
    }
)
