"""The properties of a family, on its own and in the simplest mixture that can be made of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from daskem import tree
from daskem.core import Array, Chunk, Expectation, Family, Float, HasLogPrior, Params, Scratch, Stats
from daskem.testing.models import MODEL_PROPERTIES
from daskem.testing.trial import ADDITIVE_RTOL, ModelTrial, Property, model_trial, run_properties, take

__all__ = ["FAMILY_PROPERTIES", "check_family", "family_model"]

# Nearly one component a row: components that start alike would stay alike.
SPREAD = 0.1


@dataclass(frozen=True)
class _EqualMixture:
    """The mixture of `n_components` members of a family with equal, fixed weights."""

    family: Any
    n_components: int

    def init(self, sample: Chunk, rng: np.random.Generator) -> Params:
        resp = rng.dirichlet(np.full(self.n_components, SPREAD), len(sample))
        return self.family.init(sample, resp if sample.weight is None else resp * sample.weight[:, None])

    def e_step(self, params: Params, chunk: Chunk) -> Expectation:
        log_prob, resp = self._explain(params, chunk)
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        stats = self.family.stats(params, chunk, resp * weight[:, None])
        return Expectation(stats, float(weight @ log_prob), chunk.total_weight)

    def m_step(self, stats: Stats, params: Params) -> Params:
        return self.family.m_step(stats, params)

    def posterior(self, params: Params, chunk: Chunk) -> Array:
        return self._explain(params, chunk)[1]

    def log_prob(self, params: Params, chunk: Chunk) -> Array:
        return self._explain(params, chunk)[0]

    def _explain(self, params: Params, chunk: Chunk) -> tuple[Float, Float]:
        joint = np.array(self.family.log_prob(params, chunk), dtype=np.float64) - np.log(self.n_components)
        top = joint.max(axis=1, keepdims=True)
        resp = np.exp(joint - top)
        total = resp.sum(axis=1, keepdims=True)
        return (top + np.log(total))[:, 0], resp / total


@dataclass(frozen=True)
class _EqualMixtureWithPrior(_EqualMixture):
    def log_prior(self, params: Params) -> float:
        return float(self.family.log_prior(params))


def family_model(family: Family, n_components: int = 2) -> _EqualMixture:
    """Return the mixture with equal, fixed weights of a family, which makes `MODEL_PROPERTIES` apply to it."""
    mixture = _EqualMixtureWithPrior if isinstance(family, HasLogPrior) else _EqualMixture
    return mixture(family, n_components)


def check_family(
    family: Family,
    sample: Chunk | Array,
    *,
    n_components: int = 2,
    steps: int = 20,
    seed: int = 0,
    skip: Collection[str] = (),
) -> tuple[str, ...]:
    """Check that a family keeps daskem's contract: by itself, and as the mixture with equal weights made of it.

    Parameters
    ----------
    family : the family to try.
    sample : rows (n, d), or a chunk with weights.
    n_components : components of the mixture.
    steps, seed, skip : as for `check_model`; `skip` may also name `FAMILY_PROPERTIES`.

    Returns
    -------
    tuple of str
        The properties that were checked.

    Raises
    ------
    ContractError
        Naming each property that does not hold, by how much, and what that usually means.
    """
    model = family_model(family, n_components)
    trial = model_trial(model, sample, steps=steps, seed=seed)
    return run_properties(type(family).__name__, {**FAMILY_PROPERTIES, **MODEL_PROPERTIES}, trial, model, skip)


def _log_prob_is_per_row(trial: ModelTrial) -> None:
    family, half = trial.model.family, len(trial.chunk) // 2
    shape = (len(trial.chunk), trial.model.n_components)
    whole = np.array(family.log_prob(trial.params, take(trial.chunk, slice(None))))
    if whole.shape != shape:
        raise trial.fail(f"{type(family).__name__}.log_prob has shape {whole.shape}", f"Return (n, k), here {shape}.")
    if np.isnan(whole).any() or (whole == np.inf).any():
        raise trial.fail(
            f"{type(family).__name__}.log_prob is NaN or +inf", "Only -inf, for an impossible row, is allowed."
        )
    part = np.array(family.log_prob(trial.params, take(trial.chunk, slice(half, None))))
    if not np.allclose(part, whole[half:], rtol=ADDITIVE_RTOL, atol=ADDITIVE_RTOL):
        raise trial.fail(f"{type(family).__name__}.log_prob of a row depends on other rows", "Use nothing but the row.")


def _stats_are_linear_in_resp(trial: ModelTrial) -> None:
    family, rng = trial.model.family, trial.rng()
    shape = (len(trial.chunk), trial.model.n_components)
    parts = [rng.random(shape), rng.random(shape)]
    found = [family.stats(trial.params, take(trial.chunk, slice(None)), resp) for resp in (*parts, parts[0] + parts[1])]
    moved = tree.max_change(found[2], tree.add(found[0], found[1]))
    if not moved <= ADDITIVE_RTOL:
        why = "resp already holds the rows' weights: use it as it is, do not normalise it."
        raise trial.fail(f"{type(family).__name__}.stats is not linear in resp (differs by {moved:.3g}, relative)", why)


def _layout_does_not_matter(trial: ModelTrial) -> None:
    rows = trial.chunk.rows
    # As a product hands a group its columns.
    wider = np.full((len(rows), rows.shape[1] + 3), 0.5, rows.dtype)
    wider[:, 2:-1] = rows
    found = trial.e_step(replace(trial.chunk, rows=wider[:, 2:-1], scratch=Scratch()))
    why = "Rows may be columns of wider ones: what reads memory itself needs np.ascontiguousarray(chunk.rows)."
    trial.agree("columns of wider rows give other statistics", found, trial.whole, why)


FAMILY_PROPERTIES: Mapping[str, Property] = MappingProxyType(
    {
        "log_prob_is_per_row": Property(_log_prob_is_per_row),
        "stats_are_linear_in_resp": Property(_stats_are_linear_in_resp),
        "layout_does_not_matter": Property(_layout_does_not_matter),
    }
)
