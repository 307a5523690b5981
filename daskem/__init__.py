"""Expectation-maximization for data that does not fit in memory, on one machine or on a Dask cluster."""

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

from daskem.algorithms import Anderson as Anderson
from daskem.algorithms import Auto as Auto
from daskem.algorithms import BatchEM as BatchEM
from daskem.algorithms import Change as Change
from daskem.algorithms import Gain as Gain
from daskem.algorithms import IncrementalEM as IncrementalEM
from daskem.algorithms import MaxPasses as MaxPasses
from daskem.algorithms import MaxSeconds as MaxSeconds
from daskem.algorithms import MaxSteps as MaxSteps
from daskem.algorithms import Progressive as Progressive
from daskem.algorithms import Squarem as Squarem
from daskem.algorithms import StepwiseEM as StepwiseEM
from daskem.algorithms import VarianceReducedEM as VarianceReducedEM
from daskem.core import Chunk as Chunk
from daskem.core import Expectation as Expectation
from daskem.fit import FitResult as FitResult
from daskem.fit import fit as fit
from daskem.online import OnlineFit as OnlineFit

if TYPE_CHECKING:
    from daskem.estimators import BernoulliMixture as BernoulliMixture
    from daskem.estimators import CategoricalMixture as CategoricalMixture
    from daskem.estimators import ExponentialMixture as ExponentialMixture
    from daskem.estimators import GammaMixture as GammaMixture
    from daskem.estimators import GaussianMixture as GaussianMixture
    from daskem.estimators import KMeans as KMeans
    from daskem.estimators import MixedMixture as MixedMixture
    from daskem.estimators import MixtureModel as MixtureModel
    from daskem.estimators import MultinomialMixture as MultinomialMixture
    from daskem.estimators import PoissonMixture as PoissonMixture
    from daskem.estimators import StudentTMixture as StudentTMixture
    from daskem.estimators import VariationalGaussianMixture as VariationalGaussianMixture
    from daskem.estimators import VonMisesFisherMixture as VonMisesFisherMixture
    from daskem.inference import Diagnosis as Diagnosis
    from daskem.inference import diagnose as diagnose
    from daskem.report import plot_convergence as plot_convergence
    from daskem.selection import Selection as Selection
    from daskem.selection import select as select

# Workers import this package too, and need none of what scikit-learn and plots bring with them.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "estimators": [
            "BernoulliMixture",
            "CategoricalMixture",
            "ExponentialMixture",
            "GammaMixture",
            "GaussianMixture",
            "KMeans",
            "MixedMixture",
            "MixtureModel",
            "MultinomialMixture",
            "PoissonMixture",
            "StudentTMixture",
            "VariationalGaussianMixture",
            "VonMisesFisherMixture",
        ],
        "inference": [
            "Diagnosis",
            "diagnose",
        ],
        "report": [
            "plot_convergence",
        ],
        "selection": [
            "Selection",
            "select",
        ],
    },
)

__version__ = "0.1.0"

__all__ = [
    "Anderson",
    "Auto",
    "BatchEM",
    "BernoulliMixture",
    "CategoricalMixture",
    "Change",
    "Chunk",
    "Diagnosis",
    "Expectation",
    "ExponentialMixture",
    "FitResult",
    "Gain",
    "GammaMixture",
    "GaussianMixture",
    "IncrementalEM",
    "KMeans",
    "MaxPasses",
    "MaxSeconds",
    "MaxSteps",
    "MixedMixture",
    "MixtureModel",
    "MultinomialMixture",
    "OnlineFit",
    "PoissonMixture",
    "Progressive",
    "Selection",
    "Squarem",
    "StepwiseEM",
    "StudentTMixture",
    "VarianceReducedEM",
    "VariationalGaussianMixture",
    "VonMisesFisherMixture",
    "diagnose",
    "fit",
    "plot_convergence",
    "select",
]
