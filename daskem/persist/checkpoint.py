"""Checkpoints: all that a fit needs to go on as if it had never stopped, in a directory of sealed files.

Each commit is a file of its own, ``checkpoint-000007.safetensors``: written under a temporary name, synced, renamed,
the directory synced, and read again before the oldest is let go. The last two are kept, so that one that was damaged
since leaves one to go back to.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from daskem.core import Array, State, StepInfo
from daskem.errors import CheckpointError, ContractError, DaskEMWarning, FileFormatError, OptionError
from daskem.persist.identity import classes_in, differences
from daskem.persist.lock import DirectoryLock
from daskem.persist.paths import AnyPath, Fetched, Where, any_path, file_names, kind_of, remove
from daskem.persist.records import DescriptionError, pack, unpack
from daskem.persist.sealed import FileKind, NewerFileError, opened, read_document, read_tensors, write_sealed
from daskem.persist.trace import TraceTable

__all__ = ["RESUME", "UNFINISHED", "Checkpoints", "SavedFit", "SavedRun", "latest_progress", "read_checkpoint"]

logger = logging.getLogger("daskem")

RESUME = ("auto", "never", "must")
CHECKPOINT = FileKind("daskem_checkpoint", "checkpoint", 1)
NAME = re.compile(r"checkpoint-(\d{6,12})\.safetensors")
# Temporary names: ours, and those of safetensors, which it renames to ours.
UNFINISHED = re.compile(r"\.checkpoint-.*\.tmp|\.tmp\w+")
KEPT = 2


@dataclass(frozen=True, eq=False)
class SavedRun:
    """One start on its way: its state, what it has logged, and why it ended (None: it did not)."""

    state: State
    trace: Sequence[StepInfo]
    reason: str | None = None
    converged: bool = False


@dataclass(frozen=True, eq=False)
class SavedFit:
    """A fit on its way: its starts, the precision that its stop rules use, and the seconds that it took so far.

    `patterns` are the distinct rows that took the place of all, or None, which a fit that has ended does not count
    again.
    """

    runs: tuple[SavedRun, ...]
    precision: float
    seconds: float
    patterns: int | None = None

    @property
    def finished(self) -> bool:
        """Whether every start has ended."""
        return all(run.reason is not None for run in self.runs)


@dataclass(eq=False)
class Checkpoints:
    """The checkpoints of one fit; a context that owns their directory.

    Parameters
    ----------
    directory : where, on a file system or in an object store; made if it is not there.
    identity : what makes this fit this fit (see `daskem.persist.identity`).
    known : classes that states may be made of.
    interval : seconds from one commit to the next; 0 to commit after every step.
    resume : "auto" to go on from what is there, "must" to insist on it, "never" to replace it.
    """

    directory: AnyPath
    identity: dict[str, Any]
    known: Sequence[type]
    interval: float = 60.0
    resume: str = "auto"
    # Numbers of the files that this fit may go back to, the oldest first.
    _good: list[int] = field(default_factory=list)
    _failed: bool = False
    _last: float = 0.0

    def __post_init__(self) -> None:
        if self.resume not in RESUME:
            raise OptionError(f"resume={self.resume!r} must be one of {', '.join(map(repr, RESUME))}.")
        if not self.interval >= 0:
            raise OptionError(f"checkpoint_interval={self.interval} must be seconds, not negative.")
        where = any_path(self.directory)
        self.directory = where.absolute() if isinstance(where, Path) else where
        self._lock = DirectoryLock(self.directory)

    def __enter__(self) -> Checkpoints:
        try:
            if isinstance(self.directory, Path):
                self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"checkpoints cannot be kept in {self.directory}: {error}.") from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def load(self) -> SavedFit | None:
        """Return the newest checkpoint that is whole; None if there is none, or none is wanted.

        Raises
        ------
        CheckpointError
            If it is of another fit, or there must be one and is not.
        NewerFileError
            If it was written by a newer version.
        """
        if self.resume == "never":
            return None
        for number in reversed(self._numbers()):
            path = self._path(number)
            try:
                identity, saved = read_checkpoint(path, self.known)
            except NewerFileError:
                raise
            except FileFormatError as error:
                _warn(f"{error} It is skipped; the fit goes on from the checkpoint before, if there is one.")
                continue
            self._check_same(path, identity)
            self._good = [number]
            logger.info("going on from %s, after %d steps", path, max(len(run.trace) for run in saved.runs))
            return saved
        if self.resume == "must":
            raise CheckpointError(
                f"there is no checkpoint in {self.directory} to go on from. Check the path, or let the fit begin anew "
                "with resume='auto' (--resume auto)."
            )
        return None

    def due(self) -> bool:
        """Return whether it is time to commit again."""
        return time.monotonic() - self._last >= self.interval

    def save(self, fit: SavedFit) -> bool:
        """Commit; return whether that is on disk and was read again. The first failure is a warning.

        Raises
        ------
        CheckpointError
            At the second failure in a row.
        ContractError
            If a state holds something that cannot be stored, or could not be read again.
        """
        self._last = time.monotonic()
        self._check_known(fit)
        try:
            self._lock.check()
            self._commit(fit)
        except CheckpointError:
            raise
        except (OSError, FileFormatError) as error:
            told = f"no checkpoint could be written to {self.directory}: {error}."
            if self._failed:
                raise CheckpointError(f"{told} That is the second time in a row; the last good one is kept.") from error
            self._failed = True
            _warn(f"{told} The fit goes on; at the second failure in a row it stops.")
            return False
        self._failed = False
        return True

    def _commit(self, fit: SavedFit) -> None:
        number = max(self._numbers(), default=0) + 1
        path = self._path(number)
        tensors: dict[str, Array] = {}
        runs = [
            {"state": run.state, "trace": TraceTable.of(run.trace), "reason": run.reason, "converged": run.converged}
            for run in fit.runs
        ]
        content = {"runs": runs, "precision": fit.precision, "seconds": fit.seconds, "patterns": fit.patterns}
        document = {"identity": self.identity, "fit": pack(content, "fit", tensors, inline_numbers=True)}
        write_sealed(path, CHECKPOINT, document, tensors)
        try:
            read_checkpoint(path, self.known)
        except FileFormatError:
            remove(path)
            raise
        self._good = [*self._good, number][-KEPT:]
        self._let_go()

    def _check_known(self, fit: SavedFit) -> None:
        for kind in dict.fromkeys(kind for run in fit.runs for kind in classes_in(run.state)):
            if kind not in self.known and not issubclass(kind, (np.ndarray, np.generic)):
                raise ContractError(
                    f"a checkpoint with a {kind.__qualname__} of module {kind.__module__} could not be read again: "
                    "records are found in the modules where the model and the algorithm are defined. Define the class "
                    "there, at the top level, or import it there."
                )

    def _let_go(self) -> None:
        """Delete what is no longer needed: older checkpoints, and files that a run left half written."""
        try:
            for number in set(self._numbers()) - set(self._good):
                remove(self._path(number))
            for name in file_names(self.directory):
                if UNFINISHED.fullmatch(name):
                    remove(self.directory / name)
        except OSError as error:
            # What is there too long does no harm to what was committed.
            logger.warning("old checkpoints in %s cannot be removed: %s", self.directory, error)

    def _check_same(self, path: AnyPath, identity: dict[str, Any]) -> None:
        told = differences(identity, self.identity)
        if told:
            raise CheckpointError(
                f"{path} is of another fit: {told}. Run the same command on the same data to go on from it, give this "
                "fit a directory of its own, or replace what is there with resume='never' (--resume never)."
            )

    def _numbers(self) -> list[int]:
        found = [NAME.fullmatch(name) for name in file_names(self.directory)]
        return sorted(int(match[1]) for match in found if match)

    def _path(self, number: int) -> AnyPath:
        return self.directory / f"checkpoint-{number:06d}.safetensors"


def read_checkpoint(path: Where, known: Sequence[type]) -> tuple[dict[str, Any], SavedFit]:
    """Read a checkpoint: of which fit, and the fit. Nothing in the file is executed or imported.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, no checkpoint, from a newer version, or needs a class that is not in `known`.
    """
    where = opened(any_path(path))
    header, document = read_document(where, CHECKPOINT)
    tensors = read_tensors(where, header, CHECKPOINT, document["tensors"])
    for name, tensor in tensors.items():
        if ".params" in name and np.isnan(tensor).any():
            raise FileFormatError(f"{where}: tensor {name!r:.80} holds NaN: the fit had failed before.")
    try:
        content = unpack(document.get("fit"), "fit", tensors, known)
        runs = tuple(_run(run, where) for run in content["runs"])
        # Checkpoints of before do not tell.
        patterns = None if content.get("patterns") is None else int(content["patterns"])
        saved = SavedFit(runs, float(content["precision"]), float(content["seconds"]), patterns)
    except DescriptionError as fault:
        raise FileFormatError(f"{where}: {fault}") from fault
    except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{where} describes no fit ({error!r:.200}). Restore a copy.") from error
    if tensors or not runs or not isinstance(document.get("identity"), dict):
        raise FileFormatError(f"{where} holds more or less than a fit. The file was not made by daskem.")
    return document["identity"], saved


def latest_progress(directory: Where) -> dict[str, Any] | None:
    """Return how far the newest whole checkpoint in a directory is, without the classes that its state is made of.

    Returns
    -------
    dict or None
        Step, passes and objective of the best start, seconds of the whole fit, the reason if every start has ended
        (None: it goes on), and the file; None if there is no checkpoint.

    Raises
    ------
    FileFormatError
        If there are checkpoints, but none of them is whole.
    """
    fault: FileFormatError | None = None
    where = any_path(directory)
    names = [name for name in (file_names(where) if kind_of(where) == "directory" else []) if NAME.fullmatch(name)]
    for name in sorted(names, key=lambda name: (len(name), name), reverse=True):
        try:
            return _progress(opened(where / name))
        except FileNotFoundError:
            continue
        except FileFormatError as error:
            fault = fault or error
    if fault is not None:
        raise fault
    return None


def _progress(where: Path | Fetched) -> dict[str, Any]:
    header, document = read_document(where, CHECKPOINT)
    tensors = read_tensors(where, header, CHECKPOINT, document["tensors"])
    try:
        fit = dict(document["fit"]["dict"])
        runs = [dict(run["dict"]) for run in fit["runs"]["list"]]
        traces = [unpack(run["trace"], "trace", tensors, [TraceTable]).steps() for run in runs]
        best = max((trace[-1] for trace in traces if trace), key=lambda info: info.objective, default=None)
        ended = all(run["reason"] is not None for run in runs)
        return {
            "step": 0 if best is None else best.step,
            "passes": 0.0 if best is None else best.passes,
            "objective": None if best is None else best.objective,
            "seconds": float(fit["seconds"]),
            "reason": runs[0]["reason"] if ended else None,
            "file": str(where),
        }
    except (DescriptionError, TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{where} describes no fit ({error!r:.200}). Restore a copy.") from error


def _run(run: dict[str, Any], where: Path | Fetched) -> SavedRun:
    if not isinstance(run["trace"], TraceTable) or not hasattr(run["state"], "params"):
        raise FileFormatError(f"{where}: a start has no trace or no state. The file was not made by daskem.")
    return SavedRun(run["state"], run["trace"].steps(), run["reason"], run["converged"])


def _warn(message: str) -> None:
    warnings.warn(message, DaskEMWarning, stacklevel=3)
