"""Fits as jobs of a real SLURM of two nodes, each held against the same fit without any cluster.

Run with ``python -m pytest -m slurm``; needs ``apt-get install slurmctld slurmd slurm-client munge``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cluster import missing, slurm
from safetensors.numpy import load_file

from daskem.generate import generate_mixture

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]
ROOT = Path(__file__).resolve().parents[2]
# Batch EM takes this many steps whatever the machine does.
STEPS = ("--algorithm", "batch", "--tol", "0", "--seed", "3", "--max-iter")


@pytest.fixture(scope="module")
def environment():
    with slurm() as found:
        yield {**found, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("shared") / "data.zarr"
    generate_mixture(place, 200_000, 16, 8, separation=2.0, dtype="float32", chunk_rows=10_000)
    return str(place)


def call(environment, *command, code=0):
    run = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


def daskem(environment, *command, code=0):
    return call(environment, sys.executable, "-m", "daskem", *command, code=code)


def submit(environment, *command):
    said = daskem(environment, "submit", "slurm", *command, "--memory", "1GB", "--nodes", 2, "--tasks-per-node", 2)
    return re.search(r"submitted job (\d+)", said)[1]


def poll(what, seconds=240):
    """Ask until there is an answer; what is waited for are other processes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = what()
        if answer:
            return answer
        subprocess.run(["sleep", "0.5"], check=True)
    raise AssertionError("nothing happened")


def finish(environment, job, log):
    def ended():
        state = call(environment, "squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T").strip()
        return state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "")

    poll(ended)
    return Path(log).read_text()


def same_as_local(environment, data, model, steps, k=8):
    local = model.with_name("local.safetensors")
    command = ("fit", "gaussian-mixture", data, "-k", k, "-o", local, *STEPS, steps, "--quiet")
    daskem(environment, *command)
    expected, found = load_file(local), load_file(model)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_job_gives_the_bits_of_a_local_fit(environment, data, tmp_path):
    model = tmp_path / "model.safetensors"
    command = ("fit", "gaussian-mixture", data, "-k", 8, "-o", model, *STEPS, 10)
    job = submit(environment, *command, "--time", "5:00")
    log = finish(environment, job, f"{model}.checkpoint/job.log")
    assert model.exists(), log
    assert "saved to" in log
    assert log.count("\nstep ") + log.startswith("step ") == 10
    said = json.loads(daskem(environment, "status", f"{model}.checkpoint", "--json"))
    assert (said["job"], said["progress"]["step"]) == (job, 10)
    assert said["progress"]["reason"]
    same_as_local(environment, data, model, 10)


def test_the_signal_before_the_time_limit_makes_a_job_that_goes_on_to_the_same_bits(environment, data, tmp_path):
    model, kept, steps = tmp_path / "model.safetensors", tmp_path / "kept", 40
    command = ("fit", "gaussian-mixture", data, "-k", 8, "-o", model, *STEPS, steps, "--checkpoint", kept)
    job = submit(environment, *command, "--time", "10:00")
    log = kept / "job.log"
    poll(lambda: log.exists() and "\nstep 3 " in log.read_text())
    # What SLURM itself does for --signal=B:TERM@60, at a step of the fit instead of a second of the clock.
    call(environment, "scancel", "--batch", "--signal=TERM", job)
    said = finish(environment, job, log)
    assert "stopped by SIGTERM. The fit is committed" in said
    assert "going on from" in said
    assert said.count("\nstep 1 ") == 1
    assert model.exists(), said
    same_as_local(environment, data, model, steps)


def test_a_cancelled_worker_job_is_replaced(environment, data, tmp_path):
    model = tmp_path / "model.safetensors"
    steps = 60
    config = {"cores": 1, "processes": 1, "memory": "1GB", "interface": "lo", "walltime": "00:10:00"}
    (tmp_path / "dask.yaml").write_text(json.dumps({"jobqueue": {"slurm": {"name": "daskem-worker", **config}}}))
    told = {**environment, "DASK_CONFIG": str(tmp_path)}
    told |= {"DEPLOY": str(ROOT / "deploy"), "PYTHON": sys.executable, "JOBS": "2"}
    log = tmp_path / "driver.log"
    command = ("fit", "gaussian-mixture", data, "-k", 8, "-o", model, *STEPS, steps, "--checkpoint", tmp_path / "kept")
    script = ROOT / "deploy" / "slurm" / "driver-and-workers.sh"
    job = call(told, "sbatch", "--parsable", f"--output={log}", script, *command).strip()

    def workers():
        listed = call(told, "squeue", "--noheader", "--name=daskem-worker", "--states=RUNNING", "--format=%i")
        return listed.split()

    poll(lambda: log.exists() and "\nstep 3 " in log.read_text())
    lost = workers()[0]
    call(told, "scancel", lost)
    replaced = poll(lambda: len(workers()) == 2 and lost not in workers() and workers())
    assert max(map(int, replaced)) > int(lost)
    said = finish(told, job, log)
    assert model.exists(), said
    poll(lambda: not workers())
    same_as_local(environment, data, model, steps)


def test_sbatch_says_what_is_wrong(environment, data, tmp_path):
    model = tmp_path / "model.safetensors"
    command = ("submit", "slurm", "fit", "gaussian-mixture", data, "-k", 2, "-o", model, "--partition", "no-such-one")
    said = daskem(environment, *command, code=1)
    assert "sbatch did not take the job" in said
    assert "invalid partition specified: no-such-one" in said
    assert said.count("\n") == 1


def test_a_directory_that_nodes_cannot_write_to(environment, data, tmp_path):
    model = tmp_path / "model.safetensors"
    script = daskem(environment, "submit", "slurm", "fit", "gaussian-mixture", data, "-k", 2, "-o", model, "--dry-run")
    hidden = f"directory={model}.checkpoint"
    assert hidden in script
    path, log = tmp_path / "job.sh", tmp_path / "job.log"
    path.write_text(script.replace(hidden, "directory=/proc/not-shared"))
    job = call(environment, "sbatch", "--parsable", f"--output={log}", path).strip()
    said = finish(environment, job, log)
    assert "cannot write to /proc/not-shared" in said
    assert not model.exists()
