"""Joined utterances have the samples and the transcripts of both, and exact resume."""

import itertools

import numpy as np
import pytest

from data_pipelines.audio.speed import change_speed, with_speeds
from data_pipelines.batching.joins import draw_joins
from data_pipelines.batching.plan import make_plan
from data_pipelines.batching.rows import make_row_plan
from data_pipelines.batching.speech import open_batches
from data_pipelines.storage.index import read_index, token_lengths
from data_pipelines.tokenizers.base import CharTokenizer
from tests.data_pipelines.batching.test_loader import assert_same
from tests.data_pipelines.prepared import noise, write_prepared

TOKENIZER = CharTokenizer("clip 0123456789")
CLIPS = [(noise(i, 3000 + 731 * (i * 7 % 29)), f"clip {i}" if i % 9 else "") for i in range(45)]
SPEEDS = (0.9, 1.0)
JOINING = {"share": 0.6, "longest": 2.0, "sample_rate": 16_000, "seed": 3}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return read_index([write_prepared(tmp_path_factory.mktemp("sets") / "a", {"train": CLIPS})], "train")


def planned(index, make, **options):
    tokens = token_lengths(index, TOKENIZER)
    joins = draw_joins(index.num_samples, tokens, TOKENIZER, **JOINING)
    pairs = zip(with_speeds(index.num_samples, tokens, SPEEDS), joins.lengths(index.num_samples, tokens), strict=True)
    lengths = [np.concatenate(pair) for pair in pairs]
    return make(*lengths, seconds_per_batch=8, seed=0, **options), joins


def test_pairs_are_of_different_rows_with_transcripts_and_fit(index):
    tokens = token_lengths(index, TOKENIZER)
    joins = draw_joins(index.num_samples, tokens, TOKENIZER, **JOINING)
    samples, lengths = joins.lengths(index.num_samples, tokens)
    assert 10 < len(joins.first) <= 24
    assert len(set(joins.first)) == len(set(joins.second)) == len(joins.first)
    assert (joins.first != joins.second).all()
    assert (tokens[joins.first] > 0).all()
    assert (tokens[joins.second] > 0).all()
    assert samples.max() <= 32_000
    np.testing.assert_array_equal(lengths, tokens[joins.first] + 1 + tokens[joins.second])
    again = draw_joins(index.num_samples, tokens, TOKENIZER, **JOINING)
    np.testing.assert_array_equal(again.second, joins.second)
    other = draw_joins(index.num_samples, tokens, TOKENIZER, **(JOINING | {"seed": 4}))
    assert not np.array_equal(other.second[:10], joins.second[:10])


@pytest.mark.parametrize("packed", [False, True])
def test_batches_have_every_item_with_its_samples_and_tokens(index, packed):
    make, options = (make_row_plan, {"gap_samples": 200}) if packed else (make_plan, {})
    plan, joins = planned(index, make, **options)
    seen = []
    options = {"speeds": SPEEDS, "joins": joins}
    for batch in open_batches(index, plan, TOKENIZER, num_steps=plan.steps_per_epoch, **options):
        for place in np.ndindex(batch["example_id"].shape):
            if (row := batch["example_id"][place]) < 0:
                continue
            at = batch["audio_start"][place] if packed else 0
            samples = batch["audio"][place[0], at : at + batch["audio_length"][place]]
            text = TOKENIZER.decode(batch["tokens"][place][: batch["token_length"][place]])
            seen.append((int(row), text))
            if text.count("clip") == 2:
                pair = int(np.flatnonzero(joins.first == row)[0])
                second = CLIPS[joins.second[pair]]
                np.testing.assert_array_equal(
                    samples, np.concatenate([CLIPS[row][0], np.zeros(3200, np.int16), second[0]])
                )
                assert text == f"{CLIPS[row][1]} {second[1]}"
            else:
                assert text == CLIPS[row][1]
                assert any(np.array_equal(samples, change_speed(CLIPS[row][0], speed)) for speed in SPEEDS)
    wanted = [(row, clip[1]) for row, clip in enumerate(CLIPS) if clip[1]] * 2  # plans drop empty transcripts
    wanted += [(int(a), f"{CLIPS[a][1]} {CLIPS[b][1]}") for a, b in zip(joins.first, joins.second, strict=True)]
    assert set(seen) == set(wanted)
    assert packed or sorted(seen) == sorted(wanted)  # packed rows of an epoch's end are filled with others


def test_resume_and_hosts_change_nothing(index):
    plan, joins = planned(index, make_plan, batch_multiple=2)
    options = {"speeds": SPEEDS, "joins": joins}
    whole = list(open_batches(index, plan, TOKENIZER, num_steps=6, **options))
    rest = list(open_batches(index, plan, TOKENIZER, start_step=3, num_steps=3, **options))
    assert_same(rest, whole[3:])
    halves = [list(open_batches(index, plan, TOKENIZER, host=h, num_hosts=2, num_steps=2, **options)) for h in (0, 1)]
    joined = [
        {name: np.concatenate([left[name], right[name]]) for name in left}
        for left, right in itertools.zip_longest(*halves)
    ]
    assert_same(joined, whole[:2])


def test_what_has_no_pairs_is_refused(index):
    plan, joins = planned(index, make_plan)
    with pytest.raises(ValueError, match=r"set data\.joined to 0"):
        open_batches(index, plan, TOKENIZER, speeds=SPEEDS, joins=joins, labels=np.zeros(45, int))
    with pytest.raises(ValueError, match="2 speeds make 90"):
        open_batches(index, plan, TOKENIZER, speeds=SPEEDS)
    alone = draw_joins(np.array([1000]), None, None, **JOINING)
    assert not len(alone.first)
