"""Mixtures of Gaussians, and of their heavy-tailed relatives, with scikit-learn's face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy.typing as npt
from sklearn.utils import Tags

from daskem.core import Family, Params
from daskem.data import Dataset
from daskem.estimators.base import check_choice, check_number
from daskem.estimators.mixture import BaseMixture
from daskem.models import SHAPES, Gaussian, StudentT

__all__ = ["GaussianMixture", "StudentTMixture"]


@dataclass(eq=False, repr=False, kw_only=True)
class _EllipticalMixture(BaseMixture):
    """What mixtures share whose components have a location and a matrix."""

    covariance_type: str = "full"
    reg_covar: float = 1e-6
    init_params: str = "kmeans"
    means_init: npt.ArrayLike | None = None
    precisions_init: npt.ArrayLike | None = None
    prior: str | None = None
    on_collapse: str = "keep"
    missing: str = "raise"

    fitted: ClassVar[dict[str, str]] = {
        "means_": "means",
        "covariances_": "covariances",
        "precisions_cholesky_": "precisions_cholesky",
    }

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "nan"
        return tags

    def _check_options(self) -> None:
        super()._check_options()
        check_number("reg_covar", self.reg_covar)
        check_choice("covariance_type", self.covariance_type, tuple(SHAPES))
        check_choice("missing", self.missing, ("raise", "nan"))

    def _shared(self) -> dict[str, Any]:
        """Return the options that both families have."""
        own = {name: getattr(self, name) for name in ("reg_covar", "prior", "on_collapse")}
        return {"covariance": self.covariance_type, **own, "missing": self.missing == "nan"}

    def _starting_values(self) -> dict[str, Any]:
        own = {"means_init": self.means_init, "precisions_init": self.precisions_init}
        return {**super()._starting_values(), **own}

    def _set_attributes(self, components: Params) -> None:
        super()._set_attributes(components)
        self.precisions_ = SHAPES[self.covariance_type].precisions(components.precisions_cholesky)


@dataclass(eq=False, repr=False, kw_only=True)
class GaussianMixture(_EllipticalMixture):
    """Gaussian mixture, fitted by expectation-maximization to data that need not fit into memory.

    Parameters, defaults and fitted attributes are scikit-learn's (``sklearn.mixture.GaussianMixture``), and a few more.
    ``X`` may be anything that `daskem.data.open_source` takes. Results for the rows of an array in memory are numpy
    arrays, those for a store or a Dask array are lazy Dask arrays.

    Parameters
    ----------
    n_components, covariance_type, tol, reg_covar, max_iter, n_init, init_params, weights_init, means_init, \
precisions_init, random_state, warm_start, verbose, verbose_interval
        As in scikit-learn, except that `covariance_type` may also be ``"tied_diag"`` (one diagonal for all components)
        or ``"tied_spherical"`` (one variance for all), that `n_init` starts run side by side, sharing each pass over
        the data, and that a start is made from a sample of the rows (see `init_sample`).
    algorithm : a name in `daskem.algorithms.ALGORITHMS`, or a `daskem.core.Algorithm`.
    prior : None, or ``"conjugate"`` for the MAP estimate of Fraley & Raftery (2007), which keeps covariances from
        collapsing; `lower_bound_` then includes the log prior.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to an empty or collapsing component.
    missing : ``"raise"``, or ``"nan"`` where NaN stands for a missing value, missing at random: rows then count with
        the values that they have, exactly, and `impute` gives the others.
    init_sample : rows to draw for the start, ``"auto"``, or ``"k-means||"`` (see `daskem.fit`).
    max_seconds : wall-clock budget, or None.
    cache, memory_limit : see `daskem.fit`.

    Attributes
    ----------
    weights_, means_, covariances_, precisions_, precisions_cholesky_, converged_, n_iter_, lower_bound_, \
lower_bounds_, n_features_in_
        As in scikit-learn.
    result_ : `daskem.FitResult`, with the trace, the events and the plan.

    Examples
    --------
    >>> import daskem, numpy as np
    >>> X = np.repeat([[0.0], [1.0], [10.0], [11.0]], 25, axis=0)
    >>> sorted(daskem.GaussianMixture(2, random_state=0).fit(X).means_.round(1).ravel().tolist())
    [0.5, 10.5]
    """

    def _family(self, data: Dataset) -> Family:
        return Gaussian(**self._shared())


@dataclass(eq=False, repr=False, kw_only=True)
class StudentTMixture(_EllipticalMixture):
    """Mixture of multivariate Student-t distributions (Peel & McLachlan 2000), for rows with outliers.

    Parameters
    ----------
    dof : degrees of freedom: ``"each"`` (estimated for each component), ``"shared"`` (one estimate) or a fixed number.
    covariance_type, reg_covar, means_init, precisions_init, prior, on_collapse, missing : as in `GaussianMixture`, of
        the scale matrices.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    means_ : (k, d) locations.
    scales_ : scale matrices, in the shapes of `GaussianMixture.covariances_`; a component's covariance is
        ``dof / (dof - 2)`` times its scale matrix, and infinite where ``dof <= 2``.
    dof_ : (k,) degrees of freedom.
    precisions_, precisions_cholesky_ : of the scale matrices.
    weights_, ... : see `BaseMixture`.

    Examples
    --------
    >>> import daskem, numpy as np
    >>> X = np.append(np.tile([-1.0, 0.0, 1.0], 30), 1e6).reshape(-1, 1)
    >>> round(daskem.StudentTMixture(dof=2, random_state=0).fit(X).means_.item(), 2)
    0.0
    """

    dof: str | float = "each"

    fitted: ClassVar[dict[str, str]] = {
        "means_": "means",
        "scales_": "covariances",
        "precisions_cholesky_": "precisions_cholesky",
        "dof_": "dof",
    }

    def _family(self, data: Dataset) -> Family:
        options: dict[str, Any] = {**self._shared(), "dof": self.dof}
        return StudentT(**options)
