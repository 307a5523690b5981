"""``daskem inspect``: what a store, a file, an output or a model file is."""

from __future__ import annotations

import os
from typing import Any

import click

from daskem.cli.app import to_json
from daskem.cli.own import load, model_option
from daskem.cli.tables import component_table, shown
from daskem.data import open_source
from daskem.data.description import describe_store
from daskem.errors import OptionError
from daskem.persist import any_path, inspect_model, is_model_file
from daskem.report.progress import size

__all__ = ["inspect_command"]


@click.command("inspect")
@click.argument("what", metavar="X")
@click.option("--array", metavar="NAME", help="Only this array of a Zarr group.")
@model_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def inspect_command(what: str, array: str | None, own: str | None, as_json: bool) -> None:
    """Say what X is: a Zarr store, an output of daskem, a .npy, Parquet or HDF5 file, or a model file."""
    if what.endswith(".safetensors") or (os.path.isfile(what) and is_model_file(what)):
        _show_model(what, own, as_json)
    elif os.path.isfile(what) and not what.endswith(".zip"):
        _show_table(what, array, as_json)
    else:
        _show_store(what, array, as_json)


def _show_model(path: str, own: str | None, as_json: bool) -> None:
    described = inspect_model(path)
    try:
        loaded = load(path, own)
    except OptionError:
        # A model of the user's own: what the file says of itself can be shown without its class.
        if own is not None:
            raise
        loaded = None
    if as_json:
        found = {"components": None} if loaded is None else shown(loaded.model, loaded.params)
        click.echo(to_json({"kind": "model", **described, **found}))
        return
    nbytes = any_path(path).stat().st_size
    lines = [f"model file {path}, {size(nbytes)}, written by daskem {described['daskem_version']}"]
    lines.append(f"model       {loaded.model if loaded else described['model'].get('record')}")
    lines += _metadata_lines(described["metadata"])
    click.echo("\n".join(lines))
    if loaded is not None:
        columns = (described["metadata"].get("data") or {}).get("columns")
        click.echo("\n" + component_table(loaded.model, loaded.params, columns))


def _metadata_lines(metadata: dict[str, Any]) -> list[str]:
    if "reason" not in metadata:
        return [f"{name:<11} {value}" for name, value in metadata.items()]
    ended = "converged" if metadata["converged"] else "not converged"
    data = metadata.get("data") or {}
    return [
        f"data        {data.get('name')}, shape {tuple(data.get('shape') or ())}, {data.get('dtype')}",
        f"fit         {ended} after {metadata['steps']} steps: {metadata['reason']}",
        f"objective   {metadata['objective']:.8g} per row",
        f"cost        {metadata['passes']:g} passes, {metadata['seconds']:.3g} s",
    ]


def _show_table(path: str, array: str | None, as_json: bool) -> None:
    source = open_source(path, array=array)
    described: dict[str, Any] = {
        "kind": "file",
        "name": source.name,
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "columns": list(source.columns) if source.columns else None,
        "stored_bytes": os.path.getsize(path),
    }
    if as_json:
        click.echo(to_json(described))
        return
    columns = f"\ncolumns  {', '.join(source.columns)}" if source.columns else ""
    click.echo(
        f"{source.name}\nshape    {source.shape}, {source.dtype}\nsize     {size(described['stored_bytes'])}{columns}"
    )


def _show_store(where: str, array: str | None, as_json: bool) -> None:
    described = describe_store(where, array)
    if as_json:
        click.echo(to_json(described))
        return
    lines = [f"{described['kind']} {described['url']}"]
    lines += [f"{name:<9} {value}" for name, value in described["attributes"].items()]
    for member in described["arrays"]:
        lines += ["", *_array_lines(member)]
    click.echo("\n".join(lines))


def _array_lines(array: dict[str, Any]) -> list[str]:
    stored = f"{size(array['stored_bytes'])} stored, " if array["stored_bytes"] is not None else ""
    shards = f", shards {tuple(array['shards'])}" if array["shards"] else ""
    lines = [
        f"array    {array['name']}",
        f"shape    {tuple(array['shape'])}, {array['dtype']}",
        f"chunks   {tuple(array['chunks'])}{shards}, Zarr v{array['zarr_format']}",
        f"size     {stored}{size(array['bytes'])} decoded",
        f"missing  {array['missing']:,} of {array['objects']:,} {'shards' if array['shards'] else 'chunks'}",
    ]
    if array["status"]:
        lines.append(f"status   {array['status']}")
    if array["columns"]:
        lines.append(f"columns  {', '.join(array['columns'])}")
    return lines
