"""``daskem submit`` and ``daskem status``: fits as jobs of a batch system."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from daskem.cli.app import to_json
from daskem.cli.batch import GENERATORS, JobRequest, slurm_script, worker_script
from daskem.cli.fitting import fit_group
from daskem.cli.options import as_one
from daskem.cli.slurm import job_state, submit_script
from daskem.errors import DataError, OptionError
from daskem.persist import AnyPath, any_path, latest_progress
from daskem.report.progress import duration

__all__ = ["status_command", "submit_command"]

JOB = "job.json"

request_options = as_one(
    "request",
    JobRequest,
    click.option("--nodes", type=click.IntRange(min=1), default=1, help="Machines."),
    click.option("--tasks-per-node", type=click.IntRange(min=1), default=4, help="Processes on each of them."),
    click.option("--cpus-per-task", type=click.IntRange(min=1), default=1, help="Threads of a process."),
    click.option("--memory", metavar="SIZE", default="4GB", help="Memory of a process."),
    click.option("--time", metavar="H:M:S", default="1:00:00", help="Limit of the job."),
    click.option("--partition", metavar="NAME", help="Partition or queue."),
    click.option("--account", metavar="NAME", help="Who pays."),
    click.option("--prologue", metavar="COMMAND", multiple=True, help="Shell command to begin with; repeatable."),
    click.option("--python", metavar="PATH", default=lambda: sys.executable, help="Interpreter on the nodes."),
)


@click.command("submit", context_settings={"ignore_unknown_options": True})
@click.argument("target", type=click.Choice(["slurm", *GENERATORS]))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="fit MODEL DATA -o PATH ...")
@request_options
@click.option("--checkpoint", metavar="DIR", help="As for fit; default: beside the model. All nodes must see it.")
@click.option("--dry-run", is_flag=True, help="Show the script, and do nothing.")
def submit_command(
    target: str, command: tuple[str, ...], request: JobRequest, checkpoint: str | None, dry_run: bool
) -> None:
    """Run a fit as a job of a batch system; it goes on from its checkpoint after the time limit.

    The command is that of ``daskem fit``, among the options of the job. SLURM gets one job with scheduler, workers and
    the fit. For the other systems a worker's script and how to use it are printed; nothing is submitted.
    """
    request.check()
    options = _checked(command)
    directory = _absolute(checkpoint or f"{options['output']}.checkpoint")
    if "://" in directory:
        raise OptionError(f"{directory} is a URL, but checkpoints need a directory that all nodes see: --checkpoint.")
    given = [*command, "--checkpoint", directory]
    if target != "slurm":
        click.echo(_instructions(target, request, given, directory), nl=False)
        return
    script = slurm_script(request, given, directory)
    if dry_run:
        click.echo(script, nl=False)
        return
    if "://" not in options["data"] and not os.path.exists(options["data"]):
        raise DataError(f"there are no data at {options['data']}, so nothing was submitted. Check the path.")
    click.echo(f"submitted job {_submit(script, Path(directory))}; see `daskem status {directory}`")


@click.command("status")
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def status_command(directory: str, as_json: bool) -> None:
    """Tell how far the fit is that keeps its checkpoints in DIRECTORY, and how its job is doing."""
    where = any_path(directory)
    job, progress = _job(where), latest_progress(where)
    if job is None and progress is None:
        raise DataError(f"there is neither a job nor a checkpoint in {directory}. Check the path.")
    state = None if job is None else job_state(job)
    if as_json:
        click.echo(to_json({"job": job, "state": state, "progress": progress}))
        return
    if job is not None:
        click.echo(f"job {job}: {state}")
    click.echo("no checkpoint yet" if progress is None else _line(progress))


def _line(progress: dict[str, Any]) -> str:
    ended = f"ended: {progress['reason']}" if progress["reason"] else "not ended"
    if not progress["step"]:
        return "begun; no step yet"
    return (
        f"step {progress['step']}, {progress['passes']:.3g} passes, objective {progress['objective']:.8g}, "
        f"{duration(progress['seconds'])} in all; {ended}"
    )


def _checked(command: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of a fit, having parsed it as the job will: a mistake shows now, not after an hour's wait."""
    if command[0] != "fit" or len(command) == 1:
        raise OptionError(f"`daskem {command[0]}` cannot be submitted. What can: fit MODEL DATA -o PATH ...")
    kind = fit_group.get_command(click.Context(fit_group, info_name="fit"), command[1])
    if kind is None:
        raise OptionError(f"there is no model {command[1]!r}. `daskem fit --help` lists them.")
    options = kind.make_context(f"fit {command[1]}", list(command[2:])).params
    if options["scheduler"] or options["workers"]:
        raise OptionError("--scheduler and --workers have no place here: the job starts its own. Use --nodes.")
    for name in ("data", "output"):
        if "://" not in options[name] and not os.path.isabs(options[name]):
            raise OptionError(
                f"{options[name]} must be an absolute path or a URL: a job may begin in another directory."
            )
    return options


def _submit(script: str, directory: Path) -> str:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "job.sh"
        path.write_text(script)
    except OSError as error:
        raise OptionError(f"cannot write to {directory}: {error}. Choose another place with --checkpoint.") from error
    job = submit_script(path)
    (directory / JOB).write_text(json.dumps({"system": "slurm", "job": job}))
    return job


def _job(directory: AnyPath) -> str | None:
    try:
        return str(json.loads((directory / JOB).read_text())["job"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory / JOB} does not name a job. Remove it, or submit again.") from error


def _instructions(target: str, request: JobRequest, command: list[str], directory: str) -> str:
    _, submit = GENERATORS[target]
    scheduler = f"{directory}/scheduler.json"
    steps = [
        "Save this as worker.sh, and where jobs may be submitted (change first: the queue) run",
        f"    mkdir -p {shlex.quote(directory)}",
        f"    dask scheduler --scheduler-file {shlex.quote(scheduler)} &",
        f"    for i in $(seq {request.nodes}); do {submit} worker.sh; done",
        f"    daskem {shlex.join([*command, '--scheduler', scheduler])}",
        "Should it stop, or exit with 75: the last line again goes on from the checkpoint.",
    ]
    return worker_script(target, request, directory) + "\n" + "".join(f"# {step}\n" for step in steps)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)
