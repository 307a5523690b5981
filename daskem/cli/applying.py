"""``daskem predict`` and ``daskem score``: what a saved model says of rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
import numpy as np

from daskem.cli.app import announce, to_json
from daskem.cli.fitting import chosen_columns, describe_data
from daskem.cli.options import (
    DataOptions,
    EngineOptions,
    ReportOptions,
    engine_options,
    overwrite_option,
    predict_data_options,
    report_options,
    weight_options,
)
from daskem.cli.own import load, model_option
from daskem.cli.tables import n_components
from daskem.core import HasLogProb, HasNParameters, HasPosterior, handles_missing, objective_kind, require
from daskem.data import Dataset
from daskem.engine.watch import watch_units
from daskem.errors import DataError, OptionError
from daskem.models import KMeans
from daskem.persist import LoadedModel, any_path
from daskem.predict import evaluate, predict_to_store, score
from daskem.report.progress import PassProgress
from daskem.starts import features_of

__all__ = ["open_for", "predict_command", "score_command"]


@click.command("predict")
@click.argument("model", type=click.Path())
@predict_data_options
@click.option("-o", "--output", required=True, help="Zarr group to write.")
@click.option("--proba", is_flag=True, help="Also the probability of each component, (rows, k).")
@click.option("--log-prob", is_flag=True, help="Also the log density of each row, nats.")
@click.option("--transform", is_flag=True, help="Also the distance to each center (k-means), (rows, k).")
@click.option("--impute", is_flag=True, help="Also the rows with missing values filled in (array imputed).")
@model_option
@overwrite_option
@engine_options
@report_options
def predict_command(
    model: str,
    own: str | None,
    source: DataOptions,
    output: str,
    proba: bool,
    log_prob: bool,
    transform: bool,
    impute: bool,
    overwrite: bool,
    where: EngineOptions,
    report: ReportOptions,
) -> None:
    """Write the most probable component of each row of DATA, by MODEL, to a Zarr group: array ``labels``."""
    loaded = load(model, own)
    chosen = {"proba": proba, "log_prob": log_prob, "transform": transform, "imputed": impute}
    chosen = {"labels": _labels_rows(loaded.model) or not any(chosen.values()), **chosen}
    what = [name for name, wanted in chosen.items() if wanted]
    _check_what(loaded.model, what)
    with where.connect():
        data = open_for(loaded, source, report)
        with _one_pass(data, report) as progress, watch_units(progress.unit_done):
            left_out = predict_to_store(
                loaded.model,
                loaded.params,
                data,
                output,
                what,
                n_components(loaded.model, loaded.params, data.n_features),
                overwrite=overwrite,
                attributes={"daskem:model": str(any_path(model).absolute()), "daskem:data": data.rows.name},
                memory_limit=where.memory_limit,
                on_bad_unit=source.on_bad_unit,
                planned=progress.expect_units,
            )
    if report.json:
        skipped = [asdict(run) for run in left_out]
        click.echo(to_json({"output": output, "rows": data.n_rows, "arrays": what, "left_out": skipped}))
    elif not report.quiet:
        click.echo(f"{', '.join(what)} of {data.n_rows:,} rows written to {output}")


@click.command("score")
@click.argument("model", type=click.Path())
@weight_options
@model_option
@engine_options
@report_options
def score_command(
    model: str, own: str | None, source: DataOptions, where: EngineOptions, report: ReportOptions
) -> None:
    """Say how well MODEL fits DATA: mean log density, AIC and BIC; for k-means the sum of squared distances."""
    loaded = load(model, own)
    with where.connect():
        data = open_for(loaded, source, report)
        with _one_pass(data, report) as progress, watch_units(progress.unit_done):
            figures = _figures(loaded, data, where.memory_limit)
    if report.json:
        click.echo(to_json(figures))
    else:
        click.echo("\n".join(f"{name.replace('_', ' '):<22} {value:.10g}" for name, value in figures.items()))


def _figures(loaded: LoadedModel, data: Dataset, memory_limit: Any) -> dict[str, float]:
    model, params = loaded.model, loaded.params
    if not hasattr(model, "log_prob"):
        said = evaluate(model, params, data, memory_limit=memory_limit)
        name, total = ("inertia", -said.objective) if isinstance(model, KMeans) else ("objective", said.objective)
        return {name: total, f"{name}_per_row": total / said.weight, "rows": said.weight}
    total, weight = score(model, params, data, memory_limit=memory_limit)
    figures = {"log_prob_per_row": total / weight, "log_prob": total, "rows": weight}
    # A bound is no likelihood, and a distribution of parameters no maximum.
    if isinstance(model, HasNParameters) and objective_kind(model) != "lower bound":
        p = model.n_parameters(params)
        figures |= {"parameters": p, "aic": 2 * p - 2 * total, "bic": float(p * np.log(weight)) - 2 * total}
    return figures


def _labels_rows(model: Any) -> bool:
    return hasattr(model, "assign") or isinstance(model, HasPosterior)


def _check_what(model: Any, what: list[str]) -> None:
    """Refuse results that the model does not have, before an output is made."""
    if ("labels" in what and not _labels_rows(model)) or "proba" in what:
        require(model, HasPosterior, "assigning rows to components")
    if "log_prob" in what:
        require(model, HasLogProb, "log densities (--log-prob)")
    if "imputed" in what and not handles_missing(model):
        raise OptionError(
            f"--impute needs a model of missing values, which this {type(model).__name__} is not. Gaussian mixtures "
            "fitted with --missing nan are, and those of binary, categorical, count and positive columns."
        )
    if "transform" in what and not hasattr(model, "transform"):
        raise OptionError(f"--transform gives distances to centers, which a {type(model).__name__} does not have.")


def open_for(loaded: LoadedModel, source: DataOptions, report: ReportOptions) -> Dataset:
    """Open the data, which must have the features that the model was fitted to."""
    data = source.open()
    announce(f"daskem: {describe_data(data)}", report.quiet)
    fitted, d = (loaded.metadata.get("data") or {}).get("columns"), features_of(loaded.model, loaded.params)
    if d is None:
        # A model of the user's own: what it was fitted to is noted beside it.
        d = int((loaded.metadata.get("data") or {}).get("shape", [0, data.n_features])[1])
    known = "" if not fitted else f" It was fitted to the columns {', '.join(fitted)}."
    if data.n_features != d:
        raise DataError(
            f"{data.rows.name} has {data.n_features} features, but the model has {d}.{known} "
            "Choose the same ones with --columns."
        )
    if fitted and data.rows.columns and list(data.rows.columns) != fitted:
        raise DataError(
            f"{data.rows.name} has the columns {', '.join(data.rows.columns)}, in this order.{known} "
            "Choose these with --columns, in their order."
        )
    before, now = (loaded.metadata.get("data") or {}).get("chosen"), chosen_columns(data)
    if not fitted and before and now and before != now:
        had, have = (",".join(map(str, columns)) for columns in (before, now))
        announce(f"daskem: warning: the model was fitted to --columns {had}; these are {have}.", report.quiet)
    return data


def _one_pass(data: Dataset, report: ReportOptions) -> PassProgress:
    return PassProgress(data.n_rows, data.nbytes, len(data.units()), quiet=report.quiet)
