"""``daskem fit`` and ``daskem plan``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import click

from daskem.algorithms import Auto
from daskem.cli.app import announce, to_json
from daskem.cli.models import KINDS, FitSpec, Kind, shared_options
from daskem.cli.options import (
    CheckpointOptions,
    DataOptions,
    EngineOptions,
    ReportOptions,
    checkpoint_options,
    fit_data_options,
    fit_engine_options,
    labelled_options,
    overwrite_option,
    report_options,
)
from daskem.cli.own import own_kind
from daskem.cli.provenance import RememberedCommand, command_line, peak_memory, versions
from daskem.cli.signals import stop_signals
from daskem.cli.tables import component_table, shown
from daskem.core import HasMemory, objective_kind
from daskem.data import Dataset
from daskem.data.writers import check_apart
from daskem.engine.executor import find_executor
from daskem.engine.planner import make_plan
from daskem.engine.watch import watch_units
from daskem.fit import FitResult, fit
from daskem.persist import any_path, check_new_file, save_model
from daskem.report.progress import PassProgress, duration, size

__all__ = [
    "chosen_columns",
    "data_summary",
    "describe_data",
    "describe_fit",
    "fit_group",
    "plan_group",
    "run_fit",
]

# Gives a command, made of a kind of model and its name.
MakeCommand = Callable[[str, Kind], click.Command]


class _KindGroup(click.Group):
    """A group with one command for each kind of model, and one for each model of the user's own, ``module:Name``."""

    make: MakeCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table."""
        return list(KINDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command of a kind in the table, or of a model that the user wrote."""
        if name in KINDS:
            return self.make(name, KINDS[name])
        return self.make(name, own_kind(name)) if ":" in name else None


def _fit_command(name: str, kind: Kind) -> click.Command:
    def command(**options: Any) -> None:
        spec, others = _told(kind, options)
        _fit(spec, **others)

    output = click.option("-o", "--output", required=True, type=click.Path(), help="Model file to write.")
    decorated = fit_data_options(
        _own(kind, output(overwrite_option(fit_engine_options(checkpoint_options(report_options(command))))))
    )
    told = f"Fit {kind.title} to DATA: {_DATA}"
    return click.command(name, cls=RememberedCommand, help=told, short_help=kind.title)(decorated)


def _plan_command(name: str, kind: Kind) -> click.Command:
    def command(**options: Any) -> None:
        spec, others = _told(kind, options)
        _plan(spec, **others)

    as_json = click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
    decorated = labelled_options(_own(kind, fit_engine_options(as_json(command))))
    return click.command(name, help=f"Plan the fit of {kind.title} to DATA.", short_help=kind.title)(decorated)


_DATA = "a Zarr path or URL, or a .npy, Parquet or HDF5 file."
_HELP = "{} MODULE:NAME stands for a model of your own, such as mymodule:ZeroInflatedPoisson."
fit_group = _KindGroup("fit", help=_HELP.format("Fit a model to data, and save it."))
fit_group.make = _fit_command
plan_group = _KindGroup("plan", help=_HELP.format("Say what a fit would cost, without reading a row."))
plan_group.make = _plan_command


def _own(kind: Kind, function: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the options of a kind of model: its own, then those of all."""
    for option in reversed((*kind.options, *shared_options(kind))):
        function = option(function)
    return function


def _told(kind: Kind, options: dict[str, Any]) -> tuple[FitSpec, dict[str, Any]]:
    """Return what the options of a command say of the fit, and those that are about something else."""
    elsewhere = {"source", "where", "report", "kept", "output", "overwrite", "as_json"}
    others = {name: value for name, value in options.items() if name in elsewhere}
    of_fit = {name: value for name, value in options.items() if name not in elsewhere}
    shared = {field.name: of_fit.pop(field.name) for field in fields(FitSpec) if field.name in of_fit}
    return FitSpec(kind, of_fit, **shared), others


def run_fit(
    spec: FitSpec,
    data: Dataset,
    *,
    cache: str = "auto",
    compress: str = "auto",
    memory_limit: Any = None,
    kept: CheckpointOptions | None = None,
    on_bad_unit: str = "raise",
    quiet: bool = False,
) -> FitResult:
    """Fit what `spec` says to `data`, showing progress on standard error."""
    spec.check(data)
    kind, model, algorithm = spec.kind, spec.model(data), spec.make_algorithm()
    if not isinstance(algorithm, Auto):
        # What Auto chooses, it says itself.
        announce(f"daskem: algorithm {spec.algorithm}", quiet)
    progress = PassProgress(
        data.n_rows,
        data.nbytes,
        len(data.units()),
        rule=kind.rule,
        tol=0.0 if spec.tol == "statistical" else spec.tol,
        max_passes=spec.max_iter,
        objective_name=objective_kind(model, kind.objective_name),
        quiet=quiet,
    )
    with progress, watch_units(progress.unit_done), stop_signals(kept is not None and kept.checkpoint is not None):
        return fit(
            model,
            data,
            algorithm=algorithm,
            stop=spec.stop(data),
            callbacks=[progress],
            n_init=spec.starts,
            init_sample=spec.init_sample,
            seed=spec.seed,
            cache=cache,
            compress=compress,
            memory_limit=memory_limit,
            on_bad_unit=on_bad_unit,
            **asdict(kept or CheckpointOptions()),
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
    kept: CheckpointOptions,
    report: ReportOptions,
    output: str,
    overwrite: bool,
) -> None:
    check_new_file(output, overwrite)
    with where.connect():
        data = source.open()
        check_apart(output, data.sources)
        announce(f"daskem: {describe_data(data)}", report.quiet)
        result = run_fit(
            spec,
            data,
            cache=where.cache,
            compress=where.compress,
            memory_limit=where.memory_limit,
            kept=kept,
            on_bad_unit=source.on_bad_unit,
            quiet=report.quiet,
        )
    if not result.converged:
        announce(f"daskem: warning: not converged: {result.reason}. Allow more steps, or try --n-init.", report.quiet)
    made = {"command": command_line(), "versions": versions(), "peak_memory": peak_memory()}
    summary = {**result.summary(), "options": spec.as_dict(), "data": data_summary(data), **made}
    save_model(output, result.model, result.params, metadata=summary, overwrite=overwrite)
    if report.json:
        found = shown(result.model, result.params)
        click.echo(to_json({**summary, **found, "output": str(any_path(output).absolute())}))
    elif not report.quiet:
        click.echo(describe_fit(spec, result, data))
        click.echo(f"\nsaved to {output}")


def _plan(spec: FitSpec, source: DataOptions, where: EngineOptions, as_json: bool) -> None:
    with where.connect():
        data = source.open()
        spec.check(data)
        algorithm = spec.make_algorithm()
        plan = make_plan(
            data,
            spec.model(data),
            find_executor(local=data.in_process),
            members=spec.starts,
            cache=where.cache,
            memory_limit=where.memory_limit,
            memory=algorithm.memory if isinstance(algorithm, HasMemory) else None,
        )
    if as_json:
        click.echo(to_json({**plan.as_dict(), "max_passes": spec.max_iter}))
    else:
        click.echo(f"{plan}\npasses  at most {spec.max_iter}, and what the start reads")


def describe_fit(spec: FitSpec, result: FitResult, data: Dataset) -> str:
    """Return the outcome of a fit for people."""
    steps = sum(info.seconds for info in result.trace)
    rate = data.n_rows * result.passes / max(steps, 1e-9) / 1e6
    ended = "converged" if result.converged else "stopped"
    lines = [
        f"{ended} after {result.n_steps} steps: {result.reason}",
        f"{objective_kind(result.model, spec.kind.objective_name)} {result.objective:.8g} {spec.kind.unit}",
        f"{duration(result.seconds)} in all, {duration(steps)} in {result.passes:.4g} passes ({rate:.3g}M rows/s)",
    ]
    if result.left_out:
        rows, places = sum(map(len, result.left_out)), len(result.left_out)
        lines.append(f"{rows:,} rows in {places} place(s) could not be used and were left out")
    if result.patterns is not None:
        lines.append(f"{result.patterns:,} of {data.n_rows:,} rows are distinct; each step took these alone")
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
        "chosen": chosen_columns(data),
    }


def chosen_columns(data: Dataset) -> list[int] | None:
    """Return the numbers of the columns that were chosen, None where all were taken."""
    selection = getattr(data.rows, "selection", None)
    return None if selection is None or selection.picked is None else list(selection.picked)
