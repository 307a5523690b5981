"""Variational Bayesian Gaussian mixtures with scikit-learn's face."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy.typing as npt
from sklearn.utils import Tags

from daskem.core import Family, Params
from daskem.data import Dataset
from daskem.errors import OptionError
from daskem.estimators.base import check_choice, check_number
from daskem.estimators.mixture import BaseMixture
from daskem.models import SHAPES, Mixture, NormalWishart, VariationalMixture

__all__ = ["VariationalGaussianMixture"]


@dataclass(eq=False, repr=False, kw_only=True)
class VariationalGaussianMixture(BaseMixture):
    """Gaussian mixture with distributions of its weights, means and precisions, fitted by variational Bayes.

    Parameters, defaults and fitted attributes are scikit-learn's (``sklearn.mixture.BayesianGaussianMixture``); the
    steps are its steps too. ``X`` may be anything that `daskem.data.open_source` takes.

    Parameters
    ----------
    n_components, covariance_type, tol, reg_covar, max_iter, n_init, init_params, random_state, warm_start, verbose, \
verbose_interval
        As in scikit-learn, except that `tol` is per row, hence much smaller by default (components empty slowly), that
        `covariance_type` may also be ``"tied_diag"`` or ``"tied_spherical"``, that `n_init` starts run side by side,
        and that a start is made from a sample of the rows.
    weight_concentration_prior_type, weight_concentration_prior, mean_precision_prior, mean_prior, \
degrees_of_freedom_prior, covariance_prior
        As in scikit-learn. By default the prior's mean and covariance are those of the sample that the start is made
        from: all rows where there are few.
    missing, algorithm, init_sample, max_seconds, cache, memory_limit : see `daskem.GaussianMixture`; with missing
        values the lower bound is of those present.

    Attributes
    ----------
    weights_, means_, covariances_, precisions_, precisions_cholesky_, weight_concentration_, mean_precision_, \
degrees_of_freedom_, weight_concentration_prior_, mean_precision_prior_, mean_prior_, degrees_of_freedom_prior_, \
covariance_prior_, converged_, n_iter_, n_features_in_
        As in scikit-learn.
    lower_bound_, lower_bounds_ : the evidence lower bound in nats per row, its constants included, which scikit-learn
        leaves out; at the parameters that the last step, and each step, started from.
    result_ : `daskem.FitResult`, with the trace, the events and the plan.

    Examples
    --------
    >>> import daskem, numpy as np
    >>> X = np.repeat([[0.0], [1.0], [10.0], [11.0]], 25, axis=0)
    >>> mixture = daskem.VariationalGaussianMixture(4, random_state=0, max_iter=1000).fit(X)
    >>> int((mixture.weights_ > 0.05).sum())
    2
    """

    tol: float | Literal["statistical"] = 1e-6
    covariance_type: str = "full"
    reg_covar: float = 1e-6
    init_params: str = "kmeans"
    weight_concentration_prior_type: str = "dirichlet_process"
    weight_concentration_prior: float | None = None
    mean_precision_prior: float | None = None
    mean_prior: npt.ArrayLike | None = None
    degrees_of_freedom_prior: float | None = None
    covariance_prior: npt.ArrayLike | None = None
    missing: str = "raise"
    # A mixture of distributions starts from no values, and its prior of the weights has names of its own.
    weights_init: None = field(default=None, init=False)
    weight_prior: float = field(default=1.0, init=False)

    fitted: ClassVar[dict[str, str]] = {
        "means_": "means",
        "covariances_": "covariances",
        "precisions_cholesky_": "precisions_cholesky",
        "mean_precision_": "mean_precision",
        "mean_prior_": "prior_mean",
    }

    @property
    def aic(self) -> Any:
        """Not there: AIC and BIC are about a maximum of the likelihood, which a distribution of parameters is not."""
        raise AttributeError(f"{type(self).__name__} has no AIC or BIC; compare lower_bound_ instead.")

    bic = aic

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "nan"
        return tags

    def _check_options(self) -> None:
        super()._check_options()
        check_number("reg_covar", self.reg_covar)
        check_choice("covariance_type", self.covariance_type, tuple(SHAPES))
        check_choice("missing", self.missing, ("raise", "nan"))
        for name in ("weight_concentration_prior", "mean_precision_prior", "degrees_of_freedom_prior"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value)
                if not value > 0:
                    raise OptionError(f"{name}={value!r} must be positive.")
        kinds = ("dirichlet_process", "dirichlet_distribution")
        check_choice("weight_concentration_prior_type", self.weight_concentration_prior_type, kinds)

    def _family(self, data: Dataset) -> Family:
        return NormalWishart(
            self.covariance_type,  # type: ignore[arg-type]
            self.reg_covar,
            missing=self.missing == "nan",
            mean_precision_prior=1.0 if self.mean_precision_prior is None else self.mean_precision_prior,
            mean_prior=self.mean_prior,  # type: ignore[arg-type]
            degrees_of_freedom_prior=self.degrees_of_freedom_prior,
            covariance_prior=self.covariance_prior,  # type: ignore[arg-type]
        )

    def _model(self, data: Dataset) -> Mixture:
        point = super()._model(data)
        return VariationalMixture(
            point.family,
            point.n_components,
            point.init_method,
            weight_distribution=self.weight_concentration_prior_type,  # type: ignore[arg-type]
            concentration_prior=self.weight_concentration_prior,
        )

    def _set_attributes(self, components: Params) -> None:
        super()._set_attributes(components)
        shape, family, d = SHAPES[self.covariance_type], self._mixture().family, components.means.shape[1]
        assert isinstance(family, NormalWishart)  # for the type checker: this class made it
        freedom, concentration = components.degrees_of_freedom, self.result_.params.concentration
        self.precisions_ = shape.precisions(components.precisions_cholesky)
        self.degrees_of_freedom_ = freedom[0] if shape.tied else freedom
        self.weight_concentration_ = tuple(concentration) if concentration.ndim == 2 else concentration
        given = self.weight_concentration_prior
        self.weight_concentration_prior_ = 1.0 / self.n_components if given is None else given
        self.mean_precision_prior_ = family.mean_precision_prior
        self.degrees_of_freedom_prior_ = d if self.degrees_of_freedom_prior is None else self.degrees_of_freedom_prior
        prior = components.prior_scale
        self.covariance_prior_ = prior.item() if shape.isotropic else prior
