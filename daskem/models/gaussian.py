"""Gaussian components with full, tied, diagonal or spherical covariances: records, M-step, prior, repair.

Second moments are of u = (x - reference) * scale. `scale` holds powers of two, so it costs no precision; it differs
from one only where features lie so far from unit size that squares would leave the range of the type.

References start as one point, the mean of the sample. A component more than `COMMON_RATIO` standard deviations from its
reference takes its own mean as the next one, and goes back to the common point once it is within a quarter of that.
So references stay fixed in all but tight, far-apart mixtures. Where `params.reference` changes, statistics made before
must not be blended with statistics made after, unless `Gaussian.rebase` has moved them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from scipy.linalg import solve_triangular

from daskem import tree
from daskem.core import Array, Chunk, Float
from daskem.errors import OptionError
from daskem.models.gaussian_algebra import (
    Covariance,
    checked,
    covariances_of,
    factor_of_precisions,
    factorise,
    identity_like,
    longest_axis,
    outer,
    pooled_covariance,
    power_of_two,
    ridge,
    square,
    unscaled,
    variances,
)
from daskem.models.gaussian_kernels import (
    COMMON_RATIO,
    Kernel,
    log_det,
    n_statistics,
    pack,
    ratios,
    uses_features,
)
from daskem.models.gaussian_missing import HolesKernel, has_holes, holes_bytes, over_holes, without_holes
from daskem.models.gaussian_records import GaussianParams, GaussianStats
from daskem.models.repair import (
    AT_PRIOR,
    COLLAPSED_KEPT,
    EMPTY_KEPT,
    EMPTY_SHARE,
    RESEEDED,
    Policy,
    check_policy,
    describe,
    raise_degenerate,
    split_largest,
)

__all__ = ["Covariance", "Gaussian", "GaussianParams", "GaussianStats"]

EPS = float(np.finfo(np.float64).eps)
# scikit-learn adds this to the weight of a component, so that an empty one divides by something.
N_FLOOR = 10 * EPS
# kappa_P of Fraley & Raftery's default prior: the prior mean counts as a hundredth of a row.
SHRINKAGE = 0.01
# Rows at a time while a sample is summed.
SAMPLE_BLOCK = 1024


@dataclass(frozen=True)
class Gaussian:
    """A family of Gaussian components.

    Parameters
    ----------
    covariance : "full", "tied" (one matrix for all), "diag" or "spherical".
    reg_covar : added to the diagonal of the covariances, data units squared; with a prior, to the prior's scale
        instead, which keeps the penalised objective monotone.
    prior : None, or "conjugate" for the maximum a posteriori estimate under a normal-inverse-Wishart prior [1]_.
    on_collapse : what to do with a component that is empty or whose covariance is not positive definite: "keep" its
        previous parameters (with a prior an empty one goes to the prior's mode), "reseed" it by splitting the heaviest
        component along its principal axis, or "raise".
    missing : whether NaN stands for a missing value, missing at random: rows then count with what they have, exactly
        (see `daskem.models.gaussian_missing`); else NaN is an error.

    Notes
    -----
    With mu_P the sample mean, kappa = 0.01, nu = d + 2 and Lambda = S / k^(2/d), S the sample covariance, the M-step is
    mu_k = (n_k xbar_k + kappa mu_P) / (n_k + kappa) and, W_k being the scatter about xbar_k,
    Sigma_k = (Lambda + kappa n_k / (kappa + n_k) (xbar_k - mu_P)(xbar_k - mu_P)^T + W_k) / (n_k + nu + d + 2)   (full);
    tied sums over k and divides by N + nu + d + k + 1; diag divides by n_k + nu + 3, feature by feature; spherical
    takes the trace and divides by (n_k + 1) d + nu + 2. For diag, Lambda keeps each feature's own variance, where [1]_
    pools them: the estimate then does not depend on units. The prior acts as kappa more rows at mu_P, and is coded so.

    References
    ----------
    .. [1] Fraley & Raftery (2007), Journal of Classification 24, 155-181, section 3 and its table of M-steps.
    """

    covariance: Covariance = "full"
    reg_covar: float = 1e-6
    prior: Literal["conjugate"] | None = None
    on_collapse: Policy = "keep"
    missing: bool = False

    def __post_init__(self) -> None:
        if self.covariance not in ("full", "tied", "diag", "spherical"):
            raise OptionError(f"covariance is {self.covariance!r}; it must be 'full', 'tied', 'diag' or 'spherical'.")
        if not (np.isfinite(self.reg_covar) and self.reg_covar >= 0):
            raise OptionError(f"reg_covar is {self.reg_covar}; it must be a finite number, zero or larger.")
        if self.prior not in (None, "conjugate"):
            raise OptionError(f"prior is {self.prior!r}; it must be None or 'conjugate'.")
        check_policy(self.on_collapse)

    @property
    def handles_missing(self) -> bool:
        return self.missing

    def init(self, sample: Chunk, resp: Float) -> GaussianParams:
        """Return parameters from a sample and its responsibilities (n, k), which do not hold the weights yet.

        A component without any responsibility starts as the whole sample.
        """
        pooled = self._pooled(sample, resp.shape[1])
        weight = np.ones(len(sample)) if sample.weight is None else sample.weight
        stats = self._sample_stats(pooled, sample.rows, (resp * weight[:, None]).T)
        return replace(self, on_collapse="keep").m_step(stats, pooled)

    def log_prob(self, params: GaussianParams, chunk: Chunk) -> Array:
        """Return log p(x | component), (n, k), nats: a transposed view of scratch memory that may be overwritten."""
        return self._kernel(params, chunk).log_prob(chunk).T

    def stats(self, params: GaussianParams, chunk: Chunk, resp: Array) -> GaussianStats:
        """Return the moments of the rows under `resp` (n, k), float64 whatever the type of the rows."""
        n, x, xx = self._kernel(params, chunk).moments(chunk, resp.T)
        return GaussianStats(np.asarray(n, np.float64), x, np.asarray(xx, np.float64))

    def impute(self, params: GaussianParams, chunk: Chunk, resp: Array) -> Float:
        """Return the rows (n, d) with sum_k resp_k E[missing | present, k] in the place of NaN, resp being (n, k)."""
        kernel = self._kernel(params, chunk)
        return kernel.impute(chunk, resp.T) if isinstance(kernel, HolesKernel) else np.array(chunk.rows, np.float64)

    def m_step(self, stats: GaussianStats, params: GaussianParams) -> GaussianParams:
        """Return the maximiser of the expected complete-data log-likelihood, plus the log prior where there is one.

        Without a prior these are scikit-learn's formulas: n_k + 10 eps, and `reg_covar` on the diagonal.

        Raises
        ------
        DegenerateComponentError
            If a component is empty or collapsed and the policy is to raise.
        """
        offset, covariance, unresolved = self._estimate(stats, params)
        factor, positive = factorise(self.covariance, covariance)
        new = self._assemble(params, params.reference + offset / params.scale, covariance, factor)
        empty = stats.n <= EMPTY_SHARE * stats.n.sum()
        held = self.prior is not None and bool(positive.all())
        collapsed = np.zeros(len(empty), bool) if held else ~positive | unresolved
        if held and self.on_collapse == "keep":
            new = replace(new, repaired=np.where(empty, AT_PRIOR, 0).astype(np.int8))
        elif (empty | collapsed).any():
            new = self._repair(new, params, stats.n, empty, collapsed)
        return self._place_references(new, collapsed)

    def surrogate(self, stats: GaussianStats, params: GaussianParams) -> float:
        """Return the sum over rows and components of resp * log p(x | component), nats.

        `stats` must be about ``params.reference`` (see `rebase`).
        """
        delta, factor = self._scaled(params)
        d = delta.shape[1]
        cross = outer(self.covariance, stats.x, delta)
        cross = cross + cross.swapaxes(-1, -2) if self.covariance in ("full", "tied") else 2 * cross
        scatter = square(self.covariance, stats.xx, d) - cross + outer(self.covariance, stats.n[:, None] * delta, delta)
        matrices = self.covariance in ("full", "tied")
        precision = factor @ factor.swapaxes(-1, -2) if matrices else factor * factor
        peak = log_det(self.covariance, factor, d) + np.log(params.scale).sum() - 0.5 * d * np.log(2 * np.pi)
        return float((stats.n * peak).sum() - 0.5 * (precision * scatter).sum())

    def log_prior(self, params: GaussianParams) -> float:
        """Return the log prior density, nats, up to a constant of the prior; 0 without a prior."""
        if self.prior is None:
            return 0.0
        delta, factor = self._scaled(params)
        k, d = delta.shape
        prior_mean, scatter = self._scaled_prior(params)
        away = delta - prior_mean
        power = {"full": 2 * d + 4, "tied": 2 * d + 3 + k, "diag": d + 5, "spherical": 2 * d + 4}[self.covariance]
        matrices = self.covariance in ("full", "tied")
        precision = factor @ factor.swapaxes(-1, -2) if matrices else factor * factor
        log_dets = log_det(self.covariance, factor, d) / (d if self.covariance == "spherical" else 1)
        quadratic = (precision * (scatter + SHRINKAGE * outer(self.covariance, away, away))).sum()
        return float(power * log_dets.sum() - 0.5 * quadratic)

    def rebase(self, stats: GaussianStats, old: GaussianParams, new: GaussianParams) -> GaussianStats:
        """Return `stats`, made about ``old.reference``, as moments about ``new.reference``."""
        move = (old.reference - new.reference) * new.scale
        cross = outer(self.covariance, stats.x, move)
        cross = cross + cross.swapaxes(-1, -2) if self.covariance in ("full", "tied") else 2 * cross
        xx = (
            square(self.covariance, stats.xx, len(new.scale))
            + cross
            + outer(self.covariance, stats.n[:, None] * move, move)
        )
        packed = self.covariance == "full" and stats.xx.ndim == 2
        return GaussianStats(stats.n, stats.x + stats.n[:, None] * move, pack(xx) if packed else xx)

    def events(self, params: GaussianParams) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened) of each component that the M-step had to repair."""
        return describe(params.repaired)

    def n_parameters(self, params: GaussianParams) -> int:
        """Return the number of free parameters of all components."""
        k, d = params.means.shape
        triangle = d * (d + 1) // 2
        own = {"full": k * triangle, "tied": triangle, "diag": k * d, "spherical": k}[self.covariance]
        return int(k * d + own)

    def to_vector(self, params: GaussianParams) -> Float:
        """Return means, then Cholesky factors of the precisions with the logarithms of their diagonals, (p,)."""
        factor = params.precisions_cholesky
        if self.covariance in ("diag", "spherical"):
            return np.concatenate([params.means.ravel(), np.log(factor).ravel()])
        d = factor.shape[-1]
        logged = np.array(factor)
        logged[..., np.arange(d), np.arange(d)] = np.log(np.diagonal(factor, axis1=-2, axis2=-1))
        return np.concatenate([params.means.ravel(), logged[..., *np.triu_indices(d)].ravel()])

    def from_vector(self, vector: Float, params: GaussianParams) -> GaussianParams:
        """Return the parameters of a vector of `to_vector`; references, scale and prior are those of `params`."""
        k, d = params.means.shape
        means, rest = vector[: k * d].reshape(k, d), vector[k * d :]
        if self.covariance in ("diag", "spherical"):
            return self.with_precisions(params, means, np.exp(rest).reshape(params.precisions_cholesky.shape))
        factor = np.zeros(params.precisions_cholesky.shape)
        factor[..., *np.triu_indices(d)] = rest.reshape(*factor.shape[:-2], -1)
        diagonal = np.arange(d)
        factor[..., diagonal, diagonal] = np.exp(factor[..., diagonal, diagonal])
        return self.with_precisions(params, means, factor)

    def with_precisions(self, params: GaussianParams, means: Float, precisions_cholesky: Float) -> GaussianParams:
        """Return `params` with other means and other Cholesky factors of the precisions, same references."""
        means, factor = np.array(means, float), np.array(precisions_cholesky, float)
        if self.covariance in ("diag", "spherical"):
            return replace(params, means=means, precisions_cholesky=factor, covariances=factor**-2.0)
        return replace(params, means=means, precisions_cholesky=factor, covariances=covariances_of(factor))

    def with_start(self, params: GaussianParams, means: Float | None, precisions: Float | None) -> GaussianParams:
        """Return `params` with the means and precisions of a user, in scikit-learn's shapes.

        Raises
        ------
        OptionError
            If a shape is wrong or a precision is not positive definite.
        """
        factor = params.precisions_cholesky
        if means is not None:
            means = checked("means_init", means, params.means.shape)
        if precisions is not None:
            precisions = checked("precisions_init", precisions, params.covariances.shape)
            factor = factor_of_precisions(self.covariance, precisions)
        new = self.with_precisions(params, params.means if means is None else means, factor)
        return self._place_references(new, np.zeros(len(new.means), bool))

    def draw(self, params: GaussianParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        rows = rng.standard_normal((len(components), params.means.shape[1]))
        factor = params.precisions_cholesky
        if self.covariance in ("diag", "spherical"):
            rows /= factor[components] if self.covariance == "diag" else factor[components, None]
        elif self.covariance == "tied":
            rows = solve_triangular(factor, rows.T, trans="T").T
        else:
            for k in np.unique(components):
                mine = components == k
                rows[mine] = solve_triangular(factor[k], rows[mine].T, trans="T").T
        return np.asarray(params.means[components] + rows)

    def row_numbers(self, k: int, d: int) -> int:
        """Return how many numbers a block's scratch holds for each row, beside its log densities."""
        return 5 * d + (n_statistics(self.covariance, d) if uses_features(self.covariance, d, k) else d + 1)

    def missing_bytes(self, rows: int, k: int, d: int) -> int:
        """Return the bytes of scratch that a block with missing values takes beside those of one without."""
        return holes_bytes(rows, k, d)

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        packed = uses_features(self.covariance, d, k)
        second = {"full": k * (d * (d + 1) // 2 if packed else d * d), "tied": d * d, "diag": k * d, "spherical": k}
        shape = {"full": k * d * d, "tied": d * d, "diag": k * d, "spherical": k}[self.covariance]
        prior = d + (shape if self.covariance == "tied" else shape // k) if self.prior else 0
        return 8 * (k + k * d + second[self.covariance]), 8 * (2 * k * d + 2 * shape + 2 * d + prior) + k

    def _kernel(self, params: GaussianParams, chunk: Chunk) -> Kernel | HolesKernel:
        dtype = chunk.rows.dtype
        kernel = cast(
            Kernel,
            chunk.scratch.keep(
                ("kernel", dtype.char),
                params,
                lambda: self.kernel(params, dtype),
            ),
        )
        return over_holes(kernel, params, chunk) if self.missing and has_holes(chunk) else kernel

    def kernel(self, params: GaussianParams, dtype: np.dtype[Any]) -> Kernel:
        """Return the arithmetic for rows of a type (see `daskem.models.gaussian_kernels`)."""
        delta, factor = self._scaled(params)
        deviation = np.sqrt(variances(self.covariance, params.covariances)) * params.scale
        deviation = np.broadcast_to(deviation, delta.shape)
        places = params.shift, params.reference, params.scale
        return Kernel.make(self.covariance, *places, delta, factor, deviation, dtype)

    def _scaled(self, params: GaussianParams) -> tuple[Float, Float]:
        """Return means minus references and Cholesky factors of the precisions, both in scaled units."""
        delta = (params.means - params.reference) * params.scale
        factor = params.precisions_cholesky
        if self.covariance in ("full", "tied"):
            return delta, factor / params.scale[:, None]
        return delta, factor / (params.scale if self.covariance == "diag" else params.scale[0])

    def _pooled(self, sample: Chunk, k: int) -> GaussianParams:
        """Return k copies of the sample as a whole, with the references, scale and prior that a run starts from."""
        weight = np.ones(len(sample)) if sample.weight is None else sample.weight
        share = weight / weight.sum()
        rows, mean = without_holes(sample.rows, share)
        if sample.rows.dtype == np.float32:
            # Single precision rows less a single precision reference lose nothing.
            mean = mean.astype(np.float32).astype(np.float64)
        d = len(mean)
        scale = power_of_two(rows, mean, self.covariance == "spherical")
        zero = np.zeros(0)
        blank = GaussianParams(
            means=np.tile(mean, (k, 1)),
            covariances=zero,
            precisions_cholesky=zero,
            reference=np.tile(mean, (k, 1)),
            shift=mean,
            scale=scale,
            repaired=np.zeros(k, np.int8),
            prior_mean=zero,
            prior_scale=zero,
        )
        covariance = pooled_covariance(self.covariance, rows, mean, scale, share)
        covariance = covariance + ridge(self.covariance, self.reg_covar, scale)
        if self.prior is not None:
            prior_scale = unscaled(self.covariance, covariance / k ** (2 / d), scale)
            blank = replace(blank, prior_mean=mean, prior_scale=prior_scale)
        return self._spread_alike(blank, covariance)

    def _spread_alike(self, params: GaussianParams, covariance: Float) -> GaussianParams:
        """Return `params` with one covariance (scaled, shaped as one component's) for all components."""
        every = covariance if self.covariance == "tied" else np.repeat(covariance[None], len(params.means), axis=0)
        if self.covariance == "spherical":
            every = every[:, 0]
        factor, positive = factorise(self.covariance, every)
        if not positive.all():
            # A feature has no spread and reg_covar is 0: any start that is positive will do, the policy does the rest.
            every = identity_like(self.covariance, every)
            factor, _ = factorise(self.covariance, every)
        return self._assemble(params, params.means, every, factor)

    def _sample_stats(self, params: GaussianParams, rows: Array, resp: Float) -> GaussianStats:
        """Return the moments of a sample under resp (k, n), block by block: its features would not fit at once."""
        total: GaussianStats | None = None
        scratch = Chunk(rows[:0]).scratch
        for start in range(0, max(len(rows), 1), SAMPLE_BLOCK):
            stop = start + SAMPLE_BLOCK
            block = Chunk(np.ascontiguousarray(rows[start:stop], np.float64), scratch=scratch)
            part = self.stats(params, block, np.ascontiguousarray(resp[:, start:stop]).T)
            total = part if total is None else tree.accumulate(total, part)
        return cast(GaussianStats, total)

    def _estimate(self, stats: GaussianStats, params: GaussianParams) -> tuple[Float, Float, Array]:
        """Return offsets of the means from their references, covariances, and which of these are rounding error."""
        k, d = stats.x.shape
        n, x, xx = stats.n + N_FLOOR, stats.x, square(self.covariance, stats.xx, d)
        if self.prior is not None:
            prior_mean, prior_scale = self._scaled_prior(params)
            n = stats.n + SHRINKAGE
            x = x + SHRINKAGE * prior_mean
            xx = xx + prior_scale + SHRINKAGE * outer(self.covariance, prior_mean, prior_mean)
        offset = x / n[:, None]
        scatter = xx - outer(self.covariance, n[:, None] * offset, offset)
        freedom = self._freedom(stats.n, n, d)
        if self.covariance == "full":
            freedom = freedom[:, None, None]
        elif self.covariance == "diag":
            freedom = freedom[:, None]
        floor = ridge(self.covariance, self.reg_covar, params.scale) if self.prior is None else 0.0
        covariance = scatter / freedom + floor
        lost = variances(self.covariance, covariance) <= 16 * EPS * variances(self.covariance, xx / freedom)
        return offset, covariance, np.broadcast_to(lost.any(axis=-1), (k,))

    def _freedom(self, weight: Float, n: Float, d: int) -> Array:
        """Return what the scatter is divided by."""
        if self.prior is None:
            return np.asarray(
                n.sum() if self.covariance == "tied" else n * (d if self.covariance == "spherical" else 1)
            )
        k, nu = len(n), d + 2
        if self.covariance == "tied":
            return np.asarray(weight.sum() + nu + d + k + 1)
        if self.covariance == "spherical":
            return (weight + 1) * d + nu + 2
        return weight + nu + (d + 2 if self.covariance == "full" else 3)

    def _scaled_prior(self, params: GaussianParams) -> tuple[Float, Float]:
        """Return the prior's mean less the references (k, d) and its scale matrix, in scaled units."""
        s = params.scale
        matrices = self.covariance in ("full", "tied")
        factor = np.multiply.outer(s, s) if matrices else s**2 if self.covariance == "diag" else s[:1] ** 2
        return (params.prior_mean - params.reference) * s, params.prior_scale * factor

    def _assemble(self, params: GaussianParams, means: Float, covariance: Float, factor: Float) -> GaussianParams:
        """Return `params` with new means and with covariances and factors that come in scaled units."""
        s = params.scale
        matrices = self.covariance in ("full", "tied")
        factor = factor * (s[:, None] if matrices else s if self.covariance == "diag" else s[0])
        return replace(
            params,
            means=means,
            covariances=unscaled(self.covariance, covariance, s),
            precisions_cholesky=factor,
            repaired=np.zeros(len(means), np.int8),
        )

    def _place_references(self, params: GaussianParams, unsure: Array) -> GaussianParams:
        """Return `params` with references moved where the accuracy rule demands (see the module).

        A component whose covariance came out wrong gets its own reference, hence the most accurate arithmetic.
        """
        _, factor = self._scaled(params)
        near = ratios(self.covariance, (params.means - params.reference) * params.scale, factor) <= COMMON_RATIO
        home = ratios(self.covariance, (params.means - params.shift) * params.scale, factor) <= COMMON_RATIO / 4
        reference = np.where(near[:, None], params.reference, params.means)
        reference = np.where(home[:, None], params.shift, reference)
        return replace(params, reference=np.where(unsure[:, None], params.means, reference))

    def _repair(
        self, new: GaussianParams, old: GaussianParams, n: Float, empty: Array, collapsed: Array
    ) -> GaussianParams:
        """Return `new` with empty and collapsed components dealt with by the policy."""
        vacant = np.flatnonzero(empty | collapsed)
        if self.on_collapse == "raise":
            remedy = "another start" if self.prior else f"raise reg_covar (now {self.reg_covar:g}), prior='conjugate'"
            raise_degenerate(int(vacant[0]), n, not empty[vacant[0]], remedy)
        fields = {name: np.array(getattr(new, name)) for name in ("means", "covariances", "precisions_cholesky")}
        repaired = np.where(empty, EMPTY_KEPT, np.where(collapsed, COLLAPSED_KEPT, 0)).astype(np.int8)
        self._restore(fields, old, vacant, tied_too=bool(collapsed.any()))
        if self.on_collapse == "reseed" and len(vacant) < len(n):
            for k, donor in split_largest(n, vacant.tolist())[0]:
                self._split(fields, k, donor)
            repaired[vacant] = RESEEDED
        return replace(new, repaired=repaired, **fields)

    def _restore(self, fields: dict[str, Float], old: GaussianParams, vacant: Array, tied_too: bool) -> None:
        for name, value in fields.items():
            if name == "means" or self.covariance != "tied":
                value[vacant] = getattr(old, name)[vacant]
            elif tied_too:
                value[...] = getattr(old, name)

    def _split(self, fields: dict[str, Float], k: int, donor: int) -> None:
        """Put half of component `donor` into k: each half a standard deviation from its mean on its main axis."""
        covariance = fields["covariances"] if self.covariance == "tied" else fields["covariances"][donor]
        means = fields["means"]
        step = 0.5 * longest_axis(self.covariance, covariance, means.shape[1])
        means[k], means[donor] = means[donor] + step, means[donor] - step
        if self.covariance != "tied":
            for name in ("covariances", "precisions_cholesky"):
                fields[name][k] = fields[name][donor]
