"""What the suites share: a property, a model on trial, and ways to take rows apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from daskem import tree
from daskem.core import Array, Chunk, Expectation, Float, HasLogPrior, Model, Params, Scratch
from daskem.errors import ContractError, DaskEMError, MissingCapabilityError, OptionError

__all__ = [
    "ADDITIVE_RTOL",
    "ModelTrial",
    "Property",
    "bits",
    "model_trial",
    "plain",
    "read_only",
    "reweighted",
    "run_properties",
    "take",
]

# Two orders of summation of some hundred float64 differ by 1e-14 of the sum of magnitudes; the rest is for exp and log.
ADDITIVE_RTOL = 1e-10

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Property:
    """Something that must hold: `check(trial)` raises ContractError where it does not; `needs` are capabilities."""

    check: Callable[[Any], None]
    needs: tuple[type, ...] = ()

    def applies(self, model: object) -> bool:
        """Return whether `model` offers what the property is about."""
        return all(isinstance(model, capability) for capability in self.needs)


@dataclass(frozen=True, eq=False)
class ModelTrial:
    """A model with rows to try it on.

    Attributes
    ----------
    model : the model.
    chunk : some rows, the more typical the better; 50 to 500 are plenty.
    params : parameters from which the model is tried.
    steps : EM steps over which the objective must not fall.
    seed : of all that is drawn.
    """

    model: Any
    chunk: Chunk
    params: Params
    steps: int = 20
    seed: int = 0

    @property
    def name(self) -> str:
        """What errors call the model."""
        return type(self.model).__name__

    @cached_property
    def whole(self) -> Expectation:
        """What the E-step says of all rows."""
        return self.e_step()

    @cached_property
    def magnitude(self) -> Expectation:
        """Sum of the absolute statistics of runs of 8 rows: the scale of rounding, also where a sum cancels."""
        runs = [slice(i, i + 8) for i in range(0, len(self.chunk), 8)]
        return tree.reduce([tree.map_leaves(np.abs, self.e_step(take(self.chunk, run))) for run in runs])

    @property
    def weight(self) -> Float:
        """Weights of the rows, (n,)."""
        return np.ones(len(self.chunk)) if self.chunk.weight is None else self.chunk.weight

    def rng(self) -> np.random.Generator:
        """Return a fresh generator of the trial's seed."""
        return np.random.default_rng(self.seed)

    def e_step(self, chunk: Chunk | None = None, params: Params = None) -> Expectation:
        """Run the E-step on rows that nobody else holds."""
        rows = take(self.chunk, slice(None)) if chunk is None else chunk
        result = self.model.e_step(self.params if params is None else params, rows)
        if not isinstance(result, Expectation):
            raise ContractError(
                f"{self.name}.e_step returned a {type(result).__name__}. Return a daskem.core.Expectation."
            )
        return result

    def log_prior(self, params: Params) -> float:
        """Return the log prior, 0 for a model without one."""
        return float(self.model.log_prior(params)) if isinstance(self.model, HasLogPrior) else 0.0

    def path(self, params: Params) -> Iterator[tuple[Params, Expectation]]:
        """Yield the parameters before each step of batch EM, with what the E-step says there."""
        for _ in range(self.steps):
            expectation = self.e_step(params=params)
            yield params, expectation
            params = self.model.m_step(expectation.stats, params)

    def fail(self, claim: str, why: str) -> ContractError:
        """Return the error for a property that does not hold."""
        return ContractError(f"{self.name}: {claim}. {why}")

    def agree(self, claim: str, got: Any, want: Any, why: str, rtol: float = ADDITIVE_RTOL) -> None:
        """Raise unless two expectations agree, relative to the sums of magnitudes."""
        try:
            difference = tree.map_leaves(np.abs, tree.sub(got, want))
        except ContractError as error:
            raise self.fail(claim, f"{error}") from error
        for (path, gap), (_, size) in zip(tree.leaves(difference), tree.leaves(self.magnitude), strict=True):
            worst = float(np.max(gap, initial=0.0))
            if not worst <= rtol * float(np.max(size, initial=0.0)):
                raise self.fail(claim, f"Leaf {path} differs by {worst:.3g} (rtol {rtol:g}). {why}")


def model_trial(
    model: Model, sample: Chunk | Array, *, params: Params = None, steps: int = 20, seed: int = 0
) -> ModelTrial:
    """Return a trial of `model`, one EM step away from its own start.

    Parameters
    ----------
    model : the model to try.
    sample : rows (n, d), anything array-like, or a chunk with weights or labels.
    params : where to start; ``model.init`` by default.
    steps : EM steps over which the objective must not fall.
    seed : of all that is drawn.
    """
    if missing := [name for name in ("init", "e_step", "m_step") if not callable(getattr(model, name, None))]:
        raise ContractError(
            f"{type(model).__name__} is no model: it has no method {', '.join(missing)}. Implement them as "
            "daskem.core.Model documents."
        )
    chunk = sample if isinstance(sample, Chunk) else _as_chunk(sample)
    trial = ModelTrial(model, chunk, params, steps, seed)
    if params is None:
        params = _tried(trial, "init", lambda: model.init(take(chunk, slice(None)), np.random.default_rng(seed)))
    found = _tried(trial, "e_step", lambda: trial.e_step(params=params))
    return replace(trial, params=_tried(trial, "m_step", lambda: model.m_step(found.stats, params)))


def _as_chunk(sample: Any) -> Chunk:
    rows = np.asarray(sample)
    if rows.ndim != 2 or not len(rows) or rows.dtype.kind not in "biuf":
        raise OptionError(
            f"sample is a {rows.dtype} array of shape {rows.shape}; give some rows, (n, d) numbers, or a Chunk."
        )
    return Chunk(np.ascontiguousarray(rows, np.float32 if rows.dtype == np.float32 else np.float64))


def _tried(trial: ModelTrial, method: str, call: Callable[[], T]) -> T:
    """Return what a method gives; of its failure, say which method it was and on what."""
    try:
        return call()
    except DaskEMError:
        raise
    except Exception as error:
        shape = trial.chunk.rows.shape
        why = f"It must take rows {shape}, as a Chunk, before anything else can be tried."
        raise trial.fail(f"{method} raised {type(error).__name__} ({error})", why) from error


def run_properties(
    name: str, properties: Mapping[str, Property], trial: object, subject: object, skip: Collection[str]
) -> tuple[str, ...]:
    """Check all `properties` that apply to `subject` and are not in `skip`; return their names.

    Raises
    ------
    ContractError
        Listing all that do not hold.
    """
    if unknown := set(skip) - properties.keys():
        raise OptionError(f"skip={sorted(unknown)} names no property. There are: {', '.join(properties)}.")
    chosen = {key: one for key, one in properties.items() if key not in skip and one.applies(subject)}
    broken: dict[str, Exception] = {}
    missing: set[str] = set()
    for key, one in chosen.items():
        try:
            one.check(trial)
        except MissingCapabilityError:
            # A model made of another has the method, and can lack what the method needs.
            missing.add(key)
        except ContractError as error:
            broken[f"{key}: {error}"] = error
        except Exception as error:
            broken[f"{key}: raised {type(error).__name__} ({error})."] = error
    if broken:
        text = "\n  ".join([f"{name} breaks {len(broken)} of {len(chosen)} properties.", *broken])
        raise ContractError(text) from next(iter(broken.values()))
    return tuple(key for key in chosen if key not in missing)


def take(chunk: Chunk, rows: Any) -> Chunk:
    """Return some rows of a chunk (a slice, indices or a mask), with weights and labels, in memory of their own."""
    return replace(
        chunk,
        rows=np.array(chunk.rows[rows], order="C"),
        weight=None if chunk.weight is None else np.array(chunk.weight[rows]),
        labels=None if chunk.labels is None else np.array(chunk.labels[rows]),
        scratch=Scratch(),
    )


def reweighted(chunk: Chunk, weight: Float) -> Chunk:
    """Return the chunk with other weights."""
    return replace(take(chunk, slice(None)), weight=weight)


def plain(chunk: Chunk) -> Chunk:
    """Return the chunk without weights and labels."""
    return replace(take(chunk, slice(None)), weight=None, labels=None)


def read_only(record: T) -> T:
    """Return a copy of a tree, or of a chunk, whose arrays refuse to be written to."""
    if isinstance(record, Chunk):
        arrays = {name: getattr(record, name) for name in ("rows", "weight", "labels")}
        return replace(record, **{name: _frozen(array) for name, array in arrays.items()})
    return tree.map_leaves(_frozen, record)


def bits(record: Any) -> list[tuple[str, str, bytes]]:
    """Return path, type and bytes of each leaf."""
    return [(path, np.asarray(leaf).dtype.str, np.asarray(leaf).tobytes()) for path, leaf in tree.leaves(record)]


def _frozen(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray):
        return leaf
    copy = leaf.copy()
    copy.setflags(write=False)
    return copy
