"""What is asked of a SLURM controller: to take a job, and how one is doing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from daskem.errors import OptionError

__all__ = ["job_state", "submit_script"]

# How long a controller may take to answer; a busy one needs tens of seconds.
ANSWER_SECONDS = 60


def submit_script(script: str | os.PathLike[str]) -> str:
    """Submit a batch script and return the number of the job.

    Raises
    ------
    OptionError
        If there is no SLURM here, or it does not take the job; with its own words.
    """
    if shutil.which("sbatch") is None:
        raise OptionError(
            "there is no sbatch on this machine, so nothing was submitted. Run this on a login node of the cluster, or "
            "see the script with --dry-run."
        )
    done = _run(["sbatch", "--parsable", os.fspath(script)])
    if done.returncode:
        raise OptionError(f"sbatch did not take the job: {_said(done)}. Nothing was submitted.")
    # With several clusters the answer is number;cluster.
    return done.stdout.strip().split(";")[0]


def job_state(job: str) -> str:
    """Return how a job is doing in SLURM's words, such as ``RUNNING``; what is known where it cannot be asked."""
    if shutil.which("squeue") is None:
        return "unknown: there is no squeue on this machine"
    done = _run(["squeue", "--noheader", "--jobs", job, "--format", "%T (%r)"])
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip()
    if done.returncode and "Invalid job id" not in done.stderr:
        return f"unknown: {_said(done)}"
    return "not in the queue any more"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise OptionError(f"{command[0]} did not answer within {ANSWER_SECONDS} s. Is the controller up?") from error


def _said(done: subprocess.CompletedProcess[str]) -> str:
    said = " ".join((done.stderr or done.stdout).split())
    return re.sub(r"^s(batch|queue): error: ", "", said).rstrip(".") or f"exit code {done.returncode}"
