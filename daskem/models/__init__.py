"""What is fitted: models and families. They know arrays, and nothing of where these come from or who drives them."""

from daskem.models.bernoulli import Bernoulli as Bernoulli
from daskem.models.bernoulli import BernoulliParams as BernoulliParams
from daskem.models.categorical import Categorical as Categorical
from daskem.models.categorical import CategoricalParams as CategoricalParams
from daskem.models.exponential import Exponential as Exponential
from daskem.models.exponential import ExponentialParams as ExponentialParams
from daskem.models.gamma import Gamma as Gamma
from daskem.models.gamma import GammaParams as GammaParams
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
from daskem.models.monte_carlo import GrowingDraws as GrowingDraws
from daskem.models.monte_carlo import MonteCarlo as MonteCarlo
from daskem.models.monte_carlo import MonteCarloParams as MonteCarloParams
from daskem.models.monte_carlo import MonteCarloStats as MonteCarloStats
from daskem.models.monte_carlo import RowRandom as RowRandom
from daskem.models.multinomial import Multinomial as Multinomial
from daskem.models.multinomial import MultinomialParams as MultinomialParams
from daskem.models.natural import SufficientStats as SufficientStats
from daskem.models.normal_wishart import NormalWishart as NormalWishart
from daskem.models.normal_wishart import NormalWishartParams as NormalWishartParams
from daskem.models.poisson import Poisson as Poisson
from daskem.models.poisson import PoissonParams as PoissonParams
from daskem.models.product import Product as Product
from daskem.models.product import ProductParams as ProductParams
from daskem.models.product import ProductStats as ProductStats
from daskem.models.student_t import StudentT as StudentT
from daskem.models.student_t import StudentTParams as StudentTParams
from daskem.models.student_t import StudentTStats as StudentTStats
from daskem.models.variational import VariationalMixture as VariationalMixture
from daskem.models.variational import VariationalMixtureParams as VariationalMixtureParams
from daskem.models.von_mises_fisher import VonMisesFisher as VonMisesFisher
from daskem.models.von_mises_fisher import VonMisesFisherParams as VonMisesFisherParams

__all__ = [
    "SHAPES",
    "Bernoulli",
    "BernoulliParams",
    "Categorical",
    "CategoricalParams",
    "Exponential",
    "ExponentialParams",
    "Gamma",
    "GammaParams",
    "Gaussian",
    "GaussianParams",
    "GaussianStats",
    "GrowingDraws",
    "KMeans",
    "KMeansParams",
    "KMeansStats",
    "Mixture",
    "MixtureParams",
    "MixtureStats",
    "MonteCarlo",
    "MonteCarloParams",
    "MonteCarloStats",
    "Multinomial",
    "MultinomialParams",
    "NormalWishart",
    "NormalWishartParams",
    "Poisson",
    "PoissonParams",
    "Product",
    "ProductParams",
    "ProductStats",
    "RowRandom",
    "StudentT",
    "StudentTParams",
    "StudentTStats",
    "SufficientStats",
    "VariationalMixture",
    "VariationalMixtureParams",
    "VonMisesFisher",
    "VonMisesFisherParams",
]
