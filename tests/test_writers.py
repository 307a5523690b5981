"""Outputs are whole or refused: never overwritten unasked, never taken for complete before every chunk is in."""

from __future__ import annotations

import functools
import os
import pickle
import shutil

import h5py
import numpy as np
import pyarrow
import pytest
import zarr
from pyarrow import parquet
from zarr.storage import LocalStore, ZipStore

from daskem.data import create_output, missing_chunks, open_source
from daskem.data.writers import check_apart
from daskem.errors import ContractError, DataError, OptionError

N, CHUNK = 25, 10
LAYOUT = {"labels": ((), "int64"), "proba": ((3,), np.float32)}


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    at = np.arange(start, stop)
    return {"labels": at % 3, "proba": (at[:, None] + np.arange(3)).astype("f4")}


def write_all(output, skip: tuple[int, ...] = ()) -> None:
    for start in range(0, N, CHUNK):
        if start not in skip:
            output.write(start, rows(start, min(start + CHUNK, N)))


@pytest.fixture
def output(tmp_path):
    return create_output(
        tmp_path / "out.zarr", LAYOUT, N, CHUNK, attributes={"model": "m", "daskem:status": "complete"}
    )


def test_what_was_written_is_read_back(output, tmp_path):
    write_all(pickle.loads(pickle.dumps(output)))
    output.finish()
    source = open_source(tmp_path / "out.zarr", array="proba")
    np.testing.assert_array_equal(source.read(0, N), rows(0, N)["proba"])
    labels = open_source(tmp_path / "out.zarr", array="labels", ndim=1)
    np.testing.assert_array_equal(labels.read(3, 20)[:, 0], rows(3, 20)["labels"])
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert dict(group.attrs) == {"model": "m", "daskem:status": "complete"}
    assert group["proba"].chunks == (CHUNK, 3)
    assert group.metadata.zarr_format == 3


def test_the_url_of_a_file_is_its_path(tmp_path):
    write_all(made := create_output(f"file://{tmp_path}/out.zarr", LAYOUT, N, CHUNK))
    made.finish()
    assert made.url == str(tmp_path / "out.zarr")


def test_a_zip_file_is_no_place_for_blocks(tmp_path):
    with pytest.raises(OptionError, match="a zip file is written by one"):
        create_output(ZipStore(tmp_path / "out.zip", mode="w"), LAYOUT, N, CHUNK)


def test_several_chunks_may_be_written_at_once(output):
    output.write(10, rows(10, N))
    output.write(0, rows(0, 10))
    output.finish()
    np.testing.assert_array_equal(open_source(output.url).read(0, N), rows(0, N)["proba"])


def test_chunks_of_zeros_are_written(tmp_path):
    output = create_output(tmp_path / "z.zarr", {"x": ((2,), "f8")}, N, CHUNK)
    for start in range(0, N, CHUNK):
        output.write(start, {"x": np.zeros((min(CHUNK, N - start), 2))})
    output.finish()
    assert missing_chunks(open_source(tmp_path / "z.zarr")) == []


def test_an_incomplete_output_is_no_data(output, tmp_path):
    write_all(output, skip=(10,))
    with pytest.raises(DataError, match=r"lacks 1 chunks of 'labels': \(1,\).*--overwrite"):
        output.finish()
    for path, array in [("out.zarr", "proba"), ("out.zarr", None), ("out.zarr/proba", None)]:
        with pytest.raises(DataError, match=r"never finished .*'incomplete'.*--overwrite"):
            open_source(tmp_path / path, array=array)


@pytest.mark.parametrize(
    ("start", "values", "message"),
    [
        (5, rows(5, 15), "not whole chunks"),
        (0, rows(0, 5), "not whole chunks"),
        (20, rows(20, 30), "not whole chunks"),
        (0, rows(0, 0), "not whole chunks"),
        (30, rows(30, 40), "not whole chunks"),
        (0, {"labels": np.zeros(10, "i8")}, r"takes \['labels', 'proba'\]"),
        (0, {**rows(0, 10), "proba": np.zeros((10, 4))}, r"'proba' has shape \(10, 4\).*expected \(10, 3\)"),
    ],
)
def test_writes_that_do_not_fit_are_refused(output, start, values, message):
    with pytest.raises(ContractError, match=message):
        output.write(start, values)
    assert not (set(os.listdir(os.path.join(output.url, "labels"))) - {"zarr.json"})


def test_a_flipped_bit_is_an_error(output, tmp_path):
    write_all(output)
    output.finish()
    source = open_source(tmp_path / "out.zarr", array="proba")
    chunk = tmp_path / "out.zarr" / "proba" / "c" / "1" / "0"
    good = chunk.read_bytes()
    unnoticed = []
    for place in range(8 * len(good)):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        chunk.write_bytes(bad)
        try:
            got = source.read(10, 20)
        except DataError as error:
            assert "(1, 0)" in str(error)  # noqa: PT017
        else:
            # A few bits of the frame header carry no information; then the numbers are right all the same.
            if not np.array_equal(got, rows(10, 20)["proba"]):
                unnoticed.append(place)
    assert unnoticed == []


def test_nothing_is_overwritten_unasked(output, tmp_path):
    write_all(output)
    output.finish()
    with pytest.raises(OptionError, match=r"exists already\. .*--overwrite"):
        create_output(output.url, LAYOUT, N, CHUNK)
    np.testing.assert_array_equal(open_source(output.url).read(0, N), rows(0, N)["proba"])
    again = create_output(output.url, {"labels": ((), "int64")}, 5, 5, overwrite=True)
    with pytest.raises(DataError, match="never finished"):
        open_source(output.url, array="labels", ndim=1)
    again.write(0, {"labels": np.arange(5)})
    again.finish()
    assert list(zarr.open_group(output.url, mode="r")) == ["labels"]
    assert open_source(output.url, array="labels", ndim=1).read(0, 5).ravel().tolist() == [0, 1, 2, 3, 4]


def test_what_is_no_output_is_never_overwritten(tmp_path):
    zarr.create_group(tmp_path / "data.zarr").create_array("x", data=np.ones((4, 2)))
    zarr.create_array(tmp_path / "array.zarr", data=np.ones((4, 2)))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("data.zarr", "array.zarr", "home", "file"):
        with pytest.raises(OptionError, match=r"exists|cannot write"):
            create_output(tmp_path / name, LAYOUT, N, CHUNK, overwrite=True)
    assert open_source(tmp_path / "data.zarr").read(0, 4).sum() == 8
    assert open_source(tmp_path / "array.zarr").read(0, 4).sum() == 8
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("place", ["s.zarr", "s.zarr/", "s.zarr/x", "s.zarr/x/deep", "", "link.zarr", "a/../s.zarr"])
def test_an_output_never_replaces_what_it_is_made_from(place, tmp_path):
    zarr.create_group(tmp_path / "s.zarr").create_array("x", data=np.ones((4, 2)))
    (tmp_path / "link.zarr").symlink_to(tmp_path / "s.zarr")
    source = open_source(tmp_path / "s.zarr")
    for url in (f"{tmp_path}/{place}", f"file://{tmp_path}/{place}"):
        with pytest.raises(OptionError, match="one inside the other"):
            check_apart(url, [source])
    for apart in ("s.zarr2", "s.zarr/labels", "s"):
        check_apart(tmp_path / apart, [source])


def test_every_stored_source_says_where_it_is(tmp_path):
    table = np.ones((4, 2))
    np.save(tmp_path / "x.npy", table)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = table
    (tmp_path / "parts").mkdir()
    for name in ("x.parquet", "parts/1.parquet", "parts/2.parquet"):
        parquet.write_table(pyarrow.table({"a": table[:, 0]}), tmp_path / name)
    with ZipStore(tmp_path / "x.zip", mode="w") as store:
        zarr.create_array(store, data=table)
    for name in ("x.npy", "x.h5", "x.parquet", "parts", "x.zip"):
        with pytest.raises(OptionError, match="one inside the other"):
            check_apart(tmp_path / name, [open_source(tmp_path / name)])
    url = f"memory://{tmp_path.name}/apart.zarr"
    zarr.create_group(url).create_array("x", data=table)
    with pytest.raises(OptionError, match="one inside the other"):
        check_apart(url, [open_source(url)])
    check_apart(tmp_path / "out.zarr", [open_source(table), open_source(url)])


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"cannot write to .*file.out\.zarr"):
        create_output(tmp_path / "file" / "out.zarr", LAYOUT, N, CHUNK)


def test_an_empty_directory_will_do(tmp_path):
    (tmp_path / "out.zarr").mkdir()
    output = create_output(tmp_path / "out.zarr", LAYOUT, N, CHUNK)
    write_all(output)
    output.finish()
    assert open_source(tmp_path / "out.zarr").shape == (N, 3)


@pytest.mark.parametrize("deletions", [0, 1])
def test_an_overwrite_that_is_killed_leaves_no_old_mark(deletions, output, tmp_path, monkeypatch):
    write_all(output)
    output.finish()
    delete, done = LocalStore.delete_dir, []

    class KilledError(Exception):
        pass

    async def stop(store, prefix):
        if len(done) == deletions:
            raise KilledError
        done.append(prefix)
        await delete(store, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "delete_dir", stop)
        with pytest.raises(KilledError):
            create_output(output.url, LAYOUT, N, CHUNK, overwrite=True)
    assert len(done) == deletions
    for path in ("out.zarr", "out.zarr/proba", "out.zarr/labels"):
        with pytest.raises(DataError, match=r"never finished|no array"):
            open_source(tmp_path / path, ndim=1 if path.endswith("labels") else 2)
    again = create_output(output.url, LAYOUT, N, CHUNK, overwrite=True)
    write_all(again)
    again.finish()
    assert open_source(output.url).shape == (N, 3)


def test_outputs_at_urls(tmp_path):
    url = f"memory://{tmp_path.name}/out.zarr"
    output = create_output(url, LAYOUT, N, CHUNK)
    write_all(output, skip=(10,))
    with pytest.raises(DataError, match=r"lacks 1 chunks"):
        output.finish()
    output.write(10, rows(10, 20))
    output.finish()
    np.testing.assert_array_equal(open_source(url).read(0, N), rows(0, N)["proba"])
    with pytest.raises(OptionError, match="exists already"):
        create_output(url, LAYOUT, N, CHUNK)


def test_an_output_that_was_broken_off_is_gone_on_with(tmp_path):
    place = tmp_path / "out.zarr"
    create = functools.partial(create_output, place, LAYOUT, N, CHUNK)
    first = create(made_from="a")
    write_all(first, skip=(10,))
    second = create(made_from="a")
    assert [pickle.loads(pickle.dumps(second)).holds(start, min(start + CHUNK, N)) for start in (0, 10, 20)] == [
        *(True, False, True)
    ]
    assert second.holds(0, N) is False
    # Cut short or changed: not there.
    (place / "proba" / "c" / "2" / "0").write_bytes(b"")
    labels = place / "labels" / "c" / "0"
    labels.write_bytes(labels.read_bytes()[:-1])
    assert not any(second.holds(start, min(start + CHUNK, N)) for start in (0, 10, 20))
    write_all(second)
    second.finish()
    np.testing.assert_array_equal(open_source(place).read(0, N), rows(0, N)["proba"])
    with pytest.raises(OptionError, match="exists already"):
        create(made_from="a")


@pytest.mark.parametrize("options", [{}, {"made_from": "b"}])
def test_an_output_of_something_else_is_not_gone_on_with(tmp_path, options):
    create = functools.partial(create_output, tmp_path / "out.zarr", LAYOUT, N, CHUNK)
    write_all(create(made_from="a"), skip=(10,))
    with pytest.raises(OptionError, match="exists already"):
        create(**options)
    assert not create(**options, overwrite=True).holds(0, CHUNK)


@pytest.mark.parametrize("gone", ["labels", "proba"])
def test_an_output_whose_arrays_were_not_all_made_is_made_anew(tmp_path, gone):
    create = functools.partial(create_output, tmp_path / "out.zarr", LAYOUT, N, CHUNK, made_from="a")
    shutil.rmtree(tmp_path / "out.zarr" / gone) if create() else None
    write_all(again := create())
    again.finish()
    assert open_source(tmp_path / "out.zarr").shape == (N, 3)
