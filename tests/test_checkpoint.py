"""A fit that was stopped at any moment, and then goes on, ends with the bits of one that was not."""

from __future__ import annotations

import builtins
import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr
from fakes import Balls, Centers, bits, clouds
from safetensors import SafetensorError

import daskem
from daskem import (
    Anderson,
    Auto,
    BatchEM,
    FitResult,
    IncrementalEM,
    MaxSteps,
    Progressive,
    Squarem,
    StepwiseEM,
    VarianceReducedEM,
    tree,
)
from daskem.cli.signals import SIGNALS, StopSignal, stop_signals
from daskem.core import Algorithm, Event, StepInfo
from daskem.data import dataset, units
from daskem.errors import CheckpointError, ContractError, DaskEMWarning, DataError, FileFormatError, OptionError
from daskem.models import Gaussian, Mixture
from daskem.persist import checkpoint as module
from daskem.persist import latest_progress, lock, record_classes, sealed
from daskem.persist.paths import AnyPath, any_path, file_names
from daskem.persist.trace import TraceTable

ROWS = clouds(3_000, spread=2.0)
MODEL = Mixture(Gaussian("full"), 3)


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1 << 13)
    monkeypatch.setattr(dataset, "PIECE_BYTES", 1 << 11)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("rows") / "rows.zarr")
    zarr.create_array(path, data=ROWS, chunks=(100, 4))
    return path


def fit(data: Any = ROWS, model: Any = MODEL, steps: int = 6, **options: Any) -> FitResult:
    options = {"algorithm": BatchEM(), "stop": MaxSteps(steps), "seed": 3, "checkpoint_interval": 0, **options}
    return daskem.fit(model, data, **options)


def same(a: FitResult, b: FitResult) -> bool:
    """Whether two fits ended with the same bits, their traces included, clocks aside."""

    def told(result: FitResult) -> list[StepInfo]:
        return [replace(info, seconds=0.0) for info in result.trace]

    left, right = (list(tree.leaves(result.params)) for result in (a, b))
    return (
        [(path, np.asarray(x).tobytes()) for path, x in left] == [(path, np.asarray(x).tobytes()) for path, x in right]
        and told(a) == told(b)
        and (a.reason, a.converged, a.objectives, a.passes) == (b.reason, b.converged, b.objectives, b.passes)
    )


class Killed(BaseException):
    """The process ended here."""


def killer(at: int, seen: list[int] | None = None) -> Callable[[StepInfo, Any], None]:
    def callback(info: StepInfo, params: Any) -> None:
        if seen is not None:
            seen.append(info.step)
        if info.step == at:
            raise Killed

    return callback


ALGORITHMS: dict[str, tuple[Algorithm, int]] = {
    "batch": (BatchEM(), 6),
    "stepwise": (StepwiseEM(batch_rows=200, held_out=200), 40),
    "stepwise averaged": (StepwiseEM(batch_rows=200, held_out=200, average=True), 40),
    "incremental": (IncrementalEM(), 5),
    "variance-reduced": (VarianceReducedEM(batch_rows=200), 4),
    "squarem": (Squarem(), 6),
    "anderson": (Anderson(), 8),
    "progressive": (Progressive(first=200), 14),
    "auto": (Auto(), 14),
}


@pytest.mark.parametrize("n_init", [1, 2])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_fit_that_goes_on_ends_with_the_same_bits(name, n_init, store, tmp_path):
    algorithm, steps = ALGORITHMS[name]
    options = {"algorithm": algorithm, "steps": steps, "n_init": n_init}
    whole = fit(store, **options)
    assert whole.n_steps > 3
    for at in sorted({1, whole.n_steps // 2, whole.n_steps - 1}):
        with pytest.raises(Killed):
            fit(store, **options, checkpoint=tmp_path / "kept", callbacks=[killer(at)])
    seen: list[int] = []
    assert same(fit(store, **options, checkpoint=tmp_path / "kept", callbacks=[killer(-1, seen)]), whole)
    assert seen[0] == whole.n_steps


def test_every_step_can_be_the_last_one(tmp_path):
    whole = fit()
    for at in range(1, 7):
        with pytest.raises(Killed):
            fit(checkpoint=tmp_path / "kept", callbacks=[killer(at)])
    assert same(fit(checkpoint=tmp_path / "kept"), whole)


def test_a_finished_fit_is_returned_without_a_pass(tmp_path, monkeypatch):
    whole = fit(checkpoint=tmp_path)
    monkeypatch.setattr("daskem.engine.passes.Engine.expect", None)
    monkeypatch.setattr("daskem.engine.passes.Engine.sample", None)
    assert same(fit(checkpoint=tmp_path), whole)
    assert same(fit(checkpoint=tmp_path, resume="must"), whole)


def test_events_are_told_once_and_kept(tmp_path, caplog):
    options = {"model": Tired(), "params": Centers(np.full(3, 1 / 3), ROWS[:3])}
    with pytest.raises(Killed):
        fit(**options, checkpoint=tmp_path, callbacks=[killer(3)])
    caplog.clear()
    result = fit(**options, checkpoint=tmp_path)
    assert [event.step for event in result.events] == [1, 2, 3, 4, 5, 6]
    assert "is tired" not in caplog.text


@dataclass(frozen=True)
class Tired(Balls):
    def events(self, params: Centers) -> tuple[tuple[int, str], ...]:
        return ((1, "is tired"),)


def test_a_models_own_records_are_found_in_its_module(tmp_path):
    options = {"model": Balls(), "params": Centers(np.full(3, 1 / 3), ROWS[:3])}
    with pytest.raises(Killed):
        fit(**options, checkpoint=tmp_path, callbacks=[killer(2)])
    assert bits(fit(**options, checkpoint=tmp_path).params) == bits(fit(**options).params)


def test_records_that_could_not_be_read_again_are_refused_before_the_first_step(tmp_path):
    @dataclass(frozen=True)
    class Hidden:
        weights: np.ndarray
        means: np.ndarray

    class Hiding(Balls):
        def init(self, sample, rng):
            return Hidden(*vars(Balls.init(self, sample, rng)).values())

    seen: list[int] = []
    with pytest.raises(ContractError, match=f"Hidden of module {__name__} could not be read again"):
        fit(model=Hiding(), checkpoint=tmp_path, callbacks=[killer(-1, seen)])
    assert seen == []


# What is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": Mixture(Gaussian("full"), 4)}, r"model\.n_components was 3, is now 4"),
        ({"model": Mixture(Gaussian("diag"), 3)}, r"model\.family\.covariance was 'full', is now 'diag'"),
        ({"seed": 4}, "seed was 3, is now 4"),
        ({"compress": "never"}, "compress was 'auto', is now 'never'"),
        ({"n_init": 2}, "n_init was 1, is now 2"),
        ({"stop": [daskem.Gain(1e-9), MaxSteps(6)]}, "stop"),
        ({"algorithm": Squarem()}, "algorithm.* was BatchEM, is now Squarem|algorithm.*BatchEM"),
        ({"data": ROWS[:-1]}, r"data\.rows\.shape\[0\] was 3000, is now 2999"),
        ({"data": ROWS.astype(np.float32)}, "data.rows.dtype was 'float64', is now 'float32'"),
        ({"data": np.where(ROWS[7, 1] == ROWS, 0.0, ROWS)}, "data.rows.content"),
        ({"sample_weight": np.ones(len(ROWS))}, "data.sample_weight"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused_with_what_differs(change, told, tmp_path):
    fit(checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=rf"another fit: .*{told}") as caught:
        fit(**change, checkpoint=tmp_path)
    assert "--resume never" in str(caught.value)
    # Replaced where that is asked for, and gone on from afterwards.
    fresh = fit(**change, checkpoint=tmp_path, resume="never")
    assert same(fit(**change, checkpoint=tmp_path, resume="must"), fresh)


@pytest.mark.parametrize("algorithm", [BatchEM(), Squarem(), daskem.VarianceReducedEM(batch_rows=1000)])
@pytest.mark.parametrize("n_init", [1, 2])
def test_a_fit_goes_on_where_its_budget_ended(algorithm, n_init, tmp_path):
    options = {"algorithm": algorithm, "n_init": n_init}
    first = fit(steps=2, checkpoint=tmp_path, **options)
    assert (first.n_steps, first.converged) == (2, False)
    assert same(fit(steps=5, checkpoint=tmp_path, **options), fit(steps=5, **options))
    # A smaller budget takes nothing back.
    assert fit(steps=3, checkpoint=tmp_path, **options).n_steps == 5
    seconds = fit(stop=daskem.MaxSeconds(1e-9), checkpoint=tmp_path, **options)
    assert (seconds.n_steps, seconds.reason.startswith("1e-09 seconds were over")) == (5, True)


def test_a_fit_that_has_converged_has_ended(tmp_path):
    rules = [daskem.Gain(1e-2), MaxSteps(50)]
    whole = fit(stop=rules, checkpoint=tmp_path)
    assert whole.converged
    assert same(fit(stop=[rules[0], MaxSteps(90)], checkpoint=tmp_path), whole)


def test_there_must_be_one_where_that_is_asked_for(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        fit(checkpoint=tmp_path, resume="must")
    with pytest.raises(OptionError, match="needs a directory"):
        fit(resume="must")
    with pytest.raises(OptionError, match="one of 'auto', 'never', 'must'"):
        fit(checkpoint=tmp_path, resume="perhaps")
    with pytest.raises(OptionError, match=r"nowhere://bucket/kept: .*Install the package"):
        fit(checkpoint="nowhere://bucket/kept")
    with pytest.raises(OptionError, match="not negative"):
        fit(checkpoint=tmp_path, checkpoint_interval=-1)


def test_a_newer_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT", replace(module.CHECKPOINT, version=2))
    fit(checkpoint=tmp_path)
    monkeypatch.undo()
    with pytest.raises(FileFormatError, match="version 2 is newer"):
        fit(checkpoint=tmp_path)


def newest(directory: Path) -> Path:
    return max(directory.glob("checkpoint-*.safetensors"))


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path):
    whole = fit(checkpoint=tmp_path)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
    damaged = newest(tmp_path)
    raw = bytearray(damaged.read_bytes())
    raw[-9] ^= 1
    damaged.write_bytes(raw)
    seen: list[int] = []
    with pytest.warns(DaskEMWarning, match=rf"{damaged.name}.*sha256 differs.*skipped"):
        assert same(fit(checkpoint=tmp_path, callbacks=[killer(-1, seen)]), whole)
    assert seen == [6]


def test_where_all_are_damaged_the_fit_begins_anew(tmp_path):
    whole = fit(checkpoint=tmp_path)
    for path in tmp_path.glob("checkpoint-*"):
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(DaskEMWarning, match="skipped"):
        assert same(fit(checkpoint=tmp_path), whole)


def test_an_interval_spares_commits(tmp_path, monkeypatch):
    commits: list[int] = []
    save = module.Checkpoints.save
    monkeypatch.setattr(module.Checkpoints, "save", lambda self, fit: commits.append(1) or save(self, fit))
    fit(checkpoint=tmp_path, checkpoint_interval=3600)
    assert len(commits) == 2


# Data that change


def test_chunks_written_during_a_fit_are_found(tmp_path):
    path = str(tmp_path / "rows.zarr")
    array = zarr.create_array(path, data=ROWS, chunks=(100, 4))

    def write(info: StepInfo, params: Any) -> None:
        if info.step == 3:
            array[250:260] = 0.0

    with pytest.raises(DataError, match=r"rows.zarr was written to while it was fitted: c.2.0 changed"):
        fit(path, callbacks=[write], checkpoint=tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"data\.rows\.content"):
        fit(path, checkpoint=tmp_path / "kept")


def test_a_note_added_to_an_array_changes_no_rows(tmp_path):
    path = str(tmp_path / "rows.zarr")
    array = zarr.create_array(path, data=ROWS, chunks=(100, 4))
    assert fit(path, callbacks=[lambda info, params: array.attrs.update(seen=info.step)]).n_steps == 6


# Who owns a directory


@pytest.mark.parametrize("inside", ["", "checkpoints"])
def test_checkpoints_are_not_written_into_the_data(inside, tmp_path):
    store = zarr.create_array(tmp_path / "x.zarr", data=np.random.default_rng(0).normal(size=(50, 2)))
    before = sorted(path.name for path in (tmp_path / "x.zarr").iterdir())
    with pytest.raises(OptionError, match="one inside the other"):
        daskem.fit(Mixture(Gaussian(), 2), store, checkpoint=tmp_path / "x.zarr" / inside)
    assert sorted(path.name for path in (tmp_path / "x.zarr").iterdir()) == before
    # A directory that the data are in is not replaced.
    daskem.fit(Mixture(Gaussian(), 2), tmp_path / "x.zarr", checkpoint=tmp_path, stop=daskem.MaxSteps(2))


def test_two_fits_do_not_share_a_directory(tmp_path):
    def second(info: StepInfo, params: Any) -> None:
        fit(checkpoint=tmp_path)

    with pytest.raises(CheckpointError, match=rf"belongs to process {os.getpid()} on"):
        fit(checkpoint=tmp_path, callbacks=[second])
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("pid", [2**22 + 1, -1])
def test_the_lock_of_a_process_that_is_gone_is_taken_over(pid, tmp_path, caplog):
    host = os.uname().nodename
    (tmp_path / "lock").write_text(json.dumps({"host": host, "pid": pid, "started": 1.0}))
    with caplog.at_level(logging.WARNING, "daskem"):
        fit(checkpoint=tmp_path)
    assert f"took over from process {pid} on {host}, which is gone" in caplog.text


def test_a_lock_that_nobody_can_read_is_respected(tmp_path):
    (tmp_path / "lock").write_text("who")
    with pytest.raises(CheckpointError, match=r"belongs to another run.*delete .*lock"):
        fit(checkpoint=tmp_path)


@pytest.fixture
def quick_beats(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 30.0)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.01)


@pytest.fixture(params=["path", "url"])
def shared(request, tmp_path) -> Iterator[AnyPath]:
    """A directory that several hosts see: on a file system, or in an object store."""
    if request.param == "path":
        yield tmp_path
        return
    where = any_path(f"memory://{tmp_path}")
    yield where
    if where.exists():
        where.fs.rm(where.path, recursive=True)


@contextlib.contextmanager
def lock_of(directory: AnyPath) -> Iterator[lock.DirectoryLock]:
    held = lock.DirectoryLock(directory)
    held.acquire()
    try:
        yield held
    finally:
        held.release()


@pytest.mark.usefixtures("quick_beats")
def test_the_lock_of_another_host_is_respected_while_it_beats(shared, monkeypatch):
    with lock_of(shared) as held, monkeypatch.context() as patch:
        patch.setattr(lock.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on '{os.uname().nodename}'.*delete .*lock"):
            fit(checkpoint=shared)
        held.check()
    assert file_names(shared) == []


@pytest.mark.usefixtures("quick_beats")
def test_a_lock_is_respected_when_the_clock_was_set(tmp_path, monkeypatch):
    with lock_of(tmp_path) as held:
        # When a process began is told by the clock; the lock was written before that was set.
        monkeypatch.setitem(held.owner, "started", held.owner["started"] - 1.0)
        lock.replace(tmp_path / "lock", held._text())
        with pytest.raises(CheckpointError, match=rf"belongs to process {os.getpid()}"):
            fit(checkpoint=tmp_path)
        held.check()


@pytest.mark.usefixtures("quick_beats")
def test_the_lock_of_an_earlier_process_of_that_number_is_taken_over(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.1)
    host, pid = os.uname().nodename, os.getpid()
    (tmp_path / "lock").write_text(json.dumps({"host": host, "pid": pid, "started": 1.0}))
    with caplog.at_level(logging.WARNING, "daskem"):
        fit(checkpoint=tmp_path)
    assert f"took over from process {pid} on {host}, which is gone" in caplog.text


@pytest.mark.usefixtures("quick_beats")
def test_the_lock_of_another_host_that_is_silent_is_taken_over(shared, monkeypatch, caplog):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.1)
    held = {"host": "gone", "pid": 1, "started": psutil.Process().create_time(), "token": "x", "beat": 7}
    lock.replace(shared / "lock", json.dumps(held).encode())
    with caplog.at_level(logging.WARNING, "daskem"):
        fit(checkpoint=shared)
    assert "watching for up to 0.1 s whether that lives" in caplog.text
    assert "took over from process 1 on gone, which is gone" in caplog.text
    assert "lock" not in file_names(shared)


def test_a_lock_that_is_gone_is_taken_again(shared):
    def gone(info: StepInfo, params: Any) -> None:
        if info.step == 2:
            lock.remove(shared / "lock")
        elif info.step > 2:
            assert json.loads((shared / "lock").read_bytes())["pid"] == os.getpid()

    assert fit(checkpoint=shared, callbacks=[gone]).n_steps == 6
    assert "lock" not in file_names(shared)


@pytest.mark.usefixtures("quick_beats")
def test_a_lock_that_cannot_be_read_for_a_moment_is_no_dead_one(shared, monkeypatch):
    with lock_of(shared) as held, monkeypatch.context() as patch:
        patch.setattr(lock.socket, "gethostname", lambda: "elsewhere")
        read, calls = lock.DirectoryLock._read, []

        def fails_once(self):
            calls.append(self)
            return None if len(calls) == 2 and self is not held else read(self)

        patch.setattr(lock.DirectoryLock, "_read", fails_once)
        with pytest.raises(CheckpointError, match="which may still write there"):
            fit(checkpoint=shared)
    assert file_names(shared) == []


def test_a_fit_that_was_taken_for_dead_stops_before_it_writes(shared):
    taken = {"host": "elsewhere", "pid": 5, "token": "y", "beat": 0}

    def slept(info: StepInfo, params: Any) -> None:
        lock.replace(shared / "lock", json.dumps(taken).encode())

    with pytest.raises(CheckpointError, match=r"was taken over by process 5 on 'elsewhere': .* no sign of life"):
        fit(checkpoint=shared, callbacks=[slept])
    assert json.loads((shared / "lock").read_bytes()) == taken
    assert sorted(file_names(shared)) == ["checkpoint-000001.safetensors", "lock"]


# Object stores


def test_a_fit_committed_to_an_object_store_goes_on_to_the_same_bits(shared):
    def stop(info: StepInfo, params: Any) -> None:
        if info.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(checkpoint=str(shared), callbacks=[stop])
    assert f"committed to {shared}, after 3 steps" in caught.value.__notes__[0]
    resumed = fit(checkpoint=str(shared), resume="must")
    assert same(resumed, fit())
    names = sorted(file_names(shared))
    assert len(names) == 2, names
    progress = latest_progress(str(shared))
    assert progress is not None
    assert (progress["step"], progress["file"]) == (6, str(shared / names[-1]))
    with pytest.raises(CheckpointError, match=rf"{shared}/checkpoint-\d+\.safetensors is of another fit: seed"):
        fit(checkpoint=str(shared), seed=4)


def test_a_damaged_checkpoint_of_an_object_store_is_named_and_skipped(shared):
    fit(checkpoint=str(shared))
    last = shared / max(file_names(shared))
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(DaskEMWarning, match=rf"{last}: the header describes .* It is skipped"):
        assert same(fit(checkpoint=str(shared), resume="must"), fit())


# Every call of a commit fails once, in every way


class FaultyDisk:
    """Counts the calls that a commit makes of the operating system, and lets one of them fail.

    A process that was killed makes no further call: those after it fail too, those that clean up included.
    """

    CALLS = (
        (os, "open"),
        (os, "fsync"),
        (os, "close"),
        (os, "replace"),
        (os, "unlink"),
        (os, "listdir"),
        (os, "stat"),
        (os, "fstat"),
        (builtins, "open"),
        (sealed, "save_file"),
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.failure = 0, -1, OSError(errno.EIO, "")
        self.half = self.armed = False
        for place, name in self.CALLS:
            monkeypatch.setattr(place, name, self._wrap(getattr(place, name), name))

    def _wrap(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if not self.armed:
                return real(*args, **options)
            self.count += 1
            dead = isinstance(self.failure, Killed) and self.count > self.at > 0
            if self.count == self.at or dead:
                if name == "save_file" and self.half and not dead:
                    real(*args, **options)
                    os.truncate(args[1], os.path.getsize(args[1]) // 2)
                if name == "close" and not dead:
                    real(*args, **options)
                raise self.failure
            return real(*args, **options)

        return call

    @contextlib.contextmanager
    def failing(self, at: int, failure: BaseException, half: bool = False) -> Iterator[None]:
        self.count, self.at, self.failure, self.half, self.armed = 0, at, failure, half, True
        try:
            yield
        finally:
            self.armed = False


def kept_fit(step: int) -> module.SavedFit:
    info = StepInfo(1, -1.5, 10.0, 1.0, 0.1, 0.5, (Event(1, 0, "was empty"),), remaining=None)
    trace = [replace(info, step=i + 1) for i in range(step)]
    state = daskem.algorithms.BatchState(Centers(np.full(3, 1 / 3), np.full((3, 4), float(step))), step)
    return module.SavedFit((module.SavedRun(state, trace),), 0.5, 1.0)


def kept_in(directory: Path, **options: Any) -> module.Checkpoints:
    return module.Checkpoints(directory, {"seed": 1}, record_classes(Balls()), **options)


FAILURES = [OSError(code, os.strerror(code)) for code in (errno.EIO, errno.ENOSPC, errno.EACCES)] + [Killed()]


@pytest.mark.filterwarnings("ignore::daskem.errors.DaskEMWarning")
def test_no_fault_of_a_commit_loses_a_checkpoint_or_claims_one(tmp_path, monkeypatch):
    disk = FaultyDisk(monkeypatch)
    kept = kept_in(tmp_path / "count")
    with kept, disk.failing(-1, Killed()):
        assert kept.save(kept_fit(1))
    calls = disk.count
    assert calls > 10
    tried = 0
    for failure in FAILURES:
        for at in range(1, calls + 1):
            for half in (False, True):
                directory = tmp_path / f"{tried}"
                tried += 1
                _check_one_fault(disk, directory, at, failure, half)
    assert tried == 2 * 4 * calls


def _check_one_fault(disk: FaultyDisk, directory: Path, at: int, failure: BaseException, half: bool) -> None:
    claimed = False
    with kept_in(directory) as kept:
        assert kept.save(kept_fit(1))
        assert kept.save(kept_fit(2))
        with disk.failing(at, failure, half):
            try:
                claimed = kept.save(kept_fit(3))
            except Killed:
                assert isinstance(failure, Killed)
        if not isinstance(failure, Killed):
            # What failed once works the next time, and nothing is left behind.
            with kept_in_again(kept) as again:
                assert again.load() is not None
                assert again.save(kept_fit(4))
                assert not list(directory.glob(".checkpoint-*"))
            return
    with kept_in(directory) as kept:
        saved = kept.load()
    assert saved is not None
    (run,) = saved.runs
    assert len(run.trace) in ((3,) if claimed else (2, 3))
    np.testing.assert_array_equal(run.state.params.means, np.full((3, 4), float(len(run.trace))))


@contextlib.contextmanager
def kept_in_again(kept: module.Checkpoints) -> Iterator[module.Checkpoints]:
    kept.__exit__()
    with kept_in(kept.directory) as again:
        yield again


def test_a_second_failure_in_a_row_ends_the_fit(tmp_path, monkeypatch):
    def full(*args: Any, **options: Any) -> None:
        raise SafetensorError("Error while serializing: No space left on device")

    with kept_in(tmp_path) as kept:
        kept.save(kept_fit(1))
        monkeypatch.setattr(sealed, "save_file", full)
        with pytest.warns(DaskEMWarning, match=r"No space left.*at the second failure in a row it stops"):
            assert not kept.save(kept_fit(2))
        with pytest.raises(CheckpointError, match="second time in a row"):
            kept.save(kept_fit(2))
        monkeypatch.undo()
        assert kept.save(kept_fit(2))


def test_a_trace_comes_back_as_it_was():
    trace = [
        StepInfo(1, -1.0, 5.0, 1.0, 0.1, 0.5, (Event(1, 2, "é"), Event(1, 0, "b")), False, 0.25, "1,000 rows", 0.5),
        StepInfo(2, -np.inf, 5.0, 2.0, 0.1, 0.5, (), True, None, ""),
        StepInfo(3, -0.5, 5.0, 2.5, 0.1, 0.5, (Event(3, 2, "é"),), True, np.inf, "all rows"),
    ]
    assert TraceTable.of(trace).steps() == trace
    assert TraceTable.of([]).steps() == []


class Opaque(Balls):
    """A model with an attribute of its own that nobody knows."""

    def __init__(self) -> None:
        object.__setattr__(self, "block_rows", object())


def test_a_model_that_cannot_be_told_from_others_is_refused(tmp_path):
    with pytest.raises(ContractError, match=r"model\.block_rows is a object"):
        fit(model=Opaque(), params=Centers(np.full(3, 1 / 3), ROWS[:3]), checkpoint=tmp_path)


# A process that is killed


def run_fit(store: str, place: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "daskem", "fit", "gaussian-mixture", store, "-k", "3", "--overwrite"]
    command += ["--algorithm", "batch", "--tol", "0", "--max-iter", "40", "-o", str(place / "model.safetensors")]
    command += ["--checkpoint", str(place / "kept"), "--checkpoint-interval", "0"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def tensors(place: Path) -> bytes:
    raw = (place / "model.safetensors").read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def stop_after(process: subprocess.Popen, place: Path, commit: int, number: int) -> str:
    """Send a signal once a commit of that number is there, wherever the process is then; return what it said."""
    last = place / "kept" / f"checkpoint-{commit:06d}.safetensors"
    while max((place / "kept").glob("checkpoint-*"), default=place) < last:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.002)
            break
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


def test_a_command_that_is_stopped_and_run_again_saves_the_same_tensors(store, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    with run_fit(store, whole) as process:
        assert process.wait(60) == 0, process.communicate()
    for commit, number in ((3, signal.SIGKILL), (12, signal.SIGTERM), (20, signal.SIGKILL), (28, signal.SIGUSR1)):
        process = run_fit(store, tmp_path)
        told = stop_after(process, tmp_path, commit, number)
        assert (tmp_path / "kept" / "lock").exists() is (number == signal.SIGKILL)
        if number == signal.SIGKILL:
            assert process.returncode == -number, told
        else:
            assert process.returncode == 75, told
            assert f"stopped by {number.name}. The fit is committed to {tmp_path / 'kept'}, after " in told
            assert " steps; run the same again to go on.\n" in told
    process = run_fit(store, tmp_path)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 0, told
    assert "going on from" in told
    assert tensors(tmp_path) == tensors(whole)


def test_signals_are_left_alone_where_no_checkpoint_is_kept():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_signals(False):
        assert [signal.getsignal(number) for number in SIGNALS] == before
    with stop_signals():
        with pytest.raises(StopSignal, match="SIGUSR1"):
            signal.raise_signal(signal.SIGUSR1)
        # A second one does not break off what the first has led to.
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
