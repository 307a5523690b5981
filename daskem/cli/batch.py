"""Scripts for batch systems: what a job asks for, and how it lives through the end of its time."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daskem.engine import parse_bytes
from daskem.errors import OptionError

__all__ = ["GENERATORS", "JobRequest", "slurm_script", "worker_script"]

# Batch systems for which dask-jobqueue writes the scripts: its class, and the command that submits one.
GENERATORS = {
    "pbs": ("PBSCluster", "qsub"),
    "lsf": ("LSFCluster", "bsub <"),
    "sge": ("SGECluster", "qsub"),
    "htcondor": ("HTCondorCluster", "condor_submit"),
}


@dataclass(frozen=True)
class JobRequest:
    """What is asked of a batch system.

    Attributes
    ----------
    nodes, tasks_per_node : processes; the first of all is the scheduler, the others are workers.
    cpus_per_task : threads of a worker.
    memory : bytes a worker may use, as text such as ``4GB``.
    time : limit of the job, hours:minutes:seconds.
    partition, account : where to, and who pays; None leaves that to the batch system.
    prologue : shell commands that make Python and daskem available on the nodes.
    python : the interpreter there.
    """

    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    memory: str
    time: str
    partition: str | None
    account: str | None
    prologue: tuple[str, ...]
    python: str

    def check(self) -> None:
        """Refuse what leaves no worker, or what no batch system could read."""
        parse_bytes(self.memory)
        if self.nodes * self.tasks_per_node < 2:
            raise OptionError(
                "a job of one task has room for the scheduler but for no worker. Ask for more with --nodes or "
                "--tasks-per-node."
            )
        for name, value in {"--partition": self.partition, "--account": self.account, "--time": self.time}.items():
            if value is not None and (not value or len(value.split()) != 1):
                raise OptionError(f"{name} {value!r} is not one word. Leave it out to take the batch system's default.")


def slurm_script(request: JobRequest, command: Sequence[str], directory: str) -> str:
    """Return a batch script of one job: scheduler, workers and `command`, which keeps its checkpoints in `directory`.

    Parameters
    ----------
    command : arguments of ``daskem``; it must exit with 75 when a signal stopped it and it can go on.
    directory : seen by all nodes; scheduler file and log are kept there too.
    """
    asked = [
        ("nodes", request.nodes),
        ("ntasks-per-node", request.tasks_per_node),
        ("cpus-per-task", request.cpus_per_task),
        ("mem-per-cpu", f"{-(-parse_bytes(request.memory) // request.cpus_per_task) >> 20}M"),
        ("time", request.time),
        ("partition", request.partition),
        ("account", request.account),
        ("output", f"{directory}/job.log"),
    ]
    return _SLURM.format(
        requests="\n".join(f"#SBATCH --{name}={_directive(value)}" for name, value in asked if value is not None),
        prologue="\n".join(request.prologue) or ":  # such as: module load python; source /shared/venv/bin/activate",
        directory=shlex.quote(directory),
        python=shlex.quote(request.python),
        threads=request.cpus_per_task,
        memory=parse_bytes(request.memory),
        command=shlex.join(command),
    )


def worker_script(target: str, request: JobRequest, directory: str) -> str:
    """Return the script of a worker job, as dask-jobqueue writes it for the batch system `target`.

    Raises
    ------
    OptionError
        If dask-jobqueue is not installed.
    """
    try:
        import dask_jobqueue
    except ImportError as error:
        raise OptionError(
            f"scripts for {target} are written by dask-jobqueue, which is not installed: pip install 'daskem[hpc]'."
        ) from error
    name, _ = GENERATORS[target]
    with getattr(dask_jobqueue, name)(
        job_name="daskem",
        cores=request.tasks_per_node * request.cpus_per_task,
        processes=request.tasks_per_node,
        memory=f"{request.tasks_per_node * parse_bytes(request.memory)}B",
        python=request.python,
        job_script_prologue=list(request.prologue),
        worker_extra_args=["--scheduler-file", f"{directory}/scheduler.json"],
        scheduler_options={"dashboard_address": ":0"},
        **_place(target, request),
    ) as cluster:
        # The scheduler that a cluster object starts here ends with it: workers find theirs by the file. No two of them
        # may have one name, and this script is for all.
        script = str(cluster.job_script()).replace(f" {cluster.scheduler_address} ", " ")
    return re.sub(r" --name \S+", "", script)


def _place(target: str, request: JobRequest) -> dict[str, Any]:
    if target == "htcondor":
        return {"disk": "1GB", "job_extra_directives": {"+MaxRuntime": _seconds(request.time)}}
    walltime = request.time.rsplit(":", 1)[0] if target == "lsf" else request.time
    payer = "project" if target in ("lsf", "sge") else "account"
    return {"walltime": walltime, "queue": request.partition, payer: request.account}


def _seconds(time: str) -> int:
    try:
        hours, minutes, seconds = map(int, time.split(":"))
    except ValueError as error:
        raise OptionError(f"--time {time!r} must be hours:minutes:seconds, such as 2:00:00.") from error
    return 3600 * hours + 60 * minutes + seconds


def _directive(value: object) -> str:
    # Read by sbatch, not by a shell: spaces need quotes, percent signs are its own.
    return f'"{value}"' if " " in str(value) else str(value)


_SLURM = r"""#!/usr/bin/env bash
# Scheduler, workers and the fit in one SLURM job, which goes on from its checkpoint after its time limit.
# Change first: the requests, the prologue, and further down the command.
#SBATCH --job-name=daskem
{requests}
# A minute before the limit: the fit commits itself, and the job queues again under the same number.
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append

directory={directory}
python={python}
{prologue}

# Numbers run in threads of Dask's; a BLAS with threads of its own would only compete with them.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 DASK_LOGGING__DISTRIBUTED=warning
# Dask's profiler and its logs of messages would take tens of megabytes of each process, which the plan has for rows.
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH=100
stopping= fit=
trap 'stopping=1; [ -z "$fit" ] || kill -TERM "$fit"' TERM

if ! srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 test -w "$directory"; then
    echo "daskem: error: a node of $SLURM_JOB_NODELIST cannot write to $directory. It must be a directory that all" \
        "nodes share, such as one on the parallel file system; /tmp and most home directories of one host are not." >&2
    exit 1
fi

scheduler="$directory/scheduler-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}.json"
rm -f "$scheduler"
srun "$python" -c '
import sys
from dask_jobqueue.slurm import SLURMRunner
worker = {{"nthreads": {threads}, "memory_limit": {memory}}}
SLURMRunner(client=False, scheduler_file=sys.argv[1], worker_class="distributed.Nanny", worker_options=worker)
' "$scheduler" &
cluster=$!
until [ -s "$scheduler" ] || [ -n "$stopping" ]; do
    kill -0 "$cluster" || exit 1
    sleep 1
done

code=75
if [ -z "$stopping" ]; then
    "$python" -m daskem {command} --scheduler "$scheduler" &
    fit=$!
    # A signal that is caught ends a wait before what it waits for.
    while wait "$fit"; code=$?; kill -0 "$fit" 2>/dev/null; do :; done
fi
kill "$cluster" 2>/dev/null
rm -f "$scheduler"

# 75: the fit was stopped and can go on; 143: it was stopped before it had begun.
if [ "$code" = 75 ] || [ "$code" = 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
