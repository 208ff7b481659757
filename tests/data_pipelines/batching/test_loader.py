"""Batches hold what the plan names, bit for bit, on any number of hosts, threads and restarts."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.audio.speed import change_speed, perturbed_length, with_speeds
from data_pipelines.batching.noise import NoiseReader
from data_pipelines.batching.plan import FILLER, make_eval_plan, make_plan
from data_pipelines.batching.speech import open_batches
from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import IndexMismatchError, read_index, token_lengths
from data_pipelines.tokenizers.base import CharTokenizer
from tests.data_pipelines.prepared import noise, write_prepared

TOKENIZER = CharTokenizer("clip 0123456789")
CLIPS = [(noise(i, 3000 + 731 * (i * 7 % 29)), "clip " * (1 + i % 3) + str(i)) for i in range(45)]
DTYPES = {"audio": "int16", "audio_length": "int32", "tokens": "int32"} | {
    "token_length": "int32",
    "example_id": "int32",
    "weight": "float32",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return read_index(
        [write_prepared(root / n, {"train": c}) for n, c in (("a", CLIPS[:30]), ("b", CLIPS[30:]))], "train"
    )


@pytest.fixture(scope="module")
def plan(index):
    return make_plan(
        index.num_samples, token_lengths(index, TOKENIZER), seconds_per_batch=6, seed=5, num_buckets=3, batch_multiple=4
    )


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_batches_hold_what_the_plan_names(index, plan):
    batches = list(open_batches(index, plan, TOKENIZER, num_steps=plan.steps_per_epoch))
    assert len(batches) == plan.steps_per_epoch
    for step, batch in enumerate(batches):
        planned = plan.batch(step)
        bucket = plan.buckets[planned.bucket]
        assert {name: array.dtype.name for name, array in batch.items()} == DTYPES
        assert batch["audio"].shape == (bucket.batch_size, bucket.num_samples)
        assert batch["tokens"].shape == (bucket.batch_size, bucket.num_tokens)
        np.testing.assert_array_equal(batch["example_id"], planned.rows)
        for place, row in enumerate(planned.rows):
            samples, text = CLIPS[row] if row != FILLER else (np.zeros(0, np.int16), "")
            assert batch["weight"][place] == (row != FILLER)
            assert batch["audio_length"][place] == len(samples)
            np.testing.assert_array_equal(batch["audio"][place, : len(samples)], samples)
            assert not batch["audio"][place, len(samples) :].any()
            count = batch["token_length"][place]
            assert TOKENIZER.decode(batch["tokens"][place, :count]) == text
            assert not batch["tokens"][place, count:].any()
    assert any((batch["weight"] == 0).any() for batch in batches), "no filler row was tried"


def test_a_run_can_start_at_any_step(index, plan):
    whole = take(open_batches(index, plan, TOKENIZER), plan.steps_per_epoch + 3)
    for start in (1, plan.steps_per_epoch - 1):
        assert_same(take(open_batches(index, plan, TOKENIZER, start_step=start), 3), whole[start : start + 3])


def test_threads_and_read_ahead_change_nothing(index, plan):
    one = take(open_batches(index, plan, TOKENIZER, parallel=1, prefetch=1), 20)
    assert_same(take(open_batches(index, plan, TOKENIZER, parallel=7, prefetch=9), 20), one)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_read_the_same_global_batches(index, plan, num_hosts):
    whole = take(open_batches(index, plan, TOKENIZER), 6)
    shares = [take(open_batches(index, plan, TOKENIZER, host=h, num_hosts=num_hosts), 6) for h in range(num_hosts)]
    joined = [
        {name: np.concatenate([s[name] for s in share]) for name in share[0]} for share in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


def test_without_a_tokenizer_there_are_no_tokens(index):
    plan = make_plan(index.num_samples, seconds_per_batch=6, seed=0)
    (batch,) = open_batches(index, plan, num_steps=1)
    assert batch["tokens"].shape == (len(batch["audio"]), 0)
    assert not batch["token_length"].any()


class TestNoise:
    @pytest.fixture(scope="class")
    def hiss(self, tmp_path_factory):
        """A noise set: one clip shorter than any utterance, one longer than all."""
        clips = [(noise(100, 900), ""), (noise(101, 90_000), "")]
        folder = write_prepared(tmp_path_factory.mktemp("noise") / "hiss", {"train": clips})
        return read_index(folder, "train"), [samples for samples, _ in clips]

    def test_every_row_carries_a_stretch_of_a_clip(self, index, plan, hiss):
        reader, (short, long) = NoiseReader(hiss[0], seed=5), hiss[1]
        rows = [row for b in take(open_batches(index, plan, noise=reader), 6) for row in b["noise"]]
        starts = []
        for row in rows:
            if np.array_equal(row[:900], short):
                np.testing.assert_array_equal(row, np.resize(short, len(row)))
            else:
                starts += [s for s in np.flatnonzero(long == row[0]) if np.array_equal(long[s : s + len(row)], row)]
        assert 0.2 * len(rows) < len(starts) < 0.8 * len(rows)
        assert len(set(starts)) > 0.9 * len(starts)

    def test_hosts_and_restarts_change_nothing(self, index, plan, hiss):
        options = {"noise": NoiseReader(hiss[0], seed=5)}
        whole = take(open_batches(index, plan, **options), 5)
        shares = [take(open_batches(index, plan, host=h, num_hosts=2, start_step=2, **options), 3) for h in range(2)]
        joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares, strict=True)]
        assert_same(joined, whole[2:])

    def test_a_damaged_clip_is_named(self, index, plan, tmp_path):
        folder = write_prepared(tmp_path / "hiss", {"train": [(noise(0, 900), "")]}, corrupt=[0])
        batches = open_batches(index, plan, noise=NoiseReader(read_index(folder, "train"), seed=0))
        with pytest.raises(DataError, match=r"noise: record 0 of hiss/train cannot be read"):
            next(batches)


def test_crops_are_drawn_anew_each_epoch_from_within_the_clip(index):
    plan = make_plan(index.num_samples, seconds_per_batch=6, seed=0, num_buckets=2, max_crop=0.4)
    places = {}
    for batch in open_batches(index, plan, num_steps=3 * plan.steps_per_epoch):
        for row, audio, length in zip(batch["example_id"], batch["audio"], batch["audio_length"], strict=True):
            if row >= 0 and length < len(CLIPS[row][0]):
                clip = CLIPS[row][0]
                starts = [s for s in range(len(clip) - length + 1) if clip[s] == audio[0] and clip[s + 1] == audio[1]]
                start = next(s for s in starts if (clip[s : s + length] == audio).all())
                places.setdefault(row, set()).add(start)
                assert length >= 0.6 * len(clip)
    assert places
    assert max(map(len, places.values())) == 3


def test_speeds_have_exact_lengths_and_keep_the_row_number(index):
    speeds = (0.9, 1.0, 1.1)
    lengths, tokens = with_speeds(index.num_samples, token_lengths(index, TOKENIZER), speeds)
    plan = make_plan(lengths, tokens, seconds_per_batch=6, seed=0)
    seen = []
    for batch in open_batches(index, plan, TOKENIZER, speeds=speeds, num_steps=plan.steps_per_epoch):
        for row, length, audio in zip(batch["example_id"], batch["audio_length"], batch["audio"], strict=True):
            if row >= 0:
                speed = next(s for s in speeds if perturbed_length(len(CLIPS[row][0]), s) == length)
                np.testing.assert_array_equal(audio[:length], change_speed(CLIPS[row][0], speed))
                seen.append((row, speed))
    assert sorted(seen) == sorted(itertools.product(range(len(CLIPS)), speeds))


@pytest.mark.parametrize("speed", [0.9, 1.1, 1.0])
def test_speed_moves_a_tone_by_its_factor(speed):
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.int16)
    played = change_speed(tone, speed)
    assert len(played) == perturbed_length(16_000, speed)
    peak = np.abs(np.fft.rfft(played, 160_000)).argmax() / 10  # hertz
    assert peak == pytest.approx(440 * speed, abs=0.5)
    assert np.abs(played[1000:-1000]).max() == pytest.approx(8000, rel=0.02)


def test_damaged_records_are_skipped_counted_and_limited(tmp_path):
    bad_set = write_prepared(tmp_path / "bad", {"test": CLIPS[:10]}, corrupt=[2, 7])
    index = read_index(bad_set, "test")
    plan = make_eval_plan(index.num_samples, token_lengths(index, TOKENIZER), seconds_per_batch=4)
    batches = open_batches(index, plan, TOKENIZER, num_steps=2 * plan.steps_per_epoch)
    seen = {}
    for batch in batches:
        for row, weight, length in zip(batch["example_id"], batch["weight"], batch["audio_length"], strict=True):
            if row >= 0:
                assert (weight == 0) == (length == 0)
                seen[int(row)] = weight
    assert seen == {row: float(row not in (2, 7)) for row in range(10)}
    assert batches.bad == 2  # two passes, counted once
    assert "record 2 of bad/test" in "".join(batches.bad_records)
    strict = open_batches(index, plan, TOKENIZER, max_bad=1)
    with pytest.raises(DataError, match=r"more than max_bad=1 allows.*prepare the set again"):
        take(strict, 2 * plan.steps_per_epoch)


def test_a_damaged_file_costs_the_records_in_the_damage(tmp_path):
    index = read_index(write_prepared(tmp_path / "set", {"test": CLIPS}), "test")
    (shard,) = tmp_path.glob("set/tiny/1.0.0/*.array_record*")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 100] = bytes(100)
    shard.write_bytes(content)
    plan = make_eval_plan(index.num_samples, seconds_per_batch=4)
    batches = open_batches(index, plan, num_steps=plan.steps_per_epoch)
    weight = sum(batch["weight"].sum() for batch in batches)
    assert 1 <= batches.bad <= 2
    assert weight == len(CLIPS) - batches.bad
    assert "hash mismatch" in batches.bad_records[0]


def test_records_that_are_not_what_the_index_says_stop_the_run(tmp_path, index):
    one = write_prepared(tmp_path / "one", {"train": CLIPS[:5]})
    other = write_prepared(tmp_path / "other", {"train": CLIPS[5:10]})
    for name in ("meta.json", "index/train.parquet"):
        (one / name).write_bytes((other / name).read_bytes())
    wrong = read_index(one, "train")
    plan = make_plan(wrong.num_samples, seconds_per_batch=4, seed=0)
    with pytest.raises(IndexMismatchError, match=r"record \d of one/train .* does not match its records; prepare"):
        next(open_batches(wrong, plan))


def test_plans_that_do_not_fit_are_refused(index, plan):
    with pytest.raises(ValueError, match="the plan has 45 items, but 45 rows at 2 speeds make 90"):
        open_batches(index, plan, TOKENIZER, speeds=(1.0, 1.1))
    with pytest.raises(ValueError, match="do not divide among 3 hosts"):
        open_batches(index, plan, TOKENIZER, num_hosts=3)
    few_tokens = make_plan(index.num_samples, np.ones(len(index), int), seconds_per_batch=6, seed=0)
    with pytest.raises(
        IndexMismatchError, match=r"tokens, more than the 8 of its bucket; make the plan from token_len"
    ):
        take(open_batches(index, few_tokens, TOKENIZER), few_tokens.steps_per_epoch)


def test_closing_ends_the_iteration(index, plan):
    batches = open_batches(index, plan, TOKENIZER)
    next(batches)
    batches.close()
    assert list(batches) == []


@pytest.mark.parametrize("latency", [0, 0.02])
def test_a_program_may_end_while_batches_are_read_ahead(index, latency):
    """TensorFlow's threads run Python: left alone at exit they abort the process."""
    script = f"""
from data_pipelines.storage.index import read_index
from data_pipelines.batching.speech import open_batches
from data_pipelines.batching.plan import make_plan
from data_pipelines.storage.records import RecordReader
import sys, time
read = RecordReader.read
RecordReader.read = lambda self, row: (time.sleep({latency}), read(self, row))[1]
index = read_index({[str(part.set_dir) for part in index.parts]!r}, "train")
batches = open_batches(index, make_plan(index.num_samples, seconds_per_batch=6, seed=0))
next(batches)
assert "jax_speechlm" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "skipped" not in done.stderr
