"""Gaussian components whose means and precisions have a Normal-Wishart distribution, for variational mixtures."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import numpy as np
from scipy.special import digamma, multigammaln

from daskem.compiled import Terms
from daskem.core import Array, Chunk, Float
from daskem.errors import OptionError
from daskem.models.gaussian import Gaussian
from daskem.models.gaussian_algebra import SHAPES, checked
from daskem.models.gaussian_missing import without_holes
from daskem.models.gaussian_records import GaussianParams, GaussianStats
from daskem.models.repair import AT_PRIOR, Policy

__all__ = ["NormalWishart", "NormalWishartParams"]


@dataclass(frozen=True, eq=False)
class NormalWishartParams(GaussianParams):
    """q(mu_k, Lambda_k) = N(mu_k | m_k, (beta_k Lambda_k)^-1) W(Lambda_k | W_k, nu_k) of k components.

    `means` are m_k, `covariances` the inverses of E[Lambda_k] = nu_k W_k, as scikit-learn has them.

    Attributes
    ----------
    mean_precision : (k,) beta_k, the rows that a mean rests on.
    degrees_of_freedom : (k,) nu_k; equal where covariances are tied.
    """

    mean_precision: Float
    degrees_of_freedom: Float


@dataclass(frozen=True)
class NormalWishart(Gaussian):
    """A family of Gaussian components with a distribution of their parameters in the place of point estimates.

    Its `log_prob` is E[log N(x | mu_k, Lambda_k^-1)] and its `log_prior` minus the divergence of q from the prior, so
    that `daskem.models.VariationalMixture` has the evidence lower bound for its objective.

    Parameters
    ----------
    covariance : shape of the covariances (see `Gaussian`), here that of W_k.
    reg_covar : added to the components' scatter as if each row had it; 0 makes the bound monotone to the last digit.
    mean_precision_prior : beta_0, by default 1.
    mean_prior : m_0, (d,), by default the mean of the sample that a run starts from.
    degrees_of_freedom_prior : nu_0 > d - 1, by default d.
    covariance_prior : W_0^-1, as one covariance of the shape, by default the sample's covariance.

    Notes
    -----
    [1]_, equations (10.59)-(10.65). The model has a full precision matrix for each component; of all q, those are
    admitted whose W_k has the shape, and one (W, nu) for all components where it is tied. The M-step maximises the
    bound over those in closed form: nu_k = nu_0 + n_k, or nu_0 + N / k if tied, and
    W^-1 is what [1]_ has, less what lies outside the shape. scikit-learn's formulas are the same.
    An improper prior (W_0^-1 singular, because a feature does not vary) has no constant, which is then left out.

    References
    ----------
    .. [1] Bishop (2006), Pattern Recognition and Machine Learning, section 10.2.
    """

    prior: Any = field(default="normal-wishart", init=False)
    on_collapse: Policy = field(default="keep", init=False)
    mean_precision_prior: float = 1.0
    mean_prior: Array | None = field(default=None, compare=False, repr=False)
    degrees_of_freedom_prior: float | None = None
    covariance_prior: Array | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.covariance not in SHAPES:
            raise OptionError(f"covariance is {self.covariance!r}; it must be one of {', '.join(SHAPES)}.")
        if not (np.isfinite(self.reg_covar) and self.reg_covar >= 0):
            raise OptionError(f"reg_covar is {self.reg_covar}; it must be a finite number, zero or larger.")
        if not (np.isfinite(self.mean_precision_prior) and self.mean_precision_prior > 0):
            raise OptionError(f"mean_precision_prior is {self.mean_precision_prior}; it must be a positive number.")

    @property
    def has_floor(self) -> bool:
        """Whether each row adds to the scatter what the prior does not know of."""
        return self.reg_covar > 0

    def log_prob(self, params: NormalWishartParams, chunk: Chunk) -> Array:  # type: ignore[override]
        """Return E[log N(x | mu_k, Lambda_k^-1)], (n, k), nats: in scratch memory, as `Gaussian.log_prob`."""
        out = super().log_prob(params, chunk)
        out += self._excess(params).astype(out.dtype)
        return out

    def terms(self, params: NormalWishartParams, chunk: Chunk) -> tuple[Terms, ...] | None:  # type: ignore[override]
        """Return the expected log densities as terms that are linear in features (see `Gaussian.terms`)."""
        found = super().terms(params, chunk)
        return found and tuple(replace(part, constant=part.constant + self._excess(params)) for part in found)

    def m_step(  # type: ignore[override]
        self, stats: GaussianStats, params: NormalWishartParams, n: Float | None = None
    ) -> NormalWishartParams:
        """Return the q that maximises the bound; a component without rows goes back to the prior, as it should."""
        n = stats.n if n is None else n
        new = cast(NormalWishartParams, super().m_step(stats, params, n))
        return replace(
            new,
            repaired=np.where(new.repaired == AT_PRIOR, 0, new.repaired).astype(np.int8),
            mean_precision=self.mean_precision_prior + n,
            degrees_of_freedom=self._freedom(n, params.means.shape[1]),
        )

    def surrogate(  # type: ignore[override]
        self, stats: GaussianStats, params: NormalWishartParams, n: Float | None = None
    ) -> float:
        """Return the sum over rows and components of resp * E[log N(x | mu_k, Lambda_k^-1)], nats."""
        n = stats.n if n is None else n
        return super().surrogate(stats, params, n) + float((n * self._excess(params)).sum())

    def log_prior(self, params: NormalWishartParams) -> float:  # type: ignore[override]
        """Return minus the Kullback-Leibler divergence of q from the prior, nats."""
        d, nu = params.means.shape[1], params.degrees_of_freedom
        nu_0 = self._nu_0(d)
        delta, factor = self._scaled(params)
        away, scatter = self._scaled_prior(params)
        away = delta - away
        ratio = self.mean_precision_prior / params.mean_precision
        log_scale = 2 * self.shape.log_det(factor, d) - d * np.log(nu)
        expected = log_scale + d * np.log(2.0) + _digammas(nu, d)
        normaliser = _log_wishart(log_scale, nu, d) - _log_wishart(self._log_prior_scale(params), nu_0, d)
        means = 0.5 * d * (ratio - 1.0 - np.log(ratio))
        each = means + normaliser + 0.5 * (nu - nu_0) * expected - 0.5 * nu * d
        moments = scatter + self.mean_precision_prior * self.shape.outer(away, away)
        return -float(np.sum(each) + 0.5 * (self.shape.precisions(factor) * moments).sum())

    def to_vector(self, params: NormalWishartParams) -> Float:  # type: ignore[override]
        """Return the Gaussians' vector, then log beta and log(nu - d + 1), (p,)."""
        freedom = params.degrees_of_freedom[: 1 if self.shape.tied else None]
        logs = np.log(params.mean_precision), np.log(freedom - params.means.shape[1] + 1)
        return np.concatenate([super().to_vector(params), *logs])

    def from_vector(self, vector: Float, params: NormalWishartParams) -> NormalWishartParams:  # type: ignore[override]
        """Return the parameters of a vector of `to_vector`."""
        k, d = params.means.shape
        tail = k + (1 if self.shape.tied else k)
        new = cast(NormalWishartParams, super().from_vector(vector[:-tail], params))
        beta, nu = np.exp(vector[-tail:][:k]), np.exp(vector[-tail:][k:]) + d - 1
        return replace(new, mean_precision=beta, degrees_of_freedom=np.broadcast_to(nu, (k,)).copy())

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        stats, params = super().record_bytes(k, d)
        return stats, params + 16 * k

    def _excess(self, params: NormalWishartParams) -> Float:
        """Return E[log N(x | mu_k, Lambda_k^-1)] - log N(x | m_k, E[Lambda_k]^-1), (k,), which is not positive."""
        nu, d = params.degrees_of_freedom, params.means.shape[1]
        return np.asarray(0.5 * (_digammas(nu, d) + d * np.log(2.0 / nu) - d / params.mean_precision))

    def _nu_0(self, d: int) -> float:
        return float(d if self.degrees_of_freedom_prior is None else self.degrees_of_freedom_prior)

    def _freedom(self, n: Float, d: int) -> Float:
        """Return nu, (k,)."""
        return self._nu_0(d) + (np.full_like(n, n.sum() / len(n)) if self.shape.tied else n)

    def _prior_weight(self, params: GaussianParams, n: Float) -> tuple[float, Array, Float]:
        d, shape = params.means.shape[1], self.shape
        freedom = shape.freedom(n + self._nu_0(d), d)
        ridge = shape.ridge(self.reg_covar, params.scale) * (shape.freedom(n, d) / freedom)
        return self.mean_precision_prior, freedom, ridge

    def _scaled_prior(self, params: GaussianParams) -> tuple[Float, Float]:
        """Return m_0 less the references, and W_0^-1 as often as the scatter of a component has it."""
        away, scale = super()._scaled_prior(params)
        k, d = params.means.shape
        return away, scale * self.shape.freedom(np.ones(k), d)

    def _log_prior_scale(self, params: GaussianParams) -> Float:
        """Return log det W_0 in scaled units, or 0 where it is infinite."""
        one = self.shape.rescaled(params.prior_scale, params.scale)
        factor, positive = self.shape.factorise(self.shape.spread(one, len(params.means)))
        return 2 * self.shape.log_det(factor, params.means.shape[1]) if positive.all() else np.zeros(1)

    def _pooled(self, sample: Chunk, k: int) -> NormalWishartParams:
        """Return k copies of the sample as a whole, with the prior."""
        pooled = super()._pooled(sample, k)
        d = pooled.means.shape[1]
        if not self._nu_0(d) > d - 1:
            raise OptionError(
                f"degrees_of_freedom_prior is {self._nu_0(d):g}; with {d} features it must exceed {d - 1}."
            )
        weight = np.ones(len(sample)) if sample.weight is None else sample.weight
        rows, mean = without_holes(sample.rows, weight / weight.sum())
        prior_mean = mean if self.mean_prior is None else checked("mean_prior", self.mean_prior, (d,))
        own = {f.name: getattr(pooled, f.name) for f in fields(GaussianParams)}
        own |= {"prior_mean": prior_mean, "prior_scale": self._prior_scale(rows, mean, pooled.scale, weight)}
        return NormalWishartParams(
            **own,
            mean_precision=np.full(k, self.mean_precision_prior),
            degrees_of_freedom=np.full(k, self._nu_0(d)),
        )

    def _prior_scale(self, rows: Array, mean: Float, scale: Float, weight: Float) -> Float:
        """Return W_0^-1, as one covariance in data units."""
        total = weight.sum()
        one = self.shape.pooled_covariance(rows, mean, scale, weight / total)
        if self.covariance_prior is None:
            # The unbiased estimate, as scikit-learn's.
            return self.shape.unscaled(one * (total / max(total - 1.0, 1.0)), scale)
        given = np.asarray(self.covariance_prior, float)
        given = checked("covariance_prior", given.reshape(one.shape) if self.shape.isotropic else given, one.shape)
        if not self.shape.factorise(self.shape.spread(given, 1))[1].all():
            raise OptionError("covariance_prior must be positive definite.")
        return given


def _digammas(nu: Float, d: int) -> Float:
    """Return E[log det Lambda] - log det W - d log 2 of a Wishart distribution."""
    return np.asarray(digamma(0.5 * (nu[:, None] - np.arange(d))).sum(axis=1))


def _log_wishart(log_scale: Array, nu: Array | float, d: int) -> Array:
    """Return the log of the normalising constant of a Wishart distribution, log_scale being log det W."""
    return np.asarray(-0.5 * nu * (log_scale + d * np.log(2.0)) - multigammaln(0.5 * np.asarray(nu), d))
