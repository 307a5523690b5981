"""``daskem generate``."""

from __future__ import annotations

import time
from typing import Any

import click
import numpy as np

from daskem.cli.app import to_json
from daskem.cli.options import (
    EngineOptions,
    ReportOptions,
    engine_options,
    overwrite_option,
    report_options,
    split_names,
)
from daskem.generate import CHUNK_ROWS, generate_mixture
from daskem.report.progress import duration, size

__all__ = ["generate_command"]


@click.command("generate")
@click.argument("output", metavar="OUT.zarr")
@click.option("--rows", type=click.IntRange(min=1), default=1_000_000)
@click.option("--features", type=click.IntRange(min=1), default=16)
@click.option("--components", type=click.IntRange(min=1), default=8)
@click.option(
    "--separation",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="Distance of the two nearest means, in standard deviations.",
)
@click.option("--dtype", type=click.Choice(["float16", "float32", "float64"]), default="float32")
@click.option("--chunk-rows", type=click.IntRange(min=1), default=CHUNK_ROWS)
@click.option("--shard-rows", type=click.IntRange(min=1), help="Rows of a shard, a multiple of --chunk-rows.")
@click.option("--columns", metavar="A,B,...", help="Names of the features.")
@click.option(
    "--order",
    type=click.Choice(["shuffled", "sorted"]),
    default="shuffled",
    show_default=True,
    help="Whether rows of a component follow each other.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--truth", type=click.Path(), help="Model file to write the truth to.")
@overwrite_option
@engine_options
@report_options
def generate_command(
    output: str,
    rows: int,
    features: int,
    components: int,
    dtype: str,
    columns: str | None,
    truth: str | None,
    where: EngineOptions,
    report: ReportOptions,
    **options: Any,
) -> None:
    """Write rows of a Gaussian mixture with a known truth: arrays ``x`` and ``labels`` of a Zarr group."""
    clock = time.perf_counter()
    row_bytes = features * np.dtype(dtype).itemsize
    with where.connect():
        generate_mixture(
            output,
            rows,
            features,
            components,
            dtype=dtype,
            columns=split_names(columns),
            truth_path=truth,
            memory_limit=where.memory_limit,
            **options,
        )
    seconds = time.perf_counter() - clock
    if report.json:
        click.echo(to_json({"output": output, "rows": rows, "bytes": rows * row_bytes, "seconds": seconds}))
    elif not report.quiet:
        click.echo(
            f"{rows:,} rows x {features} features, {size(rows * row_bytes)}, written to {output} in {duration(seconds)}"
        )
