"""Expectation-maximization for data that does not fit in memory, on one machine or on a Dask cluster."""

from daskem.algorithms import BatchEM as BatchEM
from daskem.algorithms import Change as Change
from daskem.algorithms import Gain as Gain
from daskem.algorithms import MaxSeconds as MaxSeconds
from daskem.algorithms import MaxSteps as MaxSteps
from daskem.core import Chunk as Chunk
from daskem.core import Expectation as Expectation
from daskem.estimators import GaussianMixture as GaussianMixture
from daskem.estimators import KMeans as KMeans
from daskem.fit import FitResult as FitResult
from daskem.fit import fit as fit
from daskem.inference import Diagnosis as Diagnosis
from daskem.inference import diagnose as diagnose

__version__ = "0.1.0"

__all__ = [
    "BatchEM",
    "Change",
    "Chunk",
    "Diagnosis",
    "Expectation",
    "FitResult",
    "Gain",
    "GaussianMixture",
    "KMeans",
    "MaxSeconds",
    "MaxSteps",
    "diagnose",
    "fit",
]
