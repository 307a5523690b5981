"""The examples that EM is taught with, each a small model of one's own, against the numbers in print."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import logit, xlogy

from daskem import BatchEM, Change, Chunk, Expectation, MaxSteps, fit
from daskem.core import Float
from daskem.testing import TwoCoins, check_model

CODES = np.arange(4.0)[:, None]


def one_hot(chunk: Chunk) -> Float:
    """Return the weight of each row in the column of its code, (n, 4)."""
    weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
    return weight[:, None] * (chunk.rows == CODES.T)


@dataclass(frozen=True)
class BloodGroups:
    """Frequencies (3,) of the genes A, B and O from blood groups coded 0 (A), 1 (B), 2 (AB), 3 (O).

    Hidden are the genes of each person: AA or AO behind group A, BB or BO behind group B. Statistics: genes counted.
    """

    def init(self, sample: Chunk, rng: np.random.Generator) -> Float:
        return np.full(3, 1 / 3)

    def e_step(self, params: Float, chunk: Chunk) -> Expectation:
        p, q, r = params
        groups = np.array([p * p + 2 * p * r, q * q + 2 * q * r, 2 * p * q, r * r])
        # Expected genes of each group: an AA person is one of p^2 in p^2 + 2 p r.
        a, b = p * p / groups[0], q * q / groups[1]
        genes = np.array([[1 + a, 0, 1 - a], [0, 1 + b, 1 - b], [1, 1, 0], [0, 0, 2]])
        counts = one_hot(chunk).sum(axis=0)
        return Expectation(counts @ genes, float(xlogy(counts, groups).sum()), chunk.total_weight)

    def m_step(self, stats: Float, params: Float) -> Float:
        return stats / stats.sum()


@dataclass(frozen=True)
class Linkage:
    """Rao's animals in four classes with probabilities (2 + pi, 1 - pi, 1 - pi, pi) / 4.

    Hidden is which animals of the first class belong to its part that depends on pi.
    """

    start: float = 0.5

    def init(self, sample: Chunk, rng: np.random.Generator) -> Float:
        return np.array([self.start])

    def e_step(self, params: Float, chunk: Chunk) -> Expectation:
        (pi,) = params
        counts = one_hot(chunk).sum(axis=0)
        cells = np.array([2 + pi, 1 - pi, 1 - pi, pi]) / 4
        stats = np.array([counts[0] * pi / (2 + pi) + counts[3], counts[1] + counts[2]])
        return Expectation(stats, float(xlogy(counts, cells).sum()), chunk.total_weight)

    def m_step(self, stats: Float, params: Float) -> Float:
        return stats[:1] / stats.sum()

    def surrogate(self, stats: Float, params: Float) -> float:
        return float(stats @ np.log([params[0], 1 - params[0]]))

    def to_vector(self, params: Float) -> Float:
        return logit(params)

    def from_vector(self, vector: Float, params: Float) -> Float:
        return 1 / (1 + np.exp(-vector))


def iterates(model, rows, weight, steps, params=None):
    """Return the parameters after each step of batch EM, through `daskem.fit`."""
    path = []
    fit(
        model,
        rows,
        sample_weight=weight,
        params=params,
        algorithm=BatchEM(),
        stop=MaxSteps(steps),
        callbacks=[lambda info, params: path.append(params)],
    )
    return np.stack(path)


def test_abo_blood_groups():
    """Clarke et al. (1959), Brit. Med. J. 1, 603: patients with duodenal ulcer; Lange (2010), Numerical Analysis for
    Statisticians, section 13.3 (0.2136, 0.0501, 0.7363)."""
    result = fit(
        BloodGroups(), CODES, sample_weight=np.array([186.0, 38, 13, 284]), algorithm=BatchEM(), stop=Change(1e-12)
    )
    assert result.converged
    np.testing.assert_allclose(result.params, [0.2136, 0.0501, 0.7363], atol=5e-5)


def test_genetic_linkage():
    """Dempster, Laird & Rubin (1977), J. R. Stat. Soc. B 39(1), table 1: every iterate, and the ratio of the errors."""
    counts = np.array([125.0, 18, 20, 34])
    path = iterates(Linkage(), CODES, counts, 8)[:, 0]
    printed = [
        0.608247423,
        0.624321051,
        0.626488879,
        0.626777323,
        0.626815632,
        0.626820719,
        0.626821395,
        0.626821484,
    ]
    np.testing.assert_allclose(path, printed, atol=5.1e-10)
    end = fit(Linkage(), CODES, sample_weight=counts, algorithm=BatchEM(), stop=Change(1e-14)).params[0]
    # The root of 197 pi^2 - 15 pi - 68 = 0.
    assert end == pytest.approx((15 + np.sqrt(15**2 + 4 * 197 * 68)) / (2 * 197), abs=1e-12)
    # In print 0.6268214980, which is 1.3e-10 above that root.
    assert end == pytest.approx(0.6268214980, abs=2e-10)
    np.testing.assert_allclose((path[4:7] - end) / (path[3:6] - end), 0.1328, atol=5e-4)


def test_two_coins():
    """Do & Batzoglou (2008), Nature Biotechnology 26, 897, figure 1b: five sets of ten tosses."""
    heads = np.array([[5.0], [9], [8], [4], [7]])
    path = iterates(TwoCoins(10), heads, None, 10, np.array([0.6, 0.5]))
    np.testing.assert_allclose(path[0], [0.71, 0.58], atol=0.005)
    np.testing.assert_allclose(path[-1], [0.80, 0.52], atol=0.005)


@pytest.mark.parametrize("model", [BloodGroups(), Linkage()], ids=lambda model: type(model).__name__)
def test_textbook_models_keep_the_contract(model):
    rows = np.repeat(CODES, [31, 6, 3, 40], axis=0)
    assert "objective_never_falls" in check_model(model, rows)
