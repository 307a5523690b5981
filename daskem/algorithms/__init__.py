"""How parameters move, and when they stop."""

from daskem.algorithms.batch import BatchEM, BatchState
from daskem.algorithms.lockstep import step_together
from daskem.algorithms.stopping import AnyOf, Change, Gain, MaxSeconds, MaxSteps, decrease, rounding_of

__all__ = [
    "AnyOf",
    "BatchEM",
    "BatchState",
    "Change",
    "Gain",
    "MaxSeconds",
    "MaxSteps",
    "decrease",
    "rounding_of",
    "step_together",
]
