"""THE TABLE: one row a model. Every row is put through every property of the conformance suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln, log_softmax

from daskem import models
from daskem.core import Chunk, Expectation, Footprint
from daskem.models.gaussian import Gaussian
from daskem.models.gaussian_algebra import SHAPES
from daskem.models.kmeans import KMeans
from daskem.models.mixture import Mixture
from daskem.models.normal_wishart import NormalWishart
from daskem.models.variational import VariationalMixture
from daskem.testing import TwoCoins, family_model


@dataclass(frozen=True)
class Case:
    """A model to try.

    Attributes
    ----------
    name : what test ids call it.
    model : the model; a family comes as ``family_model(family)``.
    draw : gives (n, d) rows of which the model makes sense.
    weighted : whether to try it with weights between 0.5 and 1.5.
    n_labels : if positive, every third row gets a known component below it.
    soft_labels : whether `n_labels` are probabilities instead: one component of every third row is forbidden, of every
        other third all are as likely as they are.
    skip : properties that the model does not keep by design or cannot be asked for, see `check_model`.
    """

    name: str
    model: Any
    draw: Callable[[np.random.Generator, int], np.ndarray]
    weighted: bool = False
    n_labels: int = 0
    soft_labels: bool = False
    skip: frozenset[str] = frozenset()

    def chunk(self, n: int = 120) -> Chunk:
        rng = np.random.default_rng(42)
        rows = np.ascontiguousarray(self.draw(rng, n), dtype=np.float64)
        weight = rng.uniform(0.5, 1.5, n) if self.weighted else None
        labels = np.where(np.arange(n) % 3, -1, rng.integers(self.n_labels, size=n)) if self.n_labels else None
        if self.soft_labels:
            labels = rng.dirichlet(np.ones(self.n_labels), n) * (np.arange(self.n_labels) != labels[:, None])
            labels[1::3] = 1.0
        return Chunk(rows, weight, labels, start=1000)


@dataclass(frozen=True)
class CountStats:
    n: np.ndarray
    x: np.ndarray


@dataclass(frozen=True)
class PoissonMixtureParams:
    weights: np.ndarray
    rates: np.ndarray


@dataclass(frozen=True)
class PoissonMixture:
    """A mixture of Poisson distributions, (n, 1) counts, with every optional capability.

    With `shape` > 1 each rate has a Gamma(shape, 1) prior; the M-step is then the posterior mode.
    """

    n_components: int = 2
    shape: float = 1.0
    scale: float = 0.0

    def init(self, sample: Chunk, rng: np.random.Generator) -> PoissonMixtureParams:
        mean = sample.rows.mean()
        rates = mean * (0.5 + np.arange(self.n_components)) + rng.uniform(0.0, 0.1, self.n_components)
        return PoissonMixtureParams(np.full(self.n_components, 1.0 / self.n_components), rates)

    def joint(self, params: PoissonMixtureParams, rows: np.ndarray) -> np.ndarray:
        x = rows[:, :1].astype(np.float64)
        return np.log(params.weights) + x * np.log(params.rates) - params.rates - gammaln(x + 1.0)

    def e_step(self, params: PoissonMixtureParams, chunk: Chunk) -> Expectation:
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        resp = chunk.scratch.empty("resp", (len(chunk), self.n_components))
        resp[:] = self.posterior(params, chunk) * weight[:, None]
        stats = CountStats(resp.sum(axis=0), resp.T @ chunk.rows[:, 0].astype(np.float64))
        return Expectation(stats, float(weight @ self.log_prob(params, chunk)), chunk.total_weight)

    def m_step(self, stats: CountStats, params: PoissonMixtureParams) -> PoissonMixtureParams:
        rates = (stats.x + self.shape - 1.0) / (stats.n + self.scale)
        return PoissonMixtureParams(stats.n / stats.n.sum(), rates)

    def log_prior(self, params: PoissonMixtureParams) -> float:
        return float(((self.shape - 1.0) * np.log(params.rates) - self.scale * params.rates).sum())

    def surrogate(self, stats: CountStats, params: PoissonMixtureParams) -> float:
        return float(stats.n @ (np.log(params.weights) - params.rates) + stats.x @ np.log(params.rates))

    def to_vector(self, params: PoissonMixtureParams) -> np.ndarray:
        logits = np.log(params.weights[:-1]) - np.log(params.weights[-1])
        return np.concatenate([logits, np.log(params.rates)])

    def from_vector(self, vector: np.ndarray, params: PoissonMixtureParams) -> PoissonMixtureParams:
        k = self.n_components
        return PoissonMixtureParams(np.exp(log_softmax(np.append(vector[: k - 1], 0.0))), np.exp(vector[k - 1 :]))

    def parameter_names(self, params: PoissonMixtureParams) -> list[str]:
        ratios = [f"log weight ratio of component {k}" for k in range(self.n_components - 1)]
        return ratios + [f"component {k}: log rate" for k in range(self.n_components)]

    def scores(self, params: PoissonMixtureParams, chunk: Chunk) -> np.ndarray:
        resp = self.posterior(params, chunk)
        return np.hstack([(resp - params.weights)[:, :-1], resp * (chunk.rows[:, :1] - params.rates)])

    def posterior(self, params: PoissonMixtureParams, chunk: Chunk) -> np.ndarray:
        return np.exp(log_softmax(self.joint(params, chunk.rows), axis=1))

    def log_prob(self, params: PoissonMixtureParams, chunk: Chunk) -> np.ndarray:
        return np.logaddexp.reduce(self.joint(params, chunk.rows), axis=1)

    def n_parameters(self, params: PoissonMixtureParams) -> int:
        return 2 * self.n_components - 1

    def sample(self, params: PoissonMixtureParams, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        latent = rng.choice(self.n_components, size=n, p=params.weights)
        return rng.poisson(params.rates[latent])[:, None].astype(np.float64), latent

    def moves(
        self, params: PoissonMixtureParams, sample: Chunk, rng: np.random.Generator
    ) -> list[tuple[str, PoissonMixtureParams]]:
        rates = 0.5 + rng.choice(sample.rows[:, 0], self.n_components).astype(np.float64)
        return [("rates at rows", PoissonMixtureParams(params.weights, rates))]

    def footprint(self, n_features: int, dtype: np.dtype[Any]) -> Footprint:
        k = self.n_components
        return Footprint(block_rows=4096, workspace=4096 * 4 * 8 * k, stats=16 * k, params=16 * k)


@dataclass(frozen=True)
class Poisson:
    """A family: independent Poisson columns; params are rates (k, d)."""

    def init(self, sample: Chunk, resp: np.ndarray) -> np.ndarray:
        return self.m_step(self.stats(None, sample, resp), None)

    def log_prob(self, params: np.ndarray, chunk: Chunk) -> np.ndarray:
        x = chunk.rows.astype(np.float64)
        result = chunk.scratch.empty("log_prob", (len(chunk), len(params)))
        np.matmul(x, np.log(params).T, out=result)
        result -= params.sum(axis=1) + gammaln(x + 1.0).sum(axis=1)[:, None]
        return result

    def stats(self, params: Any, chunk: Chunk, resp: np.ndarray) -> CountStats:
        return CountStats(resp.sum(axis=0), resp.T @ chunk.rows.astype(np.float64))

    def m_step(self, stats: CountStats, params: Any) -> np.ndarray:
        return stats.x / stats.n[:, None]


def counts(rng: np.random.Generator, n: int) -> np.ndarray:
    """Counts around 2 and around 9."""
    return rng.poisson(rng.choice([2.0, 9.0], size=(n, 1)))


def count_table(rng: np.random.Generator, n: int) -> np.ndarray:
    """Three columns of counts from two kinds of row."""
    return rng.poisson(np.array([[1.0, 5.0, 9.0], [7.0, 5.0, 2.0]])[rng.integers(2, size=n)])


def blobs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two overlapping correlated clouds in three dimensions, far from the origin."""
    mix = np.array(
        [[[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.0, 0.3, 0.5]], [[0.7, 0.0, 0.0], [-0.4, 1.2, 0.0], [0.2, 0.0, 1.0]]]
    )
    which = rng.integers(2, size=n)
    return 100.0 + 2.5 * which[:, None] + np.einsum("nij,nj->ni", mix[which], rng.standard_normal((n, 3)))


def blobs_with_holes(rng: np.random.Generator, n: int) -> np.ndarray:
    """`blobs` with three holes in ten values, some rows without any value."""
    return np.where(rng.random((n, 3)) < 0.3, np.nan, blobs(rng, n))


def heavy_tails(rng: np.random.Generator, n: int) -> np.ndarray:
    """The clouds of `blobs`, about their place, with four degrees of freedom."""
    return 100.0 + (blobs(rng, n) - 100.0) / np.sqrt(rng.chisquare(4, size=(n, 1)) / 4)


def heads(rng: np.random.Generator, n: int) -> np.ndarray:
    """Heads among ten tosses of one of two coins."""
    return rng.binomial(10, rng.choice([0.3, 0.8], size=(n, 1)))


def binary(rng: np.random.Generator, n: int) -> np.ndarray:
    """Four columns of zeros and ones from two kinds of row."""
    odds = np.array([[0.8, 0.3, 0.6, 0.9], [0.2, 0.7, 0.3, 0.4]])[rng.integers(2, size=n)]
    return (rng.random((n, 4)) < odds).astype(float)


def codes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Three columns of codes with 3, 2 and 4 levels from two kinds of row."""
    which = rng.integers(2, size=(n, 1))
    first, second = (rng.random((n, 3)) ** power * [3, 2, 4] for power in (2.0, 0.7))
    return np.floor(np.where(which, first, second))


def waits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Three columns of positive numbers from two kinds of row."""
    return rng.gamma(1.5, np.array([[1.0, 5.0, 9.0], [7.0, 5.0, 2.0]])[rng.integers(2, size=n)])


def words(rng: np.random.Generator, n: int) -> np.ndarray:
    """Counts of four words in texts of one to twenty words of two kinds."""
    shares = np.array([[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])[rng.integers(2, size=n)]
    return rng.multinomial(rng.integers(1, 20, size=n), shares)


def directions(rng: np.random.Generator, n: int) -> np.ndarray:
    """Unit vectors about two axes of four dimensions."""
    rows = rng.standard_normal((n, 4)) + 3.0 * np.eye(2, 4)[rng.integers(2, size=n)]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def with_holes(
    draw: Callable[[np.random.Generator, int], np.ndarray], hole: float = np.nan
) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Return rows of `draw` of which an entry in six is missing."""

    def rows(rng: np.random.Generator, n: int) -> np.ndarray:
        values = draw(rng, n).astype(float)
        values[rng.random(values.shape) < 1 / 6] = hole
        return values

    return rows


def beside(
    *draws: Callable[[np.random.Generator, int], np.ndarray],
) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Return the columns of several tables side by side."""
    return lambda rng, n: np.concatenate([draw(rng, n).astype(float) for draw in draws], axis=1)


# What a mixture cannot do for a family that has nothing but the four methods of the contract.
BARE_FAMILY = frozenset(
    {
        "every_coordinate_has_a_name",
        "fisher_identity",
        "m_step_ascends",
        "m_step_maximises",
        "sample_is_like_the_rows",
        "scores_are_gradients",
        "vector_round_trip",
    }
)


def family_cases(
    name: str, plain: Any, penalised: Any, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> list[Case]:
    """Return the rows of a family: by itself, in mixtures with weights, labels and priors, and with holes."""
    cases = [
        Case(f"{name} family", family_model(plain), draw),
        Case(f"{name} family with a prior, weighted", family_model(penalised), draw, weighted=True),
        # Short runs of EM, where a family starts so, take longer than all that is checked here.
        Case(f"{name} mixture", Mixture(plain, 2, "random"), draw),
        Case(f"{name} mixture, partly labelled", Mixture(plain, 2, "random"), draw, weighted=True, n_labels=2),
        Case(f"{name} mixture with priors", Mixture(penalised, 3, "random", weight_prior=2.0), draw),
    ]
    if plain.handles_missing:
        mixture = Mixture(plain, 2, "random")
        cases.append(Case(f"{name} mixture with holes, weighted", mixture, with_holes(draw), weighted=True))
    return cases


CASES = [
    Case("two coins", TwoCoins(), heads),
    Case("two coins, weighted", TwoCoins(), heads, weighted=True),
    Case("Poisson mixture", PoissonMixture(), counts),
    Case("Poisson mixture, weighted, 3 components", PoissonMixture(3), counts, weighted=True),
    Case("Poisson mixture with a prior", PoissonMixture(2, shape=3.0, scale=1.0), counts),
    Case("Poisson family", family_model(Poisson(), 2), count_table),
    *(
        Case(
            f"Gaussian mixture, {covariance}, {prior or 'no'} prior",
            Mixture(Gaussian(covariance, 0.0, prior), 2),
            blobs,
        )
        for covariance in SHAPES
        for prior in (None, "conjugate")
    ),
    *(
        Case(f"Gaussian family, {covariance}", family_model(Gaussian(covariance, 0.0), 2), blobs)
        for covariance in SHAPES
    ),
    Case("Gaussian mixture, weighted", Mixture(Gaussian("full", 0.0), 2), blobs, weighted=True),
    Case("Gaussian mixture, partly labelled", Mixture(Gaussian("full", 0.0), 2), blobs, n_labels=2),
    Case("Gaussian mixture, 3 components, defaults", Mixture(Gaussian(), 3), blobs),
    Case("Poisson mixture of a family", Mixture(Poisson(), 2), count_table, skip=BARE_FAMILY),
    Case("k-means", KMeans(3), blobs),
    Case("k-means, weighted, partly labelled", KMeans(2), blobs, weighted=True, n_labels=2),
    Case("Gaussian mixture, soft labels", Mixture(Gaussian(), 3), blobs, weighted=True, n_labels=3, soft_labels=True),
    *family_cases("Bernoulli", models.Bernoulli(), models.Bernoulli(0.5), binary),
    *family_cases("categorical", models.Categorical(), models.Categorical(0.5, levels=(3, 2, 4)), codes),
    Case(
        "categorical family, many levels",
        family_model(models.Categorical(0.5, levels=60)),
        with_holes(lambda rng, n: rng.integers(60, size=(n, 2))),
        weighted=True,
    ),
    Case("categorical mixture, -1 for holes, defaults", Mixture(models.Categorical(), 2), with_holes(codes, -1.0)),
    *family_cases("multinomial", models.Multinomial(), models.Multinomial(0.5), words),
    Case("multinomial mixture with holes and priors", Mixture(models.Multinomial(0.5), 2, "random"), with_holes(words)),
    *family_cases("Poisson of daskem", models.Poisson(), models.Poisson(1.0), count_table),
    *family_cases("exponential", models.Exponential(), models.Exponential(1.0), waits),
    *family_cases("gamma", models.Gamma(), models.Gamma(1.0), waits),
    *family_cases("von Mises-Fisher", models.VonMisesFisher(), models.VonMisesFisher(1.0), directions),
    *family_cases(
        "product",
        models.Product(
            {"waits": models.Gamma(), "flags": models.Bernoulli(), "answers": models.Categorical(levels=(3, 2, 4))},
            {"waits": [0, 1, 2], "flags": [3, 4, 5, 6], "answers": [9, 7, 8]},
        ),
        models.Product(
            {"waits": Gaussian("full", 0.0, "conjugate"), "answers": models.Categorical(0.5)},
            {"waits": [0, 1, 2], "answers": [7, 8]},
        ),
        beside(waits, binary, lambda rng, n: codes(rng, n)[:, [1, 2, 0]]),
    ),
    *(
        Case(
            f"variational mixture, {covariance}",
            VariationalMixture(NormalWishart(covariance, 0.0), 2),
            blobs,
            weighted=True,
            n_labels=labels,
        )
        for covariance, labels in (("full", 0), ("tied", 2), ("diag", 0), ("spherical", 0))
    ),
    Case(
        "variational mixture, Dirichlet distribution",
        VariationalMixture(NormalWishart("full", 0.0), 3, weight_distribution="dirichlet_distribution"),
        blobs,
    ),
    *(
        Case(
            f"variational mixture with holes, {covariance}",
            VariationalMixture(NormalWishart(covariance, 0.0, missing=True), 2),
            blobs_with_holes,
            weighted=covariance == "full",
        )
        for covariance in ("full", "tied", "diag")
    ),
    Case("variational weights of Gaussians", VariationalMixture(Gaussian("full", 0.0, "conjugate"), 2), blobs),
    *(
        Case(
            f"Gaussian mixture with holes, {covariance}",
            Mixture(Gaussian(covariance, 0.0, missing=True), 2),
            blobs_with_holes,
        )
        for covariance in ("full", "tied", "diag", "spherical", "tied_diag")
    ),
    Case(
        "Gaussian mixture with holes, a prior, weights and labels",
        Mixture(Gaussian("full", 0.0, "conjugate", missing=True), 2),
        blobs_with_holes,
        weighted=True,
        n_labels=2,
    ),
    Case("Gaussian family with holes", family_model(Gaussian("full", 0.0, missing=True), 2), blobs_with_holes),
    Case(
        "product with holes in a Gaussian",
        Mixture(
            models.Product(
                {"size": Gaussian("full", 0.0, missing=True), "flags": models.Bernoulli(0.5)},
                {"size": [0, 1, 2], "flags": [3, 4, 5, 6]},
            ),
            2,
        ),
        beside(blobs_with_holes, with_holes(binary)),
    ),
    *(
        Case(
            f"Student-t mixture, {covariance}, dof {dof}, {prior or 'no'} prior",
            Mixture(models.StudentT(covariance, dof, 0.0, prior), 2),
            heavy_tails,
        )
        for covariance in SHAPES
        for dof, prior in (("each", None), ("shared", "conjugate"), (3.0, None))
    ),
    *(
        Case(f"Student-t family, dof {dof}", family_model(models.StudentT("full", dof, 0.0)), heavy_tails)
        for dof in ("each", "shared", 3.0)
    ),
    Case(
        "Student-t mixture, weighted, labelled", Mixture(models.StudentT(), 3), heavy_tails, weighted=True, n_labels=3
    ),
    *(
        Case(
            f"Student-t mixture with holes, {covariance}, dof {dof}",
            Mixture(models.StudentT(covariance, dof, 0.0, missing=True), 2),
            with_holes(heavy_tails),
        )
        for covariance, dof in (("full", "each"), ("tied", 3.0), ("diag", "shared"), ("tied_spherical", "each"))
    ),
]
