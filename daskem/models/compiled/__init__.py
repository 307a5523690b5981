"""Compiled arithmetic of E-steps (kernels.c), where daskem was installed with a C compiler; else callers use numpy."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from daskem.chunk import Array, Float

__all__ = ["available", "describe", "log_prob", "moments", "normalise"]

TYPES = {"d": "double", "f": "float"}


def _load() -> ctypes.CDLL | None:
    """Return the library that `build` made beside this file, or None."""
    path = Path(__file__).with_name("kernels.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        # There is none, or it was made for another machine.
        return None
    number, array = ctypes.c_long, ctypes.c_void_p
    for name in TYPES.values():
        getattr(library, f"log_prob_{name}").argtypes = [ctypes.c_int, array, array, array, number, number, number]
        getattr(library, f"moments_{name}").argtypes = [ctypes.c_int, array, array, array, number, number, number]
        getattr(library, f"normalise_{name}").argtypes = [array, array, array, array, number, number]
    return library


_library = _load()


def available(*arrays: Array) -> bool:
    """Return whether there are compiled kernels, and for these arrays: of floats of one type, each in C order."""
    return (
        _library is not None
        and len({array.dtype.char for array in arrays}) <= 1
        and all(array.dtype.char in TYPES and array.flags.c_contiguous for array in arrays)
    )


def describe() -> str:
    """Return what the bits of results depend on."""
    if _library is None:
        return "not compiled"
    return "compiled for AVX2" if _library.uses_avx2() else "compiled portably"


def log_prob(covariance: str, u: Array, natural: Array, out: Array) -> None:
    """Write ``natural @ T(u)`` into `out` (k, n); `covariance` "full" or "diag" says what T(u) is, u (d, n).

    All three are C ordered and of one floating type; `natural` is (k, p) (see `daskem.models.gaussian_kernels`).
    """
    (d, n), k = u.shape, len(natural)
    _call("log_prob", u.dtype, covariance == "full", u, natural, out, n, d, k)


def moments(covariance: str, u: Array, resp: Array) -> Float:
    """Return ``resp @ T(u).T``, (k, p), float64: products within a few rows in the type of `u`, added in double."""
    (d, n), k = u.shape, len(resp)
    sums = np.empty((k, 1 + d + (d * (d + 1) // 2 if covariance == "full" else d)))
    _call("moments", u.dtype, covariance == "full", u, resp, sums, n, d, k)
    return sums


def normalise(joint: Array, weight: Float | None) -> tuple[Float, Array]:
    """Turn log joint densities (k, n) into responsibilities times weight, in place.

    Returns
    -------
    largest, total : (n,) the largest log density of each row, 0 where that is -inf, and the sum over components of
        exp(log density - largest).
    """
    k, n = joint.shape
    largest, total = np.empty(n), np.empty(n, joint.dtype)
    weight = None if weight is None else np.ascontiguousarray(weight, np.float64)
    _call("normalise", joint.dtype, joint, weight, largest, total, n, k)
    return largest, total


def _call(name: str, dtype: np.dtype[Any], *arguments: Array | int | None) -> None:
    pointers = (a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments)
    if getattr(_library, f"{name}_{TYPES[dtype.char]}")(*pointers):
        raise MemoryError(f"no memory was left for the workspace of {name}.")
