"""How a result was made: the command, and the versions of what ran it."""

from __future__ import annotations

import platform
import resource
import shlex
import sys
from importlib.metadata import version
from typing import Any

import click

from daskem.data.source import without_password

__all__ = ["RememberedCommand", "command_line", "peak_memory", "versions"]

PACKAGES = ("daskem", "numpy", "scipy", "dask", "distributed", "zarr")


class RememberedCommand(click.Command):
    """A command that remembers how it was called."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note the arguments, then parse them."""
        ctx.meta["daskem.arguments"] = list(args)
        return super().parse_args(ctx, args)


def command_line() -> str:
    """Return the command that runs, as a shell takes it; without passwords."""
    ctx = click.get_current_context()
    path = ctx.command_path.split()
    words = ["daskem" if i == 0 else word for i, word in enumerate(path)] + ctx.meta.get("daskem.arguments", [])
    return without_password(shlex.join(words))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that bear on a result."""
    return {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def peak_memory() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return int(peak if sys.platform == "darwin" else 1024 * peak)
