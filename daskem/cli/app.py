"""What all commands share: one line for each error, warnings and log messages without file names, JSON."""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from daskem.cli.signals import TRY_AGAIN, StopSignal, leave
from daskem.errors import DaskEMError, DaskEMWarning

__all__ = ["ErrorLines", "announce", "columns_of", "to_json", "warnings_only"]

# What shells call a process that ended for Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130


class ErrorLines(click.Group):
    """A group whose commands never show a traceback, unless ``--debug`` asks for it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; exit 1 with one line on standard error if it fails, 130 if it is interrupted."""
        try:
            with _messages():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except StopSignal as stopped:
            click.echo(f"daskem: {_with_notes(f'{stopped}.', stopped)}", err=True)
            leave(TRY_AGAIN)
        except KeyboardInterrupt as stopped:
            told = "interrupted. What was being written is not there, or marked incomplete."
            click.echo(f"daskem: {_with_notes(told, stopped)}", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # Whoever was reading has seen enough; closing standard output at exit must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(1)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"daskem: error: {_one_line(error)}", err=True)
            ctx.exit(1)


def announce(message: str, quiet: bool) -> None:
    """Write a message to standard error, unless `quiet`."""
    if not quiet:
        click.echo(message, err=True)


def warnings_only() -> None:
    """Show no log messages but warnings, for the rest of the command."""
    logging.getLogger("daskem").setLevel(logging.WARNING)


def to_json(value: Mapping[str, Any]) -> str:
    """Return `value` as JSON; numbers that JSON has no word for become null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def columns_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _with_notes(text: str, error: BaseException) -> str:
    """Return `text` and what was noted on the way of `error`, such as where a fit is committed."""
    return " ".join([text, *getattr(error, "__notes__", ())])


def _one_line(error: Exception) -> str:
    text = " ".join(_with_notes(str(error), error).split())
    if isinstance(error, DaskEMError):
        return text
    return f"{type(error).__name__}: {text}. Run `daskem --debug ...` to see where it comes from."


@contextmanager
def _messages() -> Iterator[None]:
    """Show daskem's warnings and log messages as lines on standard error."""

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        if issubclass(category, DaskEMWarning):
            click.echo(f"daskem: warning: {message}", err=True)
        else:
            show_other(message, category, filename, lineno, file, line)

    logger, handler = logging.getLogger("daskem"), _EchoHandler()
    handler.addFilter(_not_told_anyway)
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("always", DaskEMWarning)
        show_other = warnings.showwarning
        warnings.showwarning = show
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def _not_told_anyway(record: logging.LogRecord) -> bool:
    # How a fit ended is what the commands themselves report.
    return record.levelno >= logging.WARNING or record.module != "fit"


class _EchoHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "daskem: warning: " if record.levelno >= logging.WARNING else "daskem: "
        click.echo(prefix + record.getMessage(), err=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(child) for key, child in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
