"""The scikit-learn face: estimators whose data may be anything from a list to a store larger than memory."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, estimator_html_repr
from sklearn.utils.validation import check_is_fitted, validate_data

from daskem.algorithms import BatchEM, Change, Gain, MaxSeconds, MaxSteps
from daskem.core import Algorithm, Model, Params, StepInfo, StopRule
from daskem.data import Dataset, is_array_like, open_dataset
from daskem.errors import DaskEMWarning, DataError, OptionError
from daskem.fit import FitResult, fit
from daskem.models import Gaussian, Mixture
from daskem.models import KMeans as KMeansModel
from daskem.predict import evaluate, predict_rows, score
from daskem.report import fit_html

__all__ = ["GaussianMixture", "KMeans"]

ALGORITHMS = {"batch": BatchEM, "lloyd": BatchEM}


class _OutOfCoreEstimator(BaseEstimator):  # type: ignore[misc]
    """What all estimators share: opening X, running `daskem.fit`, and results for each row of X."""

    # Set by the subclasses' constructors; scikit-learn wants constructors written out.
    algorithm: Any
    max_iter: int
    max_seconds: float | None
    n_init: Any
    init_sample: Any
    cache: str
    memory_limit: Any
    random_state: Any
    verbose: int

    result_: FitResult
    n_features_in_: int

    def _dataset(
        self, X: Any, *, sample_weight: Any = None, y: Any = None, reset: bool = False, least: int = 1
    ) -> Dataset:
        """Open X; arrays in memory pass scikit-learn's own checks, all else those of `daskem.data`."""
        if is_array_like(X):
            kinds = [np.float64, np.float32]
            X = validate_data(
                self, X, reset=reset, dtype=kinds, order="C", ensure_all_finite=False, ensure_min_samples=least
            )
        data = open_dataset(X, sample_weight=sample_weight, y=_known_labels(y))
        if reset:
            self.n_features_in_ = data.n_features
        elif data.n_features != self.n_features_in_:
            raise DataError(
                f"X has {data.n_features} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        if data.n_rows < least:
            raise DataError(
                f"Found array with {data.n_rows} sample(s) (shape={data.rows.shape}) while a minimum of {least} is "
                f"required by {type(self).__name__}."
            )
        return data

    def _run_fit(
        self, model: Model, data: Dataset, stop: list[StopRule], init: Any, params: Params | None = None
    ) -> FitResult:
        if self.max_seconds is not None:
            stop.append(MaxSeconds(self.max_seconds))
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        result = fit(
            model,
            data,
            algorithm=_algorithm(self.algorithm),
            stop=stop,
            callbacks=[_print_step] if self.verbose else [],
            params=params,
            n_init=_n_init(self.n_init, init),
            init_sample="k-means||" if _is(init, "k-means||") else self.init_sample,
            seed=seed,
            cache=self.cache,
            memory_limit=self.memory_limit,
        )
        if not result.converged:
            warnings.warn(
                f"{type(self).__name__} stopped before it converged: {result.reason}. The parameters are those of the "
                "last step. Allow more steps (max_iter), a larger tol, or another start (random_state).",
                ConvergenceWarning,
                stacklevel=3,
            )
        return result

    def _rows(self, X: Any, what: str, width: int) -> Any:
        check_is_fitted(self)
        lazy = not (is_array_like(X) or isinstance(X, np.ndarray))
        model, params, data = self.result_.model, self.result_.params, self._dataset(X)
        return predict_rows(model, params, data, what, width, lazy=lazy, memory_limit=self.memory_limit)

    def _repr_html_(self) -> str:
        fitted = fit_html(self.result_) if hasattr(self, "result_") else ""
        return str(estimator_html_repr(self)) + fitted

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


class GaussianMixture(DensityMixin, _OutOfCoreEstimator):  # type: ignore[misc]
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
    >>> daskem.GaussianMixture(2, random_state=0).fit(X).means_.round(1).ravel().tolist()
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
        data = self._dataset(X, sample_weight=sample_weight, y=y, reset=True, least=2)
        params = self.result_.params if self.warm_start and hasattr(self, "result_") else None
        stop: list[StopRule] = [Gain(self.tol, rounding=_rounding(data)), MaxSteps(self.max_iter)]
        self.result_ = self._run_fit(self._model(data), data, stop, self.init_params, params)
        self._set_attributes()
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the most probable component of each row, (n,)."""
        return self.fit(X, y, sample_weight).predict(X)

    def predict(self, X: Any) -> Any:
        """Return the most probable component of each row, (n,) int64."""
        return self._rows(X, "labels", self.n_components)

    def predict_proba(self, X: Any) -> Any:
        """Return the posterior probability of each component for each row, (n, k)."""
        return self._rows(X, "proba", self.n_components)

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
        check_is_fitted(self)
        if n_samples < 1:
            raise OptionError(f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.")
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        rows, labels = self._mixture().sample(self.result_.params, n_samples, np.random.default_rng(seed))
        return rows, labels

    def _model(self, data: Dataset) -> Mixture:
        if data.n_rows < self.n_components:
            raise DataError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {data.n_rows}."
            )
        family = Gaussian(self.covariance_type, self.reg_covar, self.prior, self.on_collapse)
        return Mixture(
            family,
            self.n_components,
            "kmeans" if self.init_params == "k-means||" else self.init_params,  # type: ignore[arg-type]
            weights_init=self.weights_init,
            means_init=self.means_init,
            precisions_init=self.precisions_init,
        )

    def _mixture(self) -> Mixture:
        model = self.result_.model
        assert isinstance(model, Mixture)  # for the type checker: this class made it
        return model

    def _total_log_prob(self, X: Any) -> tuple[float, float]:
        check_is_fitted(self)
        return score(self.result_.model, self.result_.params, self._dataset(X), memory_limit=self.memory_limit)

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


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, _OutOfCoreEstimator):  # type: ignore[misc]
    """K-means (Lloyd 1982) of data that need not fit into memory.

    Parameters, defaults and fitted attributes are scikit-learn's (``sklearn.cluster.KMeans``); those after `algorithm`
    are daskem's. ``X`` may be anything that `daskem.data.open_source` takes.

    Parameters
    ----------
    n_clusters, init, n_init, max_iter, tol, verbose, random_state, copy_x
        As in scikit-learn; `init` may also be ``"k-means||"`` (Bahmani et al. 2012, six passes). The `n_init` starts
        run side by side, sharing each pass. X is never changed, whatever `copy_x`.
    algorithm : ``"lloyd"`` or a `daskem.core.Algorithm`.
    on_collapse : ``"keep"``, ``"reseed"`` or ``"raise"``: what happens to a cluster without rows.
    init_sample, max_seconds, cache, memory_limit : see `GaussianMixture`.

    Attributes
    ----------
    cluster_centers_, labels_, inertia_, n_iter_, n_features_in_
        As in scikit-learn; `labels_` is a lazy Dask array for a store or a Dask array.
    result_ : `daskem.FitResult`.

    Examples
    --------
    >>> import daskem, numpy as np
    >>> X = np.repeat([[0.0], [1.0], [10.0], [11.0]], 25, axis=0)
    >>> daskem.KMeans(2, random_state=0).fit(X).cluster_centers_.ravel().tolist()
    [0.5, 10.5]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | npt.ArrayLike = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str | Algorithm = "lloyd",
        on_collapse: str = "reseed",
        init_sample: str | int = "auto",
        max_seconds: float | None = None,
        cache: str = "auto",
        memory_limit: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.on_collapse = on_collapse
        self.init_sample = init_sample
        self.max_seconds = max_seconds
        self.cache = cache
        self.memory_limit = memory_limit

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the clusters.

        Parameters
        ----------
        X : (n, d), from anywhere.
        y : ignored; there for scikit-learn's convention.
        sample_weight : (n,) not negative.

        Returns
        -------
        KMeans
            This estimator.
        """
        data = self._dataset(X, sample_weight=sample_weight, reset=True)
        if data.n_rows < self.n_clusters:
            raise DataError(f"n_samples={data.n_rows} should be >= n_clusters={self.n_clusters}.")
        centers = None if isinstance(self.init, str) else np.asarray(self.init, dtype=np.float64)
        method = {"k-means||": "kmeans"}.get(self.init, self.init) if isinstance(self.init, str) else "k-means++"
        model = KMeansModel(self.n_clusters, method, centers, self.on_collapse)  # type: ignore[arg-type]
        self.result_ = self._run_fit(model, data, [Change(self.tol), MaxSteps(self.max_iter)], self.init)
        self.cluster_centers_ = self.result_.params.centers.astype(data.dtype)
        self.n_iter_ = self.result_.n_steps
        self.labels_ = self._rows(X, "labels", self.n_clusters)
        self.inertia_ = -evaluate(model, self.result_.params, data, memory_limit=self.memory_limit).objective
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the nearest center of each row, (n,)."""
        return self.fit(X, y, sample_weight).labels_

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the distance of each row to each center, (n, k)."""
        return self.fit(X, y, sample_weight).transform(X)

    def predict(self, X: Any) -> Any:
        """Return the nearest center of each row, (n,) int64."""
        return self._rows(X, "labels", self.n_clusters)

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distance of each row to each center, (n, k)."""
        return self._rows(X, "transform", self.n_clusters)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return minus the (weighted) sum of squared distances of rows to their nearest centers."""
        check_is_fitted(self)
        data = self._dataset(X, sample_weight=sample_weight)
        return evaluate(self.result_.model, self.result_.params, data, memory_limit=self.memory_limit).objective

    @property
    def _n_features_out(self) -> int:
        return self.n_clusters


def _algorithm(algorithm: Any) -> Algorithm:
    if not isinstance(algorithm, str):
        return algorithm  # type: ignore[no-any-return]
    if algorithm not in ALGORITHMS:
        raise OptionError(f"algorithm={algorithm!r} is not one of {', '.join(map(repr, ALGORITHMS))}.")
    return ALGORITHMS[algorithm]()


def _n_init(n_init: int | str, init: Any) -> int:
    # As scikit-learn: a random start is worth repeating, a spread-out one less so.
    return (10 if _is(init, "random") else 1) if n_init == "auto" else int(n_init)


def _is(init: Any, name: str) -> bool:
    return isinstance(init, str) and init == name


def _known_labels(y: Any) -> Any:
    """Return `y` where it tells the component of some rows: by convention at least one other is -1, unknown."""
    if y is None or not is_array_like(y):
        return y
    labels = np.asarray(y)
    if labels.dtype.kind in "iuf" and (labels == -1).any():
        return labels
    warnings.warn(
        "y has no -1 and is ignored, as scikit-learn's mixtures ignore it. Labels are used when at least one is -1 "
        "(unknown); for data labelled throughout give them to daskem.fit(model, X, y=y).",
        DaskEMWarning,
        stacklevel=4,
    )
    return None


def _precisions(precisions_cholesky: npt.NDArray[np.float64], covariance_type: str) -> npt.NDArray[np.float64]:
    """Return the precisions, ``L L^T`` (full, tied) or ``L^2`` (diag, spherical), in scikit-learn's shapes."""
    if covariance_type in ("full", "tied"):
        return precisions_cholesky @ np.swapaxes(precisions_cholesky, -1, -2)
    return precisions_cholesky**2


def _rounding(data: Dataset) -> float:
    return 1e-10 if data.dtype == np.float64 else 1e-6


def _print_step(info: StepInfo, params: Params) -> None:
    print(f"step {info.step}: objective {info.objective:.8g} nats per row, {info.seconds:.3g} s")
