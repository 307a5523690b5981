"""Model files: what goes in comes out, and nothing hostile does more than raise FileFormatError."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from daskem import tree
from daskem.errors import ContractError, FileFormatError, NonFiniteError, OptionError
from daskem.persist import LoadedModel, inspect_model, load_model, save_model
from daskem.testing import model_trial

BIT_FLIP_STEP = 7


@dataclass(frozen=True)
class Prior:
    strength: float = 1.0
    scale: np.ndarray | None = None


@dataclass(frozen=True)
class Bell:
    covariance: str = "full"
    prior: Prior | None = None


@dataclass(frozen=True)
class Mixed:
    family: Any = field(default_factory=Bell)
    n_components: int = 2
    bounds: tuple[float, float] = (-math.inf, math.inf)
    tied: bool = False

    def __post_init__(self) -> None:
        if self.n_components < 1:
            raise ValueError("n_components must be at least 1")


@dataclass(frozen=True)
class BellParams:
    means: np.ndarray
    scales: np.ndarray
    dof: float = 4.0


@dataclass(frozen=True)
class MixedParams:
    log_weights: np.ndarray
    members: Any
    n_rows: int = 0
    frozen: bool = False


class Bare:
    """A user's model without options."""


KNOWN = (Prior, Bell, Mixed, BellParams, MixedParams, Bare)
MODEL = Mixed(Bell("diag", Prior(0.5, np.eye(2))), n_components=3)
PARAMS = MixedParams(np.log([0.5, 0.5]), BellParams(np.arange(6.0).reshape(3, 2), np.ones((3, 2), np.float32)), 2**40)


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal in type, structure and bits."""
    left, right = list(tree.leaves(a)), list(tree.leaves(b))
    return type(a) is type(b) and [
        (path, type(x), np.asarray(x).dtype, np.asarray(x).shape, np.asarray(x).tobytes()) for path, x in left
    ] == [(path, type(x), np.asarray(x).dtype, np.asarray(x).shape, np.asarray(x).tobytes()) for path, x in right]


def read(path: Path) -> LoadedModel:
    return load_model(path, KNOWN)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, MODEL, PARAMS, metadata={"data": {"rows": np.int64(10)}, "objective": [-3.5, math.nan]})
    return path


def test_what_goes_in_comes_out(saved: Path) -> None:
    loaded = read(saved)
    assert same(loaded.params, PARAMS)
    assert type(loaded.params.n_rows) is int
    assert loaded.params.frozen is False
    assert isinstance(loaded.model, Mixed)
    assert loaded.model.bounds == (-math.inf, math.inf)
    assert loaded.model.family.covariance == "diag"
    np.testing.assert_array_equal(loaded.model.family.prior.scale, np.eye(2))
    assert loaded.metadata == {"data": {"rows": 10}, "objective": [-3.5, "nan"]}


def test_the_file_is_plain_safetensors(saved: Path) -> None:
    tensors = load_file(saved)
    np.testing.assert_array_equal(tensors["params.members.means"], PARAMS.members.means)
    assert tensors["params.members.scales"].dtype == np.float32


def test_same_model_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again.st", MODEL, PARAMS, metadata={"data": {"rows": 10}, "objective": [-3.5, math.nan]})
    assert (tmp_path / "again.st").read_bytes() == saved.read_bytes()


def test_inspect_reads_no_tensor(saved: Path) -> None:
    raw = bytearray(saved.read_bytes())
    raw[-1] ^= 1
    saved.write_bytes(raw)
    summary = inspect_model(saved)
    assert summary["format_version"] == 1
    assert summary["model"]["record"] == "Mixed"
    assert summary["model"]["fields"]["n_components"] == 3
    means = summary["tensors"]["params.members.means"]
    assert means == {
        "dtype": "float64",
        "shape": [3, 2],
        "sha256": hashlib.sha256(PARAMS.members.means.tobytes()).hexdigest(),
    }
    json.dumps(summary, allow_nan=False)
    with pytest.raises(FileFormatError, match=r"sha256 differs.*Restore"):
        read(saved)


numbers = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(np.float32),
    st.integers(0, 255).map(np.uint8),
)
arrays = hnp.arrays(
    dtype=st.sampled_from([np.dtype(code) for code in ("f8", ">f8", "f4", "f2", "i8", "i4", "u1", "?")]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    elements={"allow_nan": False, "allow_infinity": False},
)
trees = st.recursive(
    st.none() | numbers | arrays,
    lambda child: st.one_of(
        st.lists(child, max_size=3),
        st.lists(child, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4) | st.integers(0, 9), child, max_size=3),
        st.builds(MixedParams, child, child),
    ),
    max_leaves=6,
)


@given(params=trees)
def test_any_tree_comes_back(params: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("trees") / "m.st"
    save_model(path, Bare(), params)
    loaded = read(path)
    native = [
        (name, np.asarray(leaf).astype(np.asarray(leaf).dtype.newbyteorder("="))) for name, leaf in tree.leaves(params)
    ]
    back = list(tree.leaves(loaded.params))
    assert [name for name, _ in back] == [name for name, _ in native]
    assert all(
        np.asarray(a).tobytes() == b.tobytes() and np.asarray(a).dtype == b.dtype and np.asarray(a).shape == b.shape
        for (_, a), (_, b) in zip(back, native, strict=True)
    )
    assert [type(leaf) for _, leaf in back] == [type(leaf) for _, leaf in tree.leaves(params)]
    assert isinstance(loaded.model, Bare)


def test_fortran_order_is_not_transposed(tmp_path: Path) -> None:
    save_model(tmp_path / "m.st", Bare(), (np.asfortranarray(np.arange(6.0).reshape(2, 3)),))
    np.testing.assert_array_equal(read(tmp_path / "m.st").params[0], np.arange(6.0).reshape(2, 3))


def classes_of(record: Any) -> set[type]:
    """Return the dataclasses that a record is made of."""
    if isinstance(record, (dict, tuple)):
        return set().union(*map(classes_of, record.values() if isinstance(record, dict) else record))
    if not dataclasses.is_dataclass(record):
        return set()
    return {type(record)}.union(*(classes_of(getattr(record, field.name)) for field in dataclasses.fields(record)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_model_goes_on_with_the_same_bits(case: Case, tmp_path: Path) -> None:
    trial = model_trial(case.model, case.chunk())
    save_model(tmp_path / "m.st", trial.model, trial.params)
    loaded = load_model(tmp_path / "m.st", classes_of(trial.model) | classes_of(trial.params))
    assert loaded.model == trial.model
    assert same(loaded.params, trial.params)
    assert same(loaded.model.e_step(loaded.params, case.chunk()), trial.model.e_step(trial.params, case.chunk()))


# What save refuses: nothing is left behind.


@pytest.mark.parametrize(
    ("model", "params", "metadata", "error", "match"),
    [
        (Bare(), (np.array([1.0, np.nan]),), {}, NonFiniteError, r"params\[0\] holds NaN"),
        (Bare(), MixedParams(np.array([1j]), None), {}, ContractError, r"params\.log_weights has type complex128"),
        (Bare(), {"a": object()}, {}, ContractError, r"params\['a'\] is a object.*frozen dataclass"),
        (Bare(), 2**70, {}, ContractError, "params has type object"),
        (Mixed(family=print), None, {}, ContractError, r"model\.family is a builtin_function"),
        (Bare(), None, {"trace": [object()]}, ContractError, r"metadata\['trace'\]\[0\] is a object"),
        (Bare(), None, {"trace": "x" * (5 << 20)}, OptionError, "metadata take"),
        (Bare(), json.loads("[" * 40 + "]" * 40), {}, ContractError, "nested more than"),
    ],
)
def test_save_refuses(model: Any, params: Any, metadata: Any, error: type, match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        save_model(tmp_path / "m.st", model, params, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_save_overwrites_only_when_told(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(OptionError, match=r"exists.*overwrite=True"):
        save_model(saved, Bare(), None)
    assert saved.read_bytes() == before
    save_model(saved, Bare(), 1.5, overwrite=True)
    assert read(saved).params == 1.5


def test_others_may_read_what_the_user_lets_them_read(saved: Path) -> None:
    saved.with_name("plain").touch()
    assert saved.stat().st_mode == saved.with_name("plain").stat().st_mode


def test_save_names_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is not a directory"):
        save_model(tmp_path / "no" / "m.st", Bare(), None)


def test_a_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(saved, Bare(), 1.5, overwrite=True)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


# What load refuses: unknown classes and fields, newer versions, values that the class itself refuses.


def rewrite(path: Path, change: Any) -> Path:
    """Change the description of the model and seal it again, as somebody who knows the format could."""
    tensors = load_file(path)
    document = inspect_model(path)
    document = {"seal": "0" * 64, **document}
    change(document, tensors)
    text = json.dumps(document)
    text = text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1)
    save_file(tensors, path, metadata={"daskem": text})
    return path


def test_rewrite_alone_changes_nothing(saved: Path) -> None:
    assert same(read(rewrite(saved, lambda document, tensors: None)).params, PARAMS)


def test_unknown_class_is_named_not_imported(saved: Path) -> None:
    with pytest.raises(FileFormatError, match=r"'Bell' of module .*test_model_file.* pass it as one of `known`"):
        load_model(saved, [Mixed, MixedParams, BellParams, Prior])
    rewrite(saved, lambda document, tensors: document["model"].update(record="Popen", module="subprocess"))
    with pytest.raises(FileFormatError, match="'Popen' of module 'subprocess'"):
        read(saved)


def test_two_classes_of_one_name(saved: Path) -> None:
    other = type("Bell", (), {"__module__": "elsewhere"})
    assert isinstance(load_model(saved, [*KNOWN, other]).model.family, Bell)
    with pytest.raises(FileFormatError, match="any of 2 classes"):
        load_model(saved, [*(c for c in KNOWN if c is not Bell), other, type("Bell", (), {"__module__": "third"})])


def set_fields(**values: Any) -> Any:
    return lambda document, tensors: document["model"]["fields"].update(values)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d, t: d.update(format_version=2, daskem_version="9.9"), r"newer than.*daskem '9\.9'; update daskem"),
        (lambda d, t: d.update(format_version=True), "makes no sense"),
        (lambda d, t: d.update(metadata=3), "'metadata' is missing"),
        (lambda d, t: d.pop("params"), "parameters are missing"),
        (set_fields(colour=1), "Mixed has no field 'colour'"),
        (set_fields(n_components=0), "Mixed refuses the values.*at least 1"),
        (set_fields(tied={"lambda": "x"}), r"model\.tied is of a kind"),
        (set_fields(tied={"float": "1e5"}), "not a number"),
        (set_fields(tied=[1]), "does not understand"),
        (set_fields(tied={"tuple": 3}), "should be a list"),
        (set_fields(tied={"dict": [3]}), "list of keys and values"),
        (set_fields(tied={"number": "params.n_rows", "type": "complex"}), "unknown type 'complex'"),
        (set_fields(tied={"number": "params.log_weights", "type": "int"}), "single number"),
        (set_fields(tied={"array": "../../etc/passwd"}), r"needs tensor '\.\./\.\./etc/passwd'"),
        (set_fields(tied={"record": ["Bell"], "fields": {}}), "not among the known classes"),
        (set_fields(tied={"record": "Bell"}), "has no fields"),
        (set_fields(tied=json.loads('{"tuple": [' * 50 + "]}" * 50)), "does not understand"),
        (lambda d, t: t.update({"/etc/extra": np.zeros(1)}), "not those that the model's description lists"),
        (lambda d, t: d.update(params=None), r"tensor 'params\..*' belongs to nothing"),
    ],
)
def test_load_refuses(saved: Path, change: Any, match: str) -> None:
    with pytest.raises(FileFormatError, match=match) as caught:
        read(rewrite(saved, change))
    assert str(saved) in str(caught.value)


def test_load_refuses_nan_in_parameters(saved: Path) -> None:
    def poison(document: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        bad = np.array([0.0, np.inf])
        tensors["params.log_weights"] = bad
        document["tensors"]["params.log_weights"]["sha256"] = hashlib.sha256(bad.tobytes()).hexdigest()

    with pytest.raises(FileFormatError, match=r"'params\.log_weights' holds NaN or infinity"):
        read(rewrite(saved, poison))


def test_load_says_what_is_not_a_model_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be opened"):
        read(tmp_path / "none.st")
    with pytest.raises(FileFormatError, match="is not a file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="is not a file"):
        read(tmp_path / "pipe")
    save_file({"x": np.zeros(2)}, tmp_path / "other.st")
    with pytest.raises(FileFormatError, match="not a daskem model"):
        read(tmp_path / "other.st")
    save_file({}, tmp_path / "junk.st", metadata={"daskem": "[" * 100_000})
    with pytest.raises(FileFormatError, match="not JSON"):
        read(tmp_path / "junk.st")


# Hostile bytes.


def write_header(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def tensor(dtype: Any = "F64", shape: Any = (1,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"a": tensor(shape=[1 << 40])}, "does not take 8 bytes"),
        ({"a": tensor(shape=[1 << 40], offsets=[0, 8 << 40])}, "the header describes"),
        ({"a": tensor(shape=[1 << 32, 1 << 32, 0], offsets=[0, 8])}, "does not take 8 bytes"),
        # 2^32 x 2^32 float64 wraps to 0 in 64 bits.
        ({"a": tensor(shape=[1 << 32, 1 << 32], offsets=[0, 0])}, "does not take 0 bytes"),
        ({"a": tensor(shape=[0, 1 << 62], offsets=[0, 0])}, "has shape"),
        ({"a": tensor(shape=[-1, -1])}, "has shape"),
        ({"a": tensor(shape=[1.0])}, "has shape"),
        ({"a": tensor(shape=[True])}, "has shape"),
        ({"a": tensor(shape=[1] * 40)}, "has shape"),
        ({"a": tensor(shape="1")}, "has shape"),
        ({"a": tensor(dtype="BF16")}, "which no model uses"),
        ({"a": tensor(dtype=["F64"])}, "which no model uses"),
        ({"a": tensor(dtype="O")}, "which no model uses"),
        ({"a": tensor(offsets=[8, 0])}, "has place"),
        ({"a": tensor(offsets=[0, 8, 16])}, "has place"),
        ({"a": tensor(offsets=[-8, 0])}, "has place"),
        ({"a": tensor(), "b": tensor()}, "begins at byte"),
        ({"a": tensor(offsets=[8, 16])}, "begins at byte"),
        ({}, "the header describes"),
        ({"a": 3}, "lacks type"),
        ({"a": {**tensor(), "more": 1}}, "lacks type"),
        ({"../../etc/passwd": tensor()}, "not a daskem model"),
        ({"__metadata__": {"daskem": 3}}, "metadata are not strings"),
        ([1, 2], "not a JSON object"),
        (b'{"a": 1, "a": 2}', "a name occurs twice"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_hostile_header(tmp_path: Path, header: Any, match: str) -> None:
    with pytest.raises(FileFormatError, match=match):
        read(write_header(tmp_path / "m.st", header, bytes(8)))


def test_hostile_header_length(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not fit"):
        read(write_header(tmp_path / "m.st", b"{}", length=2**63))
    with open(tmp_path / "sparse.st", "wb") as file:
        file.write(struct.pack("<Q", 1 << 33))
        file.truncate(1 << 34)
    with pytest.raises(FileFormatError, match="longer than any model needs"):
        read(tmp_path / "sparse.st")


def test_a_byte_that_is_no_boolean(tmp_path: Path) -> None:
    write_header(tmp_path / "m.st", {"a": tensor("BOOL", [2], [0, 2]), "__metadata__": {"daskem": "{}"}}, b"\x01\x02")
    with pytest.raises(FileFormatError, match="makes no sense"):
        read(tmp_path / "m.st")
    save_model(tmp_path / "b.st", Bare(), np.array([True, False]))
    raw = bytearray((tmp_path / "b.st").read_bytes())
    raw[-1] = 2
    (tmp_path / "b.st").write_bytes(raw)
    with pytest.raises(FileFormatError, match="neither true nor false"):
        read(tmp_path / "b.st")


def refused_or_equal(path: Path) -> bool:
    """Load; True if refused. A change that does not change what the file says (a blank, an escape) is no damage."""
    try:
        loaded = read(path)
    except FileFormatError:
        return True
    assert same(loaded.params, PARAMS)
    return False


def test_flipped_bits(saved: Path) -> None:
    raw = saved.read_bytes()
    positions = range(0, 8 * len(raw), BIT_FLIP_STEP)
    refused = 0
    for position in positions:
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        saved.write_bytes(damaged)
        refused += refused_or_equal(saved)
    assert refused == len(positions)


def test_truncated_anywhere(saved: Path) -> None:
    raw = saved.read_bytes()
    for length in range(0, len(raw), 5):
        saved.write_bytes(raw[:length])
        assert refused_or_equal(saved)
    saved.write_bytes(raw + b"\0")
    assert refused_or_equal(saved)


@settings(max_examples=200)
@given(noise=st.binary(max_size=300), keep=st.integers(0, 300))
def test_noise(noise: bytes, keep: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("noise") / "m.st"
    save_model(path, MODEL, PARAMS)
    raw = path.read_bytes()
    path.write_bytes(raw[:keep] + noise + raw[keep + len(noise) :])
    assert refused_or_equal(path) or path.read_bytes() == raw
