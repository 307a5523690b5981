"""K-means with scikit-learn's face."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from daskem.algorithms import Change, MaxPasses
from daskem.core import Algorithm, StopRule
from daskem.data import Dataset
from daskem.engine import leave_out
from daskem.errors import OptionError
from daskem.estimators.base import OutOfCoreEstimator, check_choice, check_number
from daskem.fit import FitResult, check_whole
from daskem.models import KMeans as KMeansModel
from daskem.predict import evaluate

__all__ = ["KMeans"]

INITS = ("k-means++", "random", "k-means||")


@dataclass(eq=False, repr=False, kw_only=True)
class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, OutOfCoreEstimator):  # type: ignore[misc]
    """K-means (Lloyd 1982) of data that need not fit into memory.

    Parameters, defaults and fitted attributes are scikit-learn's (``sklearn.cluster.KMeans``), and a few more. ``X``
    may be anything that `daskem.data.open_source` takes.

    Parameters
    ----------
    n_clusters, init, n_init, max_iter, tol, verbose, random_state, copy_x
        As in scikit-learn; `init` may also be ``"k-means||"`` (Bahmani et al. 2012, six passes). The `n_init` starts
        run side by side, sharing each pass. X is never changed, whatever `copy_x`.
    algorithm : ``"auto"``, ``"lloyd"``, another name in `daskem.algorithms.ALGORITHMS`, or a `daskem.core.Algorithm`.
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
    >>> sorted(daskem.KMeans(2, random_state=0).fit(X).cluster_centers_.ravel().tolist())
    [0.5, 10.5]
    """

    n_clusters: int = field(default=8, kw_only=False)
    init: str | npt.ArrayLike = "k-means++"
    n_init: int | str = "auto"
    max_iter: int = 300
    tol: float = 1e-4
    copy_x: bool = True
    algorithm: str | Algorithm = "auto"
    on_collapse: str = "reseed"

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
        self._check_options()
        data = self._dataset(X, sample_weight=sample_weight, reset=True)
        model = self._model(data)
        stop: list[StopRule] = [Change(self.tol), MaxPasses(self.max_iter)]
        self._take(self._run_fit(model, data, stop, self.init), data)
        data = leave_out(data, self.result_.left_out)
        self.inertia_ = -evaluate(model, self.result_.params, data, memory_limit=self.memory_limit).objective
        self.labels_ = self._fitted_rows(X, "labels", sample_weight=sample_weight)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn from one mini-batch of a stream (see `GaussianMixture.partial_fit`); `labels_` are not kept."""
        self._take(self._learn(X, None, sample_weight, self._model), None)
        for of_fit in ("labels_", "inertia_"):
            # Of the rows of an earlier fit.
            self.__dict__.pop(of_fit, None)
        return self

    def _take(self, result: FitResult, data: Dataset | None) -> None:
        self.result_ = result
        self.cluster_centers_ = result.params.centers.astype(np.float64 if data is None else data.dtype)
        self.n_iter_ = result.n_steps

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the nearest center of each row, (n,); -1 for one of weight 0 with NaN or infinity."""
        return self.fit(X, y, sample_weight).labels_

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the distance of each row to each center, (n, k)."""
        return self.fit(X, y, sample_weight)._fitted_rows(X, "transform", sample_weight=sample_weight)

    def predict(self, X: Any) -> Any:
        """Return the nearest center of each row, (n,) int64."""
        return self._rows(X, "labels")

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distance of each row to each center, (n, k)."""
        return self._rows(X, "transform")

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return minus the (weighted) sum of squared distances of rows to their nearest centers."""
        check_is_fitted(self)
        data = self._dataset(X, sample_weight=sample_weight)
        return evaluate(self.result_.model, self.result_.params, data, memory_limit=self.memory_limit).objective

    def _check_options(self) -> None:
        super()._check_options()
        check_number("tol", self.tol)
        check_whole("n_clusters", self.n_clusters)
        if callable(self.init):
            raise OptionError("init is a function, which would need all rows in memory. Give the centers it returns.")
        if isinstance(self.init, str):
            check_choice("init", self.init, INITS)

    def _model(self, data: Dataset) -> KMeansModel:
        if not isinstance(self.init, str):
            centers = np.asarray(self.init, dtype=np.float64)
            return KMeansModel(self.n_clusters, "k-means++", centers, self.on_collapse)  # type: ignore[arg-type]
        method = "kmeans" if self.init == "k-means||" else self.init
        return KMeansModel(self.n_clusters, method, None, self.on_collapse)  # type: ignore[arg-type]
