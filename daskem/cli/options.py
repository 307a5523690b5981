"""Options that several commands share; each group of them reaches a command as one value."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import click

from daskem.cli.app import warnings_only
from daskem.data import Dataset, open_dataset
from daskem.data.selection import NameOrIndex
from daskem.engine import CACHE_MODES, COMPRESS_MODES, ON_BAD_UNIT, check_on_bad_unit, parse_bytes
from daskem.engine.cluster import connect
from daskem.errors import OptionError
from daskem.persist import RESUME

__all__ = [
    "CheckpointOptions",
    "DataOptions",
    "EngineOptions",
    "ReportOptions",
    "as_one",
    "checkpoint_options",
    "engine_options",
    "fit_data_options",
    "fit_engine_options",
    "labelled_options",
    "made_of",
    "optional_data_options",
    "overwrite_option",
    "predict_data_options",
    "report_options",
    "split_names",
    "weight_options",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def as_one(name: str, kind: type[Any], *options: Decorator) -> Decorator:
    """Return a decorator that adds `options` to a command and gives it their values as one ``name=kind(...)``."""
    taken = [field.name for field in fields(kind)]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*args: Any, **values: Any) -> Any:
            own = {field: values.pop(field) for field in taken if field in values}
            return function(*args, **{name: kind(**own)}, **values)

        wrapped: Callable[..., Any] = command
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def made_of(
    what: str,
    make: Callable[..., Any],
    settings: Iterable[str],
    flag: str,
    named: Mapping[str, Mapping[str, Callable[[], Any]]] = MappingProxyType({}),
) -> Any:
    """Return ``make(name=value, ...)`` of settings ``NAME=VALUE``, the values as in JSON or else text.

    What is `named` for a setting is made where its value is that name.

    Raises
    ------
    OptionError
        If a setting has another form, or `make` does not take it; names what it takes.
    """
    given = dict(_setting(text, flag) for text in settings)
    for name, makers in named.items():
        if isinstance(given.get(name), str) and given[name] in makers:
            given[name] = makers[given[name]]()
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(make).parameters) or "none"
        raise OptionError(f"{what} cannot be made: {error}. Its options ({flag}) are: {takes}.") from error
    try:
        return make(**given)
    except (TypeError, AttributeError) as error:
        settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise OptionError(f"{what} cannot be made of {settings}: {error}.") from error


def _setting(text: str, flag: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not (separator and name.isidentifier()):
        raise OptionError(f"{flag} {text!r} is not NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def split_names(text: str | None) -> list[str] | None:
    """Return the names in ``"a, b,c"``, None of None."""
    return None if text is None else [name.strip() for name in text.split(",")]


def _quiet(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value:
        warnings_only()
    return value


def _row_range(ctx: click.Context, param: click.Parameter, value: str | None) -> slice | None:
    if value is None:
        return None
    try:
        start, stop = (int(part) if part else None for part in value.split(":"))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a range such as 0:1000000, :1000000 or 500:.") from error
    return slice(start, stop)


@dataclass(frozen=True)
class DataOptions:
    """Where rows are, and which of them to take; `data` is None only where a command can do without."""

    data: str | None
    array: str | None = None
    columns: str | None = None
    rows: slice | None = None
    allow_missing: bool = False
    weights: str | None = None
    labels: str | None = None
    on_bad_unit: str = "raise"

    def open(self) -> Dataset:
        """Open the rows; reads metadata only."""
        check_on_bad_unit(self.on_bad_unit, self.allow_missing)
        return open_dataset(
            self.data,
            sample_weight=self.weights,
            y=self.labels,
            array=self.array,
            columns=self._columns(),
            rows=self.rows,
            # What is left out, the command looks for itself.
            allow_missing=None if self.on_bad_unit == "skip" else self.allow_missing,
        )

    def _columns(self) -> list[str] | None:
        names = split_names(self.columns)
        return names and [NameOrIndex(name) if name.removeprefix("-").isdecimal() else name for name in names]


@dataclass(frozen=True)
class EngineOptions:
    """Where passes run, and within which memory."""

    cache: str = "auto"
    compress: str = "auto"
    memory_limit: str | None = None
    scheduler: str | None = None
    workers: int | None = None

    @contextmanager
    def connect(self) -> Iterator[None]:
        """Connect to the cluster that was asked for, if any; options are checked before."""
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit)
        if self.scheduler is not None and self.workers:
            raise OptionError("--scheduler and --workers exclude each other: use a cluster that runs, or start one.")
        with connect(self.scheduler, self.workers):
            yield


@dataclass(frozen=True)
class CheckpointOptions:
    """Where a fit is committed to, how often, and whether it goes on from there."""

    checkpoint: str | None = None
    checkpoint_interval: float = 60.0
    resume: str = "auto"


@dataclass(frozen=True)
class ReportOptions:
    """What to tell, and how."""

    quiet: bool = False
    json: bool = False


_DATA = (
    click.argument("data"),
    click.option("--array", metavar="NAME", help="Array of a Zarr group, or dataset of an HDF5 file."),
    click.option("--columns", metavar="A,B,...", help="Columns to take, by name or by number from 0."),
    click.option("--rows", metavar="A:B", callback=_row_range, help="Rows to take, such as 0:1000000."),
    click.option("--allow-missing", is_flag=True, help="Read chunks that a Zarr store lacks as its fill value."),
)
_WEIGHTS = click.option("--weights", metavar="PATH", help="One weight for each row, not negative.")
_ON_BAD_UNIT = click.option(
    "--on-bad-unit",
    type=click.Choice(ON_BAD_UNIT),
    default="raise",
    help="Refuse missing, damaged or not finite chunks, or do without them.",
)
_LABELS = click.option("--labels", metavar="PATH", help="Component of each row, -1 if unknown; or probabilities.")

predict_data_options = as_one("source", DataOptions, *_DATA, _ON_BAD_UNIT)
weight_options = as_one("source", DataOptions, *_DATA, _WEIGHTS)
labelled_options = as_one("source", DataOptions, *_DATA, _WEIGHTS, _LABELS)
fit_data_options = as_one("source", DataOptions, *_DATA, _WEIGHTS, _LABELS, _ON_BAD_UNIT)
optional_data_options = as_one(
    "source", DataOptions, click.argument("data", required=False), *_DATA[1:], _WEIGHTS, _LABELS
)

_ENGINE = (
    click.option("--memory-limit", metavar="SIZE", help="Memory a process may reach, such as 2GB."),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="A running Dask scheduler: tcp://host:8786, or its scheduler file.",
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Worker processes to start here for this command."),
)
_CACHE = click.option("--cache", type=click.Choice(CACHE_MODES), default="auto", help="Keep decoded rows in memory.")
_COMPRESS = click.option(
    "--compress", type=click.Choice(COMPRESS_MODES), default="auto", help="Count distinct rows once, and fit these."
)

engine_options = as_one("where", EngineOptions, *_ENGINE)
fit_engine_options = as_one("where", EngineOptions, _CACHE, _COMPRESS, *_ENGINE)

checkpoint_options = as_one(
    "kept",
    CheckpointOptions,
    click.option(
        "--checkpoint",
        metavar="DIR",
        type=click.Path(file_okay=False),
        help="Commit the fit to DIR as it goes; SIGTERM and SIGUSR1 end it with code 75. The same command goes on.",
    ),
    click.option(
        "--checkpoint-interval",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        default=60.0,
        help="Seconds between commits; 0 for one after every step.",
    ),
    click.option(
        "--resume",
        type=click.Choice(RESUME),
        default="auto",
        help="Go on from a checkpoint if there is one, never (replace it), or insist that there is one.",
    ),
)
report_options = as_one(
    "report",
    ReportOptions,
    click.option("--quiet", is_flag=True, callback=_quiet, help="No progress and no summary."),
    click.option("--json", is_flag=True, help="The result as JSON on standard output."),
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
