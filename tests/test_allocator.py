"""Freed blocks are used again while that is asked for, and then given back; what the user has set is left alone."""

from __future__ import annotations

import ctypes
import platform

import numpy as np
import psutil
import pytest

from daskem.engine import allocator
from daskem.engine.allocator import HEAP_BYTES, OWN_THRESHOLD, freed_blocks_kept

BLOCK = 48 << 20
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set on other systems")


@pytest.fixture(autouse=True)
def nothing_set_or_free(monkeypatch):
    ctypes.CDLL(None).malloc_trim(0)
    for name in allocator.SETTINGS:
        monkeypatch.delenv(name, raising=False)


def resident() -> int:
    return psutil.Process().memory_info().rss


def left_of_a_block(size: int = BLOCK) -> int:
    """Return the bytes that stay resident of a block that is used and freed."""
    before = resident()
    np.ones(size, np.uint8)
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


def test_what_is_not_settable_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "_settable", lambda: False)
    assert not allocator.keeps_freed_blocks()
    with freed_blocks_kept():
        assert left_of_a_block() < 0.1 * BLOCK


def test_what_was_to_be_returned_is_returned_again_afterwards(monkeypatch):
    monkeypatch.setattr(allocator, "_usual", OWN_THRESHOLD)
    small = OWN_THRESHOLD // 2
    try:
        assert allocator.return_freed_memory()
        with freed_blocks_kept():
            assert left_of_a_block(small) > 0.9 * small
        assert left_of_a_block(small) < 0.1 * small
    finally:
        allocator._set(OWN_THRESHOLD)
