"""Fits as jobs of a real SLURM of two nodes, each held against the same fit without any cluster.

Run with ``python -m pytest -m slurm``; needs ``apt-get install slurmctld slurmd slurm-client munge``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
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
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Batch EM takes this many steps whatever the machine does.
STEPS = 12
OPTIONS = ("--algorithm", "batch", "--tol", "0", "--seed", "3", "--max-iter", STEPS)


@pytest.fixture(scope="module")
def environment():
    with slurm() as found:
        yield {**found, "PYTHONPATH": f"{ROOT}:{HERE}", "OPENBLAS_NUM_THREADS": "1"}


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


@pytest.fixture(scope="module")
def expected(environment, data, tmp_path_factory):
    """Return the parameters of the same fit without any cluster."""
    model = tmp_path_factory.mktemp("local") / "model.safetensors"
    daskem(environment, "fit", "held:gaussians", data, "-o", model, *OPTIONS, "--quiet")
    return load_file(model)


def same(model, expected, log):
    assert model.exists(), log
    found = load_file(model)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@dataclass(frozen=True)
class HeldJob:
    """A fit as a job whose workers wait in the midst of a pass while `file` is there."""

    model: Path
    file: Path
    job: str

    @property
    def directory(self):
        return Path(f"{self.model}.checkpoint")

    @property
    def log(self):
        return self.directory / "job.log"

    def await_reached(self):
        poll(Path(f"{self.file}.reached").exists)

    def await_stopped(self):
        poll(lambda: "stopped by SIGTERM. The fit is committed" in self.log.read_text())

    def check_went_on(self, environment, expected):
        """Wait for the end, and look that the job stopped, went on where it was, and found what it should."""
        said = finish(environment, self.job, self.log)
        assert "going on from" in said
        assert said.count("step 1 ") == 1
        shown = call(environment, "scontrol", "show", "job", self.job)
        assert "Restarts=0" not in shown
        same(self.model, expected, said)


def held_job(environment, data, place, time):
    model, file = place / "model.safetensors", place / "held"
    file.touch()
    told = {**environment, "DASKEM_HELD": str(file)}
    return HeldJob(model, file, submit(told, "fit", "held:gaussians", data, "-o", model, *OPTIONS, "--time", time))


@pytest.fixture(scope="module")
def limited(environment, data, tmp_path_factory):
    """Return a job that reaches its time limit in the midst of a fit; other tests run while it waits for that."""
    return held_job(environment, data, tmp_path_factory.mktemp("limited"), "2:00")


def status(environment, directory):
    return json.loads(daskem(environment, "status", directory, "--json"))


@pytest.mark.usefixtures("limited")
def test_a_job_gives_the_bits_of_a_local_fit(environment, data, expected, tmp_path):
    model = tmp_path / "model.safetensors"
    job = submit(environment, "fit", "held:gaussians", data, "-o", model, *OPTIONS, "--time", "5:00")
    log = finish(environment, job, f"{model}.checkpoint/job.log")
    same(model, expected, log)
    assert "saved to" in log
    # Without a terminal there is one line for each pass.
    assert [line.split()[:4] for line in log.splitlines() if line.startswith("step ")] == [
        ["step", str(n), "pass", f"{n}.0"] for n in range(1, STEPS + 1)
    ]
    said = status(environment, f"{model}.checkpoint")
    assert (said["job"], said["state"], said["progress"]["step"]) == (job, "not in the queue any more", STEPS)
    assert said["progress"]["reason"]


def driver_job(environment, data, place):
    """Return a fit whose driver asks for two worker jobs, which wait in the midst of a pass, and what it was given."""
    model, file = place / "model.safetensors", place / "held"
    held = HeldJob(model, file, "")
    file.touch()
    held.directory.mkdir()
    config = {"cores": 1, "processes": 1, "memory": "1GB", "interface": "lo", "walltime": "00:10:00"}
    (place / "dask.yaml").write_text(json.dumps({"jobqueue": {"slurm": {"name": "daskem-worker", **config}}}))
    told = {**environment, "DASK_CONFIG": str(place), "DASKEM_HELD": str(file)}
    told |= {"DEPLOY": str(ROOT / "deploy"), "PYTHON": sys.executable, "JOBS": "2"}
    told |= {"SBATCH_OUTPUT": "/dev/null"}  # of worker jobs, else files in the directory of whoever runs this
    script = ROOT / "deploy" / "slurm" / "driver-and-workers.sh"
    command = ("fit", "held:gaussians", data, "-o", model, *OPTIONS, "--checkpoint", held.directory)
    job = call(told, "sbatch", "--parsable", f"--output={held.log}", script, *command).strip()
    return replace(held, job=job)


def worker_jobs(environment):
    listed = call(environment, "squeue", "--noheader", "--name=daskem-worker", "--states=RUNNING", "--format=%i")
    return set(listed.split())


def test_a_cancelled_worker_job_is_replaced(environment, data, expected, tmp_path):
    held = driver_job(environment, data, tmp_path)
    held.await_reached()
    before = poll(lambda: len(worker_jobs(environment)) == 2 and worker_jobs(environment))
    call(environment, "scancel", *before)
    poll(lambda: len(worker_jobs(environment) - before) == 2)
    held.file.unlink()
    same(held.model, expected, finish(environment, held.job, held.log))
    # Worker jobs end with the driver's.
    poll(lambda: not worker_jobs(environment))


def test_a_driver_that_is_told_of_its_time_limit_goes_on_to_the_same_bits(environment, data, expected, tmp_path):
    held = driver_job(environment, data, tmp_path)
    held.await_reached()
    # What SLURM does by itself a minute before the limit.
    call(environment, "scancel", "--batch", "--signal=TERM", held.job)
    held.await_stopped()
    held.file.unlink()
    held.check_went_on(environment, expected)
    poll(lambda: not worker_jobs(environment))


def test_the_notebook_about_clusters_runs_in_a_job(environment, tmp_path):
    notebook = json.loads((ROOT / "notebooks" / "6_from_notebook_to_cluster.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "script.py").write_text("\n\n".join(cells))
    log = tmp_path / "job.log"
    asked = ("--ntasks=4", f"--chdir={tmp_path}", f"--output={log}", "--time=5:00")
    told = {**environment, "MPLBACKEND": "agg"}
    job = call(told, "sbatch", "--parsable", *asked, "--wrap", f"srun {sys.executable} script.py").strip()
    said = finish(told, job, log)
    assert said.count("the same bits: True") == 2, said
    assert "2 worker processes" in said
    assert "JobState=COMPLETED" in call(environment, "scontrol", "show", "job", job)


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


def test_a_job_at_its_time_limit_goes_on_to_the_same_bits(environment, expected, limited):
    limited.await_stopped()
    limited.check_went_on(environment, expected)


def test_a_preempted_job_goes_on_to_the_same_bits(environment, data, expected, tmp_path):
    held = held_job(environment, data, tmp_path, "10:00")
    held.await_reached()
    assert status(environment, held.directory)["state"].startswith("RUNNING")
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "true")
    call(environment, "sbatch", *urgent)
    held.await_stopped()
    poll(lambda: status(environment, held.directory)["state"].startswith("PENDING"))
    held.check_went_on(environment, expected)
