"""Compiles daskem/compiled/c when daskem is built; without a C compiler daskem works all the same, in numpy."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).parents[1] / "daskem" / "compiled" / "c"
# Errors of arithmetic are looked for in the results, not in a global variable. Vectors pass between functions of one
# file only, so that how other compilers pass them is no matter.
FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-Wno-psabi", "-shared", "-fPIC"]


class CompileKernels(BuildHookInterface[Any]):
    """Hatchling calls this before it packs a wheel, an editable one too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell hatchling that the wheel is for this platform; say so where there is no compiler."""
        # Named after its sources: code that has moved on must not call it with other arguments.
        sources = b"".join(path.read_bytes() for path in sorted(KERNELS.glob("*.[ch]")))
        library = KERNELS / f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}.so"
        for older in KERNELS.glob("kernels*.so"):
            older.unlink()
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        unfinished = library.with_suffix(f".{os.getpid()}")
        try:
            subprocess.run(
                [*compiler, *FLAGS, "-o", str(unfinished), str(KERNELS / "kernels.c"), "-lm"],
                check=True,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            self.app.display_warning(f"daskem is built without compiled kernels, and will be slower: {reason}")
            return
        # Whole or not at all: a running process keeps the library that it has loaded.
        unfinished.replace(library)
        build_data["pure_python"] = False
        build_data["infer_tag"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(str(library.relative_to(self.root)))
