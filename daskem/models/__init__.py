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
from daskem.models.student_t import StudentT as StudentT
from daskem.models.student_t import StudentTParams as StudentTParams
from daskem.models.student_t import StudentTStats as StudentTStats

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
    "StudentT",
    "StudentTParams",
    "StudentTStats",
]
