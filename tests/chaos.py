"""Kills real processes at random moments and compares bits: ``python tests/chaos.py [--minutes 5] [--seed 0]``.

Four kinds of victims take turns: drivers of a fit at any moment, drivers inside a commit, writers of predictions, and
workers of a cluster. What is killed is run again until it ends; then its result must be that of a run that nobody
disturbed. The seed replays the moments, as far as the machine keeps time; ``--only drivers`` looks at one kind.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from distributed import Client, LocalCluster

import daskem
from daskem import BatchEM, MaxSteps
from daskem.cli import main as daskem_command
from daskem.models import Gaussian, Mixture
from daskem.persist.checkpoint import UNFINISHED

# Seconds after which a process counts as hung.
HANG = 60.0
KINDS = ("drivers", "commits", "writers", "workers")
STEPS = 30
ALGORITHMS = ("batch", "stepwise", "incremental", "squarem", "anderson", "progressive")
# A fork has everything imported already: many more kills to a minute.
fork = multiprocessing.get_context("fork")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    options = parser.parse_args()
    kinds = (options.only,) if options.only else KINDS
    end = time.monotonic() + 60 * options.minutes
    counts = {kind: Counter() for kind in kinds}
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        turn = 0
        while time.monotonic() < end:
            kind = kinds[turn % len(kinds)]
            rng = np.random.default_rng([options.seed, turn])
            counts[kind] += ROUNDS[kind](bench, rng)
            print(f"seed {options.seed} turn {turn} {kind}: {dict(counts[kind])}", flush=True)
            turn += 1
    print(f"\n{'':10}{'kills':>8}{'survived':>10}{'wrong':>8}{'hangs':>8}{'errors':>8}")
    for kind, count in counts.items():
        figures = (count[name] for name in ("kills", "survived", "wrong", "hangs", "errors"))
        print(
            f"{kind:10}"
            + "".join(f"{figure:>{width}}" for figure, width in zip(figures, (8, 10, 8, 8, 8), strict=True))
        )
    return int(any(count[name] for count in counts.values() for name in ("wrong", "hangs", "errors")))


class Bench:
    """The data that everything is done to, and what undisturbed runs give."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows = str(directory / "rows.zarr")
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((4, 8))[rng.integers(4, size=200_000)] + rng.standard_normal((200_000, 8))
        zarr.create_array(self.rows, data=rows, chunks=(5_000, 8))
        self.model = str(directory / "model.safetensors")
        assert run(self.fit_arguments("batch", directory / "first", self.model)) == 0
        self.fits = functools.cache(self._fit)

    def fit_arguments(self, algorithm: str, kept: Path, output: str) -> list[str]:
        return [
            *("fit", "gaussian-mixture", self.rows, "-k", "4", "--algorithm", algorithm, "--tol", "0", "-o", output),
            *("--max-iter", str(STEPS), "--checkpoint", str(kept), "--checkpoint-interval", "0", "--overwrite"),
        ]

    def predict_arguments(self, output: str) -> list[str]:
        return ["predict", self.model, self.rows, "-o", output, "--proba", "--log-prob", "--overwrite"]

    def place(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.directory))

    def _fit(self, algorithm: str) -> str:
        place = self.place()
        assert run(self.fit_arguments(algorithm, place / "kept", str(place / "model"))) == 0
        return tensors(place / "model")

    @functools.cached_property
    def predictions(self) -> str:
        output = self.place() / "out.zarr"
        assert run(self.predict_arguments(str(output))) == 0
        return arrays(output)


def kill_drivers(bench: Bench, rng: np.random.Generator, aimed: bool = False) -> Counter:
    """Kill a fit three times, each time run again; aimed: while a commit is being written."""
    algorithm = str(rng.choice(ALGORITHMS))
    place = bench.place()
    arguments = bench.fit_arguments(algorithm, place / "kept", str(place / "model"))
    whole = bench.fits(algorithm)
    count = Counter()
    for _ in range(3):
        wait = float(rng.uniform(0.05, 2.0))
        moment = _next_commit(place / "kept") if aimed else None
        count["kills"] += run(arguments, kill_after=wait, kill_when=moment) == -signal.SIGKILL
    return count + _judge(run(arguments), lambda: tensors(place / "model") == whole)


def kill_writers(bench: Bench, rng: np.random.Generator) -> Counter:
    """Kill a prediction three times; what it leaves is either whole or no data."""
    whole, output = bench.predictions, bench.place() / "out.zarr"
    count = Counter()
    for _ in range(3):
        count["kills"] += run(bench.predict_arguments(str(output)), float(rng.uniform(0.05, 1.0))) == -signal.SIGKILL
        if output.exists() and _claims_to_be_whole(output):
            count["wrong"] += arrays(output) != whole
    return count + _judge(run(bench.predict_arguments(str(output))), lambda: arrays(output) == whole)


def kill_workers(bench: Bench, rng: np.random.Generator) -> Counter:
    """Kill three workers in the course of a fit on a cluster; in a process of its own, which leaves no threads here."""
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_worker_round, args=(bench.rows, int(rng.integers(1 << 30)), sender))
    process.start()
    sender.close()
    found = receiver.recv() if receiver.poll(4 * HANG) else None
    process.kill()
    process.join()
    return Counter(hangs=1) if found is None else found


def _worker_round(rows: str, seed: int, sender: Any) -> None:
    rng, count, over = np.random.default_rng(seed), Counter(), threading.Event()
    fit = functools.partial(
        daskem.fit, Mixture(Gaussian(), 4), rows, algorithm=BatchEM(), stop=MaxSteps(STEPS), cache="none"
    )
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        whole = fit()

        def strike() -> None:
            for _ in range(3):
                if over.wait(rng.uniform(0.05, 0.5)):
                    return
                alive = [nanny.pid for nanny in cluster.workers.values() if nanny.pid]
                if alive:
                    os.kill(int(rng.choice(alive)), signal.SIGKILL)
                    count["kills"] += 1

        killer = threading.Thread(target=strike)
        killer.start()
        try:
            result = fit()
            same = result.params.weights.tobytes() == whole.params.weights.tobytes() and [
                info.objective for info in result.trace
            ] == [info.objective for info in whole.trace]
            count["survived" if same else "wrong"] += 1
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            count["errors"] += 1
        over.set()
        killer.join()
        sender.send(count)


ROUNDS: dict[str, Callable[[Bench, np.random.Generator], Counter]] = {
    "drivers": kill_drivers,
    "commits": functools.partial(kill_drivers, aimed=True),
    "writers": kill_writers,
    "workers": kill_workers,
}


def run(
    arguments: list[str], kill_after: float | None = None, kill_when: Callable[[], bool] | None = None
) -> int | None:
    """Run a command in a process of its own, perhaps to be killed; return its exit code, None where it hung."""
    process = fork.Process(target=_command, args=(arguments,))
    process.start()
    if kill_after is not None:
        process.join(kill_after)
        while kill_when is not None and process.is_alive() and not kill_when():
            pass
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join(HANG)
    if process.is_alive():
        process.kill()
        return None
    return process.exitcode


def _command(arguments: list[str]) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    if not os.environ.get("CHAOS_VERBOSE"):
        os.dup2(quiet, 2)
    daskem_command(arguments)


def _judge(code: int | None, same: Callable[[], bool]) -> Counter:
    if code is None:
        return Counter(hangs=1)
    if code != 0:
        return Counter(errors=1)
    return Counter(survived=1) if same() else Counter(wrong=1)


def _next_commit(kept: Path) -> Callable[[], bool]:
    # What a run that was killed left half written does not count.
    def unfinished() -> set[str]:
        return {name for name in os.listdir(kept) if UNFINISHED.fullmatch(name)} if kept.exists() else set()

    old = unfinished()
    return lambda: bool(unfinished() - old)


def _claims_to_be_whole(output: Path) -> bool:
    try:
        return zarr.open_group(output, mode="r").attrs.get("daskem:status") == "complete"
    except FileNotFoundError:
        return False


def tensors(path: Path) -> str:
    """Return a digest of the tensors of a model file."""
    raw = path.read_bytes()
    return hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()


def arrays(path: Path) -> str:
    """Return a digest of the arrays of a group."""
    digest = hashlib.sha256()
    for name, array in _sorted_arrays(path):
        digest.update(name.encode())
        digest.update(np.asarray(array[:]).tobytes())
    return digest.hexdigest()


def _sorted_arrays(path: Path) -> Iterator[tuple[str, Any]]:
    yield from sorted(zarr.open_group(path, mode="r").arrays())


if __name__ == "__main__":
    sys.exit(main())
