"""``daskem diagnose``: what data say of a saved model's parameters, and what they cannot."""

from __future__ import annotations

import click

from daskem.cli.app import to_json
from daskem.cli.applying import open_for
from daskem.cli.options import (
    DataOptions,
    EngineOptions,
    ReportOptions,
    engine_options,
    labelled_options,
    report_options,
)
from daskem.cli.own import load, model_option
from daskem.inference import diagnose

__all__ = ["diagnose_command"]


@click.command("diagnose")
@click.argument("model", type=click.Path())
@labelled_options
@model_option
@click.option("--max-rows", type=click.IntRange(min=1), help="Rows whose scores are taken; by default 100,000 or more.")
@engine_options
@report_options
def diagnose_command(
    model: str,
    own: str | None,
    source: DataOptions,
    max_rows: int | None,
    where: EngineOptions,
    report: ReportOptions,
) -> None:
    """Say whether DATA, which MODEL was fitted to, determine its parameters, and how closely."""
    loaded = load(model, own)
    with where.connect():
        data = open_for(loaded, source, report)
        found = diagnose(loaded, data, max_rows=max_rows or "auto", memory_limit=where.memory_limit)
    click.echo(to_json(found.as_dict()) if report.json else str(found))
