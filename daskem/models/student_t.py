"""Student-t components: a Gaussian whose every row has a weight of its own, small for rows far out.

A row of component k is Gaussian with mean mu_k and covariance Sigma_k / U, where U is Gamma(nu_k / 2, rate nu_k / 2).
Given the row and the component, with delta = (x - mu_k)^T Sigma_k^-1 (x - mu_k),

    u = E[U] = (nu_k + d) / (nu_k + delta)        E[log U] = psi((nu_k + d) / 2) - log((nu_k + delta) / 2)

so that the Gaussian's arithmetic serves: distances come from its log densities, moments are weighted by resp * u.
Of a row with missing values, d counts and delta measures those present [2]_; given U, a missing one has the Gaussian's
conditional mean, and its conditional covariance C over U, so that E[U x x^T] has C itself beside what the means give.

References
----------
.. [1] Peel & McLachlan (2000), Statistics and Computing 10, 339-348.
.. [2] Liu & Rubin (1995), Statistica Sinica 5, 19-39.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import scipy
from scipy.special import betaln, gammaln, psi

from daskem import compiled
from daskem.core import Array, Chunk, Float
from daskem.errors import OptionError
from daskem.models.gaussian import Gaussian
from daskem.models.gaussian_algebra import Covariance, Shape
from daskem.models.gaussian_missing import HolesKernel
from daskem.models.gaussian_records import GaussianParams, GaussianStats
from daskem.models.repair import RESEEDED, Policy

__all__ = ["MAX_DOF", "MIN_DOF", "StudentT", "StudentTParams", "StudentTStats"]

# A component of n rows gains likelihood without end by shrinking onto m equal ones if d m > nu (n - m), hence with any
# n for small nu (Fernandez & Steel 1999, Biometrika 86, 153-167).
MIN_DOF = 0.1
# A row tells a Student-t from the nearest Gaussian by about d (d + 2) / (4 nu^2) nats (Edgeworth: squared
# fourth cumulants over 48): at 10^4 nothing that data could show.
MAX_DOF = 1e4
# Where an estimate starts: outliers have little weight from the first step on (Lange, Little & Taylor 1989, JASA 84).
START_DOF = 4.0
# What rounding may do to a row's log density: as much as single precision does to the Gaussian's (`FLOAT32_TERMS`).
LOG_ERROR = 2e-4


@dataclass(frozen=True, eq=False)
class StudentTParams(GaussianParams):
    """Parameters of k Student-t components.

    `means` are the locations, `covariances` the scale matrices Sigma; a component's covariance is nu / (nu - 2) times
    its scale matrix, infinite where nu <= 2.

    Attributes
    ----------
    dof : (k,) degrees of freedom nu.
    """

    dof: Float


@dataclass(frozen=True, eq=False)
class StudentTStats:
    """Expected statistics; v = (x - reference) * scale as in `GaussianStats`.

    Attributes
    ----------
    n : (k,) weight of the rows, the sum of resp.
    u : (k,) sum of resp * u.
    x : (k, d) sum of resp * u * v.
    xx : sum of resp * u * v v^T, shaped as in `GaussianStats`.
    log_u : (k,) sum of resp * E[log U].
    """

    n: Float
    u: Float
    x: Float
    xx: Float
    log_u: Float


@dataclass(frozen=True)
class StudentT:
    """A family of multivariate Student-t components, for rows with outliers or heavy tails.

    Parameters
    ----------
    covariance : shape of the scale matrices, one of those of `Gaussian`.
    dof : "each" (estimated for each component), "shared" (one estimate for all), or a number, which stays. Estimates
        are kept from `MIN_DOF` to `MAX_DOF`; a fixed number is at least `MIN_DOF`.
    reg_covar, prior, on_collapse, missing : as for `Gaussian`; floor and prior are those of locations and scale
        matrices, the prior of the degrees of freedom is flat. A reseeded component starts again with the first degrees
        of freedom.

    Notes
    -----
    With n, u, x, xx and l the statistics of one component (n and the divisor pooled where a parameter is shared), the
    M-step is mu = x / u, Sigma = (xx - u mu mu^T) / n, and the root nu of

        log(nu / 2) - psi(nu / 2) = (u - l) / n - 1,

    whose left side falls from infinity to 0; the right side is positive. All three maximise Q at once: this is EM, and
    the likelihood never falls. ECME [2]_ instead sets nu to the maximum of the likelihood itself, at the new mu and
    Sigma, which needs passes over the data of its own; EM needs more steps where nu is large, and ends at the same
    maxima. Q is concave in nu, so that the bound is its maximiser where the root lies beyond.

    References
    ----------
    .. [1] Peel & McLachlan (2000), Statistics and Computing 10, 339-348.
    .. [2] Liu & Rubin (1994), Biometrika 81, 633-648; (1995), Statistica Sinica 5, 19-39.
    """

    covariance: Covariance = "full"
    dof: Literal["each", "shared"] | float = "each"
    reg_covar: float = 1e-6
    prior: Literal["conjugate"] | None = None
    on_collapse: Policy = "keep"
    missing: bool = False

    def __post_init__(self) -> None:
        fixed = isinstance(self.dof, (int, float, np.number)) and not isinstance(self.dof, bool)
        if not (self.dof in ("each", "shared") or (fixed and MIN_DOF <= float(self.dof) < np.inf)):
            raise OptionError(
                f"dof is {self.dof!r}; it must be 'each', 'shared' or a finite number, at least {MIN_DOF:g}."
            )
        # Checks the other options.
        _ = self.gaussian

    @property
    def gaussian(self) -> Gaussian:
        """The family that does the arithmetic."""
        return Gaussian(self.covariance, self.reg_covar, self.prior, self.on_collapse, self.missing)

    @property
    def has_floor(self) -> bool:
        """Whether `reg_covar` stands alone, which no likelihood knows of."""
        return self.reg_covar > 0 and self.prior is None

    @property
    def handles_missing(self) -> bool:
        """Whether NaN is a hole."""
        return self.missing

    @property
    def shape(self) -> Shape:
        """What depends on the shape of the scale matrices."""
        return self.gaussian.shape

    def init(self, sample: Chunk, resp: Float) -> StudentTParams:
        """Return locations and scale matrices as a Gaussian's means and covariances, and the first dof."""
        start = self.gaussian.init(sample, resp)
        return StudentTParams(**vars(start), dof=np.full(len(start.means), self._first_dof))

    def log_prob(self, params: StudentTParams, chunk: Chunk) -> Array:
        """Return log p(x | component), (n, k), nats: a transposed view of scratch memory that may be overwritten."""
        holes = self.gaussian.holes(params, chunk)
        if holes is not None:
            return self._log_prob_with_holes(params, chunk, holes).T
        out = self.gaussian.squared_distances(params, chunk).T
        nu, d = params.dof, chunk.rows.shape[1]
        out /= _column(nu, out)
        u = chunk.scratch.empty("u", out.shape, out.dtype)
        np.add(out, 1, out=u)
        np.log(u, out=out) if _log_suffices(nu, out.dtype) else np.log1p(out, out=out)
        np.divide(_column(1.0 + d / nu, out), u, out=u)
        chunk.scratch.keep("student", chunk, dict).update(params=params, u=u)
        out *= _column(-0.5 * (nu + d), out)
        out += _column(self._log_peak(params), out)
        return out.T

    def stats(self, params: StudentTParams, chunk: Chunk, resp: Array) -> StudentTStats:
        """Return the statistics of the rows under `resp` (n, k), float64 whatever the type of the rows."""
        shares, kept = resp.T, chunk.scratch.keep("student", chunk, dict)
        if kept.get("params") is not params:
            # The distances are made in memory where `resp` may lie.
            shares = np.array(shares)
            self.log_prob(params, chunk)
        # Overwritten below: what is kept serves once.
        u, seen = kept.pop("u"), kept.pop("seen", None)
        del kept["params"]
        n = shares.sum(axis=1, dtype=np.float64)
        # A row at infinity has u = 0 and no share.
        least = np.finfo(u.dtype).tiny
        logs = np.array([share @ np.log(np.maximum(one, least)) for share, one in zip(shares, u, strict=True)], float)
        np.multiply(u, shares, out=u, casting="same_kind")
        moments = self.gaussian.stats(params, chunk, u.T, shares.T)
        half, counts = 0.5 * (params.dof + chunk.rows.shape[1])[:, None], n[:, None]
        if seen is not None:
            counts = np.array([np.bincount(seen, share, chunk.rows.shape[1] + 1) for share in shares])
            half = 0.5 * (params.dof[:, None] + np.arange(counts.shape[1]))
        logs += (counts * (psi(half) - np.log(half))).sum(axis=1)
        return StudentTStats(n, moments.n, moments.x, moments.xx, logs)

    def posterior_stats(
        self, params: StudentTParams, chunk: Chunk, log_weights: Float
    ) -> tuple[Float, StudentTStats, Float] | None:
        """Return the weights (k,) and the statistics under the posterior of the component, and log p(x), (n,), nats.

        None where there is no faster way than by `log_prob` and `stats`.
        """
        kernel = self.gaussian.kernel_at_once(params, chunk)
        if kernel is None or not _log_suffices(params.dof, kernel.dtype):
            return None
        nu, d = params.dof, chunk.rows.shape[1]
        # What is lost of a density is lost of the distance here.
        half, terms, peak = 0.5 * (nu + d), replace(kernel.terms(chunk), constant=0.0), kernel.peak - kernel.lost
        tails = np.column_stack([peak, 1.0 / nu, 1.0 + d / nu, half, self._log_peak(params)])
        sums, log_prob, tallies = compiled.e_step([terms], log_weights, chunk.weight, tails)
        moments, n = self.gaussian.stats_of_terms(params, chunk, sums), tallies[:, 0]
        logs = n * (np.log1p(d / nu) + psi(half) - np.log(half)) - tallies[:, 1]
        return np.array(n), StudentTStats(n, moments.n, moments.x, moments.xx, logs), log_prob

    def m_step(self, stats: StudentTStats, params: StudentTParams) -> StudentTParams:
        """Return the maximiser of Q, plus the log prior where there is one (see the class).

        Raises
        ------
        DegenerateComponentError
            If a component is empty or collapsed and the policy is to raise.
        """
        new = cast(StudentTParams, self.gaussian.m_step(_moments(stats), params, stats.n))
        dof = np.where(new.repaired == RESEEDED, self._first_dof, params.dof)
        if self.dof == "shared":
            dof = np.full_like(dof, _solve_dof(stats.n.sum(), stats.u.sum(), stats.log_u.sum()))
        elif self.dof == "each":
            for k in np.flatnonzero(new.repaired == 0):
                dof[k] = _solve_dof(stats.n[k], stats.u[k], stats.log_u[k])
        return replace(new, dof=dof)

    def surrogate(self, stats: StudentTStats, params: StudentTParams) -> float:
        """Return Q, the expected log density of rows and their U, nats; `stats` must be about ``params.reference``."""
        d, half = params.means.shape[1], 0.5 * params.dof
        of_rows = self.gaussian.surrogate(_moments(stats), params, stats.n) + 0.5 * d * stats.log_u.sum()
        of_u = stats.n * (half * np.log(half) - gammaln(half)) + (half - 1.0) * stats.log_u - half * stats.u
        return float(of_rows + of_u.sum())

    def log_prior(self, params: StudentTParams) -> float:
        """Return the log prior density of locations and scale matrices, nats; 0 without a prior."""
        return self.gaussian.log_prior(params)

    def rebase(self, stats: StudentTStats, old: StudentTParams, new: StudentTParams) -> StudentTStats:
        """Return `stats`, made about ``old.reference``, as moments about ``new.reference``."""
        moved = self.gaussian.rebase(_moments(stats), old, new)
        return replace(stats, x=moved.x, xx=moved.xx)

    def events(self, params: StudentTParams) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened) of each component that the M-step had to repair."""
        return self.gaussian.events(params)

    def n_parameters(self, params: StudentTParams) -> int:
        """Return the number of free parameters of all components."""
        return self.gaussian.n_parameters(params) + self._n_dof(params)

    def to_vector(self, params: StudentTParams) -> Float:
        """Return the Gaussian's vector, then the logarithms of the degrees of freedom that are free, (p,)."""
        return np.concatenate([self.gaussian.to_vector(params), np.log(params.dof[: self._n_dof(params)])])

    def from_vector(self, vector: Float, params: StudentTParams) -> StudentTParams:
        """Return the parameters of a vector of `to_vector`; `params` supplies what is fixed."""
        size = len(vector) - self._n_dof(params)
        free = np.clip(np.exp(vector[size:]), MIN_DOF, MAX_DOF)
        dof = np.broadcast_to(free, params.dof.shape) if len(vector) > size else params.dof
        new = self.gaussian.from_vector(vector[:size], replace(params, dof=np.array(dof)))
        return cast(StudentTParams, new)

    def impute(self, params: StudentTParams, chunk: Chunk, resp: Array) -> Float:
        """Return the rows (n, d) with sum_k resp_k E[missing | present, k] in the place of NaN, as a Gaussian's."""
        return self.gaussian.impute(params, chunk, resp)

    def with_start(self, params: StudentTParams, means: Float | None, precisions: Float | None) -> StudentTParams:
        """Return `params` with a user's locations and inverse scale matrices (see `Gaussian.with_start`)."""
        return cast(StudentTParams, self.gaussian.with_start(params, means, precisions))

    def draw(self, params: StudentTParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        noise = self.gaussian.draw(replace(params, means=np.zeros_like(params.means)), components, rng)
        nu = params.dof[components]
        return np.asarray(params.means[components] + noise / np.sqrt(rng.chisquare(nu) / nu)[:, None])

    def n_features(self, params: StudentTParams) -> int:
        """Return the number of columns that the parameters are about."""
        return int(params.means.shape[1])

    def row_numbers(self, k: int, d: int) -> int:
        """Return how many numbers a block's scratch holds for each row, beside its log densities."""
        return self.gaussian.row_numbers(k, d) + k

    def missing_bytes(self, rows: int, k: int, d: int) -> int:
        """Return the bytes of scratch that a block with missing values takes beside those of one without."""
        return self.gaussian.missing_bytes(rows, k, d) + 8 * rows * 3 * k

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        stats, params = self.gaussian.record_bytes(k, d)
        return stats + 16 * k, params + 8 * k

    def _log_prob_with_holes(self, params: StudentTParams, chunk: Chunk, holes: HolesKernel) -> Float:
        """Return log p(values present | component), (k, n), in the scratch of the chunk."""
        d, nu = chunk.rows.shape[1], params.dof[:, None]
        seen = d - np.isnan(chunk.rows).sum(axis=1)
        out = holes.squared_distances(chunk)
        out /= nu
        u = (1.0 + seen / nu) / (1.0 + out)
        chunk.scratch.keep("student", chunk, dict).update(params=params, u=u, seen=seen)
        np.log1p(out, out=out)
        out *= -0.5 * (nu + seen)
        out += holes.log_peak(chunk)
        # How much lower, or higher, the peak of m features is than a Gaussian's.
        m = np.arange(1.0, d + 1)
        lower = gammaln(0.5 * m) - betaln(0.5 * nu, 0.5 * m) - 0.5 * m * np.log(0.5 * nu)
        out += np.take(np.pad(lower, ((0, 0), (1, 0))), seen, axis=1)
        return cast(Float, out)

    @property
    def _first_dof(self) -> float:
        return START_DOF if isinstance(self.dof, str) else float(self.dof)

    def _n_dof(self, params: StudentTParams) -> int:
        return {"each": len(params.dof), "shared": 1}.get(str(self.dof), 0)

    def _log_peak(self, params: StudentTParams) -> Float:
        """Return the log density at the locations, (k,)."""
        half, d = 0.5 * params.dof, params.means.shape[1]
        # betaln keeps the digits that two gammaln of large arguments lose.
        gammas = gammaln(0.5 * d) - betaln(half, 0.5 * d)
        log_det = self.shape.log_det(params.precisions_cholesky, d)
        return np.asarray(gammas - 0.5 * d * np.log(params.dof * np.pi) + log_det)


def _moments(stats: StudentTStats) -> GaussianStats:
    return GaussianStats(stats.u, stats.x, stats.xx)


def _log_suffices(dof: Float, dtype: np.dtype[Any]) -> bool:
    """Return whether log(1 + ratio) is accurate enough, else log1p(ratio) is, which takes three times as long."""
    # Rounding 1 + ratio moves a log density by nu eps / 4.
    return bool(0.25 * dof.max() * np.finfo(dtype).eps <= LOG_ERROR)


def _column(values: Float, like: Array) -> Array:
    return values.astype(like.dtype)[:, None]


def _solve_dof(n: float, u: float, log_u: float) -> float:
    """Return the nu within the bounds that maximises n (nu/2 log(nu/2) - log Gamma(nu/2)) + nu/2 (log_u - u)."""
    target = (u - log_u) / n - 1.0

    def slope(log_half: float) -> float:
        return float(log_half - psi(np.exp(log_half)) - target)

    low, high = np.log(0.5 * MIN_DOF), np.log(0.5 * MAX_DOF)
    if slope(low) <= 0:
        return MIN_DOF
    if slope(high) >= 0:
        return MAX_DOF
    return float(2.0 * np.exp(scipy.optimize.brentq(slope, low, high, xtol=1e-14, rtol=1e-14)))
