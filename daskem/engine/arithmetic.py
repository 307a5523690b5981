"""What processes compute with: sums have other last bits with another BLAS, or on another kind of processor."""

from __future__ import annotations

import platform
import warnings
from collections import Counter
from collections.abc import Mapping

import numpy as np
import scipy
import scipy.linalg  # brings a BLAS of its own, listed once it is loaded
from threadpoolctl import threadpool_info

from daskem import compiled
from daskem.engine.executor import Executor
from daskem.engine.remote import ask_scheduler
from daskem.errors import DaskEMWarning

__all__ = ["describe_arithmetic", "warn_of_unlike", "warn_of_unlike_workers"]

# Workers that a message names of each kind.
MAX_NAMED = 5


def describe_arithmetic() -> str:
    """Return what the bits of this process's results depend on: processor, numpy, scipy, BLAS, vector instructions."""
    blas = {
        " ".join(str(library[key]) for key in ("internal_api", "version", "architecture") if library.get(key))
        for library in threadpool_info()
        if library["user_api"] == "blas"
    }
    # What numpy chose on this processor for one function is what it chose for all.
    exp = np.lib.introspect.opt_func_info(func_name="^exp$").get("exp", {}).get("dd", {}).get("current", "")
    versions = f"numpy {np.__version__}", f"scipy {scipy.__version__}"
    return ", ".join((platform.machine(), *versions, *sorted(blas), f"exp {exp}", f"kernels {compiled.describe()}"))


def warn_of_unlike_workers(executor: Executor) -> None:
    """Warn of workers of the cluster, if one does the work, that compute with something else than most do."""
    if executor.cluster:
        # A worker that dies now is no reason not to ask the others.
        with ask_scheduler() as client:
            warn_of_unlike(client.run(describe_arithmetic, on_error="ignore"))


def warn_of_unlike(reports: Mapping[str, str]) -> None:
    """Warn if workers (address: `describe_arithmetic`) are of several kinds, naming those of the rarer ones."""
    kinds = Counter(reports.values()).most_common()
    if len(kinds) < 2:
        return
    (most, n), *others = kinds
    told = [f"{_names([where for where, kind in reports.items() if kind == other])}: {other}" for other, _ in others]
    warnings.warn(
        f"workers compute with different libraries or processors: {n} of {len(reports)} with {most}; but "
        f"{'; '.join(told)}. The last bits of results then depend on which worker did what, and a run cannot be "
        "repeated to the bit. Use one environment and one kind of machine, or set OPENBLAS_CORETYPE, "
        f"NPY_DISABLE_CPU_FEATURES and {compiled.VARIABLE} ({', '.join(compiled.INSTRUCTIONS)}) alike everywhere.",
        DaskEMWarning,
        stacklevel=3,
    )


def _names(workers: list[str]) -> str:
    more = f" and {len(workers) - MAX_NAMED} more" if len(workers) > MAX_NAMED else ""
    return f"{', '.join(sorted(workers)[:MAX_NAMED])}{more}"
