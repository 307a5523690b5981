"""One fit of a store in a process of its own, which prints the seconds of its passes and its peak memory as JSON.

Called by out_of_core.py and scale.py with one argument, a JSON object of the fields of `Spec`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from measure import drop_page_cache, peak_rss, run_script

import daskem
from daskem.algorithms import BatchEM
from daskem.models import Gaussian, Mixture


@dataclass(frozen=True)
class Spec:
    """What to fit: rows ``:stop`` of `store`, `steps` timed passes after one that is not."""

    store: str
    stop: int
    n_components: int
    covariance: str
    steps: int
    memory_limit: str

    def run(self) -> dict[str, Any]:
        """Fit in a new process; return ``seconds`` (one per pass), ``peak`` and ``planned`` (bytes)."""
        result: dict[str, Any] = json.loads(run_script("one_fit", json.dumps(asdict(self))))
        return result


def fit(spec: Spec) -> dict[str, Any]:
    """Fit in this process, every pass reading from the disk: the page cache is dropped before each."""
    result = daskem.fit(
        Mixture(Gaussian(spec.covariance), spec.n_components),
        spec.store,
        algorithm=BatchEM(),
        stop=daskem.MaxSteps(spec.steps + 1),
        callbacks=[lambda info, params: drop_page_cache(spec.store)],
        cache="none",
        memory_limit=spec.memory_limit,
        rows=slice(0, spec.stop),
    )
    # The first pass finds in the page cache what the sample for the start has read.
    seconds = [info.seconds for info in result.trace[1:]]
    return {"seconds": seconds, "peak": peak_rss(), "planned": result.plan.peak, "objective": result.objective}


if __name__ == "__main__":
    print(json.dumps(fit(Spec(**json.loads(sys.argv[1])))))
