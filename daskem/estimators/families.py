"""Mixtures of binary, categorical, count, positive, directional and mixed columns, with scikit-learn's face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from sklearn.utils import Tags

from daskem import models
from daskem.core import Family, Params
from daskem.data import Dataset
from daskem.errors import OptionError
from daskem.estimators.base import check_number
from daskem.estimators.mixture import BaseMixture

__all__ = [
    "BernoulliMixture",
    "CategoricalMixture",
    "ExponentialMixture",
    "GammaMixture",
    "MixedMixture",
    "MultinomialMixture",
    "PoissonMixture",
    "VonMisesFisherMixture",
]


@dataclass(eq=False, repr=False, kw_only=True)
class _NaturalMixture(BaseMixture):
    """What mixtures share whose family takes the estimator's parameters of the same names."""

    pseudo_count: float = 0.0
    on_collapse: str = "keep"

    kind: ClassVar[Any]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.kind is not models.VonMisesFisher
        tags.input_tags.categorical = self.kind is models.Categorical
        tags.input_tags.allow_nan = self.kind.handles_missing
        return tags

    def _check_options(self) -> None:
        super()._check_options()
        check_number("pseudo_count", self.pseudo_count)

    def _family(self, data: Dataset) -> Family:
        family: Family = self.kind(**{option.name: getattr(self, option.name) for option in fields(self.kind)})
        return family


@dataclass(eq=False, repr=False, kw_only=True)
class BernoulliMixture(_NaturalMixture):
    """Mixture of independent binary columns: the latent class model of yes-or-no answers.

    Parameters
    ----------
    pseudo_count : ones, and zeros, that the prior adds to each column of each component; 0 is maximum likelihood.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to an empty component.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    probabilities_ : (k, d) probabilities of a one.
    weights_, ... : see `BaseMixture`.

    Examples
    --------
    >>> import daskem, numpy as np
    >>> X = np.repeat([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [60, 40], axis=0)
    >>> daskem.BernoulliMixture(2, random_state=0).fit(X).weights_.round(2).tolist()
    [0.6, 0.4]
    """

    kind: ClassVar[Any] = models.Bernoulli
    fitted: ClassVar[dict[str, str]] = {"probabilities_": "probabilities"}


@dataclass(eq=False, repr=False, kw_only=True)
class CategoricalMixture(_NaturalMixture):
    """Mixture of independent columns of codes 0, 1, ...: the latent class model (Goodman 1974).

    Parameters
    ----------
    levels : number of levels: one for all columns, one for each, or None to find them in the sample of the start.
    pseudo_count : rows of each level that the prior adds to each column of each component; 0 is maximum likelihood.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to an empty component.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    probabilities_ : for each column, (k, levels) probabilities of its levels.
    weights_, ... : see `BaseMixture`.
    """

    levels: int | Sequence[int] | None = None

    kind: ClassVar[Any] = models.Categorical

    def _set_attributes(self, components: Params) -> None:
        self.probabilities_ = [components.of_column(j) for j in range(len(components.levels))]


@dataclass(eq=False, repr=False, kw_only=True)
class MultinomialMixture(_NaturalMixture):
    """Mixture of multinomial counts: each row is how often each of d things was seen, such as the words of a text.

    Parameters
    ----------
    pseudo_count : times that the prior adds each thing to each component; 0 is maximum likelihood.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to an empty component.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    probabilities_ : (k, d), each row sums to one.
    weights_, ... : see `BaseMixture`.
    """

    kind: ClassVar[Any] = models.Multinomial
    fitted: ClassVar[dict[str, str]] = {"probabilities_": "probabilities"}


@dataclass(eq=False, repr=False, kw_only=True)
class PoissonMixture(_NaturalMixture):
    """Mixture of independent columns of Poisson counts.

    Parameters
    ----------
    pseudo_count : rows at the mean of all that the prior adds to each component; 0 is maximum likelihood.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to an empty component.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    rates_ : (k, d) mean counts.
    weights_, ... : see `BaseMixture`.
    """

    kind: ClassVar[Any] = models.Poisson
    fitted: ClassVar[dict[str, str]] = {"rates_": "rates"}


@dataclass(eq=False, repr=False, kw_only=True)
class ExponentialMixture(_NaturalMixture):
    """Mixture of independent columns of exponential waiting times.

    Parameters
    ----------
    pseudo_count : rows at the mean of all that the prior adds to each component; 0 is maximum likelihood.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to an empty component.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    scales_ : (k, d) means, data units; rates are their inverses.
    weights_, ... : see `BaseMixture`.
    """

    kind: ClassVar[Any] = models.Exponential
    fitted: ClassVar[dict[str, str]] = {"scales_": "scales"}


@dataclass(eq=False, repr=False, kw_only=True)
class GammaMixture(_NaturalMixture):
    """Mixture of independent columns of gamma distributed positive numbers.

    Parameters
    ----------
    max_shape : largest shape: equal values have no finite one.
    pseudo_count : rows like the mean of all that the prior adds to each component; 0 is maximum likelihood.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to an empty or collapsing component.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    shapes_, scales_ : (k, d); a column's mean is shape times scale.
    weights_, ... : see `BaseMixture`.
    """

    max_shape: float = 1e6

    kind: ClassVar[Any] = models.Gamma
    fitted: ClassVar[dict[str, str]] = {"shapes_": "shapes", "scales_": "scales"}


@dataclass(eq=False, repr=False, kw_only=True)
class VonMisesFisherMixture(_NaturalMixture):
    """Mixture of von Mises-Fisher distributions on the unit sphere (Banerjee et al. 2005); rows are unit vectors.

    Parameters
    ----------
    max_concentration : largest concentration: equal rows have no finite one.
    pseudo_count : rows, spread evenly over the sphere, that the prior adds to each component.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to an empty or collapsing component.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    directions_ : (k, d) mean directions, unit vectors.
    concentrations_ : (k,).
    weights_, ... : see `BaseMixture`.
    """

    max_concentration: float = 1e8

    kind: ClassVar[Any] = models.VonMisesFisher
    fitted: ClassVar[dict[str, str]] = {"directions_": "directions", "concentrations_": "concentrations"}


@dataclass(eq=False, repr=False, kw_only=True)
class MixedMixture(BaseMixture):
    """Mixture of mixed columns, each group of columns with a family of its own: latent class and profile analysis.

    Columns are independent between groups given the component; those that no group names are left out.

    Parameters
    ----------
    families : family of each group, by the group's name.
    columns : columns of each group, by name (of a data frame, or of a store that names its columns) or by index.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    groups_ : the parameters of each group, by the group's name: the record of its family.
    weights_, ... : see `BaseMixture`.

    Examples
    --------
    >>> import daskem, numpy as np
    >>> from daskem.models import Bernoulli, Gaussian
    >>> X = np.array([[0.0, 1.0], [1.0, 1.0], [10.0, 0.0], [11.0, 0.0]]).repeat(25, axis=0)
    >>> groups = {"size": Gaussian(), "flag": Bernoulli()}
    >>> mixed = daskem.MixedMixture(2, families=groups, columns={"size": [0], "flag": [1]}, random_state=0).fit(X)
    >>> sorted(mixed.groups_["flag"].probabilities.round(2).ravel().tolist())
    [0.0, 1.0]
    """

    families: Mapping[str, Family] | None = None
    columns: Mapping[str, Sequence[int | str]] | None = None

    def _family(self, data: Dataset) -> Family:
        if self.families is None:
            raise OptionError(
                "families=None. Give the family of each group of columns, such as "
                'families={"size": Gaussian(), "flags": Bernoulli()}, columns={"size": [0], "flags": [1, 2]}.'
            )
        product = models.Product(self.families, self.columns)
        # Of the first rows: mini-batches after those need not name their columns.
        return product if self._columns is None else product.resolved(self._columns)

    def _set_attributes(self, components: Params) -> None:
        family: Any = self._mixture().family
        self.groups_ = dict(zip(family.families, components.groups, strict=True))
