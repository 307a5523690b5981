"""Freed blocks are used again while that is asked for, and then given back; what the user has set is left alone."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from daskem.engine import allocator
from daskem.engine.allocator import HEAP_BYTES, OWN_THRESHOLD, freed_blocks_kept

BLOCK = 48 << 20
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set on other systems")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in allocator.SETTINGS:
        monkeypatch.delenv(name, raising=False)


def resident() -> int:
    return psutil.Process().memory_info().rss


def left_of_a_block() -> int:
    """Return the bytes that stay resident of a block that is used and freed."""
    before = resident()
    np.ones(BLOCK, np.uint8)
    return resident() - before


def test_freed_blocks_stay_until_the_last_holder_leaves():
    assert OWN_THRESHOLD < BLOCK < HEAP_BYTES
    with freed_blocks_kept():
        before = resident()
        with freed_blocks_kept():
            assert left_of_a_block() > 0.9 * BLOCK
        # The same pages again.
        assert left_of_a_block() < 0.1 * BLOCK
        assert resident() - before > 0.9 * BLOCK
    assert resident() - before < 0.1 * BLOCK
    assert left_of_a_block() < 0.1 * BLOCK


@pytest.mark.parametrize("name", allocator.SETTINGS)
def test_settings_of_the_user_are_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "0")
    with freed_blocks_kept():
        assert left_of_a_block() < 0.1 * BLOCK


def test_other_systems_are_left_alone(monkeypatch):
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    monkeypatch.setattr(allocator, "_glibc", nothing)
    with freed_blocks_kept():
        assert left_of_a_block() < 0.1 * BLOCK
    assert not allocator.return_freed_memory()
