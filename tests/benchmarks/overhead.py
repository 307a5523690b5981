"""10,000 small chunks against 40 large ones on two worker processes: what a task and a chunk cost (README.md)."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import Client, LocalCluster
from measure import parser, seconds, start, temporary
from stores import CODECS, make_store

import daskem
from daskem import tree
from daskem.core import Params
from daskem.data import open_dataset
from daskem.data.dataset import Dataset, pieces
from daskem.engine import Engine, start_engine
from daskem.engine.executor import Executor
from daskem.models import Gaussian, Mixture

N_FEATURES = 16
# 64 KiB.
SMALL_ROWS = (64 << 10) // (4 * N_FEATURES)
SMALL_CHUNKS, LARGE_CHUNKS = 10_000, 40
N_WORKERS = 2
# Rounds for each of ``--repeats``: differences of seconds that vary by a tenth are compared.
ROUNDS = 5
PASS_TARGET = 1.10
GRAPH_TARGET = 1e6


@dataclass(frozen=True)
class MeasuringExecutor(Executor):
    """An executor that notes the pickled size of each graph it submits."""

    sizes: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, executor: Executor) -> MeasuringExecutor:
        return cls(**{f.name: getattr(executor, f.name) for f in fields(Executor)})

    def compute_all(self, nodes: Sequence[Any], slots: int) -> list[Any]:
        self.sizes.extend(len(cloudpickle.dumps(node.__dask_graph__())) for node in nodes)
        return super().compute_all(nodes, slots)


def read(data: Dataset, start: int, stop: int) -> int:
    """Read rows ``start:stop`` as a pass does and do nothing with them; runs on a worker."""
    return sum(len(rows) for _, rows in pieces(data, start, stop))


def read_seconds(client: Client, data: Dataset) -> float:
    """Return the seconds of reading everything on the workers, one task each."""
    cuts = [data.rows.piece_boundary(round(i * data.n_rows / N_WORKERS)) for i in range(N_WORKERS + 1)]
    return seconds(lambda: client.gather(client.map(read, [data] * N_WORKERS, cuts[:-1], cuts[1:], pure=False)))


def open_engine(store: Path, model: Mixture) -> tuple[Engine, MeasuringExecutor]:
    """Return an engine over a store, and its executor, which measures graphs."""
    engine = start_engine(open_dataset(str(store)), model, cache="none")
    executor = MeasuringExecutor.of(engine.executor)
    return Engine(engine.data, engine.plan, executor, engine.seed, engine.parts), executor


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--codec", choices=sorted(CODECS), default="zstd", help="of the stored chunks")
    options.add_argument("--components", type=int, default=8, help="components of the full mixture")
    chosen = options.parse_args(arguments)
    report = start(f"overhead: many small chunks against few large ones, {N_WORKERS} worker processes")
    small_chunks = max(LARGE_CHUNKS, int(SMALL_CHUNKS * chosen.scale) // LARGE_CHUNKS * LARGE_CHUNKS)
    n_rows = small_chunks * SMALL_ROWS
    chunk_rows = {"small": SMALL_ROWS, "large": n_rows // LARGE_CHUNKS}
    model = Mixture(Gaussian("full"), chosen.components)
    with (
        temporary(chosen.directory) as directory,
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        stores = {
            name: make_store(directory / f"{name}.zarr", n_rows, N_FEATURES, rows, chosen.codec, chosen.seed)
            for name, rows in chunk_rows.items()
        }
        report.say(f" {n_rows:,} x {N_FEATURES} float32 in {small_chunks:,} or {LARGE_CHUNKS} chunks, {chosen.codec}")
        passes, read_alone, aside, graph, params = _measure(client, stores, model, ROUNDS * chosen.repeats)
    for name in stores:
        report.say(f" {name} chunks: pass {passes[name]:.3f} s, reading alone {read_alone[name]:.3f} s")
    report.say(f" small against large, reading included: {passes['small'] / passes['large']:.3f}")
    report.check("small against large chunks, reading aside", aside["small"] / aside["large"], PASS_TARGET)
    report.check("submitted graph beyond the parameters", (graph - params) / 1e6, GRAPH_TARGET / 1e6, unit=" MB")
    return report.close()


def _measure(
    client: Client, stores: dict[str, Path], model: Mixture, rounds: int
) -> tuple[dict[str, float], dict[str, float], dict[str, float], int, int]:
    """Return median seconds of passes, of reading and of passes less it, bytes of the largest graph, of parameters."""
    params = daskem.fit(model, str(stores["large"]), stop=daskem.MaxSteps(1)).params
    engines = {name: open_engine(store, model) for name, store in stores.items()}
    passes: dict[str, list[float]] = {name: [] for name in stores}
    read_alone: dict[str, list[float]] = {name: [] for name in stores}
    # One round more than counts, to load what the workers load once and to fill the page cache.
    for _ in range(rounds + 1):
        for name, (engine, _executor) in engines.items():
            passes[name].append(_pass_seconds(engine, model, params))
            read_alone[name].append(read_seconds(client, engine.data))
    graph = max(size for _, executor in engines.values() for size in executor.sizes)
    aside = {name: [a - b for a, b in zip(passes[name], read_alone[name], strict=True)] for name in stores}
    return _medians(passes), _medians(read_alone), _medians(aside), graph, tree.nbytes(params)


def _pass_seconds(engine: Engine, model: Mixture, params: Params) -> float:
    return seconds(lambda: engine.expect(model, [params]))


def _medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values[1:]) for name, values in times.items()}


if __name__ == "__main__":
    sys.exit(main())
