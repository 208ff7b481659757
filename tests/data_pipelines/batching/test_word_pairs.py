"""Co-occurrence counts against a count by hand, and their batches: each pair once an epoch, on any number of hosts."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batching import word_pairs
from data_pipelines.batching.fields import BatchSpec
from data_pipelines.batching.word_pairs import WordPairPlan, WordPairs, count_pairs, open_word_pairs
from data_pipelines.storage.tokens import TokenStore


def store(documents: list[list[int]]) -> TokenStore:
    ends = np.cumsum([len(document) for document in documents])
    ids = np.array([id_ for document in documents for id_ in document], np.uint16)
    return TokenStore.of(np.array([0, len(documents)]), [(ids, ends)])


@settings(max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(1, 5), max_size=9), min_size=1, max_size=6),
    window=st.integers(1, 4),
    chunk=st.sampled_from([1, 7, 1000]),
)
def test_counts_equal_those_by_hand(documents, window, chunk):
    expected = collections.Counter()
    for document in documents:
        for place, word in enumerate(document):
            for other, context in enumerate(document):
                if 0 < abs(place - other) <= window:
                    expected[word, context] += 1 / abs(place - other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_pairs, "_CHUNK_TOKENS", chunk)
        pairs = count_pairs(store(documents), 6, window)
    found = dict(zip(zip(pairs.word.tolist(), pairs.context.tolist(), strict=True), pairs.count, strict=True))
    assert found.keys() == expected.keys()
    assert list(found) == sorted(found)
    for pair, count in expected.items():
        np.testing.assert_allclose(found[pair], count, rtol=1e-6)


def some_pairs(count: int) -> WordPairs:
    ids = np.arange(count, dtype=np.int32)
    return WordPairs(ids, ids + 100, (ids + 1).astype(np.float32))


def read(plan: WordPairPlan, first: int, steps: int, hosts: int = 1) -> list[dict[str, np.ndarray]]:
    parts = [
        open_word_pairs(plan, host=host, num_hosts=hosts, start_step=first, num_steps=steps) for host in range(hosts)
    ]
    return [
        {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]


def test_an_epoch_has_every_pair_once_in_another_order_each_time():
    plan = WordPairPlan(some_pairs(48), context=4, sequences_per_batch=4, seed=0)
    assert plan.steps_per_epoch == 3
    batches = read(plan, 0, 6)
    epochs = [np.concatenate([batch["tokens"].ravel() for batch in part]) for part in (batches[:3], batches[3:])]
    for epoch in epochs:
        assert sorted(epoch) == list(range(48))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != np.arange(48)).any()
    for batch in batches:
        BatchSpec.text(word_pairs=True).check(batch)
        np.testing.assert_array_equal(batch["context_tokens"], batch["tokens"] + 100)
        np.testing.assert_array_equal(batch["count"], batch["tokens"] + 1)
        assert (batch["segment"] == 1).all()
        assert (batch["weight"] == 1).all()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_any_step_on_any_number_of_hosts_has_its_own_pairs(hosts):
    plan = WordPairPlan(some_pairs(50), context=4, sequences_per_batch=4, seed=7)
    whole = read(plan, 0, 9)
    for batch, expected in zip(read(plan, 5, 4, hosts), whole[5:], strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(batch[name], array)


def test_validation_has_every_held_out_pair_once_then_filler():
    train, held_out = some_pairs(1000).split(0.1, seed=3)
    assert len(train.count) + len(held_out.count) == 1000
    assert 70 < len(held_out.count) < 130
    assert not set(train.word) & set(held_out.word)
    plan = WordPairPlan(held_out, context=8, sequences_per_batch=4, seed=None)
    batches = read(plan, 0, plan.steps_per_epoch)
    is_pair = np.concatenate([batch["segment"].ravel() for batch in batches]) > 0
    words = np.concatenate([batch["tokens"].ravel() for batch in batches])
    np.testing.assert_array_equal(words[is_pair], held_out.word)
    last = batches[-1]
    assert (last["weight"] == (last["segment"].sum(1) > 0)).all()
    assert (last["example_id"][last["weight"] == 0] == -1).all()


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="no two words"):
        WordPairPlan(some_pairs(0), 4, 4, 0)
    with pytest.raises(ValueError, match="do not divide among 3 hosts"):
        open_word_pairs(WordPairPlan(some_pairs(9), 4, 4, 0), host=0, num_hosts=3)
    plans = [WordPairPlan(some_pairs(9), 4, 4, seed) for seed in (0, 1, None)]
    assert len({plan.fingerprint for plan in plans}) == 3
