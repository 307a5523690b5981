"""Runs a daskem command on worker jobs of SLURM, which are replaced when they are lost.

    python driver.py 4 fit gaussian-mixture /shared/data.zarr -k 32 -o /shared/model --checkpoint /shared/run

Change first: the first argument, how many worker jobs; and jobqueue/slurm.yaml, what each of them asks for.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from dask_jobqueue.slurm import SLURMCluster


def run(jobs: int, command: list[str]) -> int:
    """Run ``daskem`` with the arguments `command` on `jobs` worker jobs; return its exit code."""
    with SLURMCluster() as cluster:
        # scale() would not ask again for a job that was cancelled, preempted or ran out of time.
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        cluster.wait_for_workers(1)
        fit = subprocess.Popen([sys.executable, "-m", "daskem", *command, "--scheduler", cluster.scheduler_address])
        signal.signal(signal.SIGTERM, lambda *_: fit.terminate())
        return fit.wait()


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal():
        sys.exit(__doc__)
    code = run(int(sys.argv[1]), sys.argv[2:])
    # As a shell would say it: a process that a signal ended has 128 and its number.
    sys.exit(128 - code if code < 0 else code)
