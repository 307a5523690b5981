"""The models that can be fitted by name: their options, and what to show of their parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import click
import numpy as np

from daskem import models
from daskem.algorithms import Change, Gain, MaxSeconds, MaxSteps, rounding_of
from daskem.cli.app import columns_of
from daskem.cli.options import as_one
from daskem.core import Algorithm, Model, Params, StopRule
from daskem.data import Dataset
from daskem.errors import DataError
from daskem.estimators import ALGORITHMS

__all__ = [
    "KNOWN",
    "FitSpec",
    "KMeansSpec",
    "MixtureSpec",
    "component_table",
    "components",
    "kmeans_options",
    "mixture_options",
    "n_components",
    "n_features",
]

# What a model file may be made of.
KNOWN = (
    models.Mixture,
    models.MixtureParams,
    models.Gaussian,
    models.GaussianParams,
    models.KMeans,
    models.KMeansParams,
)
# Features that a table of components shows.
SHOWN_FEATURES = 6


@dataclass(frozen=True)
class FitSpec(ABC):
    """How to fit a model: what its options say."""

    n_components: int
    tol: float
    max_iter: int
    n_init: int | None
    init: str
    on_collapse: Any
    max_seconds: float | None
    seed: int
    algorithm: str

    rule: ClassVar[Literal["gain", "change"]]
    objective_name: ClassVar[str]
    unit: ClassVar[str]

    @abstractmethod
    def model(self) -> Model:
        """Return the model."""

    def stop(self, data: Dataset) -> list[StopRule]:
        """Return the rules that end the fit."""
        budget: list[StopRule] = [] if self.max_seconds is None else [MaxSeconds(self.max_seconds)]
        return [self._converged(data), MaxSteps(self.max_iter), *budget]

    def make_algorithm(self) -> Algorithm:
        """Return the algorithm."""
        return ALGORITHMS[self.algorithm]()

    @property
    def starts(self) -> int:
        """Number of starts; as in scikit-learn, a random start is worth repeating."""
        return self.n_init or self._default_starts

    @property
    def init_sample(self) -> str:
        """Which rows a start is made from."""
        return "k-means||" if self.init == "k-means||" else "auto"

    def check(self, data: Dataset) -> None:
        """Refuse data with fewer rows than components."""
        if data.n_rows < self.n_components:
            raise DataError(
                f"{data.rows.name} has {data.n_rows} rows, fewer than the {self.n_components} components to fit. "
                "Use fewer components (-k)."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the options, for the model file."""
        return asdict(self)

    @property
    def _default_starts(self) -> int:
        return 1

    @property
    def _init_method(self) -> Any:
        return "kmeans" if self.init == "k-means||" else self.init

    @abstractmethod
    def _converged(self, data: Dataset) -> StopRule:
        """Return the rule that says when the fit has converged."""


@dataclass(frozen=True)
class MixtureSpec(FitSpec):
    """How to fit a Gaussian mixture."""

    covariance: Any
    reg_covar: float
    prior: Any
    missing: str

    rule: ClassVar[Literal["gain", "change"]] = "gain"
    objective_name: ClassVar[str] = "objective"
    unit: ClassVar[str] = "nats per row"

    def model(self) -> models.Mixture:
        """Return the mixture."""
        missing = self.missing == "nan"
        family = models.Gaussian(self.covariance, self.reg_covar, self.prior, self.on_collapse, missing=missing)
        return models.Mixture(family, self.n_components, self._init_method)

    def _converged(self, data: Dataset) -> StopRule:
        return Gain(self.tol, rounding=rounding_of(data.dtype))


@dataclass(frozen=True)
class KMeansSpec(FitSpec):
    """How to fit k-means."""

    rule: ClassVar[Literal["gain", "change"]] = "change"
    objective_name: ClassVar[str] = "minus squared distance"
    unit: ClassVar[str] = "per row"

    def model(self) -> models.KMeans:
        """Return the clusters."""
        return models.KMeans(self.n_components, self._init_method, on_collapse=self.on_collapse)

    @property
    def _default_starts(self) -> int:
        return 10 if self.init == "random" else 1

    def _converged(self, data: Dataset) -> StopRule:
        return Change(self.tol)


def _shared(tol: float, max_iter: int, inits: tuple[str, ...], on_collapse: str, algorithms: tuple[str, ...]) -> Any:
    option = click.option
    positive = click.IntRange(min=1)
    return (
        option("-k", "n_components", type=positive, required=True, help="Number of components."),
        option("--tol", type=click.FloatRange(min=0), default=tol, help="What a step must move to go on."),
        option("--max-iter", type=positive, default=max_iter, help="The most steps."),
        option(
            "--max-seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after the step that ends later."
        ),
        option("--n-init", type=positive, help="Starts, run side by side."),
        option("--init", type=click.Choice(inits), default=inits[0], help="How to start."),
        option(
            "--on-collapse",
            type=click.Choice(["keep", "reseed", "raise"]),
            default=on_collapse,
            help="What to do with an empty or collapsing component.",
        ),
        option("--seed", type=click.IntRange(min=0), default=0, help="Seed of everything random."),
        option("--algorithm", type=click.Choice(algorithms), default=algorithms[0], help="How parameters move."),
    )


mixture_options = as_one(
    "spec",
    MixtureSpec,
    *_shared(1e-3, 100, ("kmeans", "k-means++", "random", "random_from_data", "k-means||"), "keep", ("batch",)),
    click.option(
        "--covariance",
        type=click.Choice(["full", "tied", "diag", "spherical"]),
        default="full",
        help="Shape of the covariances.",
    ),
    click.option("--reg-covar", type=click.FloatRange(min=0), default=1e-6, help="Added to the variances."),
    click.option("--prior", type=click.Choice(["conjugate"]), help="Prior that keeps covariances from collapsing."),
    click.option(
        "--missing",
        type=click.Choice(["raise", "nan"]),
        default="raise",
        help="Whether NaN is an error or a missing value.",
    ),
)
kmeans_options = as_one(
    "spec", KMeansSpec, *_shared(1e-4, 300, ("k-means++", "kmeans", "random", "k-means||"), "reseed", ("lloyd",))
)


def n_components(model: Any) -> int:
    """Return the number of components or clusters of a model."""
    return int(model.n_clusters if isinstance(model, models.KMeans) else model.n_components)


def n_features(params: Params) -> int:
    """Return the number of features that parameters are about."""
    return int((params.centers if isinstance(params, models.KMeansParams) else params.components.means).shape[1])


def components(model: Any, params: Params) -> list[dict[str, Any]]:
    """Return what can be said of each component: weight, mean and standard deviations, or center."""
    if isinstance(params, models.KMeansParams):
        return [{"center": center} for center in params.centers]
    means = params.components.means
    sds = np.broadcast_to(_sds(model.family.covariance, params.components.covariances), means.shape)
    return [
        {"weight": weight, "mean": mean, "sd": sd} for weight, mean, sd in zip(params.weights, means, sds, strict=True)
    ]


def component_table(model: Any, params: Params, columns: tuple[str, ...] | list[str] | None = None) -> str:
    """Return the components as text, the heaviest first; of many features only the first."""
    rows = list(enumerate(components(model, params)))
    rows.sort(key=lambda row: -float(row[1].get("weight", 0.0)))
    d = n_features(params)
    names = [(columns[i] if columns else str(i)) for i in range(min(d, SHOWN_FEATURES))]
    header, lines = ["component"], [[str(i)] for i, _ in rows]
    for what in rows[0][1]:
        scalar = what == "weight"
        header += [what] if scalar else [f"{what}[{name}]" for name in names]
        for line, (_, component) in zip(lines, rows, strict=True):
            line += [f"{value:.4g}" for value in np.atleast_1d(component[what])[: len(names)]]
    more = f"\n({d - SHOWN_FEATURES} more features are not shown)" if d > SHOWN_FEATURES else ""
    return columns_of(header, lines) + more


def _sds(covariance: str, covariances: Any) -> Any:
    if covariance in ("full", "tied"):
        covariances = np.diagonal(covariances, axis1=-2, axis2=-1)
    return np.sqrt(covariances)[:, None] if covariance == "spherical" else np.sqrt(covariances)
