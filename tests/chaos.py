"""Kills real processes at random moments and compares bits: ``python -m tests.chaos [--minutes 5] [--seed 0]``.

Five kinds of victims take turns: drivers of a fit at any moment, drivers inside a commit, writers of predictions, and
workers and schedulers of a cluster. What is killed is run again until it ends; then its result must be that of a run
that nobody disturbed. The seed replays the moments, as far as the machine keeps time; ``--only drivers`` looks at one
kind.
"""

from __future__ import annotations

import argparse
import asyncio
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from distributed import Client, LocalCluster, Scheduler, Worker

import daskem
from daskem import BatchEM, MaxSteps
from daskem.cli import main as daskem_command
from daskem.models import Gaussian, Mixture
from daskem.persist.checkpoint import UNFINISHED

# Seconds without any progress after which a process counts as hung.
HANG = 60.0
KINDS = ("drivers", "commits", "writers", "workers", "schedulers")
STEPS = 30
# Few, in a short time: a nanny that is between two workers 15 s after it lost one is given up by LocalCluster.
WORKER_KILLS = 4
ALGORITHMS = ("batch", "stepwise", "incremental", "squarem", "anderson", "progressive", "variance-reduced")
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

    def _fit(self, algorithm: str) -> tuple[str, float]:
        """Return the digest of a fit that nobody disturbed, and the seconds that it took."""
        place, clock = self.place(), time.monotonic()
        assert run(self.fit_arguments(algorithm, place / "kept", str(place / "model")), place / "kept") == 0
        return tensors(place / "model"), time.monotonic() - clock

    @functools.cached_property
    def predictions(self) -> tuple[str, float]:
        """The digest of a prediction that nobody disturbed, and the seconds that it took."""
        output, clock = self.place() / "out.zarr", time.monotonic()
        assert run(self.predict_arguments(str(output))) == 0
        return arrays(output), time.monotonic() - clock


def kill_drivers(bench: Bench, rng: np.random.Generator, aimed: bool = False) -> Counter:
    """Kill a fit three times, each time run again; aimed: while a commit is being written."""
    algorithm = str(rng.choice(ALGORITHMS))
    place = bench.place()
    arguments = bench.fit_arguments(algorithm, place / "kept", str(place / "model"))
    whole, seconds = bench.fits(algorithm)
    count = Counter()
    for _ in range(3):
        # Each run goes on where the one before was killed, and has less to do.
        wait = float(rng.uniform(0.0, seconds / 3))
        moment = _next_commit(place / "kept") if aimed else None
        count["kills"] += run(arguments, place / "kept", wait, moment) == -signal.SIGKILL
    return count + _judge(run(arguments, place / "kept"), lambda: tensors(place / "model") == whole)


def kill_writers(bench: Bench, rng: np.random.Generator) -> Counter:
    """Kill a prediction three times; what it leaves is either whole or no data."""
    (whole, seconds), output = bench.predictions, bench.place() / "out.zarr"
    count = Counter()
    for _ in range(3):
        wait = float(rng.uniform(0.0, seconds))
        count["kills"] += run(bench.predict_arguments(str(output)), kill_after=wait) == -signal.SIGKILL
        if output.exists() and _claims_to_be_whole(output):
            count["wrong"] += arrays(output) != whole
    return count + _judge(run(bench.predict_arguments(str(output))), lambda: arrays(output) == whole)


def kill_workers(bench: Bench, rng: np.random.Generator) -> Counter:
    """Kill workers in the course of fits on a cluster; in a process of its own, which leaves no threads here."""
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
            while count["kills"] < WORKER_KILLS:
                if over.wait(rng.uniform(0.05, 1.0)):
                    return
                # A nanny whose worker dies before it has begun gives up, and nobody starts another one.
                alive = [nanny.pid for nanny in cluster.workers.values() if nanny.process.status.name == "running"]
                if alive:
                    os.kill(int(rng.choice(alive)), signal.SIGKILL)
                    count["kills"] += 1

        killer = threading.Thread(target=strike)
        killer.start()
        try:
            while killer.is_alive():
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


def kill_schedulers(bench: Bench, rng: np.random.Generator) -> Counter:
    """Kill the scheduler of a fit, which ends with one error; the same command goes on at the next cluster."""
    algorithm = str(rng.choice(ALGORITHMS))
    place = bench.place()
    arguments = bench.fit_arguments(algorithm, place / "kept", str(place / "model"))
    whole, seconds = bench.fits(algorithm)
    with _cluster() as (scheduler, address):
        wait = float(rng.uniform(0.0, 2 * seconds))
        code = run([*arguments, "--scheduler", address], place / "kept", wait, victim=scheduler)
    # The fit may have ended before the blow; one that did not has to say that it failed.
    count = Counter(kills=int(code == 1))
    if code not in (0, 1):
        return count + _judge(code, lambda: False)
    with _cluster() as (_, address):
        code = run([*arguments, "--scheduler", address], place / "kept")
    return count + _judge(code, lambda: tensors(place / "model") == whole)


@contextmanager
def _cluster() -> Iterator[tuple[Any, str]]:
    """Start a scheduler and two workers, which nobody starts again; give the scheduler's process and its address."""
    receiver, sender = fork.Pipe(duplex=False)
    scheduler = fork.Process(target=_serve, args=(sender,))
    scheduler.start()
    address = receiver.recv()
    workers = [fork.Process(target=_work, args=(address,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        yield scheduler, address
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.join()


def _serve(sender: Any) -> None:
    async def serve() -> None:
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            sender.send(scheduler.address)
            await scheduler.finished()

    _quietly(lambda: asyncio.run(serve()))


def _work(address: str) -> None:
    async def work() -> None:
        async with Worker(address, nthreads=1, dashboard=False) as worker:
            await worker.finished()

    _quietly(lambda: asyncio.run(work()))


ROUNDS: dict[str, Callable[[Bench, np.random.Generator], Counter]] = {
    "drivers": kill_drivers,
    "commits": functools.partial(kill_drivers, aimed=True),
    "writers": kill_writers,
    "workers": kill_workers,
    "schedulers": kill_schedulers,
}


def run(
    arguments: list[str],
    kept: Path | None = None,
    kill_after: float | None = None,
    kill_when: Callable[[], bool] | None = None,
    victim: Any = None,
) -> int | None:
    """Run a command in a process of its own; return its exit code, None where it hung.

    Parameters
    ----------
    kept : where its commits show that it is not hung.
    kill_after, kill_when : seconds to wait, and what else to wait for, before `victim`, or the command, is killed.
    """
    process = fork.Process(target=_quietly, args=(lambda: daskem_command(arguments),))
    process.start()
    if kill_after is not None:
        process.join(kill_after)
        while kill_when is not None and process.is_alive() and not kill_when():
            pass
        if process.is_alive():
            os.kill((victim or process).pid, signal.SIGKILL)
    seen, since = "", time.monotonic()
    while process.is_alive() and time.monotonic() < since + HANG:
        process.join(1.0)
        last = max((path.name for path in kept.glob("checkpoint-*")), default="") if kept else ""
        if last != seen:
            seen, since = last, time.monotonic()
    if process.is_alive():
        process.kill()
        return None
    return process.exitcode


def _quietly(work: Callable[[], Any]) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    if not os.environ.get("CHAOS_VERBOSE"):
        os.dup2(quiet, 2)
    work()


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
