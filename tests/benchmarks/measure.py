"""What all benchmarks share: timing, peak memory, the page cache, the disk, and how targets are reported."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

from daskem.engine.arithmetic import describe_arithmetic

CORES = os.cpu_count() or 1


@dataclass
class Report:
    """Prints figures as they come and remembers which targets were missed."""

    missed: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def check(self, what: str, value: float, limit: float, *, at_least: bool = False, unit: str = "") -> None:
        """Print `value` beside its target."""
        met = value >= limit if at_least else value <= limit
        sign = ">=" if at_least else "<="
        self.say(f"  {'ok    ' if met else 'MISSED'} {what}: {value:.4g}{unit} (target {sign} {limit:.4g}{unit})")
        if not met:
            self.missed.append(what)

    def close(self) -> int:
        """Return the exit code."""
        self.say(f"load average at the end: {load()}; {len(self.missed)} target(s) missed")
        return 1 if self.missed else 0


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--scale", type=float, default=1.0, help="size of the data relative to the stated one")
    options.add_argument("--repeats", type=int, default=3, help="measurements, of which the median counts")
    options.add_argument("--directory", type=Path, help="where temporary stores go (a new temporary directory)")
    options.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    return options


def start(title: str) -> Report:
    """Print what is measured and on what."""
    report = Report()
    # A peer's BLAS may be held to other instructions (OPENBLAS_CORETYPE) than the processor has.
    report.say(f"== {title}\n{CORES} cores, load average {load()}; {describe_arithmetic()}")
    return report


def load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def seconds(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    clock = time.perf_counter()
    function()
    return time.perf_counter() - clock


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    return statistics.median(seconds(function) for _ in range(repeats))


@contextmanager
def temporary(parent: Path | None) -> Iterator[Path]:
    """Yield a new directory below `parent` that is deleted afterwards, also after an interrupt."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="daskem-benchmark-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def in_threads(function: Callable[[int], object], threads: int) -> float:
    """Return the wall-clock seconds until ``function(0) ... function(threads - 1)``, one thread each, have ended."""
    with ThreadPoolExecutor(threads) as pool:
        return seconds(lambda: list(pool.map(function, range(threads))))


def peak_rss() -> int:
    """Return the highest resident bytes this process ever had.

    Not ``ru_maxrss``, which a child process inherits from the one that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no VmHWM: peak memory can be measured on Linux only.")


def files(directory: str | Path) -> list[Path]:
    """Return all files below a directory, in a fixed order."""
    return sorted(path for path in Path(directory).rglob("*") if path.is_file())


def drop_page_cache(directory: str | Path) -> None:
    """Ask the kernel to forget what it holds of all files below a directory, so that the next read is the disk's."""
    for path in files(directory):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(directory: str | Path, repeats: int, budget: int = 2 << 30) -> float:
    """Return bytes per second of reading files below a directory from the disk, the best of one thread and many.

    Parameters
    ----------
    budget : bytes to read at most; the files are spread over the whole store.
    """
    found = [path for path in files(directory) if path.stat().st_size > 1 << 12]
    every = max(1, sum(path.stat().st_size for path in found) // budget)
    chosen = found[::every]
    size = sum(path.stat().st_size for path in chosen)
    return size / min(read_seconds(directory, chosen, threads, repeats) for threads in {1, CORES})


def read_seconds(directory: str | Path, chosen: Sequence[Path], threads: int, repeats: int) -> float:
    """Return the seconds of reading files from the disk, `threads` at once; all below the directory are forgotten."""
    largest = max(path.stat().st_size for path in chosen)
    buffers = [bytearray(largest) for _ in range(threads)]

    def read(thread: int) -> None:
        for path in chosen[thread::threads]:
            with open(path, "rb", buffering=0) as file:
                file.readinto(buffers[thread])

    def cold() -> float:
        drop_page_cache(directory)
        return in_threads(read, threads)

    return statistics.median(cold() for _ in range(repeats))


def run_script(script: str, *arguments: object) -> str:
    """Run a script of this directory in a process, whose memory is then its own, and return what it prints."""
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *map(str, arguments)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {done.returncode}; its error is above.")
    return done.stdout


def products_seconds(work: Callable[[int], Callable[[], object]], floor: float = 0.2) -> float:
    """Return seconds per call of a piece of arithmetic on all cores at once, one BLAS thread each; best of three.

    Parameters
    ----------
    work : returns the piece for a thread, with arrays of its own.
    floor : shortest time worth measuring.
    """
    pieces = [work(thread) for thread in range(CORES)]
    with threadpool_limits(limits=1, user_api="blas"):
        calls = 1
        while (took := _called(pieces, calls)) < floor:
            calls = max(2 * calls, int(calls * floor / max(took, 1e-6)))
        return min(took, *(_called(pieces, calls) for _ in range(2))) / calls / CORES


def _called(pieces: Sequence[Callable[[], object]], calls: int) -> float:
    def repeat(thread: int) -> None:
        for _ in range(calls):
            pieces[thread]()

    return in_threads(repeat, len(pieces))
