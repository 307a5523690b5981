"""What can be fitted by name: one table of models, with their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import click

from daskem import models
from daskem.algorithms import ALGORITHMS, Change, Gain, MaxPasses, MaxSeconds, rounding_of
from daskem.cli.options import made_of
from daskem.core import Algorithm, Model, StopRule
from daskem.data import Dataset
from daskem.errors import DataError, OptionError
from daskem.models.mixture import Init

__all__ = ["FAMILIES", "KINDS", "FitSpec", "Kind", "shared_options"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of model that can be fitted by name.

    Attributes
    ----------
    title : what it is, for help.
    make : returns the model from its own options and the data; the shared ones it needs are among them.
    options : its own options, by name, without those all kinds share.
    inits : how it may start; the first is the default.
    tol, max_iter, on_collapse : defaults.
    algorithms : names that ``--algorithm`` may have; the first is the default.
    rule, objective_name, unit : what ends a fit, and what the objective is called.
    """

    title: str
    make: Callable[[FitSpec, Dataset], Model]
    options: tuple[Decorator, ...] = ()
    inits: tuple[str, ...] = ("auto",)
    tol: float = 1e-3
    max_iter: int = 100
    on_collapse: str | None = None
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    rule: Literal["gain", "change"] = "gain"
    objective_name: str = "objective"
    unit: str = "nats per row"


@dataclass(frozen=True)
class FitSpec:
    """How to fit a model: what its options say.

    Attributes
    ----------
    kind : what is fitted.
    own : the options of its own, by name.
    n_components : number of components, or None where only the model knows.
    """

    kind: Kind
    own: Mapping[str, Any]
    n_components: int | None = None
    tol: Any = 1e-3
    max_iter: int = 100
    n_init: int | None = None
    init: str = "auto"
    max_seconds: float | None = None
    seed: int = 0
    algorithm: str = "auto"
    algorithm_settings: tuple[str, ...] = ()

    def model(self, data: Dataset) -> Model:
        """Return the model, `data` being what it will be fitted to."""
        return self.kind.make(self, data)

    def stop(self, data: Dataset) -> list[StopRule]:
        """Return the rules that end the fit."""
        by_change = self.kind.rule == "change"
        converged = Change(self.tol) if by_change else Gain(self.tol, rounding=rounding_of(data.dtype))
        budget: list[StopRule] = [] if self.max_seconds is None else [MaxSeconds(self.max_seconds)]
        return [converged, MaxPasses(self.max_iter), *budget]

    def make_algorithm(self) -> Algorithm:
        """Return the algorithm; Lloyd's is what batch EM of k-means is called."""
        make = ALGORITHMS["batch" if self.algorithm == "lloyd" else self.algorithm]
        what, named = f"--algorithm {self.algorithm}", {"inner": ALGORITHMS, "final": ALGORITHMS}
        algorithm: Algorithm = made_of(what, make, self.algorithm_settings, "--algorithm-set", named)
        return algorithm

    @property
    def starts(self) -> int:
        """Number of starts; as in scikit-learn, a random start of k-means is worth repeating."""
        return self.n_init or (10 if self.kind.rule == "change" and self.init == "random" else 1)

    @property
    def init_sample(self) -> str:
        """Which rows a start is made from."""
        return "k-means||" if self.init == "k-means||" else "auto"

    @property
    def init_method(self) -> Any:
        """How a sample is first shared out, None for the model's own way."""
        return {"k-means||": "kmeans", "auto": None}.get(self.init, self.init)

    def check(self, data: Dataset) -> None:
        """Refuse data with fewer rows than components, and a tolerance that means nothing to the model."""
        if self.tol == "statistical" and self.kind.rule == "change":
            raise OptionError(f"--tol statistical is about likelihoods, which {self.kind.title} does not have.")
        if self.n_components is not None and data.n_rows < self.n_components:
            raise DataError(
                f"{data.rows.name} has {data.n_rows} rows, fewer than the {self.n_components} components to fit. "
                "Use fewer components (-k)."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the options, for the model file."""
        shared = {name: value for name, value in vars(self).items() if name not in ("kind", "own")}
        return {**shared, **self.own}


def shared_options(kind: Kind) -> tuple[Decorator, ...]:
    """Return the options that all kinds have, with the defaults of this one."""
    option, positive = click.option, click.IntRange(min=1)
    collapse = option(
        "--on-collapse",
        type=click.Choice(["keep", "reseed", "raise"]),
        default=kind.on_collapse,
        help="What to do with an empty or collapsing component.",
    )
    start = option("--init", type=click.Choice(kind.inits), default=kind.inits[0], help="How to start.")
    return (
        option("--tol", callback=_tol, default=str(kind.tol), help="What is left to gain, or to move, at the end."),
        option("--max-iter", type=positive, default=kind.max_iter, help="The most passes over the data."),
        option("--max-seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after the step ending later."),
        option("--n-init", type=positive, help="Starts, run side by side."),
        *([start] if len(kind.inits) > 1 else []),
        *([collapse] if kind.on_collapse else []),
        option("--seed", type=click.IntRange(min=0), default=0, help="Seed of everything random."),
        option(
            "--algorithm", type=click.Choice(kind.algorithms), default=kind.algorithms[0], help="How parameters move."
        ),
        option(
            "--algorithm-set",
            "algorithm_settings",
            metavar="NAME=VALUE",
            multiple=True,
            help="An option of the algorithm: batch_rows=50000 of stepwise, or final=squarem of progressive.",
        ),
    )


def _tol(ctx: click.Context, param: click.Parameter, value: str) -> float | str:
    if value == "statistical":
        return value
    return float(click.FloatRange(min=0)(value, param, ctx))


FAMILIES: Mapping[str, Callable[..., Any]] = {
    "gaussian": models.Gaussian,
    "student-t": models.StudentT,
    "bernoulli": models.Bernoulli,
    "categorical": models.Categorical,
    "multinomial": models.Multinomial,
    "poisson": models.Poisson,
    "exponential": models.Exponential,
    "gamma": models.Gamma,
    "von-mises-fisher": models.VonMisesFisher,
}


def _dof(ctx: click.Context, param: click.Parameter, value: str) -> str | float:
    try:
        return value if value in ("each", "shared") else float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither 'each', 'shared' nor a number.") from error


def _levels(ctx: click.Context, param: click.Parameter, value: str | None) -> int | tuple[int, ...] | None:
    try:
        counts = None if value is None else tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a number of levels, nor one for each column: 3,2,4.") from error
    return counts[0] if counts and len(counts) == 1 else counts


_K = click.option("-k", "n_components", type=click.IntRange(min=1), required=True, help="Number of components.")
_WEIGHT_PRIOR = click.option(
    "--weight-prior", type=click.FloatRange(min=1), default=1.0, help="Dirichlet concentration of the weights; 1: none."
)
_OWN = {
    "covariance": click.option(
        "--covariance", type=click.Choice(list(models.SHAPES)), default="full", help="Shape of the covariances."
    ),
    "dof": click.option(
        "--dof", callback=_dof, default="each", help="Degrees of freedom: each, shared (estimated), or a number."
    ),
    "reg_covar": click.option(
        "--reg-covar", type=click.FloatRange(min=0), default=1e-6, help="Added to the variances."
    ),
    "prior": click.option(
        "--prior", type=click.Choice(["conjugate"]), help="Prior that keeps covariances from collapsing."
    ),
    "missing": click.option(
        "--missing",
        type=click.Choice(["raise", "nan"]),
        default="raise",
        callback=lambda ctx, param, value: value == "nan",
        help="Whether NaN is an error or a missing value.",
    ),
    "pseudo_count": click.option(
        "--pseudo-count", type=click.FloatRange(min=0), default=0.0, help="Rows that the conjugate prior counts as."
    ),
    "levels": click.option(
        "--levels", metavar="N[,N...]", callback=_levels, help="Levels of all columns, or of each; else found."
    ),
    "max_shape": click.option(
        "--max-shape", type=click.FloatRange(min=0, min_open=True), default=1e6, help="Largest shape."
    ),
    "max_concentration": click.option(
        "--max-concentration", type=click.FloatRange(min=1, max=1e8), default=1e8, help="Largest concentration."
    ),
}
_CONCENTRATION = (
    click.option(
        "--weight-distribution",
        type=click.Choice(["dirichlet_process", "dirichlet_distribution"]),
        default="dirichlet_process",
        help="Prior of the weights.",
    ),
    click.option(
        "--concentration",
        type=click.FloatRange(min=0, min_open=True),
        help="Of the weights' prior; small ones leave few components with weight. 1/k without.",
    ),
)
_GROUP = click.option(
    "--group",
    "groups",
    metavar="NAME=FAMILY:A,B",
    multiple=True,
    required=True,
    help="A group of columns and its family, once for each group: colour=gaussian:G,BP,RP.",
)


def _taken(family: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(family).parameters)


def _family(name: str, own: Mapping[str, Any]) -> Any:
    """Return a family with those of its options that the command has."""
    make = FAMILIES[name]
    return make(**{option: value for option, value in own.items() if option in _taken(make)})


def _mixture(family: Callable[[FitSpec, Dataset], Any], spec: FitSpec, data: Dataset) -> Model:
    assert spec.n_components is not None  # the option is required
    prior = spec.own["weight_prior"]
    return models.Mixture(family(spec, data), spec.n_components, spec.init_method, weight_prior=prior)


def _product(spec: FitSpec, data: Dataset) -> models.Product:
    families: dict[str, Any] = {}
    columns: dict[str, list[int]] = {}
    for text in spec.own["groups"]:
        group, _, rest = text.partition("=")
        family, _, names = rest.partition(":")
        if not (group and names) or family not in FAMILIES or group in families:
            raise OptionError(
                f"--group {text!r} is not NAME=FAMILY:COLUMN,... with a name of its own and a family of "
                f"{', '.join(FAMILIES)}."
            )
        families[group] = _family(family, spec.own)
        columns[group] = [_column(name.strip(), group, data) for name in names.split(",")]
    return models.Product(families, columns)


def _column(name: str, group: str, data: Dataset) -> int:
    """Return the index of a column by its name, or by its number where no column is called so."""
    names = data.rows.columns or ()
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < data.n_features:
        return int(name)
    there = f"the columns {', '.join(names)}" if names else f"{data.n_features} columns without names"
    raise OptionError(f"--group {group}: {data.rows.name} has no column {name!r}; it has {there}.")


def _variational(spec: FitSpec, data: Dataset) -> Model:
    assert spec.n_components is not None  # the option is required
    own = spec.own
    return models.VariationalMixture(
        models.NormalWishart(own["covariance"], own["reg_covar"], missing=own["missing"]),
        spec.n_components,
        spec.init_method,
        weight_distribution=own["weight_distribution"],
        concentration_prior=own["concentration"],
    )


def _kmeans(spec: FitSpec, data: Dataset) -> Model:
    assert spec.n_components is not None  # the option is required
    return models.KMeans(spec.n_components, spec.init_method, on_collapse=spec.own["on_collapse"])


def _mixture_kind(title: str, family: Callable[[FitSpec, Dataset], Any], *options: Decorator, init: str) -> Kind:
    inits = (init, *(name for name in ("auto", *get_args(Init), "k-means||") if name != init))
    return Kind(title, partial(_mixture, family), (_K, *options, _WEIGHT_PRIOR), inits, on_collapse="keep")


def _family_kind(name: str, title: str) -> Kind:
    """Return the kind of mixtures of one family, whose options are those of the family."""
    own = [option for option_name, option in _OWN.items() if option_name in _taken(FAMILIES[name])]
    init = "kmeans" if name in ("gaussian", "student-t") else "auto"
    return _mixture_kind(title, lambda spec, data: _family(name, spec.own), *own, init=init)


_MIXTURES = {
    "gaussian": "a Gaussian mixture",
    "student-t": "a mixture of Student-t distributions, for rows with outliers",
    "bernoulli": "a mixture of binary columns, of 0 and 1",
    "categorical": "a mixture of columns of codes 0, 1, ... (latent classes)",
    "multinomial": "a mixture of counts, of d things a row",
    "poisson": "a mixture of Poisson counts",
    "exponential": "a mixture of exponential waiting times",
    "gamma": "a mixture of gamma distributed positive numbers",
    "von-mises-fisher": "a mixture of directions: rows are unit vectors",
}

KINDS: Mapping[str, Kind] = {
    **{f"{name}-mixture": _family_kind(name, title) for name, title in _MIXTURES.items()},
    "mixed-mixture": _mixture_kind(
        "a mixture of mixed columns, each group of columns with its family",
        _product,
        _GROUP,
        *(option for name, option in _OWN.items() if name not in ("levels", "max_shape", "max_concentration")),
        init="auto",
    ),
    "variational-mixture": Kind(
        "a Gaussian mixture by variational Bayes, which leaves components empty that it does not need",
        _variational,
        (_K, *(_OWN[name] for name in ("covariance", "reg_covar", "missing")), *_CONCENTRATION),
        ("kmeans", *(name for name in ("auto", *get_args(Init), "k-means||") if name != "kmeans")),
        # Components empty slowly.
        tol=1e-6,
    ),
    "kmeans": Kind(
        "k-means",
        _kmeans,
        (_K,),
        ("k-means++", "kmeans", "random", "k-means||"),
        tol=1e-4,
        max_iter=300,
        on_collapse="reseed",
        # The others need a vector of the parameters, or a surrogate.
        algorithms=("auto", "lloyd", "stepwise", "progressive"),
        rule="change",
        objective_name="minus squared distance",
        unit="per row",
    ),
}
