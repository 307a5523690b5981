"""What a fit looks like to a person: progress lines, plots and reports."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rich.console import Console

import daskem
from daskem.core import StepInfo
from daskem.errors import OptionError
from daskem.models import Gaussian, Mixture
from daskem.report import Convergence, plot_convergence
from daskem.report.progress import PassProgress


@pytest.fixture(scope="module")
def rows():
    """Return rows of three components, far enough apart to be told."""
    rng = np.random.default_rng(4)
    centers = np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 3.0], [0.0, 6.0, -3.0]])
    return centers[rng.integers(3, size=6_000)] + rng.normal(size=(6_000, 3))


@pytest.fixture(scope="module")
def progressive(rows):
    """Return a fit with stages on samples before those on all rows."""
    return daskem.fit(Mixture(Gaussian(), 3), rows, algorithm=daskem.Progressive(first=300), seed=1)


def mini_batches(n_steps, per_pass, seconds=0.01):
    """Return the log lines of steps that each see a part of a pass."""
    return [
        StepInfo(i, -3.0 + i / n_steps, 100.0, i / per_pass, seconds, 0.1, exact=False, stage="mini-batches")
        for i in range(1, n_steps + 1)
    ]


def lines_of(infos, **options):
    """Return what is shown of steps where there is no terminal."""
    console = Console(force_terminal=False, width=200, highlight=False, record=True, quiet=False)
    with console.capture() as capture, PassProgress(1_000, 8_000, 2, console=console, **options) as progress:
        for info in infos:
            progress(info, None)
    return capture.get().splitlines()


def test_thousands_of_mini_batch_steps_make_a_line_a_pass():
    lines = lines_of(mini_batches(3_000, per_pass=1_000), max_passes=3)
    assert [line.split("  ")[1] for line in lines] == ["pass 0.0", "pass 1.0", "pass 2.0", "pass 3.0"]
    # 999 steps of 0.01 s each since the first line: 0.999 passes of 1,000 rows.
    assert "10 s, 100 rows/s, 800 B/s" in lines[1]
    assert not any("left" in line for line in lines)


def test_the_last_step_is_always_told():
    lines = lines_of(mini_batches(1_500, per_pass=1_000), max_passes=3)
    assert lines[-1].startswith("step 1500  pass 1.5  mini-batches  objective -2")


def test_a_stage_on_a_sample_is_told_when_it_begins_and_time_left_is_that_of_full_passes():
    sampled = [StepInfo(i, -3.0, 100.0, 0.5 + i / 100, 0.01, 0.1, exact=False, stage="40 rows") for i in (1, 2, 3)]
    full = [StepInfo(4 + i, -2.0 - 2.0**-i, 100.0, 1.53 + i, 2.0, 0.1, stage="all rows") for i in range(4)]
    lines = lines_of([*sampled, *full], tol=0.01, max_passes=20)
    assert [line.split("  ")[0] for line in lines] == ["step 1", "step 4", "step 5", "step 6", "step 7"]
    assert "40 rows" in lines[0]
    assert "left" not in lines[0]
    # Gains of 1/8 that halve reach 0.01 after four more steps of 2 s.
    assert lines[-1].endswith("about 8 s left")


def test_the_course_of_a_fit_is_the_same_from_its_result_and_from_its_summary(progressive):
    course, again = Convergence.of(progressive), Convergence.of(progressive.summary())
    np.testing.assert_array_equal(course.objectives, again.objectives)
    assert course.passes[-1] == progressive.passes
    assert math.isclose(course.seconds[-1], sum(info.seconds for info in progressive.trace))
    assert course.stages == tuple(info.stage for info in progressive.trace)
    assert course.changes()[-1][1] == "all rows"


def test_a_plot_shows_each_step_once_and_parts_of_the_rows_otherwise_than_all(progressive):
    axes = plot_convergence(progressive)
    assert [ax.get_xlabel() for ax in axes] == ["passes over the data", "seconds"]
    for ax in axes:
        drawn = [line for line in ax.get_lines() if line.get_marker() == "o"]
        shown = np.concatenate([line.get_ydata() for line in drawn])
        np.testing.assert_array_equal(shown, [info.objective for info in progressive.trace])
        hollow = [line.get_markerfacecolor() == "none" for line in drawn]
        assert hollow[0]
        assert not hollow[-1]
        # One dotted line for each change of stage.
        assert len(ax.get_lines()) - len(drawn) == len(drawn) - 1


def test_a_model_without_a_fit_has_no_course_to_show():
    with pytest.raises(OptionError, match="no trace of a fit"):
        plot_convergence({"seed": 3})
