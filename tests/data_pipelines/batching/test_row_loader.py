"""Packed batches hold what the plan names at its place, bit for bit, on any number of hosts and restarts."""

import itertools

import numpy as np
import pytest

from data_pipelines.audio.speed import change_speed, with_speeds
from data_pipelines.batching.fields import BatchSpec
from data_pipelines.batching.noise import NoiseReader
from data_pipelines.batching.plan import FILLER
from data_pipelines.batching.rows import make_row_plan
from data_pipelines.batching.speech import open_batches
from data_pipelines.storage.index import IndexMismatchError, read_index, token_lengths
from data_pipelines.storage.units import open_unit_ids
from data_pipelines.tokenizers.base import CharTokenizer
from tests.data_pipelines.batching.test_loader import assert_same, take
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.unit_sets import label, make_units

TOKENIZER = CharTokenizer("clip 0123456789")
CLIPS = [(noise(i, 3000 + 731 * (i * 7 % 29)), "clip " * (1 + i % 3) + str(i)) for i in range(45)]
OPTIONS = {"seconds_per_batch": 6, "seed": 5, "batch_multiple": 4, "gap_samples": 200}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return read_index(
        [write_prepared(root / n, {"train": c}) for n, c in (("a", CLIPS[:30]), ("b", CLIPS[30:]))], "train"
    )


@pytest.fixture(scope="module", params=[(), (0.9, 1.6)], ids=["one length", "two lengths"])
def plan(index, request):
    tokens = token_lengths(index, TOKENIZER)
    return make_row_plan(index.num_samples, tokens, row_seconds=request.param, shortest_first_epochs=1, **OPTIONS)


def test_batches_hold_what_the_plan_names(index, plan):
    spec, fillers = BatchSpec.speech(packed=True, row_label=True, domain=True), 0
    labels, domains = np.arange(45) % 7, np.arange(45) % 4 - 1
    options = {"labels": labels, "domains": domains, "num_steps": plan.curriculum_steps + plan.steps_per_epoch}
    for step, batch in enumerate(open_batches(index, plan, TOKENIZER, **options)):
        planned = plan.batch(step)
        bucket = plan.buckets[planned.bucket]
        sizes = {"rows": bucket.batch_size, "utterances": bucket.num_utterances}
        assert spec.check(batch) == sizes | {"samples": bucket.num_samples, "tokens": bucket.num_tokens}
        np.testing.assert_array_equal(batch["example_id"], planned.rows)
        np.testing.assert_array_equal(batch["audio_start"], planned.start)
        for row in range(bucket.batch_size):
            expected = np.zeros(bucket.num_samples, np.int16)
            for place, item in enumerate(planned.rows[row]):
                samples, text = CLIPS[item] if item != FILLER else (np.zeros(0, np.int16), "")
                fillers += item == FILLER
                start, count = batch["audio_start"][row, place], batch["token_length"][row, place]
                expected[start : start + len(samples)] = samples
                assert batch["audio_length"][row, place] == len(samples)
                assert batch["weight"][row, place] == (item != FILLER)
                assert batch["label"][row, place] == (labels[item] if item != FILLER else 0)
                assert batch["domain"][row, place] == (domains[item] if item != FILLER else 0)
                assert TOKENIZER.decode(batch["tokens"][row, place, :count]) == text
                assert not batch["tokens"][row, place, count:].any()
            np.testing.assert_array_equal(batch["audio"][row], expected)
    assert fillers, "no row was less than full"


def test_rows_of_text_have_a_place_for_every_token_and_for_those_added(index):
    tokens = token_lengths(index, TOKENIZER)
    plan = make_row_plan(index.num_samples, tokens, row_seconds=(0.9, 1.6), added_tokens=4, **OPTIONS)
    spec = BatchSpec.speech(packed=True, text=True)
    assert {bucket.num_text for bucket in plan.buckets} != {0}
    for step, batch in enumerate(open_batches(index, plan, TOKENIZER, num_steps=plan.steps_per_epoch)):
        planned = plan.batch(step)
        assert spec.check(batch)["text"] == plan.buckets[planned.bucket].num_text
        for row, items in enumerate(planned.rows):
            counts = np.where(items == FILLER, 0, tokens[items] + 4)
            segment = np.repeat(np.arange(1, len(items) + 1), counts)
            np.testing.assert_array_equal(batch["text_segment"][row, : len(segment)], segment)
            assert not batch["text_segment"][row, len(segment) :].any()


def test_a_run_can_start_at_any_step(index, plan):
    whole = take(open_batches(index, plan, TOKENIZER), plan.curriculum_steps + 5)
    for start in (1, plan.curriculum_steps - 1, plan.curriculum_steps + 1):
        assert_same(take(open_batches(index, plan, TOKENIZER, start_step=start), 3), whole[start : start + 3])


def test_hosts_read_the_same_global_batches(index, plan, tmp_path):
    hiss = read_index(write_prepared(tmp_path / "hiss", {"train": [(noise(100, 900), "")]}), "train")
    options = {"noise": NoiseReader(hiss, seed=5)}
    whole = take(open_batches(index, plan, TOKENIZER, **options), 6)
    assert whole[0]["noise"].shape == whole[0]["audio"].shape
    shares = [take(open_batches(index, plan, TOKENIZER, host=h, num_hosts=2, **options), 6) for h in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares, strict=True)]
    assert_same(joined, whole)


def test_without_a_tokenizer_there_are_no_tokens(index):
    plan = make_row_plan(index.num_samples, **OPTIONS)
    (batch,) = open_batches(index, plan, num_steps=1)
    assert batch["tokens"].shape == (*batch["example_id"].shape, 0)


def test_unreadable_records_keep_their_place_with_weight_0(tmp_path):
    index = read_index(write_prepared(tmp_path / "bad", {"test": CLIPS[:10]}, corrupt=[2, 7]), "test")
    plan = make_row_plan(index.num_samples, token_lengths(index, TOKENIZER), row_seconds=(3,), **OPTIONS)
    batches = open_batches(index, plan, TOKENIZER, num_steps=2 * plan.steps_per_epoch)
    seen = set()
    for step, batch in enumerate(batches):
        planned = plan.batch(step)
        bad = np.isin(batch["example_id"], [2, 7])
        np.testing.assert_array_equal(batch["audio_start"], planned.start)
        np.testing.assert_array_equal(batch["weight"], (planned.rows != FILLER) & ~bad)
        assert not batch["audio_length"][bad].any()
        assert not batch["token_length"][bad].any()
        for row, place in np.argwhere(bad):
            start = batch["audio_start"][row, place]
            assert not batch["audio"][row, start : start + index.num_samples[batch["example_id"][row, place]]].any()
            seen.add(int(batch["example_id"][row, place]))
    assert seen == {2, 7}
    assert batches.bad == 2  # two passes, counted once


def test_speeds_have_exact_lengths_and_keep_the_row_number(index):
    speeds = (0.9, 1.0, 1.1)
    plan = make_row_plan(*with_speeds(index.num_samples, token_lengths(index, TOKENIZER), speeds), **OPTIONS)
    seen = []
    for step, batch in enumerate(open_batches(index, plan, TOKENIZER, speeds=speeds, num_steps=plan.steps_per_epoch)):
        planned = plan.batch(step)
        for row, place in np.argwhere(planned.rows != FILLER):
            number, item = divmod(int(planned.rows[row, place]), len(CLIPS))
            samples = change_speed(CLIPS[item][0], speeds[number])
            start = batch["audio_start"][row, place]
            assert batch["example_id"][row, place] == item
            assert batch["audio_length"][row, place] == len(samples)
            np.testing.assert_array_equal(batch["audio"][row, start : start + len(samples)], samples)
            seen.append((item, speeds[number]))
    assert set(seen) == set(itertools.product(range(len(CLIPS)), speeds))


@pytest.mark.parametrize(("context", "gap"), [(240, 0), (-160, 200)], ids=["kaldi", "librosa"])
def test_frame_labels_stand_at_the_frames_of_their_utterance(index, tmp_path, context, gap):
    units = make_units(tmp_path / "units", num_units=500, frame_samples=320, context=context)
    codes = label(index, units)
    store = open_unit_ids(index, units.path)
    plan = make_row_plan(index.num_samples, **OPTIONS | {"gap_samples": gap, "frame_samples": 640})
    for batch in open_batches(index, plan, frame_labels=store, num_steps=plan.steps_per_epoch):
        expected = np.full((len(batch["audio"]), units.num_frames(batch["audio"].shape[1])), -1)
        for row, place in np.argwhere(batch["example_id"] >= 0):
            start, ids = batch["audio_start"][row, place] // 320, codes[batch["example_id"][row, place]]
            assert (expected[row, start : start + len(ids)] == -1).all()
            expected[row, start : start + len(ids)] = ids
        np.testing.assert_array_equal(batch["frame_labels"], expected)
    with pytest.raises(ValueError, match=r"multiples of 480 samples.*labels are every 320.*data\.packed"):
        open_batches(index, make_row_plan(index.num_samples, **OPTIONS | {"frame_samples": 480}), frame_labels=store)


def test_a_transcript_that_the_plan_does_not_know_is_an_error(index):
    plan = make_row_plan(index.num_samples, np.ones(len(index), int), **OPTIONS)
    with pytest.raises(IndexMismatchError, match=r"tokens, more than the 8 of its bucket"):
        take(open_batches(index, plan, TOKENIZER), plan.steps_per_epoch)
    with pytest.raises(ValueError, match="do not divide among 3 hosts"):
        open_batches(index, plan, TOKENIZER, num_hosts=3)
