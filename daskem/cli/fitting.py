"""``daskem fit`` and ``daskem plan``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from daskem.cli.app import announce, to_json
from daskem.cli.models import FitSpec, component_table, components, kmeans_options, mixture_options
from daskem.cli.options import (
    DataOptions,
    EngineOptions,
    ReportOptions,
    fit_engine_options,
    labelled_options,
    overwrite_option,
    report_options,
)
from daskem.data import Dataset
from daskem.engine.executor import find_executor
from daskem.engine.planner import make_plan
from daskem.engine.watch import watch_units
from daskem.fit import FitResult, fit
from daskem.persist import check_new_file, save_model
from daskem.report.progress import PassProgress, duration, size

__all__ = [
    "data_summary",
    "describe_data",
    "describe_fit",
    "fit_group",
    "fit_kmeans",
    "fit_mixture",
    "plan_group",
    "plan_kmeans",
    "plan_mixture",
    "run_fit",
]

Command = Callable[..., None]


@click.group("fit")
def fit_group() -> None:
    """Fit a model to data, and save it."""


@click.group("plan")
def plan_group() -> None:
    """Say what a fit would cost, without reading a row."""


def _fit_command(options: Any) -> Callable[[Command], Command]:
    """Return the options of all ``fit`` commands on top of the model's own `options`."""

    def decorate(function: Command) -> Command:
        output = click.option("-o", "--output", required=True, type=click.Path(), help="Model file to write.")
        decorated: Command = labelled_options(
            options(output(overwrite_option(fit_engine_options(report_options(function)))))
        )
        return decorated

    return decorate


def _plan_command(options: Any) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        as_json = click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
        decorated: Command = labelled_options(options(fit_engine_options(as_json(function))))
        return decorated

    return decorate


@fit_group.command("gaussian-mixture")
@_fit_command(mixture_options)
def fit_mixture(**options: Any) -> None:
    """Fit a Gaussian mixture to DATA: a Zarr path or URL, or a .npy, Parquet or HDF5 file."""
    _fit(**options)


@fit_group.command("kmeans")
@_fit_command(kmeans_options)
def fit_kmeans(**options: Any) -> None:
    """Fit k-means to DATA: a Zarr path or URL, or a .npy, Parquet or HDF5 file."""
    _fit(**options)


@plan_group.command("gaussian-mixture")
@_plan_command(mixture_options)
def plan_mixture(**options: Any) -> None:
    """Plan the fit of a Gaussian mixture to DATA."""
    _plan(**options)


@plan_group.command("kmeans")
@_plan_command(kmeans_options)
def plan_kmeans(**options: Any) -> None:
    """Plan the fit of k-means to DATA."""
    _plan(**options)


def run_fit(
    spec: FitSpec, data: Dataset, *, cache: str = "auto", memory_limit: Any = None, quiet: bool = False
) -> FitResult:
    """Fit what `spec` says to `data`, showing progress on standard error."""
    spec.check(data)
    progress = PassProgress(
        data.n_rows,
        data.nbytes,
        len(data.units()),
        rule=spec.rule,
        tol=spec.tol,
        max_steps=spec.max_iter,
        objective_name=spec.objective_name,
        quiet=quiet,
    )
    with progress, watch_units(progress.unit_done):
        return fit(
            spec.model(),
            data,
            algorithm=spec.make_algorithm(),
            stop=spec.stop(data),
            callbacks=[progress],
            n_init=spec.starts,
            init_sample=spec.init_sample,
            seed=spec.seed,
            cache=cache,
            memory_limit=memory_limit,
        )


def describe_data(data: Dataset) -> str:
    """Return one line about the data."""
    return (
        f"{data.rows.name}: {data.n_rows:,} rows x {data.n_features} features, {data.rows.dtype}, {size(data.nbytes)}"
    )


def _fit(
    spec: FitSpec,
    source: DataOptions,
    where: EngineOptions,
    report: ReportOptions,
    output: str,
    overwrite: bool,
) -> None:
    check_new_file(output, overwrite)
    with where.connect():
        data = source.open()
        announce(f"daskem: {describe_data(data)}", report.quiet)
        result = run_fit(spec, data, cache=where.cache, memory_limit=where.memory_limit, quiet=report.quiet)
    if not result.converged:
        announce(f"daskem: warning: not converged: {result.reason}. Allow more steps, or try --n-init.", report.quiet)
    summary = {**result.summary(), "options": spec.as_dict(), "data": data_summary(data)}
    save_model(output, result.model, result.params, metadata=summary, overwrite=overwrite)
    if report.json:
        found = components(result.model, result.params)
        click.echo(to_json({**summary, "components": found, "output": os.path.abspath(output)}))
    elif not report.quiet:
        click.echo(describe_fit(spec, result, data))
        click.echo(f"\nsaved to {output}")


def _plan(spec: FitSpec, source: DataOptions, where: EngineOptions, as_json: bool) -> None:
    with where.connect():
        data = source.open()
        spec.check(data)
        plan = make_plan(
            data,
            spec.model(),
            find_executor(local=data.in_process),
            members=spec.starts,
            cache=where.cache,
            memory_limit=where.memory_limit,
        )
    if as_json:
        click.echo(to_json({**plan.as_dict(), "max_passes": spec.max_iter}))
    else:
        click.echo(f"{plan}\npasses  at most {spec.max_iter}, one a step, and what the start reads")


def describe_fit(spec: FitSpec, result: FitResult, data: Dataset) -> str:
    """Return the outcome of a fit for people."""
    passes = sum(info.seconds for info in result.trace)
    rate = data.n_rows * result.n_steps / max(passes, 1e-9) / 1e6
    ended = "converged" if result.converged else "stopped"
    lines = [
        f"{ended} after {result.n_steps} steps: {result.reason}",
        f"{spec.objective_name} {result.objective:.8g} {spec.unit}",
        f"{duration(result.seconds)} in all, {duration(passes)} in passes ({rate:.3g}M rows/s)",
    ]
    if result.events:
        repaired = len({event.component for event in result.events})
        what = "1 component" if repaired == 1 else f"{repaired} components"
        lines.append(f"{what} had to be repaired, the last: {result.events[-1].what}")
    return "\n".join([*lines, "", component_table(result.model, result.params, data.rows.columns)])


def data_summary(data: Dataset) -> dict[str, Any]:
    """Return what a model file notes of the data."""
    columns = data.rows.columns
    return {
        "name": data.rows.name,
        "shape": list(data.rows.shape),
        "dtype": str(data.rows.dtype),
        "columns": list(columns) if columns else None,
    }
