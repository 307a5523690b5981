"""Gaussian components with covariances of six shapes: M-step, prior, repair.

Second moments are of u = (x - reference) * scale. `scale` holds powers of two, so it costs no precision; it differs
from one only where features lie so far from unit size that squares would leave the range of the type.

References start as one point, the mean of the sample. A component further from its reference than `FEATURE_RATIO` and
`COMMON_RATIO` allow, in standard deviations, takes its own mean as the next one, and goes back to the common point once
it is within a quarter of that. So references stay fixed in all but tight, far-apart mixtures. Where `params.reference`
changes, statistics made before must not be blended with statistics made after, unless `Gaussian.rebase` has moved them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from daskem import tree
from daskem.compiled import Terms
from daskem.core import Array, Chunk, Float
from daskem.errors import DataError, MissingCapabilityError, OptionError
from daskem.models.gaussian_algebra import (
    ENTRY_ERROR,
    HOLES_ERROR,
    SHAPES,
    Covariance,
    Shape,
    checked,
    power_of_two,
)
from daskem.models.gaussian_kernels import (
    COMMON_RATIO,
    FEATURE_RATIO,
    Kernel,
    makes_pieces,
    n_statistics,
    pack,
    uses_features,
)
from daskem.models.gaussian_missing import HolesKernel, has_holes, holes_bytes, over_holes, without_holes
from daskem.models.gaussian_records import GaussianParams, GaussianStats
from daskem.models.gaussian_scores import at_floor, names, scores
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
    covariance : "full", "tied" (one matrix for all), "diag", "spherical", "tied_diag" or "tied_spherical". These are
        VVV, EEE, VVI, VII, EEI and EII of the literature on model-based clustering.
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
    tied sums over k and divides by N + nu + d + k + 1; diag divides by n_k + nu + 3, feature by feature, tied_diag by
    N + nu + k + 2; spherical takes the trace and divides by (n_k + 1) d + nu + 2, tied_spherical by (N + k) d + nu + 2.
    For diag, Lambda keeps each feature's own variance, where [1]_
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
        if self.covariance not in SHAPES:
            raise OptionError(f"covariance is {self.covariance!r}; it must be one of {', '.join(SHAPES)}.")
        if not (np.isfinite(self.reg_covar) and self.reg_covar >= 0):
            raise OptionError(f"reg_covar is {self.reg_covar}; it must be a finite number, zero or larger.")
        if self.prior not in (None, "conjugate"):
            raise OptionError(f"prior is {self.prior!r}; it must be None or 'conjugate'.")
        check_policy(self.on_collapse)

    @property
    def has_floor(self) -> bool:
        """Whether `reg_covar` stands alone, which no likelihood knows of."""
        return self.reg_covar > 0 and self.prior is None

    @property
    def handles_missing(self) -> bool:
        return self.missing

    @property
    def shape(self) -> Shape:
        """What depends on the shape of the covariances."""
        return SHAPES[self.covariance]

    def init(self, sample: Chunk, resp: Float) -> GaussianParams:
        """Return parameters from a sample and its responsibilities (n, k), which do not hold the weights yet.

        A component without any responsibility starts as the whole sample.
        """
        pooled = self._pooled(sample, resp.shape[1])
        weight = np.ones(len(sample)) if sample.weight is None else sample.weight
        stats = self._sample_stats(pooled, sample.rows, (resp * weight[:, None]).T)
        lenient = self if self.on_collapse == "keep" else replace(self, on_collapse="keep")
        return lenient.m_step(stats, pooled)

    def log_prob(self, params: GaussianParams, chunk: Chunk) -> Array:
        """Return log p(x | component), (n, k), nats: a transposed view of scratch memory that may be overwritten."""
        return self._kernel(params, chunk).log_prob(chunk).T

    def squared_distances(self, params: GaussianParams, chunk: Chunk) -> Array:
        """Return Mahalanobis' distances squared, (n, k): like `log_prob`, a view of scratch memory."""
        return self._kernel(params, chunk).squared_distances(chunk).T

    def stats(self, params: GaussianParams, chunk: Chunk, resp: Array, spread: Array | None = None) -> GaussianStats:
        """Return the moments of the rows under `resp` (n, k), float64 whatever the type of the rows.

        `spread` (n, k) are the weights of the conditional covariances of missing values, where these are others.
        """
        holes = self.holes(params, chunk)
        if holes is None:
            n, x, xx = self._plain_kernel(params, chunk).moments(chunk, resp.T)
        else:
            n, x, xx = holes.moments(chunk, resp.T, None if spread is None else spread.T)
        return GaussianStats(np.asarray(n, np.float64), x, np.asarray(self.shape.from_kernel(xx), np.float64))

    def terms(self, params: GaussianParams, chunk: Chunk) -> tuple[Terms, ...] | None:
        """Return the log densities as terms that are linear in features, None where they are not taken so."""
        kernel = self.kernel_at_once(params, chunk)
        return None if kernel is None else (kernel.terms(chunk),)

    def stats_of_terms(self, params: GaussianParams, chunk: Chunk, sums: Sequence[Float]) -> GaussianStats:
        """Return the statistics of the sums of those features."""
        n, x, xx = self._plain_kernel(params, chunk).split(sums[0])
        return GaussianStats(n, x, np.asarray(self.shape.from_kernel(xx), np.float64))

    def kernel_at_once(self, params: GaussianParams, chunk: Chunk) -> Kernel | None:
        """Return the arithmetic over a block if it can do an E-step in one go."""
        if self.missing and has_holes(chunk):
            return None
        kernel = self._plain_kernel(params, chunk)
        return kernel if kernel.at_once else None

    def impute(self, params: GaussianParams, chunk: Chunk, resp: Array) -> Float:
        """Return the rows (n, d) with sum_k resp_k E[missing | present, k] in the place of NaN, resp being (n, k)."""
        holes = self.holes(params, chunk)
        return np.array(chunk.rows, np.float64) if holes is None else holes.impute(chunk, resp.T)

    def m_step(self, stats: GaussianStats, params: GaussianParams, n: Float | None = None) -> GaussianParams:
        """Return the maximiser of the expected complete-data log-likelihood, plus the log prior where there is one.

        Without a prior these are scikit-learn's formulas: n_k + 10 eps, and `reg_covar` on the diagonal. `n` (k,) is
        the weight of the rows where it is not ``stats.n``: in a scale mixture, moments are of rows weighted once more.

        Raises
        ------
        DegenerateComponentError
            If a component is empty or collapsed and the policy is to raise.
        """
        n = stats.n if n is None else n
        offset, covariance, summed = self._estimate(stats, params, n)
        factor, positive = self.shape.factorise(covariance)
        unresolved = ~self.shape.resolved(factor, summed, HOLES_ERROR if self.missing else ENTRY_ERROR)
        new = self._assemble(params, params.reference + offset / params.scale, covariance, factor)
        empty = n <= EMPTY_SHARE * n.sum()
        held = self.prior is not None and bool(positive.all())
        collapsed = np.zeros(len(empty), bool) if held else ~positive | unresolved
        if held and self.on_collapse == "keep":
            new = replace(new, repaired=np.where(empty, AT_PRIOR, 0).astype(np.int8))
        elif (empty | collapsed).any():
            new = self._repair(new, params, n, empty, collapsed)
        return self._place_references(new, collapsed)

    def surrogate(self, stats: GaussianStats, params: GaussianParams, n: Float | None = None) -> float:
        """Return the sum over rows and components of resp * log p(x | component), nats.

        `stats` must be about ``params.reference`` (see `rebase`); `n` is as for `m_step`.
        """
        delta, factor = self._scaled(params)
        d = delta.shape[1]
        shape = self.shape
        scatter = shape.square(stats.xx, d) - shape.cross(stats.x, delta) + shape.outer(stats.n[:, None] * delta, delta)
        peak = shape.log_det(factor, d) + np.log(params.scale).sum() - 0.5 * d * np.log(2 * np.pi)
        return float(((stats.n if n is None else n) * peak).sum() - 0.5 * (shape.precisions(factor) * scatter).sum())

    def log_prior(self, params: GaussianParams) -> float:
        """Return the log prior density, nats, up to a constant of the prior; 0 without a prior."""
        if self.prior is None:
            return 0.0
        delta, factor = self._scaled(params)
        k, d = delta.shape
        prior_mean, scatter = self._scaled_prior(params)
        away = delta - prior_mean
        # The prior of a variance that all features share is about that one number.
        log_dets = self.shape.log_det(factor, 1 if self.shape.isotropic else d)
        quadratic = (self.shape.precisions(factor) * (scatter + SHRINKAGE * self.shape.outer(away, away))).sum()
        return float(self.shape.prior_freedom(k, d) * log_dets.sum() - 0.5 * quadratic)

    def rebase(self, stats: GaussianStats, old: GaussianParams, new: GaussianParams) -> GaussianStats:
        """Return `stats`, made about ``old.reference``, as moments about ``new.reference``."""
        move = (old.reference - new.reference) * new.scale
        shape = self.shape
        xx = shape.square(stats.xx, len(new.scale)) + shape.cross(stats.x, move)
        xx = xx + shape.outer(stats.n[:, None] * move, move)
        packed = stats.xx.ndim < xx.ndim
        return GaussianStats(stats.n, stats.x + stats.n[:, None] * move, pack(xx) if packed else xx)

    def events(self, params: GaussianParams) -> tuple[tuple[int, str], ...]:
        """Return (component, what happened) of each component that the M-step had to repair."""
        return describe(params.repaired)

    def n_parameters(self, params: GaussianParams) -> int:
        """Return the number of free parameters of all components."""
        k, d = params.means.shape
        return int(k * d + self.shape.n_parameters(k, d))

    def to_vector(self, params: GaussianParams) -> Float:
        """Return means, then Cholesky factors of the precisions with the logarithms of their diagonals, (p,)."""
        return np.concatenate([params.means.ravel(), self.shape.to_vector(params.precisions_cholesky)])

    def from_vector(self, vector: Float, params: GaussianParams) -> GaussianParams:
        """Return the parameters of a vector of `to_vector`; references, scale and prior are those of `params`."""
        k, d = params.means.shape
        factor = self.shape.from_vector(vector[k * d :], params.precisions_cholesky.shape)
        return self.with_precisions(params, vector[: k * d].reshape(k, d), factor)

    def parameter_names(self, params: GaussianParams) -> list[str]:
        """Return the names of the coordinates of `to_vector`."""
        return names(self.covariance, *params.means.shape)

    def scores(self, params: GaussianParams, chunk: Chunk, resp: Float) -> Float:
        """Return the gradients of sum_k resp_k log p(x | k) in the coordinates of `to_vector`, (n, p)."""
        if self.missing:
            raise MissingCapabilityError("Gaussian(missing=True) has no scores; those of log_prob are to be used.")
        return scores(self.covariance, params, chunk.rows, resp)

    def at_bound(self, params: GaussianParams) -> tuple[tuple[int, str], ...]:
        """Return (component, what) of each whose variance is hardly more than the floor."""
        return () if self.prior else at_floor(self.covariance, params, self.reg_covar)

    def with_precisions(self, params: GaussianParams, means: Float, precisions_cholesky: Float) -> GaussianParams:
        """Return `params` with other means and other Cholesky factors of the precisions, same references."""
        means, factor = np.array(means, float), np.array(precisions_cholesky, float)
        return replace(params, means=means, precisions_cholesky=factor, covariances=self.shape.covariances(factor))

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
            factor = self.shape.factor_of_precisions(precisions)
        new = self.with_precisions(params, params.means if means is None else means, factor)
        return self._place_references(new, np.zeros(len(new.means), bool))

    def draw(self, params: GaussianParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        noise = rng.standard_normal((len(components), params.means.shape[1]))
        return np.asarray(params.means[components] + self.shape.coloured(noise, params.precisions_cholesky, components))

    def n_features(self, params: GaussianParams) -> int:
        """Return the number of columns that the parameters are about."""
        return int(params.means.shape[1])

    def row_numbers(self, k: int, d: int) -> int:
        """Return how many numbers a block's scratch holds for each row, beside its log densities."""
        kernel = self.shape.kernel
        whole = uses_features(kernel, d, k) and not makes_pieces(kernel)
        # Rows present, as floats, about a point of their own; only where features belong together are there products.
        copies = 5 if self.covariance in ("full", "tied") else 4
        return copies * d + (n_statistics(kernel, d) if whole else d + 1)

    def missing_bytes(self, rows: int, k: int, d: int) -> int:
        """Return the bytes of scratch that a block with missing values takes beside those of one without."""
        return holes_bytes(rows, k, d)

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        size = self.shape.size(k, d)
        packed = self.covariance == "full" and uses_features("full", d, k)
        second = k * (d * (d + 1) // 2) if packed else size
        prior = d + self.shape.one_size(d) if self.prior else 0
        return 8 * (k + k * d + second), 8 * (2 * k * d + 2 * size + 2 * d + prior) + k

    def holes(self, params: GaussianParams, chunk: Chunk) -> HolesKernel | None:
        """Return the arithmetic for a block with missing values, None where none is missing."""
        return (
            over_holes(self._plain_kernel(params, chunk), params, chunk) if self.missing and has_holes(chunk) else None
        )

    def _kernel(self, params: GaussianParams, chunk: Chunk) -> Kernel | HolesKernel:
        return self.holes(params, chunk) or self._plain_kernel(params, chunk)

    def _plain_kernel(self, params: GaussianParams, chunk: Chunk) -> Kernel:
        """Return the arithmetic over rows without holes, made once for all blocks of a pass."""
        dtype = chunk.rows.dtype
        made = chunk.scratch.derived(("kernel", dtype.char), params, lambda: self.kernel(params, dtype))
        return cast(Kernel, made)

    def kernel(self, params: GaussianParams, dtype: np.dtype[Any]) -> Kernel:
        """Return the arithmetic for rows of a type (see `daskem.models.gaussian_kernels`)."""
        _, factor = self._scaled(params)
        deviation = self._deviations(params) * params.scale
        places = params.shift, params.reference, params.scale, params.means
        factor = self.shape.for_kernel(factor, len(params.means))
        return Kernel.make(self.shape.kernel, *places, factor, deviation, dtype)

    def _deviations(self, params: GaussianParams) -> Float:
        """Return the standard deviation of each feature in each component, (k, d), data units."""
        return np.broadcast_to(np.sqrt(self.shape.variances(params.covariances)), params.means.shape)

    def _scaled(self, params: GaussianParams) -> tuple[Float, Float]:
        """Return means minus references and Cholesky factors of the precisions, both in scaled units."""
        delta = (params.means - params.reference) * params.scale
        return delta, params.precisions_cholesky / self.shape.units(params.scale)

    def _pooled(self, sample: Chunk, k: int) -> GaussianParams:
        """Return k copies of the sample as a whole, with the references, scale and prior that a run starts from."""
        weight = np.ones(len(sample)) if sample.weight is None else sample.weight
        share = weight / weight.sum()
        rows, mean = without_holes(sample.rows, share)
        if sample.rows.dtype == np.float32:
            # Single precision rows less a single precision reference lose nothing.
            mean = mean.astype(np.float32).astype(np.float64)
        d = len(mean)
        scale = power_of_two(rows, mean, self.shape.isotropic)
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
        covariance = self.shape.pooled_covariance(rows, mean, scale, share)
        covariance = covariance + self.shape.ridge(self.reg_covar, scale)
        if self.prior is not None:
            prior_scale = self.shape.unscaled(covariance / k ** (2 / d), scale)
            blank = replace(blank, prior_mean=mean, prior_scale=prior_scale)
        return self._spread_alike(blank, covariance)

    def _spread_alike(self, params: GaussianParams, covariance: Float) -> GaussianParams:
        """Return `params` with one covariance (scaled, shaped as one component's) for all components."""
        every = self.shape.spread(covariance, len(params.means))
        factor, positive = self.shape.factorise(every)
        if not (positive.all() and self.shape.resolved(factor, self.shape.variances(every)).all()):
            raise DataError(
                "the rows drawn for the start have no covariance that could be inverted: some features are constant or "
                "follow from others, or there are fewer rows than features. Leave such features out, or set reg_covar "
                f"(now {self.reg_covar:g}) to a variance that is small beside the others'."
            )
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

    def _estimate(self, stats: GaussianStats, params: GaussianParams, n: Float) -> tuple[Float, Float, Array]:
        """Return offsets of the means from their references, covariances, and the variances about the references."""
        d = stats.x.shape[1]
        shape, mass, x, xx = self.shape, stats.n + N_FLOOR, stats.x, self.shape.square(stats.xx, d)
        freedom, floor = shape.freedom(n + N_FLOOR, d), shape.ridge(self.reg_covar, params.scale)
        if self.prior is not None:
            prior_mean, prior_scale = self._scaled_prior(params)
            kappa, freedom, floor = self._prior_weight(params, n)
            mass = stats.n + kappa
            x = x + kappa * prior_mean
            xx = xx + prior_scale + kappa * shape.outer(prior_mean, prior_mean)
        offset = x / mass[:, None]
        covariance = (xx - shape.outer(mass[:, None] * offset, offset)) / freedom + floor
        return offset, covariance, shape.variances(xx / freedom)

    def _prior_weight(self, params: GaussianParams, n: Float) -> tuple[float, Array, Float]:
        """Return the rows that the prior's mean counts as, what divides the scatter, and what is added to it then."""
        k, d = params.means.shape
        return SHRINKAGE, self.shape.freedom(n, d) + self.shape.prior_freedom(k, d), np.zeros(1)

    def _scaled_prior(self, params: GaussianParams) -> tuple[Float, Float]:
        """Return the prior's mean less the references (k, d) and its scale matrix, in scaled units."""
        away = (params.prior_mean - params.reference) * params.scale
        return away, self.shape.rescaled(params.prior_scale, params.scale)

    def _assemble(self, params: GaussianParams, means: Float, covariance: Float, factor: Float) -> GaussianParams:
        """Return `params` with new means and with covariances and factors that come in scaled units."""
        return replace(
            params,
            means=means,
            covariances=self.shape.unscaled(covariance, params.scale),
            precisions_cholesky=factor * self.shape.units(params.scale),
            repaired=np.zeros(len(means), np.int8),
        )

    def _place_references(self, params: GaussianParams, unsure: Array) -> GaussianParams:
        """Return `params` with references moved where the accuracy rule demands (see the module).

        A component whose covariance came out wrong gets its own reference, hence the most accurate arithmetic.
        """
        near, home = self._near(params, params.reference), self._near(params, params.shift, 1 / 4)
        reference = np.where(near[:, None], params.reference, params.means)
        reference = np.where(home[:, None], params.shift, reference)
        return replace(params, reference=np.where(unsure[:, None], params.means, reference))

    def _near(self, params: GaussianParams, points: Float, share: float = 1.0) -> Array:
        """Return whether the means lie within a share of the bounds of the accuracy rule from `points`, (k,)."""
        delta, factor = params.means - points, params.precisions_cholesky / self.shape.units(params.scale)
        apart = np.abs(delta / self._deviations(params)).max(axis=1)
        far = self.shape.ratios(delta * params.scale, factor)
        return np.asarray((apart <= share * FEATURE_RATIO) & (far <= share * COMMON_RATIO))

    def _repair(
        self, new: GaussianParams, old: GaussianParams, n: Float, empty: Array, collapsed: Array
    ) -> GaussianParams:
        """Return `new` with empty and collapsed components dealt with by the policy."""
        vacant = np.flatnonzero(empty | collapsed)
        if self.on_collapse == "raise":
            remedy = "another start" if self.prior else f"raise reg_covar (now {self.reg_covar:g}), prior='conjugate'"
            what = None if empty[vacant[0]] else "its covariance is not positive definite"
            raise_degenerate(int(vacant[0]), n, what, remedy)
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
            if name == "means" or not self.shape.tied:
                value[vacant] = getattr(old, name)[vacant]
            elif tied_too:
                value[...] = getattr(old, name)

    def _split(self, fields: dict[str, Float], k: int, donor: int) -> None:
        """Put half of component `donor` into k: each half a standard deviation from its mean on its main axis."""
        covariance = fields["covariances"] if self.shape.tied else fields["covariances"][donor]
        means = fields["means"]
        step = 0.5 * self.shape.longest_axis(covariance, means.shape[1])
        means[k], means[donor] = means[donor] + step, means[donor] - step
        if not self.shape.tied:
            for name in ("covariances", "precisions_cholesky"):
                fields[name][k] = fields[name][donor]
