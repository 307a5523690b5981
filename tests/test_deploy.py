"""What deploy/ holds: valid for the tools that read it, and the same as what the command line writes."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import dask.config
import dask_jobqueue
import jsonschema
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from daskem.cli import main
from daskem.cli.batch import GENERATORS
from daskem.engine.cluster import LEAN
from daskem.fit import fit
from daskem.models import Gaussian, Mixture
from daskem.persist import latest_progress

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
QUIET = {"scheduler_options": {"dashboard_address": ":0"}}
# With its references resolved, which it lacks elsewhere in the package.
CRDS = "operator/deployment/helm/dask-kubernetes-operator/crds"
JOB = "-k 32 -o /shared/model.safetensors --nodes 4 --time 2:00:00"


def run(*args, code=0, env=None):
    result = CliRunner(env=env).invoke(main, [str(arg) for arg in args], prog_name="daskem")
    assert result.exit_code == code, result.output
    return result.output


def submit(target, *more, code=0, data="/shared/data.zarr"):
    return run("submit", target, "fit", "gaussian-mixture", data, *JOB.split(), *more, code=code)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_file_says_what_to_change_first(path):
    if path.name == "README.md":
        assert all(f"({other})" in path.read_text() for other in ("slurm/one-job.sh", "docker/compose.yaml"))
    else:
        assert "Change first" in path.read_text()


def test_the_table_names_files_that_are_there():
    text = (DEPLOY / "README.md").read_text()
    links = {part.split(")")[0] for part in text.split("](")[1:]}
    assert links
    assert not [link for link in links if not (DEPLOY / link).exists()]


@pytest.mark.parametrize("name", ["one-job.sh", "driver-and-workers.sh"])
def test_batch_scripts_are_bash(name):
    script = DEPLOY / "slurm" / name
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    for line in ("#SBATCH --signal=B:TERM@60", "#SBATCH --requeue", "#SBATCH --open-mode=append"):
        assert line in script.read_text().splitlines()


def test_the_script_in_deploy_is_what_submit_writes():
    assert submit("slurm", "--python", "python", "--dry-run") == (DEPLOY / "slurm" / "one-job.sh").read_text()


@pytest.mark.parametrize("target", ["slurm", *GENERATORS])
def test_jobqueue_reads_its_configuration(target):
    config = yaml.safe_load((DEPLOY / "jobqueue" / f"{target}.yaml").read_text())
    name = GENERATORS[target][0] if target in GENERATORS else "SLURMCluster"
    # Nothing in the file may be a setting that dask-jobqueue does not have.
    assert config["jobqueue"][target].keys() <= dask.config.get(f"jobqueue.{target}").keys()
    settings = {f"jobqueue.{target}.{key}": value for key, value in config["jobqueue"][target].items()}
    with dask.config.set(settings), getattr(dask_jobqueue, name)(**QUIET) as cluster:
        script = cluster.job_script()
    assert "--nworkers 8" in script
    assert "--death-timeout 300" in script
    with dask.config.set({"distributed": config["distributed"]}):
        assert {key: dask.config.get(key) for key in LEAN} == LEAN


@pytest.mark.parametrize("kind", ["DaskCluster", "DaskJob"])
def test_kubernetes_resources_fit_the_operator(kind):
    path = DEPLOY / "kubernetes" / f"{kind.removeprefix('Dask').lower()}.yaml"
    resource = yaml.safe_load(path.read_text())
    definition = yaml.safe_load((files("dask_kubernetes") / f"{CRDS}/{kind.lower()}.yaml").read_text())
    assert (resource["kind"], definition["spec"]["names"]["kind"]) == (kind, kind)
    group, version = resource["apiVersion"].split("/")
    assert group == definition["spec"]["group"]
    schema = next(v for v in definition["spec"]["versions"] if v["name"] == version)["schema"]["openAPIV3Schema"]
    schema = _closed(schema["properties"]["spec"])
    jsonschema.validate(resource["spec"], schema)
    # A schema that accepts anything would show nothing.
    resource["spec"]["no-such-field"] = 1
    with pytest.raises(jsonschema.ValidationError, match="no-such-field"):
        jsonschema.validate(resource["spec"], schema)


def _closed(schema):
    """Return a schema under which an unknown field is an error, as it is for the API server where fields are pruned."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in schema:
        closed["properties"] = {name: _closed(part) for name, part in schema["properties"].items()}
        closed.setdefault("additionalProperties", False)
    return closed


def test_the_image_is_linted_and_not_root():
    dockerfile = DEPLOY / "docker" / "Dockerfile"
    linted = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), dockerfile], capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")
    assert "\nARG BASE_IMAGE=" in dockerfile.read_text()
    users = [line for line in dockerfile.read_text().splitlines() if line.startswith("USER ")]
    assert users == ["USER 1000"]


def test_compose_has_scheduler_workers_and_notebook():
    compose = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    assert compose["services"].keys() == {"scheduler", "worker", "notebook"}
    for service in compose["services"].values():
        assert service["user"] == "1000"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize(
    ("target", "directives"),
    [
        ("pbs", ["#PBS -q long", "#PBS -A us", "#PBS -l walltime=2:00:00"]),
        ("lsf", ["#BSUB -q long", '#BSUB -P "us"', "#BSUB -W 2:00"]),
        ("sge", ["#$ -q long", "#$ -P us", "#$ -l h_rt=2:00:00"]),
        ("htcondor", ["+MaxRuntime = 7200", "MY.DaskWorkerCores = 4"]),
    ],
)
def test_scripts_for_other_batch_systems(target, directives):
    script = submit(target, "--partition", "long", "--account", "us")
    for line in directives:
        assert line in script.splitlines()
    directory = "/shared/model.safetensors.checkpoint"
    assert f"--scheduler-file {directory}/scheduler.json" in script
    # One script serves all workers, and the scheduler that wrote it is gone.
    assert "tcp://" not in script
    assert "--name" not in script
    assert f"--checkpoint {directory} --scheduler {directory}/scheduler.json" in script


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--nodes", 1, "--tasks-per-node", 1], "no worker"),
        (["--memory", "much"], "much"),
        (["--scheduler", "tcp://a:1"], "--scheduler and --workers"),
        (["--partition", "a b"], "not one word"),
        (["--no-such-option"], "--no-such-option"),
        (["--checkpoint", "s3://bucket/kept"], "all nodes see"),
    ],
)
def test_what_cannot_work_is_said_before_a_job_waits(more, said):
    result = CliRunner().invoke(
        main, ["submit", "slurm", "fit", "gaussian-mixture", "/d.zarr", *JOB.split(), *map(str, more), "--dry-run"]
    )
    assert result.exit_code != 0
    assert said in result.output


def test_no_slurm_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "data").mkdir()
    command = ("fit", "gaussian-mixture", tmp_path / "data", "-k", 2, "-o", tmp_path / "model")
    assert "there is no sbatch on this machine" in run("submit", "slurm", *command, code=1)
    assert "there are no data at" in submit("slurm", data=tmp_path / "absent", code=1)


def test_status_reads_progress_and_its_absence(tmp_path, rng_rows):
    kept = tmp_path / "kept"
    assert "neither a job nor a checkpoint" in run("status", kept, code=1)
    result = fit(Mixture(Gaussian(), 2), rng_rows, seed=1, checkpoint=kept)
    progress = latest_progress(kept)
    assert progress is not None
    assert progress["step"] == result.n_steps
    assert progress["objective"] == result.trace[-1].objective
    assert progress["reason"] == result.reason
    assert f"step {result.n_steps}," in run("status", kept)
    (kept / "job.json").write_text('{"system": "slurm", "job": "7"}')
    assert run("status", kept, env={"PATH": str(tmp_path)}).startswith("job 7: unknown: there is no squeue")


@pytest.fixture
def rng_rows():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 1, (100, 2)), rng.normal(9, 1, (100, 2))])
