"""Speech units stay in step with the audio of their batch."""

import numpy as np
import pytest

from data_pipelines.batching.plan import FILLER, make_eval_plan, make_plan
from data_pipelines.batching.speech import open_batches
from data_pipelines.storage.index import read_index
from data_pipelines.storage.units import UnitIdWriter, open_unit_ids
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.unit_sets import label, make_units

CLIPS = [(noise(i, 3000 + 731 * (i * 7 % 29)), "") for i in range(30)]
FRAME, CONTEXT = 320, 240


@pytest.fixture(scope="module", params=[CONTEXT, -160], ids=["kaldi", "librosa"])
def labelled(request, tmp_path_factory):
    """(index, its code store, the codes written): frames whose windows reach beyond their hop, or are centred."""
    root = tmp_path_factory.mktemp("sets")
    sets = {"a": CLIPS[:18], "b": CLIPS[18:]}
    index = read_index([write_prepared(root / name, {"train": clips}) for name, clips in sets.items()], "train")
    units = make_units(root / "units", num_units=500, frame_samples=FRAME, context=request.param)
    codes = label(index, units)
    return index, open_unit_ids(index, units.path), codes


def test_every_row_has_its_codes_and_nothing_behind_them(labelled):
    index, store, codes = labelled
    plan = make_plan(index.num_samples, seconds_per_batch=6, seed=5, num_buckets=3, batch_multiple=4)
    fillers = 0
    for step, batch in enumerate(open_batches(index, plan, frame_labels=store, num_steps=plan.steps_per_epoch)):
        bucket = plan.buckets[plan.batch(step).bucket]
        assert batch["frame_labels"].dtype == np.int32
        assert batch["frame_labels"].shape == (bucket.batch_size, store.units.num_frames(bucket.num_samples))
        for row, found in zip(batch["example_id"], batch["frame_labels"], strict=True):
            expected = codes[row] if row != FILLER else []
            fillers += row == FILLER
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert (found[len(expected) :] == -1).all()
    assert fillers, "no filler row was tried"


def test_a_crop_begins_at_a_whole_frame_and_takes_the_codes_along(labelled):
    index, store, codes = labelled
    plan = make_plan(index.num_samples, seconds_per_batch=6, seed=0, num_buckets=2, max_crop=0.4)
    starts = []
    for batch in open_batches(index, plan, frame_labels=store, num_steps=3 * plan.steps_per_epoch):
        for row, audio, length, found in zip(
            *(batch[name] for name in ("example_id", "audio", "audio_length", "frame_labels")), strict=True
        ):
            if row >= 0 and length < len(CLIPS[row][0]):
                clip = CLIPS[row][0]
                (start,) = [s for s in range(0, len(clip), FRAME) if np.array_equal(clip[s : s + length], audio)]
                count = store.units.num_frames(int(length))
                np.testing.assert_array_equal(found[:count], codes[row][start // FRAME :][:count])
                assert len(codes[row][start // FRAME :]) >= count
                assert (found[count:] == -1).all()
                starts.append(start)
    assert len(set(starts)) > 3


def test_hosts_change_nothing(labelled):
    index, store, _ = labelled
    plan = make_plan(index.num_samples, seconds_per_batch=6, seed=0, batch_multiple=4, max_crop=0.3)
    (whole,) = open_batches(index, plan, frame_labels=store, num_steps=1)
    halves = [next(open_batches(index, plan, frame_labels=store, host=h, num_hosts=2)) for h in range(2)]
    np.testing.assert_array_equal(whole["frame_labels"], np.concatenate([half["frame_labels"] for half in halves]))


def test_a_record_without_codes_has_none_in_its_batch(labelled, tmp_path):
    units = labelled[1].units
    index = read_index(write_prepared(tmp_path / "set", {"train": CLIPS[:3]}), "train")
    writer = UnitIdWriter(index.parts[0], units)
    for row in (0, 2):
        writer.write(row, np.zeros(units.num_frames(len(CLIPS[row][0])), int))
    writer.finish(unreadable=[1])
    plan = make_eval_plan(index.num_samples, seconds_per_batch=6, num_buckets=1)
    (batch,) = open_batches(index, plan, frame_labels=open_unit_ids(index, units.path), num_steps=1)
    used = {int(row): (codes >= 0).any() for row, codes in zip(batch["example_id"], batch["frame_labels"], strict=True)}
    assert (used[0], used[1], used[2]) == (True, False, True)


def test_a_change_of_speed_is_refused(labelled):
    index, store, _ = labelled
    plan = make_plan(np.tile(index.num_samples, 2), seconds_per_batch=6, seed=0)
    with pytest.raises(ValueError, match=r"set data\.speeds to 1\.0"):
        open_batches(index, plan, speeds=(1.0, 1.1), frame_labels=store)
