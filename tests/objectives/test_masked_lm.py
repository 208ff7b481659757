"""Masking by its statistics and against a slow oracle of words; the loss against logits of the hidden row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers.base import train_tokenizer
from jax_speechlm.core.batch import example_keys
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.masked_lm import MaskedLM, mask_tokens, most_masked, word_starts
from tests.objectives.text import MODEL, TOKENIZER, VOCABULARY, documents, pack, reorder

BOTH_WAYS = MODEL.replace(causal=False, head="transform", query_key_norm=False)
SPACE = TOKENIZER.encode(" ")[0]
EVERY = np.ones(VOCABULARY.tokenizer_size, bool)
TIME, RATIO = 40, 0.15
ROWS = [documents(0, [9, 14]), documents(1, [7, 4, 11]), documents(2, [30]), [], documents(3, [2]), documents(4, [0])]


@functools.cache
def masker(whole_words: bool, ratio: float = RATIO):
    starts = word_starts(TOKENIZER) if whole_words else EVERY

    def run(tokens, segment, keys):
        return mask_tokens(tokens, segment, keys, VOCABULARY, starts, ratio)

    return jax.jit(run)


def words(batch, row: int) -> list[list[int]]:
    """Places of each word of a row: a space begins one, a boundary stands alone and is none."""
    found, previous = [], VOCABULARY.boundary
    for place in np.flatnonzero(batch["segment"][row]):
        token = batch["tokens"][row, place]
        if token != VOCABULARY.boundary:
            if token == SPACE or previous == VOCABULARY.boundary:
                found.append([])
            found[-1].append(place)
        previous = token
    return found


@pytest.mark.parametrize("whole_words", [False, True])
def test_rows_are_masked_in_the_promised_shares(whole_words):
    letters = TOKENIZER.characters + 4 * " "
    row = [documents(0, [60, 50], letters)]
    batch = pack(row * 2000, 120)
    tokens, segment = batch["tokens"], batch["segment"]
    shown, chosen = masker(whole_words)(tokens, segment, jax.random.split(jax.random.key(0), 2000))
    shown, chosen = np.asarray(shown), np.asarray(chosen)
    real = (segment > 0) & (tokens != VOCABULARY.boundary)
    count = chosen.sum(1)
    assert not chosen[~real].any()
    assert (shown == tokens)[~chosen].all()
    assert count.max() <= int(RATIO * 110) + 1 <= most_masked(120, RATIO)
    if not whole_words:
        assert set(count.tolist()) == {16, 17}  # 16.5, rounded up half of the time
        assert np.mean(count) == pytest.approx(16.5, abs=0.05)
        every = chosen[:, real[0]].mean(0)
        assert every.max() - every.min() < 0.06  # 4.6 standard deviations at most between 110 places
    else:
        assert 12 < np.mean(count) <= 16.5  # the last word of a row's share seldom fits
        for number in range(50):
            for word in words(batch, number):
                assert len(set(chosen[number, word].tolist())) == 1
    hidden, original = shown[chosen], tokens[chosen]
    rate = 1 / (VOCABULARY.tokenizer_size - 1)  # a random token may be the one that stood there
    assert (hidden == VOCABULARY.mask).mean() == pytest.approx(0.8, abs=0.012)
    assert (hidden == original).mean() == pytest.approx(0.1 + 0.1 * rate, abs=0.012)
    random = hidden[(hidden != VOCABULARY.mask) & (hidden != original)]
    assert set(random.tolist()) == set(range(1, VOCABULARY.tokenizer_size))
    if whole_words:  # a word is shown in one way
        for number in range(50):
            for word in words(batch, number):
                assert len(set((shown[number, word] == VOCABULARY.mask).tolist())) == 1


def test_words_are_taken_in_random_order_while_they_fit():
    batch = pack([[VOCABULARY.enclose(TOKENIZER.encode("ab cd ef gh ij"))]] * 500, 20)
    _, chosen = masker(True, 0.4)(batch["tokens"], batch["segment"], jax.random.split(jax.random.key(1), 500))
    chosen = np.asarray(chosen)[:, 1:15]
    # Of 14 tokens 5 or 6 are to be chosen. Words have 2, 3, 3, 3 and 3: two of them fit, whichever they are.
    assert set(chosen.sum(1).tolist()) == {3, 5, 6}
    firsts = chosen[:, [0, 2, 5, 8, 11]].mean(0)
    assert firsts.min() > 0.25
    # With five tokens to choose, two words of three do not fit, and the second is left out: then one is chosen.
    assert (chosen.sum(1) == 3).mean() == pytest.approx(0.4 * 0.6, abs=0.08)


@settings(max_examples=15)
@given(seed=st.integers(0, 99), order=st.permutations(range(len(ROWS))), whole_words=st.booleans())
def test_masks_do_not_depend_on_padding_or_row_order(seed, order, whole_words):
    batch = pack(ROWS, TIME)
    moved = reorder(batch, order, 8)

    def mask(batch):
        return masker(whole_words)(
            batch["tokens"], batch["segment"], example_keys(jax.random.key(seed), jnp.asarray(batch["example_id"]))
        )

    (shown, chosen), (moved_shown, moved_chosen) = mask(batch), mask(moved)
    np.testing.assert_array_equal(np.asarray(moved_shown)[:, :TIME], np.asarray(shown)[np.array(order)])
    np.testing.assert_array_equal(np.asarray(moved_chosen)[:, :TIME], np.asarray(chosen)[np.array(order)])
    assert not np.asarray(moved_chosen)[:, TIME:].any()


def test_words_of_pieces_begin_with_a_space():
    text = "the cat sat on the mat and the dog sat on the log"
    tokenizer = train_tokenizer([text] * 20, "bpe", 40)
    starts = word_starts(tokenizer)
    assert not starts[0]
    begins = [starts[piece] for piece in tokenizer.encode(text)]
    assert begins[0]
    assert sum(begins) == len(text.split())
    assert np.flatnonzero(word_starts(TOKENIZER)).tolist() == [SPACE]


@functools.cache
def objective(whole_words: bool = False):
    built = MaskedLM(whole_words=whole_words).build(BOTH_WAYS, None, TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))
    return built, params, jax.jit(built.loss)


def test_the_loss_is_that_of_the_chosen_tokens():
    built, params, run = objective()
    batch = pack(ROWS, TIME)
    loss, metrics = run(params, batch, None)
    keys = example_keys(jax.random.key(0), jnp.asarray(batch["example_id"]))
    shown, chosen = masker(False)(batch["tokens"], batch["segment"], keys)

    @jax.jit
    def logits(params, tokens, segment, position):
        transformer = functional.bind(functional.declare(built.make).graphdef, params).transformer
        return transformer.logits(transformer(tokens, segment, position))

    scores = np.asarray(logits(params, shown, batch["segment"], batch["position"]), np.float64)
    chosen = np.asarray(chosen)
    assert chosen[3].sum() == 0  # the filler row
    assert chosen.sum() > 10
    nll = np.log(np.exp(scores).sum(-1)) - np.take_along_axis(scores, batch["tokens"][..., None], -1)[..., 0]
    np.testing.assert_allclose(metrics["loss"], (nll[chosen].sum(), chosen.sum()), rtol=1e-5)
    hits = (scores.argmax(-1) == batch["tokens"])[chosen].sum()
    np.testing.assert_allclose(metrics["masked_accuracy"], (hits, chosen.sum()))
    np.testing.assert_allclose(loss, nll[chosen].mean(), rtol=1e-5)


def test_a_causal_model_is_refused():
    with pytest.raises(ValueError, match=r"--model\.causal False"):
        MaskedLM().build(MODEL, None, TOKENIZER)
