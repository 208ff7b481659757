"""Text batches hold what the plan names, whichever way the tokens are kept."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batching.packing import make_text_eval_plan, make_text_plan
from data_pipelines.batching.text import open_text_batches
from data_pipelines.core.errors import DataError
from data_pipelines.storage import tokens as token_store
from data_pipelines.storage.index import read_index, read_sets, sample_texts
from data_pipelines.storage.records import RecordReader
from data_pipelines.storage.tokens import open_tokens
from data_pipelines.tokenizers.base import CharTokenizer
from tests.data_pipelines.text_sets import write_text_set

TOKENIZER = CharTokenizer("abcdefghij ")
BOUNDARY = TOKENIZER.vocab_size
TEXTS = ["abc" * (number * 5 % 23) + " h" + "j" * (number % 7) + "i" for number in range(40)]  # all different


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_text_set(root / "one", {"train": TEXTS[:25]})
    write_text_set(root / "two", {"train": TEXTS[25:]})
    return read_sets(root, ("one", "two"), "train")


@pytest.fixture(scope="module")
def tokens(index):
    return open_tokens(index, TOKENIZER)


def documents(batches, boundary=BOUNDARY):
    """Every segment of some batches, as lists of ids; checks the fields on the way."""
    for batch in batches:
        for tokens, segment, position in zip(batch["tokens"], batch["segment"], batch["position"], strict=True):
            used = np.count_nonzero(segment)
            assert not segment[used:].any()
            assert not tokens[used:].any()
            assert not position[used:].any()
            assert (np.diff(segment[:used]) >= 0).all()
            for number in range(1, segment.max() + 1):
                where = segment == number
                np.testing.assert_array_equal(position[where], np.arange(where.sum()))
                yield tokens[where].tolist()


def test_tokens_of_several_sets_are_what_the_tokenizer_says(index, tokens):
    for row, text in enumerate(TEXTS):
        ids = TOKENIZER.encode(text)
        assert tokens.lengths[row] == len(ids)
        assert tokens.read(row, 0, len(ids)).tolist() == ids
        assert tokens.read(row, 2, 5).tolist() == ids[2:5]


def test_pieces_of_an_epoch_join_to_the_documents(tokens):
    plan = make_text_eval_plan(tokens.lengths, context=16, sequences_per_batch=4)
    found = list(documents(open_text_batches(tokens, plan, boundary=BOUNDARY, num_steps=plan.steps_per_epoch)))
    whole = [[BOUNDARY, *TOKENIZER.encode(text), BOUNDARY] for text in TEXTS]
    expected = [ids[start : start + 16] for ids in whole for start in range(0, len(ids) - 1, 15)]
    assert sorted(found) == sorted(expected)


@settings(max_examples=15)
@given(st.integers(0, 5000), st.sampled_from([1, 2, 4]))
def test_a_run_can_start_at_any_step_on_any_number_of_hosts(tokens, step, num_hosts):
    plan = make_text_plan(tokens.lengths, context=32, sequences_per_batch=4, seed=1)
    arguments = {"boundary": BOUNDARY, "start_step": max(step - 2, 0), "num_steps": 4}
    whole = list(open_text_batches(tokens, plan, **arguments))[step - arguments["start_step"] :]
    arguments |= {"start_step": step, "num_steps": len(whole)}
    shares = [open_text_batches(tokens, plan, host=h, num_hosts=num_hosts, **arguments) for h in range(num_hosts)]
    for expected, *parts in zip(whole, *shares, strict=True):
        for name in expected:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected[name])


def test_shapes_types_and_filler(tokens):
    plan = make_text_eval_plan(tokens.lengths[:25], context=64, sequences_per_batch=32)
    one = token_store.TokenStore(tokens.lengths[:25], tokens._first_row, tokens._ids, tokens._ends)
    (batch,) = open_text_batches(one, plan, boundary=BOUNDARY, num_steps=1)
    assert {name: (a.dtype.name, a.shape) for name, a in batch.items()} == {
        **{name: ("int32", (32, 64)) for name in ("tokens", "segment", "position")},
        "example_id": ("int32", (32,)),
        "weight": ("float32", (32,)),
    }
    np.testing.assert_array_equal(batch["weight"], batch["example_id"] >= 0)
    assert 0 < batch["weight"].sum() < 32
    assert not batch["segment"][batch["weight"] == 0].any()


def test_labels_follow_their_documents(tokens):
    plan = make_text_plan(tokens.lengths, context=16, sequences_per_batch=8, seed=0, is_packed=False)
    labels = np.arange(len(TEXTS)) % 3
    for batch in open_text_batches(tokens, plan, boundary=BOUNDARY, labels=labels, num_steps=5):
        np.testing.assert_array_equal(batch["label"], batch["example_id"] % 3)
        for row, ids in zip(batch["example_id"], batch["tokens"], strict=True):
            expected = [BOUNDARY, *TOKENIZER.encode(TEXTS[row]), BOUNDARY][:16]
            assert ids[: len(expected)].tolist() == expected
    packed = make_text_plan(tokens.lengths, context=16, sequences_per_batch=8, seed=0)
    with pytest.raises(ValueError, match="is_packed=False"):
        open_text_batches(tokens, packed, boundary=BOUNDARY, labels=labels)


def test_plans_that_do_not_fit_are_refused(tokens):
    plan = make_text_plan(tokens.lengths + 1, context=16, sequences_per_batch=8, seed=0)
    with pytest.raises(ValueError, match=r"not of these 40 documents and tokenizer; make it from tokens\.lengths"):
        open_text_batches(tokens, plan, boundary=BOUNDARY)
    plan = make_text_plan(tokens.lengths, context=16, sequences_per_batch=8, seed=0)
    with pytest.raises(ValueError, match="do not divide among 3 hosts"):
        open_text_batches(tokens, plan, boundary=BOUNDARY, num_hosts=3)


def test_batches_go_on_without_end_until_closed(tokens):
    plan = make_text_plan(tokens.lengths, context=16, sequences_per_batch=8, seed=0)
    batches = open_text_batches(tokens, plan, boundary=BOUNDARY)
    assert len(list(itertools.islice(batches, 3 * plan.steps_per_epoch))) == 3 * plan.steps_per_epoch
    batches.close()
    assert list(batches) == []


def test_an_error_in_the_thread_reaches_the_reader(tokens):
    plan = make_text_plan(tokens.lengths, context=16, sequences_per_batch=8, seed=0)
    broken = token_store.TokenStore(tokens.lengths, tokens._first_row, (tokens._ids[0],), tokens._ends)
    with pytest.raises(IndexError):
        list(open_text_batches(broken, plan, boundary=BOUNDARY, num_steps=20))


def test_tokens_are_made_once_and_again_where_the_file_was_cut(tmp_path, monkeypatch):
    write_text_set(tmp_path / "set", {"train": TEXTS})
    index = read_index(tmp_path / "set", "train")
    calls = []
    encode_batch = CharTokenizer.encode_batch
    monkeypatch.setattr(CharTokenizer, "encode_batch", lambda self, *args: calls.append(1) or encode_batch(self, *args))
    for _ in range(2):
        store = open_tokens(index, TOKENIZER)
    assert len(calls) == 1
    (ids,) = tmp_path.glob("set/index/*.ids")
    assert ids.stat().st_size == 2 * store.lengths.sum()
    ids.write_bytes(ids.read_bytes()[:-2])
    assert open_tokens(index, TOKENIZER).read(39, 0, 99).tolist() == TOKENIZER.encode(TEXTS[39])
    assert len(calls) == 2
    open_tokens(index, CharTokenizer("abc"))  # another tokenizer has files of its own
    assert len(calls) == 3
    assert len(list(tmp_path.glob("set/index/*"))) == 1 + 2 * 2  # and nothing half-done is left


def test_tokens_of_a_folder_that_cannot_be_written_are_kept_by_the_process(tmp_path, monkeypatch):
    write_text_set(tmp_path / "set", {"train": TEXTS})
    monkeypatch.setattr(token_store.os, "access", lambda *_: False)
    store = open_tokens(read_index(tmp_path / "set", "train"), TOKENIZER)
    assert store.read(7, 0, 99).tolist() == TOKENIZER.encode(TEXTS[7])
    assert [path.name for path in tmp_path.glob("set/index/*")] == ["train.parquet"]


def test_large_vocabularies_need_32_bits(tmp_path):
    write_text_set(tmp_path / "set", {"train": ["\U00020000ab"]})
    tokenizer = CharTokenizer("".join(map(chr, range(0x20001, 0x20000 + 70_000))) + "\U00020000")
    store = open_tokens(read_index(tmp_path / "set", "train"), tokenizer)
    assert store.read(0, 0, 9).tolist() == tokenizer.encode("\U00020000ab") == [70_000]


def test_text_has_no_audio(index):
    with pytest.raises(DataError, match="one/train is text, without audio"):
        RecordReader(index)
    with pytest.raises(DataError, match="one/train has no column 'num_samples'; it has id, text"):
        _ = index.num_samples


def test_samples_of_texts(index):
    assert sample_texts(index, 10**6) == TEXTS
    some = sample_texts(index, 400)
    assert some == [text for text in TEXTS if text in some]
    assert 400 <= sum(map(len, some)) < 400 + max(map(len, TEXTS))
    assert sample_texts(index, 400) == some != sample_texts(index, 400, seed=1)
