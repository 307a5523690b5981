"""Gaussian mixtures with scikit-learn's face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted

from daskem.algorithms import Gain, MaxSteps, rounding_of
from daskem.core import Algorithm, StepInfo, StopRule
from daskem.data import Dataset
from daskem.errors import DataError, OptionError
from daskem.estimators.base import (
    OutOfCoreEstimator,
    check_choice,
    check_number,
    check_whole,
    known_labels,
)
from daskem.fit import FitResult
from daskem.models import Gaussian, Mixture
from daskem.predict import score

__all__ = ["GaussianMixture"]

INITS = ("kmeans", "k-means++", "random", "random_from_data", "k-means||")


class GaussianMixture(DensityMixin, OutOfCoreEstimator):  # type: ignore[misc]
    """Gaussian mixture, fitted by expectation-maximization to data that need not fit into memory.

    Parameters, defaults and fitted attributes are scikit-learn's (``sklearn.mixture.GaussianMixture``); those after
    `verbose_interval` are daskem's. ``X`` may be anything that `daskem.data.open_source` takes. Results for the rows
    of an array in memory are numpy arrays, those for a store or a Dask array are lazy Dask arrays.

    Parameters
    ----------
    n_components, covariance_type, tol, reg_covar, max_iter, n_init, init_params, weights_init, means_init, \
precisions_init, random_state, warm_start, verbose, verbose_interval
        As in scikit-learn, except that `n_init` starts run side by side, sharing each pass over the data, and that a
        start is made from a sample of the rows (see `init_sample`).
    algorithm : ``"batch"`` or a `daskem.core.Algorithm`.
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

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: npt.ArrayLike | None = None,
        means_init: npt.ArrayLike | None = None,
        precisions_init: npt.ArrayLike | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        algorithm: str | Algorithm = "batch",
        prior: str | None = None,
        on_collapse: str = "keep",
        missing: str = "raise",
        init_sample: str | int = "auto",
        max_seconds: float | None = None,
        cache: str = "auto",
        memory_limit: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.algorithm = algorithm
        self.prior = prior
        self.on_collapse = on_collapse
        self.missing = missing
        self.init_sample = init_sample
        self.max_seconds = max_seconds
        self.cache = cache
        self.memory_limit = memory_limit

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the mixture.

        Parameters
        ----------
        X : (n, d), from anywhere.
        y : (n,) labels, -1 where unknown: a known label fixes the row's component. Ignored when None.
        sample_weight : (n,) not negative; a row of weight 2 counts as two rows, of weight 0 as none.

        Returns
        -------
        GaussianMixture
            This estimator.
        """
        return self._fit(X, known_labels(y), sample_weight)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the most probable component of each row, (n,): the known one where `y` tells it.

        A row of weight 0 that holds NaN or infinity gets -1.
        """
        known = known_labels(y)
        return self._fit(X, known, sample_weight)._rows(X, "labels", self.n_components, known, sample_weight)

    def predict(self, X: Any) -> Any:
        """Return the most probable component of each row, (n,) int64."""
        return self._rows(X, "labels", self.n_components)

    def predict_proba(self, X: Any) -> Any:
        """Return the posterior probability of each component for each row, (n, k)."""
        return self._rows(X, "proba", self.n_components)

    def impute(self, X: Any) -> Any:
        """Return X (n, d) with the conditional means of missing values given those present in the place of NaN.

        Needs a mixture fitted with ``missing="nan"``.
        """
        return self._rows(X, "imputed", self.n_components)

    def score_samples(self, X: Any) -> Any:
        """Return the log density of each row, (n,), nats."""
        return self._rows(X, "log_prob", self.n_components)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log density, nats per row; one pass."""
        total, weight = self._total_log_prob(X)
        return total / weight

    def aic(self, X: Any) -> float:
        """Return Akaike's information criterion on X, ``2 p - 2 log L`` (Akaike 1974); lower is better."""
        return 2.0 * self._n_parameters() - 2.0 * self._total_log_prob(X)[0]

    def bic(self, X: Any) -> float:
        """Return the Bayesian information criterion on X, ``p log n - 2 log L`` (Schwarz 1978); lower is better."""
        total, weight = self._total_log_prob(X)
        return float(self._n_parameters() * np.log(weight) - 2.0 * total)

    def sample(self, n_samples: int = 1) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return (n_samples, d) rows drawn from the mixture, and the component (n_samples,) of each."""
        mixture = self._mixture()
        if n_samples < 1:
            raise OptionError(f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.")
        rng = np.random.default_rng(self._seed())
        rows, labels = mixture.sample(self.result_.params, n_samples, rng)
        return rows, labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "nan"
        return tags

    def _fit(self, X: Any, known: Any, sample_weight: Any) -> Self:
        self._check_options()
        data = self._dataset(X, sample_weight=sample_weight, y=known, reset=True, least=2)
        model, previous = self._model(data), self._previous(data)
        gain = Gain(self.tol, rounding=rounding_of(data.dtype))
        stop: list[StopRule] = [_GainSince(gain, previous.trace[-1]) if previous else gain, MaxSteps(self.max_iter)]
        self.result_ = self._run_fit(model, data, stop, self.init_params, previous and previous.params)
        self._set_attributes()
        return self

    def _check_options(self) -> None:
        super()._check_options()
        check_whole("n_components", self.n_components)
        check_whole("verbose_interval", self.verbose_interval)
        check_number("reg_covar", self.reg_covar)
        check_choice("covariance_type", self.covariance_type, ("full", "tied", "diag", "spherical"))
        check_choice("init_params", self.init_params, INITS)
        check_choice("missing", self.missing, ("raise", "nan"))

    def _model(self, data: Dataset) -> Mixture:
        if data.n_rows < self.n_components:
            raise DataError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {data.n_rows}."
            )
        family = Gaussian(
            self.covariance_type,  # type: ignore[arg-type]
            self.reg_covar,
            self.prior,  # type: ignore[arg-type]
            self.on_collapse,  # type: ignore[arg-type]
            missing=self.missing == "nan",
        )
        return Mixture(
            family,
            self.n_components,
            "kmeans" if self.init_params == "k-means||" else self.init_params,  # type: ignore[arg-type]
            weights_init=self.weights_init,  # type: ignore[arg-type]
            means_init=self.means_init,  # type: ignore[arg-type]
            precisions_init=self.precisions_init,  # type: ignore[arg-type]
        )

    def _previous(self, data: Dataset) -> FitResult | None:
        """Return the fit that a warm start goes on from."""
        if not (self.warm_start and hasattr(self, "result_")):
            return None
        shape, wanted = self.result_.params.components.means.shape, (self.n_components, data.n_features)
        family = self._mixture().family
        assert isinstance(family, Gaussian)  # for the type checker: this class made it
        if (shape, family.covariance, family.prior) != (wanted, self.covariance_type, self.prior):
            raise OptionError(
                f"warm_start=True goes on from a fit of {shape[0]} {family.covariance} components of {shape[1]} "
                f"features (prior={family.prior!r}), but {wanted[0]} {self.covariance_type} components of {wanted[1]} "
                f"features are wanted (prior={self.prior!r}). Set warm_start=False to start anew."
            )
        return self.result_

    def _mixture(self) -> Mixture:
        check_is_fitted(self)
        model = self.result_.model
        assert isinstance(model, Mixture)  # for the type checker: this class made it
        return model

    def _total_log_prob(self, X: Any) -> tuple[float, float]:
        return score(self._mixture(), self.result_.params, self._dataset(X), memory_limit=self.memory_limit)

    def _n_parameters(self) -> int:
        return self._mixture().n_parameters(self.result_.params)

    def _set_attributes(self) -> None:
        params, result = self.result_.params, self.result_
        gaussians = params.components
        self.weights_, self.means_, self.covariances_ = params.weights, gaussians.means, gaussians.covariances
        self.precisions_cholesky_ = gaussians.precisions_cholesky
        self.precisions_ = _precisions(gaussians.precisions_cholesky, self.covariance_type)
        self.converged_, self.n_iter_ = result.converged, result.n_steps
        self.lower_bound_ = result.objective
        self.lower_bounds_ = [info.objective for info in result.trace]


@dataclass(frozen=True)
class _GainSince:
    """`Gain` that also sees the last step of an earlier fit, so that a warm start may end after one step."""

    gain: Gain
    before: StepInfo
    converged: ClassVar[bool] = True

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        return self.gain((self.before, *trace))


def _precisions(precisions_cholesky: npt.NDArray[np.float64], covariance_type: str) -> npt.NDArray[np.float64]:
    """Return the precisions, ``L L^T`` (full, tied) or ``L^2`` (diag, spherical), in scikit-learn's shapes."""
    if covariance_type in ("full", "tied"):
        return precisions_cholesky @ np.swapaxes(precisions_cholesky, -1, -2)
    return precisions_cholesky**2
