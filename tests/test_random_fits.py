"""Random fits of every model: the objective never falls, no parameter is NaN, or there is one error of daskem.

``pytest -m slow tests/test_random_fits.py`` makes `FITS` of each model, hours of them; the ordinary run `FEW`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, blobs, blobs_with_holes, heavy_tails

from daskem import tree
from daskem.algorithms.stopping import ROUNDING
from daskem.core import Chunk, HasLogPrior
from daskem.errors import DaskEMError
from daskem.models import KMeans

FITS, FEW, STEPS = 5_000, 12, 10
EPS = float(np.finfo(np.float64).eps)
# Rows of these may be moved and stretched at will.
ANYWHERE = (blobs, blobs_with_holes, heavy_tails)


def random_chunk(case: Case, rng: np.random.Generator) -> Chunk:
    """Return few rows, some of them repeated, weighted or labelled, of any size and place where that makes sense."""
    n = int(rng.integers(1, 60))
    rows = np.ascontiguousarray(case.draw(rng, n), dtype=np.float64)
    if case.draw in ANYWHERE:
        place = rng.choice([0.0, 1.0, 1e4, 1e8]) * rng.normal(size=rows.shape[1])
        rows = (rows - 100.0 + place) * 10.0 ** rng.choice([0, 0, 3, -3, 140, -140])
    if rng.random() < 0.3:
        rows = rows[rng.integers(max(1, n // 4), size=n)]
    if rng.random() < 0.1:
        rows[:, 0] = rows[0, 0]
    weight = rng.choice([0.0, 0.5, 1.0, 3.0], size=n) if rng.random() < 0.5 else None
    labels = np.where(rng.random(n) < 0.3, rng.integers(case.n_labels, size=n), -1) if case.n_labels else None
    return Chunk(rows, weight, labels)


def random_model(case: Case, rng: np.random.Generator) -> Any:
    """Return the model of a case, with another number of components where it has one."""
    if not hasattr(case.model, "n_components") or case.n_labels:
        return case.model
    return replace(case.model, n_components=int(rng.integers(1, 6)))


def can_start(model: Any, chunk: Chunk) -> bool:
    """Return whether a fit would begin: see `daskem.starts`."""
    present = chunk.rows if chunk.weight is None else chunk.rows[chunk.weight > 0]
    enough = len(present) >= getattr(model, "n_components", 1)
    return enough and len(present) > 0 and not np.isnan(present).all(axis=0).any()


def families_of(model: Any) -> list[Any]:
    """Return the family of a model, and those that it is put together from."""
    family = getattr(model, "family", None)
    return [family, *getattr(family, "families", {}).values()]


def floored(model: Any) -> bool:
    """Return whether a variance has a floor without a prior, which no likelihood knows of."""
    return any(getattr(f, "reg_covar", 0.0) > 0 and not getattr(f, "prior", None) for f in families_of(model))


def rounding(model: Any, params: Any) -> float:
    """Return the relative error of a log density that the condition of covariances explains, beside `ROUNDING`."""
    condition = 0.0
    shapes = {getattr(model, "covariance", None), *(getattr(f, "covariance", None) for f in families_of(model))}
    # Of one matrix, or one for each component; else a square one has as many components as features by chance.
    matrices = {2} if "tied" in shapes else {3}
    for path, leaf in tree.leaves(params):
        if path.endswith("precisions_cholesky") and leaf.ndim in matrices:
            unit = leaf / np.linalg.norm(leaf, axis=-1, keepdims=True)
            condition = max(condition, float(np.square(np.linalg.cond(unit).max())))
        elif path.endswith(("concentrations", "shapes")):
            condition = max(condition, float(leaf.max()))
    return ROUNDING + 16 * EPS * condition


def fit(model: Any, chunk: Chunk, rng: np.random.Generator, monotone: bool) -> str:
    """Make some steps and return how they went; fail where that is no way to go."""
    # Distances have the unit of the rows, and those to a center are as exact as those to the mean.
    spread = np.square(np.ptp(chunk.rows, axis=0)).sum() if isinstance(model, KMeans) else 0.0
    least = 16 * EPS * chunk.total_weight * spread
    try:
        params, before = model.init(chunk, rng), -np.inf
        for _ in range(STEPS):
            found = model.e_step(params, chunk)
            log_prior = model.log_prior(params) if isinstance(model, HasLogPrior) else 0.0
            objective = found.objective + log_prior
            assert tree.all_finite(found)
            slack = rounding(model, params) * max(chunk.total_weight, abs(before), abs(log_prior)) + least
            assert not monotone or before == -np.inf or objective >= before - slack, (before, objective, slack)
            params, before = model.m_step(found.stats, params), objective
            assert tree.all_finite(params)
    except DaskEMError as error:
        return type(error).__name__
    return "fitted"


def fit_many(case: Case, numbers: Iterable[int]) -> dict[str, int]:
    """Make the random fits of these numbers and return how many ended in which way."""
    ends: dict[str, int] = {}
    for i in numbers:
        rng = np.random.default_rng([CASES.index(case), i])
        chunk, model = random_chunk(case, rng), random_model(case, rng)
        if not can_start(model, chunk):
            continue
        try:
            with np.errstate(all="ignore"):
                end = fit(model, chunk, rng, not floored(case.model))
        except Exception as error:
            raise AssertionError(f"fit {i} of {case.name}") from error
        ends[end] = ends.get(end, 0) + 1
    return ends


def is_real(model: Any) -> bool:
    """Return whether a model is one of daskem's: test doubles divide by weights that may be zero."""
    parts = [model, *filter(None, families_of(model))]
    return all(type(part).__module__.startswith(("daskem.models.", "daskem.testing.families")) for part in parts)


REAL = [case for case in CASES if is_real(case.model) and not case.skip]
each_model = pytest.mark.parametrize("case", REAL, ids=lambda case: case.name)


@each_model
def test_random_fits_go_up_and_stay_numbers(case):
    ends = fit_many(case, range(FEW))
    assert ends["fitted"] >= FEW / 4


def test_components_that_collapse_over_holes_are_kept_before_rounding_decides():
    # Of thousands these fell, by 4 to 25 nats.
    (case,) = (case for case in REAL if case.name == "product with holes in a Gaussian")
    assert fit_many(case, (875, 921, 1333)) == {"fitted": 3}


@pytest.mark.slow
@each_model
def test_thousands_of_random_fits_go_up_and_stay_numbers(case):
    ends = fit_many(case, range(FITS))
    assert ends["fitted"] >= FITS / 4
