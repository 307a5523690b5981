"""The scikit-learn face: estimators whose data may be anything from a list to a store larger than memory."""

from daskem.estimators.families import (
    BernoulliMixture,
    CategoricalMixture,
    ExponentialMixture,
    GammaMixture,
    MixedMixture,
    MultinomialMixture,
    PoissonMixture,
    VonMisesFisherMixture,
)
from daskem.estimators.gaussian_mixture import GaussianMixture, StudentTMixture
from daskem.estimators.kmeans import KMeans
from daskem.estimators.mixture import BaseMixture, MixtureModel
from daskem.estimators.variational import VariationalGaussianMixture

__all__ = [
    "BaseMixture",
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
]
