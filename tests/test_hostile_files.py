"""Damaged and hostile files: refused with one clear error, or read as what was written; nothing is run or allocated.

``pytest -m slow tests/test_hostile_files.py`` tries 10,000 of them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Balls, Centers
from safetensors.numpy import load_file, save_file

from daskem.algorithms import BatchState
from daskem.core import Event, StepInfo
from daskem.errors import FileFormatError
from daskem.persist import Checkpoints, SavedFit, SavedRun, load_model, read_checkpoint, record_classes, save_model

GOLDEN = Path(__file__).parent / "golden"
KNOWN = record_classes(Balls())
PARAMS = Centers(np.array([0.25, 0.75]), np.array([[1.0, -2.0], [0.5, 1e-3]]))
TRACE = [
    StepInfo(1, -3.5, 10.0, 1.0, 0.25, 0.5, (Event(1, 0, "was empty"),), True, None, "all rows"),
    StepInfo(2, -3.25, 10.0, 2.0, 0.25, 0.125, (), True, 0.0625, "all rows", 0.5),
]
FIT = SavedFit((SavedRun(BatchState(PARAMS, 2), TRACE, "2 steps were made"),), 0.125, 1.5)
KEYS = {"model": "daskem", "checkpoint": "daskem_checkpoint"}


def write(kind: str, directory: Path) -> Path:
    if kind == "model":
        save_model(directory / "model.safetensors", Balls(2), PARAMS, metadata={"objective": -3.25})
        return directory / "model.safetensors"
    with Checkpoints(directory, {"seed": 3}, KNOWN) as kept:
        assert kept.save(FIT)
    return directory / "checkpoint-000001.safetensors"


def content(kind: str, path: Path) -> Any:
    """Return what a file says, in a form that can be compared."""
    if kind == "model":
        loaded = load_model(path, KNOWN)
        return loaded.model, loaded.params.weights.tolist(), loaded.params.means.tolist(), loaded.metadata
    identity, saved = read_checkpoint(path, KNOWN)
    runs = [
        (run.state.step, run.state.params.weights.tolist(), run.state.params.means.tolist(), run.reason, run.converged)
        for run in saved.runs
    ]
    return identity, runs, [run.trace for run in saved.runs], saved.precision, saved.seconds


class Trap:
    """Unpickling one would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


# Damage to bytes: every one of these must be seen, or change nothing.


def flip(raw: bytearray, rng: np.random.Generator) -> bytes:
    for at in rng.integers(len(raw), size=rng.integers(1, 4)):
        raw[at] ^= 1 << rng.integers(8)
    return bytes(raw)


def cut(raw: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(raw[: rng.integers(len(raw))])


def extend(raw: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(raw) + rng.bytes(int(rng.integers(1, 4096)))


def wipe(raw: bytearray, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(raw)))
    raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    return bytes(raw)


def move(raw: bytearray, rng: np.random.Generator) -> bytes:
    a, b = sorted(int(at) for at in rng.integers(len(raw), size=2))
    return bytes(raw[b:] + raw[a:b] + raw[:a])


def claim_length(raw: bytearray, rng: np.random.Generator) -> bytes:
    raw[:8] = int(rng.choice([0, 1, 8, 1 << 20, 1 << 40, (1 << 63) - 1])).to_bytes(8, "little")
    return bytes(raw)


def enlarge(raw: bytearray, rng: np.random.Generator) -> bytes:
    """Replace a number of the header, the length kept right: shapes and places of terabytes."""
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    name = str(rng.choice([name for name in header if name != "__metadata__"]))
    huge = int(rng.choice([-1, 1 << 31, 1 << 47, 1 << 62, 1 << 61]))
    entry = header[name]
    if rng.random() < 0.5:
        entry["shape"] = [huge, *entry["shape"][1:]]
    else:
        entry["data_offsets"] = [0, huge]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(raw[8 + size :])


DAMAGES = (flip, cut, extend, wipe, move, claim_length, enlarge)

# Hostile descriptions, sealed as somebody who knows the format could: nothing but FileFormatError, or a value.

HOSTILE = (
    None,
    -1,
    2**70,
    1e308,
    "x" * 10_000,
    "../../../etc/passwd",
    "/etc/passwd",
    [],
    {},
    {"record": "Popen", "module": "subprocess", "fields": {"args": "true"}},
    {"record": "Trap", "module": "test_hostile_files", "fields": {}},
    {"record": "BatchState", "module": "daskem.algorithms.batch", "fields": {"params": None}},
    {"array": "../secret"},
    {"scalar": "params.means"},
    {"number": "params.means", "type": "eval"},
    {"float": "nan"},
    {"tuple": [1, {"tuple": [{"list": []}]}]},
    {"dict": [[1, 2], ["a", {"array": "params.means"}]]},
    json.loads('{"tuple": [' * 60 + "]}" * 60),
)


def reseal(path: Path, target: Path, kind: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    tensors = load_file(path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    document = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"][KEYS[kind]])
    document["seal"] = "0" * 64
    change(document, tensors)
    for name, tensor in tensors.items():
        described = document["tensors"].get(name) if isinstance(document.get("tensors"), dict) else None
        if isinstance(described, dict):
            described["sha256"] = hashlib.sha256(tensor.tobytes()).hexdigest()
    text = json.dumps(document)
    text = text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1)
    save_file(tensors, target, metadata={KEYS[kind]: text})


def poison(document: dict[str, Any], rng: np.random.Generator) -> None:
    """Replace a random part of a description by something hostile."""
    here: Any = document
    while True:
        keys = [key for key in (here if isinstance(here, dict) else range(len(here))) if key != "seal"]
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        child = here[key]
        if not isinstance(child, (dict, list)) or not child or rng.random() < 0.2:
            here[key] = HOSTILE[rng.integers(len(HOSTILE))]
            return
        here = child


def check(kind: str, path: Path, allowed: Any) -> str:
    """Read a file within its share of memory; return what came of it."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        found = content(kind, path)
    except FileFormatError as error:
        told, outcome = str(error), "refused"
    else:
        told, outcome = str(path), "read"
        assert allowed is None or found == allowed, path
    assert str(path) in told
    assert len(told) < 2_000
    assert tracemalloc.get_traced_memory()[1] - before <= 2 * path.stat().st_size + (16 << 20)
    return outcome


def attack(kind: str, tmp_path: Path, n: int, seed: int) -> dict[str, int]:
    original, target = write(kind, tmp_path), tmp_path / "hostile.safetensors"
    allowed, raw = content(kind, original), original.read_bytes()
    outcomes = {"refused": 0, "read": 0}
    tracemalloc.start()
    try:
        for i in range(n):
            rng = np.random.default_rng([seed, i])
            if i % 3:
                target.write_bytes(DAMAGES[i % len(DAMAGES)](bytearray(raw), rng))
                outcomes[check(kind, target, allowed)] += 1
            else:
                reseal(original, target, kind, lambda document, _, rng=rng: poison(document, rng))
                # Somebody may write another file; what it says is then simply what it says.
                outcomes[_poisoned(kind, target)] += 1
    finally:
        tracemalloc.stop()
    return outcomes


def _poisoned(kind: str, target: Path) -> str:
    try:
        return check(kind, target, None)
    except AttributeError:
        # A record of another kind than this test compares: reading it was fine.
        assert kind == "model" or read_checkpoint(target, KNOWN)
        return "read"


@pytest.mark.parametrize("kind", KEYS)
def test_hostile_files_are_refused(kind, tmp_path):
    outcomes = attack(kind, tmp_path, 1_000, seed=0)
    assert outcomes["refused"] > 850


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEYS)
def test_ten_thousand_hostile_files_are_refused(kind, tmp_path):
    outcomes = attack(kind, tmp_path, 5_000, seed=1)
    assert outcomes["refused"] > 4_250


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_not_even_the_format_is_refused(kind, tmp_path):
    target, trap = tmp_path / "hostile.safetensors", tmp_path / "sprung"
    for raw in (b"", b"\x80", pickle.dumps(Trap(trap)), pickle.dumps(PARAMS), b"{" * 100_000, bytes(64)):
        for prefix in (b"", len(raw).to_bytes(8, "little")):
            target.write_bytes(prefix + raw)
            with pytest.raises(FileFormatError):
                content(kind, target)
    assert not trap.exists()
    with pytest.raises(FileFormatError, match="is not a file"):
        content(kind, tmp_path)


def test_nan_in_the_parameters_of_a_checkpoint_is_refused(tmp_path):
    def spoil(document: dict[str, Any], tensors: dict[str, Any]) -> None:
        (name,) = (name for name in tensors if name.endswith(".params.means"))
        tensors[name] = np.full((2, 2), np.nan)

    path = write("checkpoint", tmp_path)
    reseal(path, path, "checkpoint", spoil)
    with pytest.raises(FileFormatError, match="holds NaN"):
        content("checkpoint", path)


def test_one_kind_of_file_is_not_the_other(tmp_path):
    with pytest.raises(FileFormatError, match="not a daskem checkpoint"):
        content("checkpoint", write("model", tmp_path))
    with pytest.raises(FileFormatError, match="not a daskem model"):
        content("model", write("checkpoint", tmp_path))


@pytest.mark.parametrize("kind", KEYS)
def test_files_of_every_version_keep_loading(kind, tmp_path):
    now = content(kind, write(kind, tmp_path))
    files = sorted(GOLDEN.glob(f"{kind}-*.safetensors"))
    assert files
    for path in files:
        assert content(kind, path) == now


def test_a_trace_of_an_older_version_lacks_what_that_did_not_know(tmp_path):
    path = write("checkpoint", tmp_path)

    def older(document: dict[str, Any], tensors: dict[str, Any]) -> None:
        fields = dict(document["fit"]["dict"])["runs"]["list"][0]["dict"]
        table = dict(fields)["trace"]["fields"]
        table["names"]["tuple"].remove("error")
        name = table["numbers"]["array"]
        tensors[name] = np.ascontiguousarray(tensors[name][:-1])
        document["tensors"][name]["shape"] = list(tensors[name].shape)

    reseal(path, path, "checkpoint", older)
    assert read_checkpoint(path, KNOWN)[1].runs[0].trace == [replace(info, error=0.0) for info in TRACE]
