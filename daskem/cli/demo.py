"""``daskem demo``: the whole path, on data with a known truth that do not fit into the memory it allows itself."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from daskem.cli.app import announce, columns_of, to_json
from daskem.cli.fitting import data_summary, run_fit
from daskem.cli.models import KINDS, FitSpec
from daskem.cli.options import ReportOptions, overwrite_option, report_options
from daskem.cli.own import load
from daskem.core import Float, Params
from daskem.data import open_dataset, open_source
from daskem.data.generated import LABELS
from daskem.data.writers import check_new_output
from daskem.engine.allocator import return_freed_memory
from daskem.fit import FitResult
from daskem.generate import Truth, generate_mixture
from daskem.persist import check_new_file, save_model
from daskem.predict import predict_to_store, score
from daskem.report.progress import duration, size

__all__ = ["compare", "demo_command", "match", "peak_memory"]

# A few seconds a pass on two cores, and several times more data than memory.
ROWS, FEATURES, COMPONENTS = 8_000_000, 24, 5
MEMORY = "400MB"
# Chunks of 2 MB: readers hold a few of them, beside the 230 MB that Python and its packages take.
CHUNK_ROWS = 16_384
SEPARATION = 6.0
# One start in four ends in a local optimum; three share each pass, and the best wins.
STARTS = 3
# Labels compared at a time.
COMPARED_ROWS = 1 << 20


@dataclass(frozen=True)
class _Sizes:
    """What to make: the options of the command."""

    rows: int
    features: int
    components: int
    seed: int
    memory_limit: str
    overwrite: bool


@dataclass
class _Run:
    """A run of the demonstration in one directory; notes how long each part took."""

    directory: Path
    sizes: _Sizes
    quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    @contextmanager
    def part(self, name: str, what: str) -> Iterator[None]:
        announce(f"\n{what}", self.quiet)
        clock = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - clock

    def generate(self) -> Truth:
        sizes = self.sizes
        n_bytes = 4 * sizes.rows * sizes.features
        with self.part("generate", f"1. Writing {sizes.rows:,} rows x {sizes.features} features, {size(n_bytes)}"):
            return generate_mixture(
                self.path("data.zarr"),
                sizes.rows,
                sizes.features,
                sizes.components,
                separation=SEPARATION,
                chunk_rows=CHUNK_ROWS,
                seed=sizes.seed,
                truth_path=self.path("truth.safetensors"),
                overwrite=sizes.overwrite,
                memory_limit=sizes.memory_limit,
            )

    def fit(self) -> FitResult:
        own = {"covariance": "full", "reg_covar": 1e-6, "prior": None, "on_collapse": "keep", "weight_prior": 1.0}
        kind, sizes = KINDS["gaussian-mixture"], self.sizes
        spec = FitSpec(kind, own, sizes.components, n_init=STARTS, init="kmeans", seed=sizes.seed)
        data = open_dataset(self.path("data.zarr"))
        with self.part("fit", f"2. Fitting a Gaussian mixture within {self.sizes.memory_limit}"):
            result = run_fit(spec, data, memory_limit=self.sizes.memory_limit, quiet=self.quiet)
        metadata = {**result.summary(), "options": spec.as_dict(), "data": data_summary(data)}
        model = self.path("model.safetensors")
        save_model(model, result.model, result.params, metadata=metadata, overwrite=self.sizes.overwrite)
        return result

    def predict(self) -> None:
        model = load(self.path("model.safetensors"))
        with self.part("predict", "3. Writing the label of each row"):
            predict_to_store(
                model.model,
                model.params,
                open_dataset(self.path("data.zarr")),
                self.path("labels.zarr"),
                ["labels"],
                self.sizes.components,
                overwrite=self.sizes.overwrite,
                memory_limit=self.sizes.memory_limit,
            )

    def scores(self) -> tuple[float, float]:
        """Return the mean log density of the rows under the truth and under the estimate."""
        data = open_dataset(self.path("data.zarr"))
        means = []
        with self.part("score", "4. Scoring the truth and the estimate"):
            for name in ("truth", "model"):
                saved = load(self.path(f"{name}.safetensors"))
                total, weight = score(saved.model, saved.params, data, memory_limit=self.sizes.memory_limit)
                means.append(total / weight)
        return means[0], means[1]


@click.command("demo")
@click.option("--rows", type=click.IntRange(min=1), default=ROWS)
@click.option("--features", type=click.IntRange(min=1), default=FEATURES)
@click.option("--components", type=click.IntRange(min=1), default=COMPONENTS)
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--memory-limit", metavar="SIZE", default=MEMORY, help="Memory to stay within.")
@click.option("--directory", type=click.Path(file_okay=False), help="Where to work; a temporary directory by default.")
@overwrite_option
@report_options
def demo_command(directory: str | None, report: ReportOptions, **sizes: Any) -> None:
    """Show the whole path on data larger than its memory: generate, fit, save, label, score, compare with the truth."""
    # Several jobs follow each other in this process, and each is planned from what is resident before it.
    return_freed_memory()
    with tempfile.TemporaryDirectory(prefix="daskem-demo-") as temporary:
        place = Path(directory or temporary)
        place.mkdir(parents=True, exist_ok=True)
        run = _Run(place, _Sizes(**sizes), report.quiet)
        for name in ("truth.safetensors", "model.safetensors"):
            check_new_file(place / name, run.sizes.overwrite)
        for name in ("data.zarr", "labels.zarr"):
            check_new_output(place / name, run.sizes.overwrite)
        figures = _figures(run)
    if report.json:
        click.echo(to_json(figures))
    elif not report.quiet:
        click.echo(_describe(figures))


def _figures(run: _Run) -> dict[str, Any]:
    truth = run.generate()
    result = run.fit()
    run.predict()
    truth_score, model_score = run.scores()
    order = match(truth.means, result.params.components.means)
    return {
        "rows": run.sizes.rows,
        "data_bytes": result.plan.data,
        "memory_limit_bytes": result.plan.limit,
        "planned_peak_bytes": result.plan.peak,
        "peak_bytes": peak_memory(),
        "converged": result.converged,
        "reason": result.reason,
        "passes": result.passes,
        "seconds": run.seconds,
        "log_prob": {"truth": truth_score, "estimate": model_score},
        "labels_agree": _agreement(run, order),
        "components": compare(truth, result.params, order),
    }


def match(truth: Float, means: Float) -> list[int]:
    """Return for each true mean the index of the estimated one that is its counterpart: nearest, one to one."""
    return [int(i) for i in linear_sum_assignment(cdist(truth, means))[1]]


def compare(truth: Truth, params: Params, order: list[int]) -> list[dict[str, Any]]:
    """Return truth beside estimate for each component."""
    variances = np.diagonal(params.components.covariances, axis1=1, axis2=2)
    true_variances = np.diagonal(truth.covariances, axis1=1, axis2=2)
    return [
        {
            "weight": (truth.weights[k], params.weights[j]),
            "mean_0": (truth.means[k, 0], params.components.means[j, 0]),
            "mean_error": np.abs(truth.means[k] - params.components.means[j]).max(),
            "sd_0": (np.sqrt(true_variances[k, 0]), np.sqrt(variances[j, 0])),
            "sd_error": np.abs(np.sqrt(true_variances[k]) - np.sqrt(variances[j])).max(),
        }
        for k, j in enumerate(order)
    ]


def peak_memory() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else 1024 * peak


def _agreement(run: _Run, order: list[int]) -> float:
    """Return the share of rows whose label is the component that they were drawn from."""
    drawn = open_source(run.path("data.zarr"), array=LABELS, ndim=1)
    found = open_source(run.path("labels.zarr"), array="labels", ndim=1)
    true_of = np.argsort(order)
    agree = 0
    for start in range(0, run.sizes.rows, COMPARED_ROWS):
        stop = min(start + COMPARED_ROWS, run.sizes.rows)
        agree += int((true_of[found.read(start, stop)] == drawn.read(start, stop)).sum())
    return agree / run.sizes.rows


def _describe(figures: dict[str, Any]) -> str:
    header = ["component", "weight", "estimate", "mean[0]", "estimate", "sd[0]", "estimate", "worst mean", "worst sd"]
    rows = []
    for k, c in enumerate(figures["components"]):
        pairs = [f"{value:.4f}" for name in ("weight", "mean_0", "sd_0") for value in c[name]]
        rows.append([str(k), *pairs, f"{c['mean_error']:.4f}", f"{c['sd_error']:.4f}"])
    seconds = figures["seconds"]
    parts = ", ".join(f"{name} {duration(spent)}" for name, spent in seconds.items())
    scores = figures["log_prob"]
    return "\n".join(
        [
            "",
            "Truth beside estimate (worst: largest error over all features)",
            columns_of(header, rows),
            "",
            f"log density  {scores['truth']:.6f} nats per row under the truth, {scores['estimate']:.6f} estimated",
            f"labels       {100 * figures['labels_agree']:.3f}% are the component that the row was drawn from",
            f"fit          {'' if figures['converged'] else 'not '}converged, {figures['passes']:g} passes",
            f"time         {duration(sum(seconds.values()))}: {parts}",
            f"memory       peak {size(figures['peak_bytes'])} for {size(figures['data_bytes'])} of data "
            f"(planned {size(figures['planned_peak_bytes'])}, limit {size(figures['memory_limit_bytes'])})",
        ]
    )
