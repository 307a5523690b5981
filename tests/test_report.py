"""What a fit looks like to a person: progress lines, plots and reports."""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pyarrow
import pytest
import zarr
from click.testing import CliRunner
from matplotlib import pyplot
from pyarrow import parquet
from rich.console import Console

import daskem
from daskem.cli import main
from daskem.cli.provenance import RememberedCommand, command_line
from daskem.core import Chunk, StepInfo
from daskem.errors import OptionError
from daskem.models import Gaussian, Mixture
from daskem.persist import inspect_model
from daskem.report import Convergence, plot_convergence
from daskem.report.charts import Ellipse, Frame, tick_labels, ticks
from daskem.report.progress import PassProgress
from daskem.report.views import Projections


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


@pytest.fixture(scope="module")
def place(tmp_path_factory, rows):
    """Return a directory with rows, a mixture that was fitted to them by the command line, and a report."""
    place = tmp_path_factory.mktemp("report")
    zarr.save_array(place / "rows.zarr", rows)
    succeed("fit", "gaussian-mixture", place / "rows.zarr", "-k", 3, "-o", place / "m.safetensors", "--quiet")
    succeed("report", place / "m.safetensors", place / "rows.zarr", "--diagnose", "-o", place / "report.html")
    return place


def succeed(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result


class Reader(HTMLParser):
    """Notes the headings, cells and links of a page, and checks that its elements are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.texts = [], [], {}

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        self.texts.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    assert not reader.open
    return reader


def test_a_report_tells_all_of_a_fit_and_needs_nothing_from_elsewhere(place):
    page = read(place / "report.html")
    assert page.texts["h2"] == [
        "Data and model",
        "Convergence",
        "Components",
        "Components over the data",
        "Diagnosis",
        "Cost",
        "To run it again",
    ]
    assert page.links == []
    assert "http" not in (place / "report.html").read_text()
    steps = inspect_model(place / "m.safetensors")["metadata"]["steps"]
    # Two charts with a mark for each step, six pictures in all: three pairs of features and no more.
    assert len([tag for tag in page.texts["title"] if "density of rows" in tag]) == 3
    assert page.texts["title"].count("objective per row against seconds") == 1
    assert sum(text.startswith(("step:", "all rows:")) for text in page.texts["title"]) == 2 * steps
    told = " ".join(page.texts["pre"])
    assert "identifiable: the data tell of 29 directions" in told


def test_a_model_of_missing_values_has_a_report(tmp_path):
    rows = np.random.default_rng(2).standard_normal((500, 3))
    rows[::5, 1] = np.nan
    zarr.create_array(tmp_path / "rows.zarr", data=rows, chunks=(100, 3))
    model = tmp_path / "m.safetensors"
    succeed("fit", "gaussian-mixture", tmp_path / "rows.zarr", "-k", 2, "--missing", "nan", "-o", model, "--quiet")
    succeed("report", model, tmp_path / "rows.zarr", "-o", tmp_path / "report.html")
    assert "Fit of m.safetensors" in (tmp_path / "report.html").read_text()


def test_the_command_of_a_report_makes_the_same_model_again(place):
    command = read(place / "report.html").texts["pre"][-1]
    program, *args = shlex.split(command)
    assert program == "daskem"
    args[args.index("-o") + 1] = place / "again.safetensors"
    succeed(*args)
    first, again = (inspect_model(place / name)["tensors"] for name in ("m.safetensors", "again.safetensors"))
    assert first == again


def test_components_lie_where_their_rows_are(rows, progressive):
    views = Projections.of(progressive.model, progressive.params, Chunk(rows))
    params = progressive.params.components
    np.testing.assert_allclose(views.means, progressive.params.components.means[views.components], atol=0.02)
    variances = np.array([np.diag(covariance) for covariance in views.covariances])
    expected = Gaussian().shape.variances(params.covariances)[views.components]
    np.testing.assert_allclose(variances, expected, rtol=0.03)


def test_an_ellipse_has_mahalanobis_distance_two():
    mean, covariance = np.array([1.0, -2.0]), np.array([[4.0, 1.5], [1.5, 1.0]])
    off = Ellipse(0, mean, covariance).outline() - mean
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off), 4.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 10, [0, 2, 4, 6, 8, 10]), (-0.3, 0.21, [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2])]
)
def test_ticks_are_round(low, high, expected):
    np.testing.assert_allclose(ticks(low, high), expected, atol=1e-12)


def test_ticks_that_are_close_together_are_told_apart():
    assert tick_labels([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]
    assert tick_labels([-5.3439, -5.343905, -5.34391]) == ["-5.3439", "-5.343905", "-5.34391"]
    narrow = Frame.around(np.arange(3.0), -5.3439 + 1e-7 * np.arange(3.0), "passes", "objective")
    # What is written beside the axis ends six pixels before it, at some seven a digit; its name stands before that.
    longest = max(map(len, tick_labels(ticks(*narrow.y))))
    assert narrow.left - 6 - 7 * longest >= 20


def test_a_report_of_kmeans_of_one_feature_and_without_data(place, tmp_path):
    zarr.save_array(tmp_path / "one.zarr", np.linspace(0.0, 1.0, 500)[:, None] ** 3)
    succeed("fit", "kmeans", tmp_path / "one.zarr", "-k", 9, "-o", tmp_path / "k.safetensors", "--quiet")
    succeed("report", tmp_path / "k.safetensors", tmp_path / "one.zarr", "-o", tmp_path / "k.html")
    page = read(tmp_path / "k.html")
    assert "feature 0: rows, and components" in page.texts["title"]
    succeed("report", place / "m.safetensors", "-o", tmp_path / "m.html")
    assert "Components over the data" not in read(tmp_path / "m.html").texts["h2"]


def test_names_in_a_report_are_text(rows, tmp_path):
    table = pyarrow.table({"<script>alert(1)</script>": rows[:, 0], "b&c": rows[:, 1]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    model = tmp_path / "m.safetensors"
    succeed("fit", "gaussian-mixture", tmp_path / "rows.parquet", "-k", 2, "-o", model, "--quiet")
    succeed("report", model, tmp_path / "rows.parquet", "-o", tmp_path / "r.html")
    assert "<script>" not in (tmp_path / "r.html").read_text()
    read(tmp_path / "r.html")


def test_a_password_in_a_command_is_not_kept():
    ctx = RememberedCommand("fit").make_context(
        "daskem", ["s3://me:secret@host/x.zarr"], ignore_unknown_options=True, allow_extra_args=True
    )
    with ctx:
        assert command_line() == "daskem s3://host/x.zarr"


def test_refusals(place, tmp_path):
    def fails(*args):
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        assert result.exit_code == 1
        return result.output

    assert "exists already" in fails("report", place / "m.safetensors", "-o", place / "report.html")
    assert "give DATA" in fails("report", place / "m.safetensors", "--diagnose", "-o", tmp_path / "r.html")
    labelled = place / "m.safetensors", place / "rows.zarr", "--labels", place / "rows.zarr"
    assert "but --diagnose" in fails("report", *labelled, "-o", tmp_path / "r.html")


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_shows_the_report(place, theme):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    shot = place / f"{theme}.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1050,2000"]
    dark = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    subprocess.run(
        [chromium, *options, *dark, f"--screenshot={shot}", (place / "report.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    picture = pyplot.imread(shot)[..., :3]
    assert picture.shape == (2000, 1050, 3)
    # The corner is paper; charts and text cover a good part of the page.
    paper = picture[0, 0]
    assert (paper.mean() > 0.9) == (theme == "light")
    inked = np.abs(picture - paper).max(axis=2) > 0.1
    assert 0.03 < inked.mean() < 0.5
