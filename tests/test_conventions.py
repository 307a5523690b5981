"""What scikit-learn's own suite says of the estimators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Writes, for each estimator and check: the check's name, its outcome, the error, and the errors that this came from.
CHECKS = """
import json, sys, warnings
from sklearn.utils.estimator_checks import check_estimator
import daskem
from daskem.models import Gaussian

warnings.simplefilter("ignore")

def chain(error):
    return [] if error is None else [repr(error), *chain(error.__cause__ or error.__context__)]

logs = {}
for text in json.loads(sys.argv[1]):
    log = check_estimator(eval(text), on_skip=None, on_fail=None)
    logs[text] = [(check["check_name"], check["status"], chain(check["exception"])) for check in log]
json.dump(logs, sys.stdout)
"""
ANY_NUMBERS = [
    *(f"daskem.GaussianMixture(1, covariance_type={c!r})" for c in ("full", "diag")),
    *(f"daskem.GaussianMixture(3, covariance_type={c!r})" for c in ("full", "tied", "spherical")),
    "daskem.KMeans()",
    "daskem.StudentTMixture(2)",
    "daskem.MixedMixture(2, families={'first': Gaussian('diag')}, columns={'first': [0]})",
    "daskem.MixtureModel(2, family=Gaussian())",
]
# Families that the rows of many checks are not for.
OWN_NUMBERS = [
    "daskem.BernoulliMixture(2)",
    "daskem.CategoricalMixture(2)",
    "daskem.MultinomialMixture(2)",
    "daskem.PoissonMixture(2)",
    "daskem.ExponentialMixture(2)",
    "daskem.GammaMixture(2)",
    "daskem.VonMisesFisherMixture(2)",
]


@pytest.fixture(scope="module")
def logs():
    # Its checks of the array API are skipped unless scipy's support was switched on before scipy was imported.
    quick = {"DASK_SCHEDULER": "synchronous", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", CHECKS, json.dumps([*ANY_NUMBERS, *OWN_NUMBERS])],
        env={**os.environ, **quick, "SCIPY_ARRAY_API": "1"},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("estimator", ANY_NUMBERS)
def test_scikit_learn_finds_nothing_to_complain_of(estimator, logs):
    log = logs[estimator]
    assert len(log) > 40
    assert "check_array_api_input" in {name for name, _, _ in log}
    assert [entry for entry in log if entry[1] != "passed"] == []


@pytest.mark.parametrize("estimator", OWN_NUMBERS)
def test_scikit_learn_finds_nothing_but_rows_outside_the_support(estimator, logs):
    log = logs[estimator]
    failed = [entry for entry in log if entry[1] != "passed"]
    assert [entry for entry in failed if not any("cannot be fitted" in error for error in entry[2])] == []
    assert len(log) - len(failed) >= 20
