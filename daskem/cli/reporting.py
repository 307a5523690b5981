"""``daskem report``: a fit as one HTML file."""

from __future__ import annotations

import os

import click
import numpy as np

from daskem.cli.app import announce
from daskem.cli.applying import open_for
from daskem.cli.options import (
    DataOptions,
    EngineOptions,
    ReportOptions,
    engine_options,
    optional_data_options,
    overwrite_option,
    report_options,
)
from daskem.cli.own import load, model_option
from daskem.cli.tables import component_cells
from daskem.core import Chunk, handles_missing
from daskem.data import Dataset
from daskem.data.writers import check_apart
from daskem.engine import start_engine
from daskem.errors import OptionError
from daskem.inference import diagnose
from daskem.persist import LoadedModel, any_path, check_new_file, inspect_model
from daskem.report.page import Page, Table
from daskem.report.views import SAMPLE_ROWS, Projections

__all__ = ["report_command"]


@click.command("report")
@click.argument("model", type=click.Path())
@optional_data_options
@click.option("-o", "--output", required=True, type=click.Path(), help="HTML file to write.")
@click.option("--diagnose", "diagnosed", is_flag=True, help="Also what `daskem diagnose` says: one pass over DATA.")
@model_option
@overwrite_option
@engine_options
@report_options
def report_command(
    model: str,
    own: str | None,
    source: DataOptions,
    output: str,
    diagnosed: bool,
    overwrite: bool,
    where: EngineOptions,
    report: ReportOptions,
) -> None:
    """Write a report on the fit of MODEL, with views of its components over DATA if given: one HTML file."""
    check_new_file(output, overwrite)
    if diagnosed and source.data is None:
        raise OptionError("--diagnose goes through the data: give DATA after MODEL.")
    if source.labels is not None and not diagnosed:
        raise OptionError("--labels matter to nothing in a report but --diagnose: add that, or leave them out.")
    if os.path.realpath(output) == os.path.realpath(model):
        raise OptionError(f"the report would replace the model that it is about, {model}. Choose another output.")
    loaded, views, diagnosis = load(model, own), [], None
    if source.data is not None:
        with where.connect():
            data = open_for(loaded, source, report)
            check_apart(output, data.sources)
            sample = _sample(loaded, data, where)
            views = Projections.of(loaded.model, loaded.params, sample, data.rows.columns).views()
            diagnosis = str(diagnose(loaded, data, memory_limit=where.memory_limit)) if diagnosed else None
    columns = (loaded.metadata.get("data") or {}).get("columns")
    page = Page(
        title=f"Fit of {os.path.basename(model)}",
        model=repr(loaded.model),
        metadata=loaded.metadata,
        components=Table(*component_cells(loaded.model, loaded.params, columns)),
        views=views,
        diagnosis=diagnosis,
        versions={"daskem": str(inspect_model(model)["daskem_version"])},
    )
    any_path(output).write_text(page.html(), encoding="utf-8")
    announce(f"daskem: report written to {output}", report.quiet)


def _sample(loaded: LoadedModel, data: Dataset, where: EngineOptions) -> Chunk:
    engine = start_engine(data, loaded.model, sample_rows=SAMPLE_ROWS, cache="none", memory_limit=where.memory_limit)
    rng = np.random.Generator(np.random.Philox(key=0, counter=[0, 0, 1, 0]))
    return engine.sample(SAMPLE_ROWS, rng, missing=handles_missing(loaded.model))
