"""Codes come back as they were written, whatever stopped a writer, and only under the k-means that made them."""

import json
import multiprocessing
import os

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index
from data_pipelines.storage.units import UnitIdWriter, is_labelled, open_unit_ids, read_units
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.unit_sets import label, make_units

LENGTHS = [3000 + 731 * (i * 7 % 29) for i in range(20)] + [100]  # the last is shorter than a frame


@pytest.fixture
def index(tmp_path):
    clips = [(noise(i, length), "") for i, length in enumerate(LENGTHS)]
    parts = (("a", clips[:12]), ("b", clips[12:]))
    return read_index([write_prepared(tmp_path / name, {"train": each}) for name, each in parts], "train")


@pytest.fixture
def units(tmp_path):
    return make_units(tmp_path / "units")


def test_codes_of_several_sets_come_back(index, units):
    written = label(index, units)
    codes = open_unit_ids(index, units.path)
    np.testing.assert_array_equal(codes.lengths, [max(length - 240, 0) // 320 for length in LENGTHS])
    for row, expected in enumerate(written):
        assert codes.read(row, 0, len(expected)).dtype == np.uint16
        np.testing.assert_array_equal(codes.read(row, 0, 10**6), expected)
        np.testing.assert_array_equal(codes.read(row, 3, 7), expected[3:7])


def test_an_interrupted_writer_is_continued_row_by_row(index, units):
    part = index.parts[0]
    frames = units.num_frames(part.lengths("num_samples"))
    first = UnitIdWriter(part, units)
    assert first.missing.tolist() == list(range(12))
    for row in (7, 2, 11):
        first.write(row, np.full(frames[row], row % 5))
    with pytest.raises(ValueError, match="9 rows have no unit ids"):
        first.finish()
    assert not is_labelled(part, units)
    second = UnitIdWriter(part, units)
    assert sorted({*range(12)} - {*second.missing.tolist()}) == [2, 7, 11]
    for row in second.missing:
        second.write(int(row), np.full(frames[row], row % 5))
    second.finish()
    codes = open_unit_ids(read_index(part.set_dir, "train"), units.path)
    for row in range(12):
        assert set(codes.read(row, 0, 10**6).tolist()) == {row % 5}
    assert not list(part.index_path.parent.glob("*.partial"))


def _write_and_die(part, units):
    writer = UnitIdWriter(part, units)
    for row in (0, 1, 2):
        writer.write(row, np.zeros(units.num_frames(int(part.lengths("num_samples")[row])), int))
    os._exit(9)


def test_a_killed_process_loses_nothing_that_it_wrote(index, units):
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(index.parts[0], units))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert UnitIdWriter(index.parts[0], units).missing.tolist() == list(range(3, 12))


def test_unreadable_rows_have_no_codes_and_shift_no_other(index, units):
    part = index.parts[0]
    writer, frames = UnitIdWriter(part, units), units.num_frames(part.lengths("num_samples"))
    for row in range(12):
        if row not in (0, 5):
            writer.write(row, np.full(frames[row], row % 5))
    writer.finish(unreadable=[0, 5])
    codes = open_unit_ids(read_index(part.set_dir, "train"), units.path)
    assert codes.lengths.tolist() == [0 if row in (0, 5) else frames[row] for row in range(12)]
    for row in range(12):
        assert set(codes.read(row, 0, 10**6).tolist()) == ({row % 5} if row not in (0, 5) else set())


def test_codes_that_do_not_fit_are_refused(index, units):
    writer = UnitIdWriter(index.parts[0], units)
    frames = int(units.num_frames(LENGTHS[0]))
    for wrong in (np.zeros(frames + 1, int), np.full(frames, 5), np.full(frames, -1)):
        with pytest.raises(ValueError, match=rf"row 0 of a/train has {frames} frames and units 0 to 4"):
            writer.write(0, wrong)


def test_codes_of_another_k_means_are_not_taken_for_ours(index, units, tmp_path):
    label(index, units)
    other = make_units(tmp_path / "other", seed=1)
    assert other.fingerprint != units.fingerprint
    message = r"a/train is not labelled with the units of .*other.*1 other k-means.*units label .* --sets a:train"
    with pytest.raises(DataError, match=message):
        open_unit_ids(index, other.path)


def test_a_folder_of_units_comes_back_or_says_what_is_wrong(units, tmp_path):
    same = read_units(units.path)
    assert (same.fingerprint, same.num_units, same.about) == (units.fingerprint, 5, {"features": "noise"})
    with pytest.raises(DataError, match=r"nowhere is not a folder of speech units.*jax-speechlm units fit"):
        read_units(tmp_path / "nowhere")
    other = make_units(tmp_path / "other", seed=1)
    (other.path / "centroids.npy").write_bytes((units.path / "centroids.npy").read_bytes())
    with pytest.raises(DataError, match=r"units.json describes other centroids.*units fit"):
        read_units(other.path)
    meta = json.loads((units.path / "units.json").read_text())
    del meta["frame_samples"]
    (units.path / "units.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="damaged"):
        read_units(units.path)


def test_a_folder_that_cannot_be_written_is_named(index, units, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(DataError, match=r"index cannot be written.*--data-dir"):
        UnitIdWriter(index.parts[0], units)
