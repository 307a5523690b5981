"""Freed blocks are used again while that is asked for, and then given back; what the user has set is left alone."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import psutil
import pytest

from daskem.engine import allocator
from daskem.engine.allocator import HEAP_BYTES, OWN_THRESHOLD, freed_blocks_kept, keeps_freed_blocks
from daskem.engine.executor import bytes_held

BLOCK = 48 << 20
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set on other systems")


def afresh(scenario: Callable[[], None]) -> None:
    """Run a scenario in a process of its own, whose heap holds nothing that is free, and that nobody has set."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(scenario).result()


def left_of_a_block() -> float:
    """Return the share of a block that stays resident when it is freed."""
    before = psutil.Process().memory_info().rss
    np.ones(BLOCK, np.uint8)
    return (psutil.Process().memory_info().rss - before) / BLOCK


def keep() -> None:
    assert OWN_THRESHOLD < BLOCK < HEAP_BYTES
    before = psutil.Process().memory_info().rss
    with freed_blocks_kept():
        with freed_blocks_kept():
            assert left_of_a_block() > 0.9
        # The same pages again.
        assert abs(left_of_a_block()) < 0.1
    assert (psutil.Process().memory_info().rss - before) / BLOCK < 0.1
    assert left_of_a_block() < 0.1


def leave_alone() -> None:
    with freed_blocks_kept():
        assert left_of_a_block() < 0.1


def return_again() -> None:
    assert allocator.return_freed_memory()
    with freed_blocks_kept():
        assert left_of_a_block() > 0.9
    before = psutil.Process().memory_info().rss
    np.ones(8 << 20, np.uint8)
    assert psutil.Process().memory_info().rss - before < 1 << 20


def free_below_what_is_in_use() -> None:
    blocks = [np.ones(100_000, np.uint8) for _ in range(500)]
    kept = blocks[::50]
    blocks.clear()
    before = psutil.Process().memory_info().rss
    held = bytes_held()
    assert before - held > 30e6
    assert sum(len(block) for block in kept) < held


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in allocator.SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_freed_blocks_stay_until_the_last_holder_leaves():
    afresh(keep)


@pytest.mark.parametrize("name", allocator.SETTINGS)
def test_settings_of_the_user_are_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "1000000")
    afresh(leave_alone)


def test_settings_for_workers_are_not_taken_for_the_users(monkeypatch):
    monkeypatch.setattr(allocator, "SET_BY_USER", False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    assert keeps_freed_blocks()


def test_what_was_to_be_returned_is_returned_again_afterwards():
    afresh(return_again)


def test_what_earlier_work_has_freed_is_not_held():
    afresh(free_below_what_is_in_use)


def test_what_is_not_settable_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "SET_BY_USER", False)
    monkeypatch.setattr(allocator, "_settable", lambda: False)
    assert not keeps_freed_blocks()
    monkeypatch.setattr(allocator, "_set", lambda threshold: pytest.fail("it was set"))
    with freed_blocks_kept():
        pass
