"""The scikit-learn face: estimators whose data may be anything from a list to a store larger than memory."""

from daskem.estimators.base import ALGORITHMS as ALGORITHMS
from daskem.estimators.gaussian_mixture import GaussianMixture
from daskem.estimators.kmeans import KMeans

__all__ = ["ALGORITHMS", "GaussianMixture", "KMeans"]
