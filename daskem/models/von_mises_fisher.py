"""Directions: von Mises-Fisher variables on the unit sphere given the component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy
from scipy.special import ive, logit

from daskem.core import Array, Float
from daskem.errors import DataError, OptionError
from daskem.models.joint import JointFamily
from daskem.models.natural import filled

__all__ = ["VonMisesFisher", "VonMisesFisherParams", "concentration_of", "log_ive", "mean_length"]

# How far the squared length of a row may be from one: single precision keeps 1e-6 in thousands of dimensions.
UNIT_ATOL = 1e-5
# The least length of what is missing: rounding leaves no less of a row.
LEAST_REST = 1e-6
# The least concentration, at which the density is uniform to rounding.
CONCENTRATION_FLOOR = 1e-8
# Where ive is smaller than this it is about to underflow, and the order is large enough for Debye's expansion.
IVE_FLOOR = 1e-250
# Newton's iterations; four or five reach rounding, the derivative being nearly one.
MAX_NEWTON, NEWTON_ATOL = 50, 1e-13


@dataclass(frozen=True, eq=False)
class VonMisesFisherParams:
    """Unit vectors `directions` (k, d), `concentrations` (k,), and `repaired` (k,) (see `daskem.models.repair`)."""

    directions: Float
    concentrations: Float
    repaired: Array


@dataclass(frozen=True)
class VonMisesFisher(JointFamily):
    """A family of von Mises-Fisher components: rows are unit vectors in two or more dimensions.

    log p(x | k) = c mu . x + log C_d(c), with C_d(c) = c^(d/2 - 1) / ((2 pi)^(d/2) I_{d/2-1}(c)) [1]_. The M-step takes
    mu = r / |r|, r the weighted sum of the rows, and solves A_d(c) = I_{d/2}(c) / I_{d/2-1}(c) = |r| / n exactly, where
    [1]_ approximates; see [2]_ for how.

    What a row with q holes (NaN) has there is a vector of length s = sqrt(1 - |x_o|^2) in R^q. Its directions have, by
    the same constant, the integral of exp(s c mu_m . u), (2 pi)^(q/2) I_{q/2-1}(t) / t^(q/2-1) with t = s c |mu_m|; the
    density of x_o has that and s^(q-2) in the place of what is missing, and s A_q(t) mu_m / |mu_m| is expected [3]_.

    Parameters
    ----------
    pseudo_count : pseudo-rows, spread evenly over the sphere, that the prior adds to each component.
    on_collapse : "keep", "reseed" or "raise": what to do with a component that is empty or at `max_concentration`.
    max_concentration : largest concentration: equal rows have no finite one.

    References
    ----------
    .. [1] Banerjee, Dhillon, Ghosh & Sra (2005), J. Mach. Learn. Res. 6, 1345-1382, equations 2.1 and 2.4.
    .. [2] Hornik & Grün (2014), Computational Statistics 29, 945-957.
    .. [3] Mardia & Jupp (2000), Directional Statistics, sections 9.3.1 and 9.3.2.
    """

    max_concentration: float = 1e8

    takes: ClassVar[str] = "unit vectors, NaN for what is missing"
    fields: ClassVar[tuple[str, ...]] = ("directions", "concentrations")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.max_concentration <= 1e8:
            raise OptionError(f"max_concentration is {self.max_concentration!r}; it must be above 1, at most 1e8.")

    def unsupported(self, params: VonMisesFisherParams | None, rows: Array) -> tuple[int, str] | None:
        """Return the first row that is not a unit vector, and its length; None if there is none."""
        holes = np.isnan(rows)
        bad = ~(self._valid(rows, params) | holes).all(axis=1)
        if not bad.any():
            return None
        i = int(bad.argmax())
        length = float(np.linalg.norm(np.asarray(rows[i][~holes[i]], np.float64)))
        what = "what it has is of" if holes[i].any() else "it has"
        return i, f"{what} length {length:.7g}, and VonMisesFisher takes unit vectors: divide each row by its length"

    def embedding(self, rows: Array) -> Float:
        """Return the rows, holes filled: between unit vectors squared distances are 2 - 2 cos."""
        return filled(rows)

    def draw(self, params: VonMisesFisherParams, components: Array, rng: np.random.Generator) -> Float:
        """Return one row from each of the given components, (n, d)."""
        rows = np.empty((len(components), params.directions.shape[1]))
        for k in np.unique(components):
            mine = components == k
            # By its full name SciPy loads scipy.stats only here: 30 MB, for which a worker has no use.
            law = scipy.stats.vonmises_fisher(params.directions[k], params.concentrations[k])
            rows[mine] = law.rvs(int(mine.sum()), random_state=rng)
        return rows

    def record_bytes(self, k: int, d: int) -> tuple[int, int]:
        """Return the bytes of the statistics and of the parameters of k components."""
        return 8 * k * (2 + d), 8 * k * (d + 1) + k

    def _valid(self, rows: Array, params: VonMisesFisherParams | None) -> Array:
        squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
        complete = np.broadcast_to(np.abs(squares - 1.0)[:, None] <= UNIT_ATOL, rows.shape)
        if not np.isnan(squares).any():
            return complete
        there = np.where(np.isnan(rows), 0.0, rows)
        short = np.einsum("nd,nd->n", there, there, dtype=np.float64) <= 1.0 + UNIT_ATOL
        return np.where(np.isnan(squares)[:, None], short[:, None] & ~np.isnan(rows), complete)

    def _of_holed(self, params: VonMisesFisherParams, values: Float, holes: Array) -> tuple[Float, Float]:
        count = holes.sum(axis=1)[:, None]
        rest = np.sqrt(np.maximum(1.0 - np.einsum("nd,nd->n", values, values), LEAST_REST**2))[:, None]
        length = np.sqrt(holes @ (params.directions**2).T)
        t = np.maximum(rest * params.concentrations * length, CONCENTRATION_FLOOR)
        log_prob, mean = np.empty(t.shape), np.empty(t.shape)
        for q in np.unique(count):
            rows = count[:, 0] == q
            log_prob[rows], mean[rows] = _over_directions(t[rows], int(q))
        log_prob += (count - 2) * np.log(rest)
        return log_prob, rest * mean / np.where(length > 0, length, 1.0)

    def _vectors(self, params: VonMisesFisherParams) -> Float:
        return params.directions

    def _natural(self, params: VonMisesFisherParams) -> tuple[Float, Float]:
        c, d = params.concentrations[:, None], params.directions.shape[1]
        order = d / 2 - 1
        return c * params.directions, order * np.log(c) - d / 2 * np.log(2 * np.pi) - log_ive(order, c) - c

    def _pseudo(self, params: VonMisesFisherParams) -> tuple[Any, Any]:
        return self.pseudo_count, 0.0

    def _blank(self, rows: Array, k: int) -> VonMisesFisherParams:
        d = rows.shape[1]
        if d < 2:
            raise DataError("VonMisesFisher needs rows of two or more features; unit vectors of one are just signs.")
        return VonMisesFisherParams(np.eye(1, d).repeat(k, axis=0), np.ones(k), np.zeros(k, np.int8))

    def _maximise(self, observed: Float, x: Float, params: VonMisesFisherParams) -> VonMisesFisherParams:
        length = np.linalg.norm(x, axis=1)
        seen = (length > 0) & (observed[:, 0] > 0)
        directions = np.where(seen[:, None], x / np.where(seen, length, 1.0)[:, None], params.directions)
        mean = np.where(seen, length / np.where(seen, observed[:, 0], 1.0), 0.0)
        return self._of(directions, concentration_of(mean, x.shape[1], self.max_concentration))

    def _at_bound(self, params: VonMisesFisherParams) -> Array:
        return np.asarray(params.concentrations >= self.max_concentration)

    def _halves(self, params: VonMisesFisherParams, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        # Both turn by half a standard deviation, away from each other, towards the axis most at right angles.
        direction, c = params.directions[k], float(params.concentrations[k])
        axis = np.eye(len(direction))[np.abs(direction).argmin()]
        aside = axis - (axis @ direction) * direction
        aside /= np.linalg.norm(aside)
        angle = 0.5 / np.sqrt(max(c, 1.0))
        turned = [np.cos(angle) * direction + sign * np.sin(angle) * aside for sign in (1, -1)]
        return tuple({"directions": half, "concentrations": c} for half in turned)  # type: ignore[return-value]

    def _coordinates(self, params: VonMisesFisherParams) -> list[Float]:
        return [params.concentrations[:, None] * params.directions]

    def _from_coordinates(self, parts: list[Float], params: VonMisesFisherParams) -> VonMisesFisherParams:
        length = np.linalg.norm(parts[0], axis=1)
        c = np.clip(length, CONCENTRATION_FLOOR, self.max_concentration)
        seen = length > CONCENTRATION_FLOOR
        directions = np.where(seen[:, None], parts[0] / np.where(seen, length, 1.0)[:, None], params.directions)
        return self._of(directions, c)

    def _of(self, directions: Float, concentrations: Float) -> VonMisesFisherParams:
        return VonMisesFisherParams(directions, concentrations, np.zeros(len(directions), np.int8))


def log_ive(order: float, x: Float) -> Float:
    """Return log(I_order(x) exp(-x)) for x > 0, also where I itself underflows.

    There Debye's uniform expansion to order^-4 is used, whose error is below 1e-10 at the orders where that happens
    (NIST Digital Library of Mathematical Functions, 10.41.3 and 10.41.10).
    """
    value = ive(order, x)
    small = value < IVE_FLOOR
    out = np.log(np.where(small, 1.0, value))
    if small.any():
        out[small] = _log_ive_uniform(order, x[small])
    return np.asarray(out)


def mean_length(x: Float, d: int) -> Float:
    """Return A_d(x) = I_{d/2}(x) / I_{d/2-1}(x), the mean of mu . x at concentration x."""
    return np.asarray(np.exp(log_ive(d / 2, x) - log_ive(d / 2 - 1, x)))


def _over_directions(t: Float, q: int) -> tuple[Float, Float]:
    """Return the log of the integral of exp(t e . u) over unit vectors u in R^q, and the mean of e . u, e being one."""
    if q == 1:
        return np.logaddexp(t, -t), np.tanh(t)
    order = q / 2 - 1
    return q / 2 * np.log(2 * np.pi) + log_ive(order, t) + t - order * np.log(t), mean_length(t, q)


def concentration_of(mean: Float, d: int, most: float) -> Float:
    """Return the concentrations, between the floor and `most`, at which A_d equals `mean` (k,).

    Newton's method for logit A against log c, which is nearly a straight line of slope one at both ends, from the
    approximation of Banerjee et al. (2005), equation 4.4. A' = 1 - A^2 - (d - 1) A / c (their equation A.8); where that
    cancels, the slope is one. A_d rises, so a bound is the maximiser where the root lies beyond it.
    """
    span = np.array([CONCENTRATION_FLOOR, most])
    low, high = mean_length(span, d)
    c = np.full(len(mean), CONCENTRATION_FLOOR)
    c[mean >= high] = most
    inner = (mean > low) & (mean < high)
    target = mean[inner]
    log_c = np.log(np.clip(target * (d - target**2) / (1 - target**2), *span))
    for _ in range(MAX_NEWTON):
        x = np.exp(log_c)
        a = mean_length(x, d)
        slope = x * (1 - a * a - (d - 1) * a / x) / (a * (1 - a))
        step = (logit(a) - logit(target)) / np.clip(slope, 0.5, 2.0)
        log_c = np.clip(log_c - step, *np.log(span))
        if np.abs(step).max(initial=0.0) <= NEWTON_ATOL:
            break
    c[inner] = np.exp(log_c)
    return c


def _log_ive_uniform(order: float, x: Float) -> Float:
    z = x / order
    root = np.sqrt(1.0 + z * z)
    t = 1.0 / root
    series = np.ones_like(z)
    for m, coefficients in enumerate(_DEBYE, start=1):
        series += t**m * np.polynomial.polynomial.polyval(t * t, coefficients) / order**m
    # eta - z, in a form that does not cancel.
    exponent = order * (1.0 / (root + z) + np.log(z / (1.0 + root)))
    return np.asarray(exponent - 0.5 * np.log(2 * np.pi * order * root) + np.log(series))


# u_m(t) / t^m as polynomials in t^2, m = 1 to 4 (DLMF 10.41.10).
_DEBYE = (
    np.array([3.0, -5.0]) / 24,
    np.array([81.0, -462.0, 385.0]) / 1152,
    np.array([30375.0, -369603.0, 765765.0, -425425.0]) / 414720,
    np.array([4465125.0, -94121676.0, 349922430.0, -446185740.0, 185910725.0]) / 39813120,
)
