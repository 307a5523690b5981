"""A lock file: which run owns a directory."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from typing import Any

import psutil

from daskem.errors import CheckpointError
from daskem.persist.paths import AnyPath, create, kind_of, remove, replace

__all__ = ["DirectoryLock"]

logger = logging.getLogger("daskem")

NAME = "lock"
# How often the owner writes its lock anew, and how long one that stays as it is must be watched before its owner counts
# as dead. Network file systems may show what a file held a minute ago (NFS: acdirmax, 60 s).
BEAT_SECONDS = 20.0
SILENT_SECONDS = 150.0
LOOK_SECONDS = 1.0


class DirectoryLock:
    """Owns a directory from `acquire` to `release`; the file says for whom: host, process and when that began.

    A process that died leaves its lock behind. On the host where it ran that can be seen. From another host it is seen
    by the owner's beat: while it lives, a thread counts up in the file. Either way the lock is taken over.
    """

    def __init__(self, directory: AnyPath) -> None:
        self.path = directory / NAME
        self.owner = _owner(os.getpid()) | {"token": secrets.token_hex(8)}
        self._beats = 0
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat_on, name="daskem-lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        CheckpointError
            If another run has it that lives.
        """
        # Thrice: another run may take a lock over at the same moment, and has it then.
        for _ in range(3):
            if create(self.path, self._text()):
                self._heart.start()
                return
            held = self._read()
            if held is None:
                continue
            if self._lives(held):
                raise CheckpointError(_refusal(self.path, held))
            if self._read() == held:
                remove(self.path)
                logger.warning(
                    "%s: took over from process %s on %s, which is gone",
                    *(self.path.parent, held.get("pid"), held.get("host")),
                )
        raise CheckpointError(_refusal(self.path, self._read()))

    def check(self) -> None:
        """See that the lock is still this one's: a process that slept for long may have been taken for dead.

        Raises
        ------
        CheckpointError
            If another run has it now.
        """
        held = self._read()
        if held is None and kind_of(self.path) is None:
            # Taken over and given back meanwhile, or deleted: without it, a third run could not see this one.
            if create(self.path, self._text()):
                return
            held = self._read()
        if held is not None and not self._is_own(held):
            raise CheckpointError(
                f"{self.path.parent} was taken over by {_who(held)}: this run gave no sign of life for more than "
                f"{SILENT_SECONDS:g} s. It stops here, so that only one of the two goes on."
            )

    def release(self) -> None:
        """Give the lock back, if it is still this one's."""
        self._over.set()
        if self._heart.ident is not None:
            self._heart.join()
        try:
            if self._is_own(self._read() or {}):
                remove(self.path)
        except OSError as error:
            logger.warning("%s cannot be removed (%s); the next run will take it over.", self.path, error)

    def _beat_on(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                if self._is_own(self._read() or {}):
                    self._beats += 1
                    replace(self.path, self._text())
            except OSError as error:
                logger.warning("%s cannot be written anew: %s", self.path, error)

    def _text(self) -> bytes:
        return json.dumps(self.owner | {"beat": self._beats}).encode()

    def _is_own(self, held: dict[str, Any]) -> bool:
        return bool(held.get("token") == self.owner["token"])

    def _read(self) -> dict[str, Any] | None:
        """Return what the lock says; None if there is none, or none that can be read."""
        try:
            held = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return None
        return held if isinstance(held, dict) else None

    def _lives(self, held: dict[str, Any]) -> bool:
        pid = held.get("pid")
        if held.get("host") != socket.gethostname() or type(pid) is not int:
            return self._beats_elsewhere(held)
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            started = process.create_time()
        except (psutil.Error, OverflowError, ValueError):
            return False
        # Another process with that number, or the same one: setting the clock moves when it began.
        return started == held.get("started") or self._beats_elsewhere(held)

    def _beats_elsewhere(self, held: dict[str, Any]) -> bool:
        logger.warning(
            "%s belongs to %s; watching for up to %g s whether that lives", self.path.parent, _who(held), SILENT_SECONDS
        )
        end = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < end:
            self._over.wait(LOOK_SECONDS)
            now = self._read()
            if now is not None and now != held:
                return True
            # One that cannot be read for a moment is still there.
            if now is None and kind_of(self.path) is None:
                return False
        return False


def _owner(pid: int) -> dict[str, Any]:
    # A number alone may have been given to another process since.
    return {"host": socket.gethostname(), "pid": pid, "started": psutil.Process(pid).create_time()}


def _who(held: dict[str, Any]) -> str:
    return f"process {held.get('pid')!r:.40} on {held.get('host')!r:.80}"


def _refusal(path: AnyPath, held: dict[str, Any] | None) -> str:
    return (
        f"{path.parent} belongs to {_who(held) if held else 'another run'}, which may still write there. Give each fit "
        f"a directory of its own; if that run is over, delete {path}."
    )
