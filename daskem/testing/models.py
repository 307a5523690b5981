"""The properties of a model, one function each, in one table; and `check_model`, which tries them all.

Fisher's identity (the objective and its surrogate have the same gradient at the parameters of the E-step) checks an
E-step without a reference implementation: Dempster, Laird & Rubin (1977), J. R. Stat. Soc. B 39(1), section 3.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from daskem import tree
from daskem.core import (
    Array,
    Chunk,
    Float,
    HasFootprint,
    HasLogProb,
    HasMoves,
    HasParameterNames,
    HasPosterior,
    HasSample,
    HasScores,
    HasSurrogate,
    HasVector,
    Int,
    Model,
    Params,
    Scratch,
    Stats,
)
from daskem.errors import MissingCapabilityError
from daskem.testing.trial import (
    ADDITIVE_RTOL,
    ModelTrial,
    Property,
    bits,
    model_trial,
    plain,
    read_only,
    reweighted,
    run_properties,
    take,
)

__all__ = ["MODEL_PROPERTIES", "check_model"]

# float32 carries 6e-8; differences of squares lose two or three digits of it.
FLOAT32_RTOL = 1e-4
# A fall of the objective by less than this, relative to its size, is rounding.
SLACK = 1e-10
# Central differences with this step err by about 1e-10 (truncation) and 1e-11 of the objective (rounding).
DIFFERENCE_STEP = 1e-5
GRADIENT_RTOL = 1e-5
GRADIENT_ATOL = 1e-8
MAX_COORDINATES = 24
# How far a trial leaves the path of EM, in unconstrained coordinates, so that gradients are not zero.
DETOUR = 0.05


def check_model(
    model: Model,
    sample: Chunk | Array,
    *,
    params: Params = None,
    steps: int = 20,
    seed: int = 0,
    skip: Collection[str] = (),
) -> tuple[str, ...]:
    """Check that a model keeps daskem's contract.

    Parameters
    ----------
    model, sample, params, steps, seed : see `model_trial`.
    skip : names in `MODEL_PROPERTIES` that the model does not keep by design, such as ``start_does_not_matter`` for an
        E-step that draws, or ``m_step_maximises`` for one that only improves the surrogate (generalised EM).

    Returns
    -------
    tuple of str
        The properties that were checked; those of capabilities that the model does not claim are missing.

    Raises
    ------
    ContractError
        Naming each property that does not hold, by how much, and what that usually means.
    """
    trial = model_trial(model, sample, params=params, steps=steps, seed=seed)
    return run_properties(trial.name, MODEL_PROPERTIES, trial, model, skip)


# Properties of an E-step.


def _record(trial: ModelTrial) -> None:
    found = trial.whole
    total = trial.chunk.total_weight
    if not np.isclose(found.weight, total, rtol=ADDITIVE_RTOL):
        raise trial.fail(f"e_step reports weight {found.weight}", f"Return chunk.total_weight, here {total}.")
    for path, leaf in tree.leaves(found):
        if np.asarray(leaf).dtype not in (np.float64, np.int64):
            raise trial.fail(f"leaf {path} has type {np.asarray(leaf).dtype}", "Sum in float64, count in int64.")
    if not tree.all_finite(found):
        raise trial.fail("e_step returned NaN or infinity", "Work in log space, and shift by the row's largest term.")


def _additive(trial: ModelTrial) -> None:
    rng = trial.rng()
    for share in (0.5, 0.1, 0.9):
        first = rng.random(len(trial.chunk)) < share
        parts = [trial.e_step(take(trial.chunk, part)) for part in (first, ~first)]
        why = "Statistics must be sums over rows, not means."
        trial.agree("e_step(A) + e_step(B) != e_step(A + B)", tree.add(*parts), trial.whole, why)


def _empty_is_zero(trial: ModelTrial) -> None:
    try:
        empty = trial.e_step(take(trial.chunk, slice(0, 0)))
    except Exception as error:
        why = "A selection may leave a block without rows: sums over no rows are zero, means and maxima do not exist."
        raise trial.fail(f"e_step of no rows raised {type(error).__name__} ({error})", why) from error
    zero = tree.scale(trial.whole, 0.0)
    trial.agree("e_step of no rows is not the zero record", empty, zero, "Add nothing that does not come from a row.")


def _row_order(trial: ModelTrial) -> None:
    shuffled = trial.e_step(take(trial.chunk, trial.rng().permutation(len(trial.chunk))))
    why = "Rows are independent: none may look at its neighbours."
    trial.agree("e_step depends on the order of rows", shuffled, trial.whole, why)


def _duplicate_is_weight_two(trial: ModelTrial) -> None:
    chosen = trial.rng().random(len(trial.chunk)) < 0.3
    repeated = trial.e_step(take(trial.chunk, np.repeat(np.arange(len(trial.chunk)), 1 + chosen)))
    weighted = trial.e_step(reweighted(trial.chunk, trial.weight * (1.0 + chosen)))
    why = "Multiply every statistic, the objective included, by chunk.weight."
    trial.agree("a row of weight 2 is not two rows", weighted, repeated, why)


def _zero_weight_is_absent(trial: ModelTrial) -> None:
    kept = trial.rng().random(len(trial.chunk)) < 0.7
    weighted = trial.e_step(reweighted(trial.chunk, trial.weight * kept))
    why = "Counts must be sums of chunk.weight, not numbers of rows."
    trial.agree("a row of weight 0 is not an absent row", weighted, trial.e_step(take(trial.chunk, kept)), why)


def _linear_in_weight(trial: ModelTrial) -> None:
    share = trial.rng().random(len(trial.chunk))
    parts = [trial.e_step(reweighted(trial.chunk, trial.weight * part)) for part in (share, 1.0 - share)]
    why = "Statistics must be linear in chunk.weight, which need not be whole numbers."
    trial.agree("e_step is not linear in the weights", tree.add(*parts), trial.whole, why)


def _inputs_untouched(trial: ModelTrial) -> None:
    chunk, params = read_only(take(trial.chunk, slice(None))), read_only(trial.params)
    try:
        stats = read_only(trial.e_step(chunk, params).stats)
        before = bits(stats), bits(params)
        trial.model.m_step(stats, params)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise trial.fail(f"an input was written to ({error})", "Work on a copy, or in chunk.scratch.") from error
    if (bits(stats), bits(params)) != before:
        raise trial.fail("m_step changed its inputs", "Return new parameters; the algorithm still needs the old ones.")


def _same_bits(trial: ModelTrial) -> None:
    if bits(trial.e_step()) != bits(trial.whole):
        raise trial.fail("e_step gives other bits on the same rows", "Draw from chunk.rng only, and keep no state.")
    new = [trial.model.m_step(trial.whole.stats, trial.params) for _ in range(2)]
    if bits(new[0]) != bits(new[1]):
        raise trial.fail("m_step gives other bits for the same statistics", "Draw nothing in an M-step; keep no state.")
    starts = [trial.model.init(take(trial.chunk, slice(None)), trial.rng()) for _ in range(2)]
    if bits(starts[0]) != bits(starts[1]):
        raise trial.fail("init gives other bits for the same generator", "Draw from the given generator only.")


def _scratch_is_private(trial: ModelTrial) -> None:
    half = len(trial.chunk) // 2
    scratch = Scratch()
    first = trial.e_step(replace(trial.chunk, scratch=scratch))
    before = bits(first)
    trial.e_step(replace(take(trial.chunk, slice(half, None)), scratch=scratch))
    why = "Return copies of what lies in chunk.scratch: the next block overwrites it."
    if bits(first) != before:
        raise trial.fail("the next e_step changed the statistics of the one before", why)
    again = trial.e_step(replace(trial.chunk, scratch=scratch))
    if bits(again) != before:
        raise trial.fail("e_step gives other bits in a used scratch", "Initialise what you take from chunk.scratch.")


def _float32_rows(trial: ModelTrial) -> None:
    rows = trial.chunk.rows.astype(np.float32)
    narrow = trial.e_step(replace(trial.chunk, rows=rows, scratch=Scratch()))
    wide = trial.e_step(replace(trial.chunk, rows=rows.astype(np.float64), scratch=Scratch()))
    for path, leaf in tree.leaves(narrow):
        if np.asarray(leaf).dtype not in (np.float64, np.int64):
            why = "A float32 sum stops growing at 16,777,216 ones: add in float64."
            raise trial.fail(f"leaf {path} has type {np.asarray(leaf).dtype} for float32 rows", why)
    trial.agree("float32 rows give other statistics", narrow, wide, "Add in float64.", FLOAT32_RTOL)


def _start_does_not_matter(trial: ModelTrial) -> None:
    moved = trial.e_step(replace(trial.chunk, start=trial.chunk.start + 12_345, seed=7, step=3, scratch=Scratch()))
    if bits(moved) != bits(trial.whole):
        raise trial.fail(
            "e_step depends on chunk.start, seed or step", "Only an E-step that draws may (then skip this)."
        )


# Properties of an M-step, and of both together.


def _params_are_finite(trial: ModelTrial) -> None:
    params = trial.model.init(take(trial.chunk, slice(None)), trial.rng())
    for step in range(trial.steps + 1):
        if not tree.all_finite(params):
            raise trial.fail(f"the parameters hold NaN or infinity after {step} steps", "Guard an empty component.")
        params = trial.model.m_step(trial.e_step(params=params).stats, params)


def _objective_never_falls(trial: ModelTrial) -> None:
    before = -np.inf
    for step, (params, expectation) in enumerate(trial.path(trial.params)):
        now = expectation.objective + trial.log_prior(params)
        if not now >= before - SLACK * max(1.0, abs(now)):
            why = "The M-step does not maximise what the E-step expects, or the objective is not at the given params."
            raise trial.fail(f"the objective falls by {before - now:.3g} nats at step {step}", why)
        before = now


def _m_step_is_scale_free(trial: ModelTrial) -> None:
    stats = trial.whole.stats
    new = trial.model.m_step(stats, trial.params)
    if trial.log_prior(trial.params) or trial.log_prior(new):
        return
    moved = tree.max_change(new, trial.model.m_step(tree.scale(stats, 3.7), trial.params))
    if not moved <= 1e-8:
        why = "Divide by the statistics' own weight, not by a number of rows. A prior must be told by log_prior."
        raise trial.fail(f"m_step(3.7 stats) != m_step(stats): params differ by {moved:.3g} (relative)", why)


def _m_step_ascends(trial: ModelTrial) -> None:
    stats = trial.whole.stats
    new = trial.model.m_step(stats, trial.params)
    gain = _penalised(trial, stats, new) - _penalised(trial, stats, trial.params)
    if not gain >= -SLACK * max(1.0, abs(_penalised(trial, stats, new))):
        why = "The M-step must raise Q + log_prior, or surrogate() is not the Q that it maximises."
        raise trial.fail(f"m_step lowers the surrogate by {-gain:.3g} nats", why)


def _m_step_maximises(trial: ModelTrial) -> None:
    rng, stats = trial.rng(), trial.whole.stats
    new = trial.model.m_step(stats, trial.params)
    best, vector = _penalised(trial, stats, new), trial.model.to_vector(new)
    for size in np.repeat([1e-3, 1e-2, 1e-1], 5):
        other = trial.model.from_vector(vector + size * rng.standard_normal(len(vector)), new)
        gain = _penalised(trial, stats, other) - best
        if not gain <= SLACK * max(1.0, abs(best)):
            why = "The M-step does not maximise Q + log_prior, or surrogate() is not the Q that it maximises."
            raise trial.fail(f"params near m_step(stats) have a surrogate higher by {gain:.3g} nats", why)


def _fisher_identity(trial: ModelTrial) -> None:
    rng, model = trial.rng(), trial.model
    vector = model.to_vector(trial.params)
    vector = vector + DETOUR * rng.standard_normal(len(vector))
    params = model.from_vector(vector, trial.params)
    here = trial.e_step(params=params)
    coordinates = rng.permutation(len(vector))[:MAX_COORDINATES]
    slopes = _slopes(lambda v: trial.e_step(params=model.from_vector(v, params)).objective, vector, coordinates)
    expected = _slopes(lambda v: model.surrogate(here.stats, model.from_vector(v, params)), vector, coordinates)
    size = max(float(np.abs(slopes).max()), float(np.abs(expected).max()))
    worst = int(np.argmax(np.abs(slopes - expected)))
    if not abs(slopes[worst] - expected[worst]) <= GRADIENT_RTOL * size + GRADIENT_ATOL * max(1.0, abs(here.objective)):
        why = "The E-step's posterior, its objective or the surrogate is wrong (priors belong to none of them)."
        raise trial.fail(
            f"Fisher's identity does not hold: along coordinate {coordinates[worst]} of to_vector the objective rises "
            f"by "
            f"{slopes[worst]:.6g}, the surrogate by {expected[worst]:.6g}",
            why,
        )


def _scores_are_gradients(trial: ModelTrial) -> None:
    vector = _detour(trial)
    params = trial.model.from_vector(vector, trial.params)
    chunk = take(trial.chunk, slice(None))
    try:
        scores = np.array(trial.model.scores(params, chunk))
    except MissingCapabilityError:
        # A mixture has scores where its family has them.
        return
    if scores.shape != (len(chunk), len(vector)):
        raise trial.fail(f"scores have shape {scores.shape}", f"Return ({len(chunk)}, {len(vector)}).")
    coordinates = trial.rng().permutation(len(vector))[:MAX_COORDINATES]
    slopes = _slopes(lambda v: trial.e_step(params=trial.model.from_vector(v, params)).objective, vector, coordinates)
    found = (trial.weight @ scores)[coordinates]
    worst = int(np.argmax(np.abs(slopes - found)))
    size, objective = float(np.abs(slopes).max()), abs(trial.e_step(params=params).objective)
    if not abs(slopes[worst] - found[worst]) <= GRADIENT_RTOL * size + GRADIENT_ATOL * max(1.0, objective):
        raise trial.fail(
            f"the scores of all rows sum to {found[worst]:.6g} along coordinate {coordinates[worst]} of to_vector, the "
            f"objective rises by {slopes[worst]:.6g}",
            "A score is the gradient of log p(x | params) of one row; chunk.weight plays no part in it.",
        )


def _every_coordinate_has_a_name(trial: ModelTrial) -> None:
    names, p = list(trial.model.parameter_names(trial.params)), len(trial.model.to_vector(trial.params))
    if len(names) != p or len(set(names)) != p:
        raise trial.fail(f"parameter_names gives {len(set(names))} different names", f"Return {p}, as in to_vector.")


def _detour(trial: ModelTrial) -> Float:
    """Return a vector beside the path of EM, where gradients are not zero."""
    vector: Float = trial.model.to_vector(trial.params)
    return vector + DETOUR * trial.rng().standard_normal(len(vector))


def _pickles(trial: ModelTrial) -> None:
    try:
        model, params, chunk = pickle.loads(pickle.dumps((trial.model, trial.params, trial.chunk)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise trial.fail(f"cannot be sent to a worker ({error})", "Hold no locks, files or local functions.") from error
    if bits(pickle.loads(pickle.dumps(model.e_step(params, chunk)))) != bits(trial.whole):
        raise trial.fail("e_step gives other bits after a pickle round trip", "Keep everything that matters in fields.")


# Properties of optional capabilities.


def _vector_round_trip(trial: ModelTrial) -> None:
    vector = trial.model.to_vector(trial.params)
    if vector.ndim != 1 or vector.dtype != np.float64 or not np.isfinite(vector).all():
        raise trial.fail("to_vector is not a finite float64 vector (p,)", "Use logarithms, logits, Cholesky factors.")
    moved = tree.max_change(trial.params, trial.model.from_vector(vector, trial.params))
    if not moved <= 1e-8:
        why = "The two must be inverse to each other."
        raise trial.fail(f"from_vector(to_vector(params)) != params: differ by {moved:.3g} (relative)", why)


def _posterior_sums_to_one(trial: ModelTrial) -> None:
    posterior = np.array(trial.model.posterior(trial.params, plain(trial.chunk)))
    if posterior.ndim != 2 or len(posterior) != len(trial.chunk):
        raise trial.fail(f"posterior has shape {posterior.shape}", f"Return ({len(trial.chunk)}, k).")
    if not (posterior >= 0).all() or not np.allclose(posterior.sum(1), 1.0, rtol=0, atol=1e-6):
        raise trial.fail("posterior is not a distribution in each row", "Normalise; chunk.weight plays no part in it.")


def _log_prob_sums_to_objective(trial: ModelTrial) -> None:
    chunk = plain(trial.chunk)
    log_prob = np.array(trial.model.log_prob(trial.params, chunk))
    if log_prob.shape != (len(chunk),):
        raise trial.fail(f"log_prob has shape {log_prob.shape}", f"Return ({len(chunk)},).")
    objective = trial.e_step(plain(trial.chunk)).objective
    gap = abs(float(log_prob.sum()) - objective)
    if not gap <= ADDITIVE_RTOL * max(1.0, float(np.abs(log_prob).sum())):
        why = "The objective is the sum of log p(x | params), in nats, at the params that the E-step was given."
        raise trial.fail(f"log_prob sums to {gap:.3g} off the objective", why)


def _sample_is_like_the_rows(trial: ModelTrial) -> None:
    (rows, latent), again = (trial.model.sample(trial.params, 20, trial.rng()) for _ in range(2))
    if rows.shape != (20, *trial.chunk.rows.shape[1:]) or len(latent) != 20:
        raise trial.fail(
            f"sample returned shapes {rows.shape}, {latent.shape}", "Return (n, d) rows and (n,) components."
        )
    if bits((rows, latent)) != bits(again):
        raise trial.fail("sample gives other bits for the same generator", "Draw from the given generator only.")
    if not np.isfinite(trial.e_step(Chunk(np.ascontiguousarray(rows))).objective):
        raise trial.fail("e_step cannot explain what sample drew", "Both must be the same model.")


def _moves_are_params(trial: ModelTrial) -> None:
    params, chunk = read_only(trial.params), read_only(plain(trial.chunk))
    found, again = (list(trial.model.moves(params, chunk, trial.rng())) for _ in range(2))
    if bits([new for _, new in found]) != bits([new for _, new in again]):
        raise trial.fail("moves gives other bits for the same generator", "Draw from the given generator only.")
    for what, new in found:
        if [path for path, _ in tree.leaves(new)] != [path for path, _ in tree.leaves(trial.params)]:
            raise trial.fail(f"moves returned another record ({what})", "Return parameters, as m_step does.")
        if not np.isfinite(trial.e_step(plain(trial.chunk), new).objective):
            raise trial.fail(
                f"e_step cannot explain the rows after a move ({what})", "Move to parameters of the model."
            )


def _footprint_suffices(trial: ModelTrial) -> None:
    told = trial.model.footprint(trial.chunk.rows.shape[1], trial.chunk.rows.dtype)
    if told.block_rows < 1 or told.block_rows & (told.block_rows - 1):
        raise trial.fail(f"footprint tells {told.block_rows} rows per block", "Blocks must be a power of two.")
    for what, planned, actual in (
        ("statistics", told.stats, tree.nbytes(trial.whole.stats)),
        ("parameters", told.params, tree.nbytes(trial.params)),
    ):
        if planned < actual:
            why = "The planner promises the user a bound on memory; count all that the record holds."
            raise trial.fail(f"footprint tells {planned} bytes of {what}, there are {actual}", why)


MODEL_PROPERTIES: Mapping[str, Property] = MappingProxyType(
    {
        "e_step_returns_the_record": Property(_record),
        "additive": Property(_additive),
        "empty_is_zero": Property(_empty_is_zero),
        "row_order_does_not_matter": Property(_row_order),
        "duplicate_is_weight_two": Property(_duplicate_is_weight_two),
        "zero_weight_is_absent": Property(_zero_weight_is_absent),
        "linear_in_weight": Property(_linear_in_weight),
        "inputs_untouched": Property(_inputs_untouched),
        "same_bits": Property(_same_bits),
        "scratch_is_private": Property(_scratch_is_private),
        "float32_rows": Property(_float32_rows),
        "start_does_not_matter": Property(_start_does_not_matter),
        "params_are_finite": Property(_params_are_finite),
        "objective_never_falls": Property(_objective_never_falls),
        "m_step_is_scale_free": Property(_m_step_is_scale_free),
        "m_step_ascends": Property(_m_step_ascends, (HasSurrogate,)),
        "m_step_maximises": Property(_m_step_maximises, (HasSurrogate, HasVector)),
        "fisher_identity": Property(_fisher_identity, (HasSurrogate, HasVector)),
        "scores_are_gradients": Property(_scores_are_gradients, (HasScores, HasVector)),
        "pickles": Property(_pickles),
        "vector_round_trip": Property(_vector_round_trip, (HasVector,)),
        "every_coordinate_has_a_name": Property(_every_coordinate_has_a_name, (HasParameterNames, HasVector)),
        "posterior_sums_to_one": Property(_posterior_sums_to_one, (HasPosterior,)),
        "log_prob_sums_to_objective": Property(_log_prob_sums_to_objective, (HasLogProb,)),
        "sample_is_like_the_rows": Property(_sample_is_like_the_rows, (HasSample,)),
        "moves_are_params": Property(_moves_are_params, (HasMoves,)),
        "footprint_suffices": Property(_footprint_suffices, (HasFootprint,)),
    }
)


def _penalised(trial: ModelTrial, stats: Stats, params: Params) -> float:
    return float(trial.model.surrogate(stats, params)) + trial.log_prior(params)


def _slopes(function: Callable[[Float], float], vector: Float, coordinates: Int) -> Float:
    """Return central differences of `function` along some coordinates."""
    slopes = np.empty(len(coordinates))
    for i, coordinate in enumerate(coordinates):
        step = np.zeros_like(vector)
        step[coordinate] = DIFFERENCE_STEP * max(1.0, abs(vector[coordinate]))
        slopes[i] = (function(vector + step) - function(vector - step)) / (2 * step[coordinate])
    return slopes
