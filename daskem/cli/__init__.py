"""The command line: ``daskem ...``, and ``dask em ...`` where dask's own command line is used."""

from __future__ import annotations

import click

from daskem.cli.app import ErrorLines
from daskem.cli.applying import predict_command, score_command
from daskem.cli.demo import demo_command
from daskem.cli.diagnosing import diagnose_command
from daskem.cli.fitting import fit_group, plan_group
from daskem.cli.making import generate_command
from daskem.cli.showing import inspect_command

__all__ = ["main"]


@click.group("em", cls=ErrorLines, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="daskem")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Expectation-maximization for data that do not fit into memory."""


for command in (
    demo_command,
    diagnose_command,
    fit_group,
    generate_command,
    inspect_command,
    plan_group,
    predict_command,
    score_command,
):
    main.add_command(command)
