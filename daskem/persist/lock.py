"""A lock file: which run owns a directory."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import psutil

from daskem.errors import CheckpointError

__all__ = ["DirectoryLock"]

logger = logging.getLogger("daskem")

NAME = "lock"


class DirectoryLock:
    """Owns a directory from `acquire` to `release`; the file says for whom: host, process and when that began.

    A process that died leaves its lock behind. On the host where it ran that can be seen, and the lock is taken over;
    from another host it cannot.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self.text = json.dumps(_owner(os.getpid()) | {"token": secrets.token_hex(8)})

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        CheckpointError
            If another run has it that lives, or may live.
        """
        # Twice: another run may take a lock over at the same moment, and has it then.
        for _ in range(2):
            if self._create():
                return
            held = self._read()
            if held is None or _lives(held):
                raise CheckpointError(_refusal(self.path, held))
            stale = self.path.with_name(f".{NAME}.{secrets.token_hex(4)}.stale")
            os.rename(self.path, stale)
            stale.unlink()
            logger.warning("%s: took over from process %s, which is gone", self.path.parent, held.get("pid"))
        raise CheckpointError(_refusal(self.path, self._read()))

    def release(self) -> None:
        """Give the lock back, if it is still this one's."""
        try:
            if self.path.read_text() == self.text:
                self.path.unlink()
        except OSError as error:
            logger.warning("%s cannot be removed (%s); the next run will take it over.", self.path, error)

    def _create(self) -> bool:
        # Linked into place whole: a run that dies while it writes must not leave a lock that nobody can read.
        temporary = self.path.with_name(f".{NAME}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.write_text(self.text)
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _read(self) -> dict[str, Any] | None:
        try:
            held = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return held if isinstance(held, dict) else None


def _owner(pid: int) -> dict[str, Any]:
    # A number alone may have been given to another process since.
    return {"host": socket.gethostname(), "pid": pid, "started": psutil.Process(pid).create_time()}


def _lives(held: dict[str, Any]) -> bool:
    pid = held.get("pid")
    if held.get("host") != socket.gethostname() or type(pid) is not int:
        return True
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() == held.get("started"))
    except (psutil.Error, OverflowError, ValueError):
        return False


def _refusal(path: Path, held: dict[str, Any] | None) -> str:
    who = f"process {held.get('pid')!r:.40} on {held.get('host')!r:.80}" if held else "another run"
    return (
        f"{path.parent} belongs to {who}, which may still write there. Give each fit a directory of its own; "
        f"if that run is over, delete {path}."
    )
