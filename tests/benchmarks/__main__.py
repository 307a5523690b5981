"""Runs all benchmarks, one process each: ``python tests/benchmarks [--scale 0.1] [--repeats 3] [--directory DIR]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("speed", "out_of_core", "overhead", "scale", "passes", "student", "missing", "minibatch")


def main() -> int:
    missed = [name for name in BENCHMARKS if _run(name)]
    print(f"\ntargets missed by: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


def _run(name: str) -> int:
    script = Path(__file__).with_name(f"{name}.py")
    return subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
