"""What all estimators share: options and their checks, opening X, running `daskem.fit`, results for each row of X.

Constructors are those of dataclasses: scikit-learn wants every parameter written out, and stored as it is given.
"""

from __future__ import annotations

import math
import numbers
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, estimator_html_repr
from sklearn.utils.validation import check_is_fitted, validate_data

from daskem.algorithms import ALGORITHMS, MaxSeconds, StepwiseEM
from daskem.core import Algorithm, HasLogProb, Model, Params, StepInfo, StopRule, objective_kind
from daskem.data import Dataset, is_array_like, open_dataset
from daskem.data.array_sources import to_numeric
from daskem.data.sources import text_names
from daskem.engine.examination import leave_out
from daskem.engine.lazy import with_left_out
from daskem.errors import DataError, OptionError
from daskem.fit import FitResult, check_whole, fit
from daskem.online import OnlineFit
from daskem.predict import predict_rows
from daskem.report import fit_html
from daskem.starts import components_of

__all__ = ["OutOfCoreEstimator", "check_choice", "check_number"]


# Parameters, beside those of all estimators, with new values of which a stream goes on: M-steps alone read these, ...
STEERING = {"max_concentration", "max_shape", "on_collapse", "pseudo_count", "reg_covar", "weight_prior"}
# ... and these have no say in it.
ASIDE = {"copy_x", "verbose_interval", "warm_start"}


class _Fitted(BaseEstimator):  # type: ignore[misc]
    """Where the types of fitted attributes are said, which are no parameters."""

    result_: FitResult
    n_features_in_: int
    _online: OnlineFit | None
    _learnt_with: dict[str, Any]


@dataclass(eq=False, repr=False, kw_only=True)
class OutOfCoreEstimator(_Fitted):
    """What all estimators share.

    Parameters
    ----------
    n_init, random_state, verbose : as in scikit-learn.
    tol : what is left to gain, nats per row, when a fit ends; or ``"statistical"``, p / (2 n), below
        which it would fit noise.
    max_iter : most passes over the data; with batch EM, which makes one a step, as in scikit-learn.
    algorithm : a name in `daskem.algorithms.ALGORITHMS`, or a `daskem.core.Algorithm`.
    init_sample, cache, memory_limit, on_bad_unit : see `daskem.fit`.
    checkpoint, checkpoint_interval, resume : see `daskem.fit`; a checkpoint needs an int `random_state`, by which the
        same fit is known again.
    max_seconds : wall-clock budget, or None.
    """

    tol: float | Literal["statistical"] = 1e-3
    max_iter: int = 100
    n_init: int | str = 1
    random_state: Any = None
    verbose: int = 0
    algorithm: str | Algorithm = "auto"
    init_sample: str | int = "auto"
    max_seconds: float | None = None
    cache: str = "auto"
    memory_limit: Any = None
    on_bad_unit: str = "raise"
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_interval: float = 60.0
    resume: str = "auto"

    def _dataset(
        self,
        X: Any,
        *,
        sample_weight: Any = None,
        y: Any = None,
        reset: bool = False,
        least: int = 1,
        examined: bool = False,
    ) -> Dataset:
        """Open X; arrays in memory pass scikit-learn's own checks, all else those of `daskem.data`.

        With `examined` it is known what of X cannot be used.
        """
        names = text_names(getattr(X, "columns", None))
        if is_array_like(X):
            if isinstance(X, np.ma.MaskedArray):
                # scikit-learn's check would drop the mask and keep the numbers under it.
                X = to_numeric(X, "X")
            kinds = [np.float64, np.float32]
            X = validate_data(
                self, X, reset=reset, dtype=kinds, order="C", ensure_all_finite=False, ensure_min_samples=least
            )
        elif reset and hasattr(self, "feature_names_in_"):
            # Names of the data frame of an earlier fit say nothing of this store.
            del self.feature_names_in_
        # What `fit` leaves out, it looks for itself.
        allow_missing = None if examined or (reset and self.on_bad_unit == "skip") else False
        data = open_dataset(X, sample_weight=sample_weight, y=y, allow_missing=allow_missing)
        names = names or data.rows.columns
        if reset:
            self._online, self._columns = None, names
            self.n_features_in_ = data.n_features
        elif data.n_features != self.n_features_in_:
            raise DataError(
                f"X has {data.n_features} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        elif names and self._columns and names != self._columns:
            raise DataError(
                f"X has the columns {', '.join(names)}, in this order, but {type(self).__name__} was fitted to "
                f"{', '.join(self._columns)}. Choose these, in their order."
            )
        if data.n_rows < least:
            raise DataError(
                f"Found array with {data.n_rows} sample(s) (shape={data.rows.shape}) while a minimum of {least} is "
                f"required by {type(self).__name__}."
            )
        return data

    def _check_options(self) -> None:
        """Check the options that all estimators have."""
        check_whole("max_iter", self.max_iter)
        if self.tol != "statistical":
            check_number("tol", self.tol)
        if self.max_seconds is not None:
            check_number("max_seconds", self.max_seconds)
        if self.n_init != "auto":
            check_whole("n_init", self.n_init)
        if self.checkpoint is not None and not isinstance(self.random_state, numbers.Integral):
            raise OptionError(
                f"checkpoint= needs random_state= to be an int, not {self.random_state!r:.40}: with another seed each "
                "time the same fit could not be told from others. Give one, such as random_state=0."
            )

    @staticmethod
    def _lazy(X: Any) -> bool:
        """Return whether results for the rows of X wait until they are asked for."""
        return not (is_array_like(X) or isinstance(X, np.ndarray))

    def _run_fit(
        self, model: Model, data: Dataset, stop: list[StopRule], init: Any, params: Params | None = None
    ) -> FitResult:
        if self.max_seconds is not None:
            stop.append(MaxSeconds(self.max_seconds))
        unit = "nats per row" if isinstance(model, HasLogProb) else "per row"
        kind = objective_kind(model)
        result = fit(
            model,
            data,
            algorithm=_algorithm(self.algorithm),
            stop=stop,
            callbacks=[_PrintStep(getattr(self, "verbose_interval", 1), kind, unit)] if self.verbose else [],
            params=params,
            n_init=_n_init(self.n_init, init),
            init_sample="k-means||" if _is(init, "k-means||") else self.init_sample,
            seed=self._seed(),
            cache=self.cache,
            memory_limit=self.memory_limit,
            on_bad_unit=self.on_bad_unit,
            checkpoint=self.checkpoint,
            checkpoint_interval=self.checkpoint_interval,
            resume=self.resume,
        )
        # Fitted estimators are kept, and the rows in memory would be with them.
        result = replace(result, data=None)
        self._learnt_with = self._meant()
        if not result.converged:
            warnings.warn(
                f"{type(self).__name__} stopped before it converged: {result.reason}. The parameters are those of the "
                "last step. Allow more steps (max_iter), a larger tol, or another start (random_state).",
                ConvergenceWarning,
                stacklevel=4,
            )
        return result

    def _learn(self, X: Any, y: Any, sample_weight: Any, model_of: Callable[[Dataset], Model]) -> FitResult:
        """Learn from one mini-batch, the first since construction or the last `fit` included.

        Raises
        ------
        OptionError
            If parameters that make the model have changed since.
        """
        self._check_options()
        online = getattr(self, "_online", None)
        before = self.result_ if hasattr(self, "result_") else None
        if before is not None:
            self._check_meant()
        data = self._dataset(X, sample_weight=sample_weight, y=y, reset=before is None)
        model = model_of(data)
        if online is None:
            online = OnlineFit(model, params=None if before is None else before.params, seed=self._seed())
        # What may change from one mini-batch to the next.
        online.model, online.memory_limit = model, self.memory_limit
        online.algorithm = self.algorithm if isinstance(self.algorithm, StepwiseEM) else StepwiseEM()
        result = online.update(data)
        self._online, self._learnt_with = online, self._meant()
        return result

    def _meant(self) -> dict[str, Any]:
        """Return the parameters without which what was learnt means nothing."""
        aside = STEERING | ASIDE | {shared.name for shared in fields(OutOfCoreEstimator)}
        return {name: value for name, value in self.get_params(deep=False).items() if name not in aside}

    def _check_meant(self) -> None:
        had = self._learnt_with
        changed = [name for name, value in self._meant().items() if not _same(value, had[name])]
        if changed:
            raise OptionError(
                f"{', '.join(changed)} changed since this {type(self).__name__} began to learn "
                f"({', '.join(f'{name}={had[name]!r:.40}' for name in changed)}), and partial_fit goes on with what it "
                "has learnt. Give the mini-batches to a new estimator, or call fit, which begins anew."
            )

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _rows(self, X: Any, what: str) -> Any:
        check_is_fitted(self)
        return self._results(self._dataset(X), what, self._lazy(X))

    def _fitted_rows(self, X: Any, what: str, y: Any = None, sample_weight: Any = None) -> Any:
        """Return results for the rows that were fitted, -1 or NaN for those that the fit left out."""
        left_out = self.result_.left_out
        data = self._dataset(X, sample_weight=sample_weight, y=y, examined=bool(left_out))
        return with_left_out(self._results(leave_out(data, left_out), what, self._lazy(X)), left_out)

    def _results(self, data: Dataset, what: str, lazy: bool) -> Any:
        width = self._n_features_out
        model, params = self.result_.model, self.result_.params
        return predict_rows(model, params, data, what, width, lazy=lazy, memory_limit=self.memory_limit)

    @property
    def _n_features_out(self) -> int:
        """Components of the fitted model, which options set since then do not change."""
        check_is_fitted(self)
        return components_of(self.result_.model) or 1

    def _repr_html_(self) -> str:
        fitted = fit_html(self.result_) if hasattr(self, "result_") else ""
        return str(estimator_html_repr(self)) + fitted

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


def check_number(name: str, value: Any) -> None:
    """Raise OptionError unless `value` is a finite number, zero or larger."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise OptionError(f"{name}={value!r} must be a finite number, not negative.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise OptionError unless `value` is one of `choices`."""
    if not (isinstance(value, str) and value in choices):
        raise OptionError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}.")


@dataclass(frozen=True)
class _PrintStep:
    interval: int
    kind: str
    unit: str

    def __call__(self, info: StepInfo, params: Params) -> None:
        if info.step % self.interval == 0:
            print(f"step {info.step}: {self.kind} {info.objective:.8g} {self.unit}, {info.seconds:.3g} s")


def _algorithm(algorithm: Any) -> Algorithm:
    if not isinstance(algorithm, str):
        return algorithm  # type: ignore[no-any-return]
    # Lloyd's is what batch EM of k-means is called.
    check_choice("algorithm", algorithm, (*ALGORITHMS, "lloyd"))
    return ALGORITHMS["batch" if algorithm == "lloyd" else algorithm]()


def _n_init(n_init: int | str, init: Any) -> int:
    # As scikit-learn: a random start is worth repeating, a spread-out one less so.
    return (10 if _is(init, "random") else 1) if n_init == "auto" else int(n_init)


def _same(a: Any, b: Any) -> bool:
    """Return whether two values of a parameter, which may be arrays, are the same."""
    return a is b or bool(np.array_equal(a, b))


def _is(init: Any, name: str) -> bool:
    return isinstance(init, str) and init == name
