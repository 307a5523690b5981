"""Mixtures of any family with scikit-learn's face: what all of them share, and the one that is told its family."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Self, get_args

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from daskem.algorithms import Gain, MaxPasses, rounding_of
from daskem.core import Family, Params, StepInfo, StopRule
from daskem.data import Dataset, is_array_like
from daskem.errors import DaskEMWarning, DataError, OptionError
from daskem.estimators.base import OutOfCoreEstimator, check_choice, check_number
from daskem.fit import FitResult, check_whole
from daskem.inference import Diagnosis, diagnose
from daskem.models import Mixture
from daskem.models.mixture import Init
from daskem.predict import score

__all__ = ["BaseMixture", "MixtureModel"]

INITS = ("auto", *get_args(Init), "k-means||")


@dataclass(eq=False, repr=False, kw_only=True)
class BaseMixture(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, OutOfCoreEstimator, ABC):  # type: ignore[misc]
    """What all mixtures share. A face adds its family's parameters, and says how fitted attributes are called.

    Parameters
    ----------
    n_components, tol, max_iter, n_init, weights_init, random_state, warm_start, verbose, verbose_interval
        As in scikit-learn, except that `n_init` starts run side by side, sharing each pass over the data, and that a
        start is made from a sample of the rows (see `init_sample`).
    init_params : how a sample is first shared out: ``"auto"`` (as suits the family), ``"kmeans"``, ``"k-means++"``,
        ``"random"``, ``"random_from_data"``, ``"short_em"`` (see `daskem.models.Mixture`), or ``"k-means||"``, which
        takes six passes.
    weight_prior : concentration of a symmetric Dirichlet prior on the weights, at least 1, which is none.
    algorithm, init_sample, max_seconds, cache, memory_limit : see `OutOfCoreEstimator`.

    Attributes
    ----------
    weights_, converged_, n_iter_, lower_bound_, lower_bounds_, n_features_in_ : as in scikit-learn.
    result_ : `daskem.FitResult`, with the trace, the events and the plan.
    """

    n_components: int = field(default=1, kw_only=False)
    init_params: str = "auto"
    weights_init: npt.ArrayLike | None = None
    weight_prior: float = 1.0
    warm_start: bool = False
    verbose_interval: int = 10

    # Fitted attributes that are fields of the family's parameters: name -> field.
    fitted: ClassVar[Mapping[str, str]] = {}

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the mixture.

        Parameters
        ----------
        X : (n, d), from anywhere.
        y : (n,) labels, -1 where unknown: a known label fixes the row's component. Or (n, k) label probabilities: 0
            forbids a component, a row of ones says nothing. Ignored when None.
        sample_weight : (n,) not negative; a row of weight 2 counts as two rows, of weight 0 as none.

        Returns
        -------
        self
            This estimator.
        """
        return self._fit(X, _known_labels(y), sample_weight)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn from one mini-batch of a stream by stepwise EM (see `daskem.OnlineFit`).

        The first one gives the start, unless `fit` was called before. Step sizes, or a constant rate that forgets, come
        from ``algorithm=StepwiseEM(...)``. These, and what steers M-steps alone (`reg_covar`, `pseudo_count`,
        `weight_prior`, `on_collapse`), may be set anew from one mini-batch to the next; parameters that make another
        model are refused.
        """
        return self._take(self._learn(X, _known_labels(y), sample_weight, self._model))

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the most probable component of each row, (n,): the known one where `y` tells it.

        A row of weight 0 that holds NaN or infinity gets -1, and so does one that was left out (`on_bad_unit`).
        """
        known = _known_labels(y)
        return self._fit(X, known, sample_weight)._fitted_rows(X, "labels", known, sample_weight)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the posterior probability of each component for each row, (n, k)."""
        known = _known_labels(y)
        return self._fit(X, known, sample_weight)._fitted_rows(X, "proba", known, sample_weight)

    def predict(self, X: Any) -> Any:
        """Return the most probable component of each row, (n,) int64."""
        return self._rows(X, "labels")

    def predict_proba(self, X: Any) -> Any:
        """Return the posterior probability of each component for each row, (n, k)."""
        return self._rows(X, "proba")

    def transform(self, X: Any) -> Any:
        """Return the posterior probability of each component for each row, (n, k), as features."""
        return self._rows(X, "proba")

    def impute(self, X: Any) -> Any:
        """Return X (n, d) with missing values filled in given those present.

        By conditional means, codes of categories by the likeliest. Only mixtures of families that take missing values
        can, Gaussian ones with ``missing="nan"``.
        """
        return self._rows(X, "imputed")

    def diagnose(self, X: Any, y: Any = None, sample_weight: Any = None) -> Diagnosis:
        """Say what the data that the mixture was fitted to tell of its parameters, and what not (`daskem.diagnose`)."""
        check_is_fitted(self)
        data = self._dataset(X, sample_weight=sample_weight, y=_known_labels(y))
        return diagnose(self.result_, data, memory_limit=self.memory_limit)

    def score_samples(self, X: Any) -> Any:
        """Return the log density of each row, (n,), nats."""
        return self._rows(X, "log_prob")

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

    @abstractmethod
    def _family(self, data: Dataset) -> Family:
        """Return the components' family, `data` being what it will be fitted to."""

    def _starting_values(self) -> dict[str, Any]:
        """Return the starting values that the user gave."""
        return {"weights_init": self.weights_init}

    def _set_attributes(self, components: Params) -> None:
        """Set the fitted attributes that are the family's own."""
        for name, source in self.fitted.items():
            setattr(self, name, getattr(components, source))

    def _fit(self, X: Any, known: Any, sample_weight: Any) -> Self:
        self._check_options()
        data = self._dataset(X, sample_weight=sample_weight, y=known, reset=True, least=2)
        model = self._model(data)
        previous = self._previous(model, data)
        gain = Gain(self.tol, rounding=rounding_of(data.dtype))
        stop: list[StopRule] = [_GainSince(gain, previous.trace[-1]) if previous else gain, MaxPasses(self.max_iter)]
        return self._take(self._run_fit(model, data, stop, self.init_params, previous and previous.params))

    def _take(self, result: FitResult) -> Self:
        """Set the fitted attributes."""
        self.result_ = result
        self.weights_ = self.result_.params.weights
        self._set_attributes(self.result_.params.components)
        self.converged_, self.n_iter_ = self.result_.converged, self.result_.n_steps
        self.lower_bound_ = self.result_.objective
        self.lower_bounds_ = [info.objective for info in self.result_.trace]
        return self

    def _check_options(self) -> None:
        super()._check_options()
        check_whole("n_components", self.n_components)
        check_whole("verbose_interval", self.verbose_interval)
        check_choice("init_params", self.init_params, INITS)
        check_number("weight_prior", self.weight_prior)

    def _model(self, data: Dataset) -> Mixture:
        method: Any = {"auto": None, "k-means||": "kmeans"}.get(self.init_params, self.init_params)
        given, prior = self._starting_values(), float(self.weight_prior)
        return Mixture(self._family(data), self.n_components, method, weight_prior=prior, **given)

    def _previous(self, model: Mixture, data: Dataset) -> FitResult | None:
        """Return the fit that a warm start goes on from."""
        if not (self.warm_start and hasattr(self, "result_")):
            return None
        before, n_features = self._mixture(), self.result_.plan.n_features
        had = (before.n_components, n_features, _meaning(before.family))
        if had != (model.n_components, data.n_features, _meaning(model.family)):
            raise OptionError(
                f"warm_start=True goes on from a fit of {before.n_components} components of {n_features} features, "
                f"{before.family}, but {model.n_components} components of {data.n_features} features, {model.family}, "
                "are wanted. Set warm_start=False to start anew."
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


@dataclass(eq=False, repr=False, kw_only=True)
class MixtureModel(BaseMixture):
    """Mixture of any family, one of `daskem.models` or of your own, of data that need not fit into memory.

    Parameters
    ----------
    family : the components' family (see `daskem.core.Family`), such as ``daskem.models.Poisson()``.
    n_components and all others : see `BaseMixture`.

    Attributes
    ----------
    components_ : the family's record of parameters.
    weights_, ... : see `BaseMixture`.

    Examples
    --------
    >>> import daskem, numpy as np
    >>> counts = np.repeat([[0.0], [1.0], [30.0], [32.0]], 25, axis=0)
    >>> mixture = daskem.MixtureModel(2, family=daskem.models.Poisson(), random_state=0).fit(counts)
    >>> sorted(mixture.components_.rates.ravel().round(2).tolist())
    [0.5, 31.0]
    """

    family: Family | None = None

    def _family(self, data: Dataset) -> Family:
        methods = ("init", "log_prob", "stats", "m_step")
        missing = [name for name in methods if not callable(getattr(self.family, name, None))]
        if self.family is None or isinstance(self.family, type) or missing:
            lacks = f", which has no {', '.join(missing)}" if missing and self.family is not None else ""
            raise OptionError(
                f"family={self.family!r}{lacks}. Give an object that keeps the contract of daskem.core.Family, "
                "such as daskem.models.Poisson()."
            )
        return self.family

    def _set_attributes(self, components: Params) -> None:
        self.components_ = components


@dataclass(frozen=True)
class _GainSince:
    """`Gain` that also sees the last step of an earlier fit, so that a warm start may end after one step."""

    gain: Gain
    before: StepInfo
    converged: ClassVar[bool] = True

    def __call__(self, trace: Sequence[StepInfo]) -> str | None:
        return self.gain((self.before, *trace))


def _meaning(family: Any) -> Any:
    """Return what parameters must agree on to mean the same to two families.

    Numbers, such as floors and pseudo-counts, and what happens to a collapsing component, steer M-steps alone.
    """
    if isinstance(family, Mapping):
        return {name: _meaning(member) for name, member in family.items()}
    if not is_dataclass(family):
        return family
    meant = [option.name for option in fields(family) if option.compare and option.name != "on_collapse"]
    options = {name: getattr(family, name) for name in meant}
    return type(family), {name: _meaning(value) for name, value in options.items() if not isinstance(value, float)}


def _known_labels(y: Any) -> Any:
    """Return `y` where it tells the component of some rows: by convention at least one other is -1, unknown.

    Label probabilities (n, k), a store or a lazy array are taken without looking.

    Raises
    ------
    DataError
        If a label is missing: what is unknown is -1.
    """
    if y is None or not (is_array_like(y) or isinstance(y, np.ndarray)):
        return y
    labels = np.asarray(y)
    if labels.ndim > 1 and labels.shape[1] != 1:
        return labels
    try:
        values = labels.astype(np.float64)
    except ValueError:
        # Names of classes, say.
        values = np.zeros(0)
    except TypeError as error:
        raise DataError(f"labels (y) hold what is no label ({error}). Give -1 where it is unknown.") from error
    if (missing := np.flatnonzero(np.isnan(values))).size:
        raise DataError(f"labels (y) hold NaN or None, first in row {missing[0]}. Give -1 where it is unknown.")
    if (values == -1).any():
        return labels if labels.dtype.kind in "iuf" else values
    warnings.warn(
        "y has no -1 and is ignored, as scikit-learn's mixtures ignore it. Labels are used when at least one is -1 "
        "(unknown); for data labelled throughout give them to daskem.fit(model, X, y=y), or one column a component.",
        DaskEMWarning,
        stacklevel=3,
    )
    return None
