"""What is fitted: models and families. They know arrays, and nothing of where these come from or who drives them."""

from daskem.models.gaussian import Gaussian as Gaussian
from daskem.models.gaussian import GaussianParams as GaussianParams
from daskem.models.gaussian import GaussianStats as GaussianStats
from daskem.models.gaussian_algebra import SHAPES as SHAPES
from daskem.models.kmeans import KMeans as KMeans
from daskem.models.kmeans import KMeansParams as KMeansParams
from daskem.models.kmeans import KMeansStats as KMeansStats
from daskem.models.mixture import Mixture as Mixture
from daskem.models.mixture import MixtureParams as MixtureParams
from daskem.models.mixture import MixtureStats as MixtureStats
from daskem.models.normal_wishart import NormalWishart as NormalWishart
from daskem.models.normal_wishart import NormalWishartParams as NormalWishartParams
from daskem.models.variational import VariationalMixture as VariationalMixture
from daskem.models.variational import VariationalMixtureParams as VariationalMixtureParams

__all__ = [
    "SHAPES",
    "Gaussian",
    "GaussianParams",
    "GaussianStats",
    "KMeans",
    "KMeansParams",
    "KMeansStats",
    "Mixture",
    "MixtureParams",
    "MixtureStats",
    "NormalWishart",
    "NormalWishartParams",
    "VariationalMixture",
    "VariationalMixtureParams",
]
