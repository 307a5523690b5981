"""Where the CPU time of a pass goes: the model's E-step, and all else that the engine does (README.md).

CPU seconds, not wall-clock: they say the same on a machine that is busy with other things.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import dask
from measure import CORES, Report, load, parser, start
from speed import WORKLOADS, Workload, draw

from daskem.core import Array, Chunk, Expectation, Footprint, HasFootprint, Params
from daskem.data import Dataset, open_dataset
from daskem.data.dataset import blocks
from daskem.engine import Engine, start_engine


@dataclass(frozen=True, eq=False)
class Watched:
    """A model that notes the CPU seconds of each of its E-steps."""

    model: Any
    spent: list[float] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def e_step(self, params: Params, chunk: Chunk) -> Expectation:
        clock = time.thread_time()
        expectation: Expectation = self.model.e_step(params, chunk)
        spent = time.thread_time() - clock
        with self.lock:
            self.spent.append(spent)
        return expectation

    def footprint(self, n_features: int, dtype: Any) -> Footprint:
        known: HasFootprint = self.model
        return known.footprint(n_features, dtype)


class Cost(NamedTuple):
    """CPU and wall-clock seconds of a pass, CPU seconds of the E-steps in it, and their number."""

    cpu: float
    wall: float
    e_step: float
    blocks: int


def measure(workload: Workload, rows: Array, report: Report, repeats: int) -> None:
    """Print the parts of a pass of one workload."""
    fitted = workload.estimator("daskem", rows, 1).fit(rows)
    data = open_dataset(rows)
    for scheduler in ("threads", "synchronous"):
        with dask.config.set(scheduler=scheduler):
            watched = Watched(fitted.result_.model)
            engine = start_engine(data, watched)
            costs = [_pass_cost(engine, watched, fitted.result_.params) for _ in range(repeats + 1)][1:]
        cost = sorted(costs)[len(costs) // 2]
        beyond = cost.cpu - cost.e_step
        report.say(
            f"  {scheduler:<12} wall {cost.wall:.3f} s, CPU {cost.cpu:.3f} s: E-steps {cost.e_step:.3f} s, "
            f"beyond them {beyond:.3f} s ({beyond / cost.cpu:.1%}; {beyond / cost.blocks * 1e6:.0f} us a block)"
        )
    walked = statistics.median(_cpu(lambda: _walk(data, engine.plan.block_rows)) for _ in range(repeats))
    report.say(
        f"  {len(engine.plan.units)} units, {cost.blocks} blocks of {engine.plan.block_rows} rows; cutting them alone: "
        f"CPU {walked:.4f} s; load average {load()}"
    )


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument(
        "--workloads", nargs="+", choices=[w.name for w in WORKLOADS], default=["W1", "W2", "W3", "W4"]
    )
    options.add_argument("--dtypes", nargs="+", choices=["float64", "float32"], default=["float64", "float32"])
    chosen = options.parse_args(arguments)
    report = start(f"breakdown: CPU time of a pass on {CORES} threads and on one")
    for workload in WORKLOADS:
        if workload.name in chosen.workloads:
            scaled = replace(workload, n=int(workload.n * chosen.scale))
            exact = draw(scaled, chosen.seed)
            for dtype in chosen.dtypes:
                report.say(f"\n{scaled} {dtype}")
                measure(scaled, exact.astype(dtype, copy=False), report, chosen.repeats)
    return report.close()


def _pass_cost(engine: Engine, watched: Watched, params: Params) -> Cost:
    watched.spent.clear()
    wall = time.perf_counter()
    cpu = _cpu(lambda: engine.expect(watched, [params]))
    return Cost(cpu, time.perf_counter() - wall, sum(watched.spent), len(watched.spent))


def _walk(data: Dataset, block_rows: int) -> None:
    for _ in blocks(data, 0, data.n_rows, block_rows):
        pass


def _cpu(function: Callable[[], object]) -> float:
    clock = time.process_time()
    function()
    return time.process_time() - clock


if __name__ == "__main__":
    sys.exit(main())
