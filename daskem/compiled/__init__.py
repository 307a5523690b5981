"""Compiled arithmetic of E-steps (c/kernels.c), where daskem was installed with a C compiler; else there is numpy."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daskem.chunk import Array, Float, Int
from daskem.errors import OptionError

__all__ = [
    "MOST_HOLED",
    "MOST_WHOLE",
    "Components",
    "NotWholeError",
    "Rows",
    "Terms",
    "available",
    "condition",
    "describe",
    "e_step",
    "filled",
    "in_place",
    "load",
    "log_prob",
    "moments",
    "nearest",
    "normalise",
    "readable",
    "shifted",
    "whole",
]

logger = logging.getLogger(__name__)

# Features of a row u: 1 and u, and with them nothing, u^2 or the upper triangle of u u^T.
FORMS = {"linear": 0, "diag": 1, "full": 2}
TYPES = {"d": "double", "f": "float"}
# What compiled code uses of what only some processors have, at most what the environment variable names; the most that
# the processor has if it is not set. Machines that are to compute the same bits must use the same.
INSTRUCTIONS = {"portable": 0, "avx2": 1, "avx512": 2}
VARIABLE = "DASKEM_INSTRUCTIONS"
# Halfway to where single precision does not tell whole numbers apart.
MOST_WHOLE = 1 << 22
# With more features BLAS is better at rows with holes than `condition` and `filled`.
MOST_HOLED = 32


@dataclass(frozen=True, eq=False)
class Components:
    """What kernels over holes take of Gaussian components (see `daskem.models.gaussian_missing`), C ordered float64.

    Attributes
    ----------
    point : (k, d), or (1, d) where components share it: what moments are about.
    delta : (k, d) means less these, scaled.
    scale : (d,). constant : (d,) log(2 pi) / 2 less the log of the scale.
    precision : (k, d, d), scaled, or (1, d, d) where components share it.
    peak : (k,) log density at the mean.
    """

    point: Float
    delta: Float
    scale: Float
    constant: Float
    precision: Float
    peak: Float


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a block with holes, sorted by pattern (see `daskem.models.gaussian_patterns`), C ordered.

    Attributes
    ----------
    values : (n, d), holes hold anything; their floating type is computed in.
    feature : features of the holes of each pattern, in increasing order, the patterns one after the other.
    first : (patterns + 1,) where those of each begin, and the number of all.
    pattern, place : (n,) which pattern each row has, and which row of the block it is.
    """

    values: Array
    feature: Int
    first: Int
    pattern: Int
    place: Int

    def arrays(self) -> tuple[Array, ...]:
        """Return what compiled code is given, in its order."""
        return self.values, self.feature, self.first, self.pattern, self.place


@dataclass(frozen=True, eq=False)
class Terms:
    """Terms of the log densities of k components: natural (k, p) times T(u), u = (row - shift) * scale.

    Attributes
    ----------
    form : what T(u) is (see `FORMS`).
    rows : (n, d), `readable`. natural : (k, p), C ordered, of their type.
    shift, scale : (d,), or None for zeros, and for ones.
    constant : (k,) what to add for each component, in double precision. base : (n,) what to add for each row.
    most : u must hold whole numbers from 0 to this, at most `MOST_WHOLE`; None where it may hold anything.
    """

    form: str
    rows: Array
    natural: Array
    shift: Float | None = None
    scale: Float | None = None
    constant: Float | float = 0.0
    base: Float | float = 0.0
    most: int | None = None

    def arrays(self, sums: Float) -> tuple[Array, ...]:
        """Return what compiled code is given, in its order."""
        d = self.rows.shape[1]
        shift = np.zeros(d) if self.shift is None else np.ascontiguousarray(self.shift, np.float64)
        scale = np.ones(d) if self.scale is None else np.ascontiguousarray(self.scale, np.float64)
        return self.rows, shift, scale, self.natural, sums


class NotWholeError(ValueError):
    """Rows do not hold the whole numbers that they were to hold."""


class _Terms(ctypes.Structure):
    """`Terms` as compiled code knows them."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rows", "shift", "scale", "natural", "sums")),
        ("most", ctypes.c_double),
        ("d", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("form", ctypes.c_int),
    )


def load(path: Path) -> ctypes.CDLL | None:
    """Return the library in a file, or None where there is none, or one for another kind of machine."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    number, array = ctypes.c_int64, ctypes.c_void_p
    for name in TYPES.values():
        getattr(library, f"shifted_{name}").argtypes = [array, number, array, array, array, number, number]
        getattr(library, f"log_prob_{name}").argtypes = [ctypes.c_int, array, array, array, number, number, number]
        getattr(library, f"moments_{name}").argtypes = [ctypes.c_int, array, array, array, number, number, number]
        getattr(library, f"normalise_{name}").argtypes = [array, array, array, array, array, number, number]
        getattr(library, f"e_step_{name}").argtypes = [array, number, *[array] * 6, number, number]
        getattr(library, f"whole_{name}").argtypes = [array, number, ctypes.c_double, number, number]
        inputs = [array, array, ctypes.c_double, array, array, array, array]
        getattr(library, f"nearest_{name}").argtypes = [*inputs, array, array, number, number, number]
        for holed in ("condition", "filled"):
            getattr(library, f"{holed}_{name}").argtypes = [array] * 14 + [number] * 6
    return library


def _installed() -> ctypes.CDLL | None:
    """Return what was compiled, from the very sources that are here, when daskem was installed; None if nothing was."""
    folder = Path(__file__).parent / "c"
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.[ch]")))
    path = folder / f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}.so"
    if not path.exists() and (older := list(folder.glob("kernels*.so"))):
        logger.warning("%s was compiled from other sources, so that numpy computes: install daskem again.", older[0])
    return load(path)


def _limited(library: ctypes.CDLL | None) -> ctypes.CDLL | None:
    """Return the library, which uses no more than the environment allows."""
    name = os.environ.get(VARIABLE) or "avx512"
    if library is None:
        return None
    if name not in INSTRUCTIONS:
        raise OptionError(f"the environment variable {VARIABLE} is {name!r}; it can be {', '.join(INSTRUCTIONS)}.")
    library.limit(INSTRUCTIONS[name])
    return library


library = _limited(_installed())


def available(*arrays: Array) -> bool:
    """Return whether there are compiled kernels, and for these arrays: of floats of one type, each in C order."""
    return (
        library is not None
        and len({array.dtype.char for array in arrays}) <= 1
        and all(array.dtype.char in TYPES and array.dtype.isnative and array.flags.c_contiguous for array in arrays)
    )


def readable(rows: Array) -> bool:
    """Return whether compiled code reads rows (n, d) where they are: floats, those of a row next to each other."""
    across, along = rows.strides
    beside = along == rows.itemsize or rows.shape[1] == 1
    plain = rows.dtype.char in TYPES and rows.dtype.isnative
    return library is not None and plain and beside and across % rows.itemsize == 0


def in_place(rows: Array, dtype: np.dtype[Any]) -> Array:
    """Return rows of a floating type that compiled code reads: themselves where they are so."""
    return rows if rows.dtype == dtype and readable(rows) else np.ascontiguousarray(rows, dtype)


def describe() -> str:
    """Return what the bits of results depend on."""
    if library is None:
        return "not compiled"
    return f"compiled, {list(INSTRUCTIONS)[library.instructions()]}"


def shifted(rows: Array, shift: Float, scale: Float | None, out: Array) -> None:
    """Write ``(rows - shift) * scale`` into `out`, (d, n), rounded once; `rows` (n, d), `readable`, is of its type."""
    n, d = rows.shape
    scale = np.ones(d) if scale is None else scale
    exact = np.ascontiguousarray(shift, np.float64), np.ascontiguousarray(scale, np.float64)
    _call("shifted", rows.dtype, rows, _stride(rows), *exact, out, n, d)


def log_prob(form: str, u: Array, natural: Array, out: Array) -> None:
    """Write ``natural @ T(u)`` into `out` (k, n); `form` says what T(u) is, u (d, n) (see `FORMS`).

    All three are C ordered and of one floating type; `natural` is (k, p) (see `daskem.models.gaussian_kernels`).
    """
    (d, n), k = u.shape, len(natural)
    _check_natural(form, natural, d)
    _call("log_prob", u.dtype, FORMS[form], u, natural, out, n, d, k)


def moments(form: str, u: Array, resp: Array) -> Float:
    """Return ``resp @ T(u).T``, (k, p), float64: products within a few rows in the type of `u`, added in double."""
    (d, n), k = u.shape, len(resp)
    sums = np.empty((k, _n_terms(form, d)))
    _call("moments", u.dtype, FORMS[form], u, resp, sums, n, d, k)
    return sums


def normalise(log_density: Array, log_weights: Float, weight: Float | None) -> tuple[Float, Array]:
    """Turn log densities (k, n) into responsibilities times weight (n,), in place.

    Returns
    -------
    largest, total : (n,) the largest log_density + log_weight of each row, 0 where that is -inf, and the sum over
        components of exp(log_density + log_weight - largest), NaN where one of them is.
    """
    k, n = log_density.shape
    largest, total = np.empty(n), np.empty(n, log_density.dtype)
    log_weights = np.ascontiguousarray(log_weights, np.float64)
    weight = None if weight is None else np.ascontiguousarray(weight, np.float64)
    _call("normalise", log_density.dtype, log_density, log_weights, weight, largest, total, n, k)
    return largest, total


def e_step(
    terms: Sequence[Terms], log_weights: Float, weight: Float | None, tails: Float | None = None
) -> tuple[list[Float], Float, Float]:
    """Return what an E-step finds, in one go and with the bits of `shifted`, `log_prob`, `normalise` and `moments`.

    Parameters
    ----------
    terms : terms of the log densities, each of other columns or features of the same n rows, of one floating type.
    tails : None, or (k, 5) of Student-t components, `terms` being those of Gaussian ones of the same locations and
        scale matrices: their log densities at the means, 1 / dof, 1 + d / dof, (dof + d) / 2, and the log densities at
        the locations.

    Returns
    -------
    sums : moments (k, p) of each of the terms under resp, or under resp * u with u = (1 + d / dof) / w and
        w = 1 + squared distance / dof.
    log_prob : (n,) log p(x).
    tallies : (k, 2) sums of resp, and of resp * log w, of Student-t components.

    Raises
    ------
    NotWholeError
        If rows that must hold whole numbers hold others.
    """
    n, k, dtype = len(terms[0].rows), len(log_weights), terms[0].rows.dtype
    tallies, largest, total = np.empty((k, 2)), np.empty(n), np.empty(n, dtype)
    log_weights = np.ascontiguousarray(log_weights + sum(part.constant for part in terms), np.float64)
    tails, weight = (array if array is None else np.ascontiguousarray(array, np.float64) for array in (tails, weight))
    # These hold the memory that the records point to.
    for part in terms:
        _check_natural(part.form, part.natural, part.rows.shape[1])
    arrays = [part.arrays(np.empty(part.natural.shape)) for part in terms]
    records = (_Terms * len(terms))(
        *(
            _Terms(
                *(array.ctypes.data for array in own),
                -1.0 if part.most is None else part.most,
                part.rows.shape[1],
                _stride(part.rows),
                FORMS[part.form],
            )
            for part, own in zip(terms, arrays, strict=True)
        )
    )
    if _call("e_step", dtype, records, len(terms), tails, log_weights, weight, tallies, largest, total, n, k):
        raise NotWholeError("rows hold other than whole numbers, or too large ones.")
    log_prob = np.log(total, dtype=np.float64) + largest
    return [own[-1] for own in arrays], log_prob + sum(part.base for part in terms), tallies


def nearest(
    rows: Array,
    shift: Float,
    scale: float,
    centers: Array,
    half_squares: Array,
    weight: Float | None,
    labels: Array | None,
    found: Array | None = None,
) -> Float:
    """Return the sums over the rows nearest to each center, or known by a label that is not negative, (k, d + 2).

    They are, float64, of weight times u = (row - shift) * scale, of weight, and of weight times |u|^2. The centers
    (k, d) are in the units of u and of the type of the rows (n, d), which is computed in; so are their |c|^2 / 2 (k,).
    Into `found` (n,), int32, goes the center of each row; -1 where its square is too large for that type, or NaN.
    """
    (n, d), k = rows.shape, len(centers)
    if centers.shape[1] != d:
        raise ValueError(f"rows have {d} features, centers {centers.shape[1]}.")
    if labels is not None and labels.max(initial=-1) >= k:
        raise ValueError(f"labels go up to {labels.max()}; there are {k} centers.")
    sums = np.empty((k, d + 2))
    weight = None if weight is None else np.ascontiguousarray(weight, np.float64)
    labels = None if labels is None else np.ascontiguousarray(labels, np.int64)
    shift = np.ascontiguousarray(shift, np.float64)
    _call("nearest", rows.dtype, rows, shift, scale, centers, half_squares, weight, labels, sums, found, n, d, k)
    return sums


def whole(rows: Array, most: float) -> bool:
    """Return whether rows (n, d), `readable`, hold whole numbers from 0 to `most`, itself at most `MOST_WHOLE`."""
    return bool(_call("whole", rows.dtype, rows, _stride(rows), most, *rows.shape))


def condition(rows: Rows, components: Components, log_prob: Array, offset: Array) -> Float:
    """Write what components say of rows with holes; return by how much their patterns raise the peaks, (patterns, k).

    Parameters
    ----------
    log_prob : (k, rows of the block) to take the log densities of what is present, in the places of the rows.
    offset : (holes, k) to take the conditional means of the holes, row by row, less the means, scaled.
    """
    (n, d), (k, _), c = rows.values.shape, components.delta.shape, components
    peaks = np.empty((len(rows.first) - 1, k))
    given = *rows.arrays(), c.point, c.scale, c.delta, c.precision, c.peak, c.constant
    sizes = n, log_prob.shape[1], d, k, len(c.point), len(c.precision)
    _call("condition", rows.values.dtype, *given, log_prob, offset, peaks, *sizes)
    return peaks


def filled(rows: Rows, components: Components, offset: Array, resp: Array, loose: Array) -> tuple[Float, Float]:
    """Return the moments of such rows: (k, d), and in upper triangles, shaped as the precision.

    Rows filled with their conditional means count with weight `resp`, their conditional covariances with weight
    `loose`, both (k, rows of the block), C ordered. Products within a few rows are computed in the type of the rows,
    and added in double.
    """
    (n, d), (k, _), c = rows.values.shape, components.delta.shape, components
    first, second = np.zeros(c.delta.shape), np.zeros(c.precision.shape)
    given = *rows.arrays(), c.point, c.scale, c.delta, c.precision, offset, resp, loose
    sizes = n, resp.shape[1], d, k, len(c.point), len(c.precision)
    _call("filled", rows.values.dtype, *given, first, second, *sizes)
    return first, second


def _n_terms(form: str, d: int) -> int:
    """Return p, the length of T(u)."""
    return 1 + d + {"linear": 0, "diag": d, "full": d * (d + 1) // 2}[form]


def _check_natural(form: str, natural: Array, d: int) -> None:
    # Compiled code would read, and write, what is not theirs.
    if natural.shape[1] != _n_terms(form, d):
        raise ValueError(f"rows have {d} features, and {natural.shape[1]} parameters of a component are not theirs.")


def _stride(rows: Array) -> int:
    """Return how many numbers the rows lie apart."""
    return rows.strides[0] // rows.itemsize


def _call(name: str, dtype: np.dtype[Any], *arguments: Any) -> int:
    pointers = (a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments)
    code = int(getattr(library, f"{name}_{TYPES[dtype.char]}")(*pointers))
    if code < 0:
        raise MemoryError(f"no memory was left for the workspace of {name}.")
    return code
