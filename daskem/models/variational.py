"""Mixtures whose weights, and whose components where the family has it, are distributions: variational Bayes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from scipy.special import betaln, digamma, gammaln

from daskem.core import Chunk, Float, Footprint
from daskem.errors import OptionError
from daskem.models.mixture import Mixture, MixtureParams, MixtureStats, tells

__all__ = ["VariationalMixture", "VariationalMixtureParams"]


@dataclass(frozen=True, eq=False)
class VariationalMixtureParams(MixtureParams):
    """The distribution of the weights, with their means in `weights`, and the family's parameters.

    Attributes
    ----------
    concentration : (k,) of the Dirichlet distribution, or (2, k), the two of each stick's beta distribution.
    """

    concentration: Float


@dataclass(frozen=True)
class VariationalMixture(Mixture):
    """A mixture fitted by mean-field variational Bayes: the objective is a lower bound of log p(X).

    With q(z) q(weights) q(components), the E-step sets q(z) from expected log weights and expected log densities, the
    M-step the others from the same statistics as maximum likelihood. Each maximises the bound, which hence never falls.
    `log_prob` and `posterior` are those of the E-step, as scikit-learn's: the first is a bound, not a density.

    Parameters
    ----------
    family, n_components, init_method, weights_init, means_init, precisions_init : see `Mixture`. `NormalWishart` for
        components with distributions; any other family gives point estimates of components beside q(weights).
    weight_distribution : prior of the weights: "dirichlet_process" (stick breaking, cut off at `n_components` [2]_) or
        "dirichlet_distribution".
    concentration_prior : of the weights, by default 1 / n_components; small ones leave few components with weight.

    References
    ----------
    .. [1] Bishop (2006), Pattern Recognition and Machine Learning, section 10.2.
    .. [2] Blei & Jordan (2006), Bayesian Analysis 1(1), 121-143, section 3.
    """

    weight_prior: float = field(default=1.0, init=False, repr=False)
    weight_distribution: Literal["dirichlet_process", "dirichlet_distribution"] = "dirichlet_process"
    concentration_prior: float | None = None

    objective_kind: ClassVar[str] = "lower bound"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_distribution not in _WEIGHT_PRIORS:
            kinds = ", ".join(_WEIGHT_PRIORS)
            raise OptionError(f"weight_distribution is {self.weight_distribution!r}; it must be one of {kinds}.")
        given = self.concentration_prior
        if given is not None and not (np.isfinite(given) and given > 0):
            raise OptionError(f"concentration_prior is {given}; it must be a positive number.")

    def m_step(self, stats: MixtureStats, params: MixtureParams) -> VariationalMixtureParams:
        """Return the distributions that maximise the bound."""
        return self._from_weights(super().m_step(stats, params), float(stats.n.sum()))

    def surrogate(self, stats: MixtureStats, params: VariationalMixtureParams) -> float:  # type: ignore[override]
        """Return E[log p(X, Z | weights, components)], nats."""
        expected = self._of_family("surrogate", "the surrogate of a mixture")(stats.components, params.components)
        return float((stats.n * self._log_weights(params)).sum() + expected)

    def log_prob(self, params: MixtureParams, chunk: Chunk) -> Float:
        """Return what each row adds to the bound, (n,), nats; 0 of a row without any value, which is left out."""
        out = super().log_prob(params, chunk)
        if self.handles_missing:
            out[~tells(chunk, self.used_columns)] = 0.0
        return out

    def log_prior(self, params: VariationalMixtureParams) -> float:  # type: ignore[override]
        """Return minus the divergence of q(weights) from its prior, and the family's log prior, nats."""
        return super().log_prior(params) - self._weights.divergence(params.concentration)

    def to_vector(self, params: VariationalMixtureParams) -> Float:  # type: ignore[override]
        """Return the logarithms of the concentrations, then the family's vector, (p,)."""
        own = self._of_family("to_vector", "the vector of a mixture")
        return np.concatenate([np.log(params.concentration).ravel(), own(params.components)])

    def from_vector(self, vector: Float, params: VariationalMixtureParams) -> VariationalMixtureParams:  # type: ignore[override]
        """Return the parameters of a vector of `to_vector`; `params` supplies what is fixed."""
        size = params.concentration.size
        concentration = np.exp(vector[:size]).reshape(params.concentration.shape)
        own = self._of_family("from_vector", "the vector of a mixture")
        components = own(vector[size:], params.components)
        return VariationalMixtureParams(self._weights.mean(concentration), components, concentration)

    def offers(self, method: str) -> bool:
        """Return whether a method of the mixture means something here: a distribution has no scores at a point."""
        return method not in ("parameter_names", "scores") and super().offers(method)

    def footprint(self, n_features: int, dtype: np.dtype[Any]) -> Footprint:
        """Return block length and bytes, by arithmetic alone (see `Mixture.footprint`)."""
        told = super().footprint(n_features, dtype)
        # Two numbers a stick.
        return told._replace(params=told.params + 16 * self.n_components)

    def _from_resp(self, sample: Chunk, resp: Float, weights: Float | None = None) -> VariationalMixtureParams:
        """Return the distributions that a sample implies under responsibilities (n, k); weights (k,) may be given."""
        return self._from_weights(super()._from_resp(sample, resp, weights), sample.total_weight)

    def _from_weights(self, point: MixtureParams, total: float) -> VariationalMixtureParams:
        """Return what the weights of a point estimate, of rows of weight `total`, make of the prior."""
        concentration = self._weights.posterior(point.weights * total)
        return VariationalMixtureParams(self._weights.mean(concentration), point.components, concentration)

    def _log_weights(self, params: MixtureParams) -> Float:
        """Return E[log w_k], (k,)."""
        assert isinstance(params, VariationalMixtureParams)  # for the type checker
        return self._weights.expected_log(params.concentration)

    @property
    def _weights(self) -> _WeightPrior:
        prior = 1.0 / self.n_components if self.concentration_prior is None else self.concentration_prior
        return _WEIGHT_PRIORS[self.weight_distribution](prior)


class _WeightPrior(Protocol):
    """The distribution of weights, by its concentration."""

    def posterior(self, n: Float) -> Float:
        """Return the concentration after rows of weight n (k,)."""

    def mean(self, concentration: Float) -> Float:
        """Return E[w_k], (k,), which sum to one."""

    def expected_log(self, concentration: Float) -> Float:
        """Return E[log w_k], (k,)."""

    def divergence(self, concentration: Float) -> float:
        """Return the Kullback-Leibler divergence from the prior, nats."""


@dataclass(frozen=True)
class _Dirichlet:
    """Weights of a symmetric Dirichlet distribution (Bishop 2006, equations 10.58, 10.66 and appendix B)."""

    prior: float

    def posterior(self, n: Float) -> Float:
        return self.prior + n

    def mean(self, concentration: Float) -> Float:
        return np.asarray(concentration / concentration.sum())

    def expected_log(self, concentration: Float) -> Float:
        return np.asarray(digamma(concentration) - digamma(concentration.sum()))

    def divergence(self, concentration: Float) -> float:
        prior = np.full_like(concentration, self.prior)
        pull = ((concentration - prior) * self.expected_log(concentration)).sum()
        return float(_log_dirichlet(concentration) - _log_dirichlet(prior) + pull)


@dataclass(frozen=True)
class _Sticks:
    """Weights v_k prod_{j<k} (1 - v_j), each v_k ~ Beta(1, prior) (Blei & Jordan 2006, section 3).

    All k sticks are broken, so that some weight is left for components beyond; it is not theirs who are there, but
    means are made to sum to one, as scikit-learn's.
    """

    prior: float

    def posterior(self, n: Float) -> Float:
        later = np.append(np.cumsum(n[::-1])[-2::-1], 0.0)
        return np.stack([1.0 + n, self.prior + later])

    def mean(self, concentration: Float) -> Float:
        share, rest = concentration / concentration.sum(axis=0)
        weights = share * np.append(1.0, np.cumprod(rest[:-1]))
        return np.asarray(weights / weights.sum())

    def expected_log(self, concentration: Float) -> Float:
        taken, left = digamma(concentration) - digamma(concentration.sum(axis=0))
        return np.asarray(taken + np.append(0.0, np.cumsum(left[:-1])))

    def divergence(self, concentration: Float) -> float:
        a, b = concentration
        taken, left = digamma(concentration) - digamma(a + b)
        pull = (a - 1.0) * taken + (b - self.prior) * left
        return float((pull - betaln(a, b) - np.log(self.prior)).sum())


def _log_dirichlet(concentration: Float) -> float:
    """Return the log of the normalising constant of a Dirichlet distribution."""
    return float(gammaln(concentration.sum()) - gammaln(concentration).sum())


_WEIGHT_PRIORS: dict[str, Callable[[float], _WeightPrior]] = {
    "dirichlet_process": _Sticks,
    "dirichlet_distribution": _Dirichlet,
}
