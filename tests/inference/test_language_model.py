"""A language model's numbers do not depend on how texts are batched or cut into windows."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.decoding.lm.generate import GREEDY, Beam, Sampling
from jax_speechlm.inference.lm.causal import LanguageModel, windows_of
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from tests.objectives.text import MODEL, TOKENIZER

CONTEXT = 32
TEXTS = ["", "a", "hello there", "a bad cab", "one of those long sentences that go on and on and have no end"]


@functools.cache
def model() -> LanguageModel:
    built = CausalLM().build(MODEL, None, TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))
    return LanguageModel(MODEL, TOKENIZER, params, CONTEXT)


@functools.cache
def _forward():
    def log_probs(params, row):
        transformer = functional.bind(model().graphdef, params).transformer
        place = jnp.arange(row.shape[1], dtype=jnp.int32)[None]
        return jax.nn.log_softmax(transformer.logits(transformer(row, place * 0 + 1, place)))

    return jax.jit(log_probs)


@pytest.mark.parametrize("counts", [{"max_tokens": 0}, {"max_tokens": -3}, {"samples": 0}, {"samples": -1}])
def test_settings_that_ask_for_nothing_are_refused(counts):
    (name,) = counts
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be at least 1, got {counts[name]}"):
        model().generate(["a"], GREEDY, **counts)


def test_settings_that_ask_for_more_than_the_context_allocate_no_more():
    found, expected = (model().generate(["a"], GREEDY, max_tokens=count) for count in (10**12, CONTEXT))
    assert found == expected


def plain_nats(ids: list[int]) -> np.ndarray:
    """-log p of every token behind the first from all before it, one row that holds exactly this."""
    row = np.zeros((1, 80), np.int32)
    row[0, : len(ids)] = ids
    scores = np.asarray(_forward()(model().params, row), np.float64)[0]
    return -scores[np.arange(len(ids) - 1), ids[1:]]


def test_a_score_is_the_log_probability_from_boundary_to_boundary():
    short = TEXTS[:-1]
    expected = [-plain_nats(model().encode(text)).sum() for text in short]
    scores = model().score(short)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@settings(max_examples=10)
@given(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4))
def test_a_score_does_not_depend_on_the_batch(texts):
    alone = dict(zip(TEXTS, (model().score([text])[0] for text in TEXTS), strict=True))
    np.testing.assert_allclose(model().score(texts), [alone[text] for text in texts], rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 7, CONTEXT])
def test_long_documents_are_scored_in_windows(stride):
    ids = model().encode(TEXTS[-1])
    assert len(ids) > CONTEXT + 7
    (nats,) = model().token_nll([ids], stride=stride)
    start = 0
    for place, value in enumerate(nats):
        if place >= start + CONTEXT:
            start += stride
        expected = plain_nats(ids[start : place + 2])[-1]
        np.testing.assert_allclose(value, expected, rtol=1e-4, err_msg=str(place))


@given(lengths=st.lists(st.integers(0, 40), max_size=4), context=st.integers(1, 9), stride=st.integers(1, 9))
def test_windows_score_everything_once_with_enough_before_it(lengths, context, stride):
    stride = min(stride, context)
    scored = [[] for _ in lengths]
    for window in windows_of([[0] * length for length in lengths], context, stride):
        assert window.end - window.start <= context
        assert window.start == 0 or window.first - window.start >= context - stride
        scored[window.document] += range(window.first, window.end)
    assert scored == [list(range(length - 1)) for length in lengths]


def test_a_stride_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match=r"between 1 and the context \(32\)"):
        model().token_nll([[1, 2]], stride=33)


def test_a_continuation_and_its_prompt_are_one_text():
    for method in (GREEDY, Sampling(), Beam(size=3)):
        for prompt, found in zip(TEXTS[:3], model().generate(TEXTS[:3], method, max_tokens=6), strict=True):
            assert len(found) == (3 if isinstance(method, Beam) else 1)
            for text, log_prob, num_tokens, ended in found:
                assert num_tokens == len(text) + ended  # one token a character
                assert ended or num_tokens == 6
                nats = plain_nats(model().encode(prompt + text))
                nats = nats[len(prompt) : len(prompt) + num_tokens]
                np.testing.assert_allclose(log_prob, -nats.sum(), rtol=1e-4)


def test_samples_depend_on_the_seed_and_on_nothing_else():
    method = Sampling(temperature=2.0)

    def draw(prompts, seed, samples=3):
        return model().generate(prompts, method, max_tokens=8, samples=samples, seed=seed)

    def texts(found):
        return [[each.text for each in row] for row in found]

    both = draw(["ab", "a cab"], 0)
    assert texts(draw(["a cab"], 0)) == texts(both[1:])
    assert texts(draw(["a cab", "ab"], 0)) == texts(both[::-1])
    assert texts(draw(["ab"], 1)) != texts(both[:1])
    assert len({each.text for each in both[0]}) > 1
    # At such a temperature only the random numbers decide, and prompts do not share them.
    hot = model().generate(["ab", "ac", "ad"], Sampling(temperature=1e6), max_tokens=8)
    assert len({row[0].text for row in hot}) == 3


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=r"trained on 32 tokens. Shorten the prompt, which begins 'aaa"):
        model().generate(["ab", "a" * 40])


def test_a_session_gives_what_the_whole_text_gives():
    session = model().session(slots=4, length=10, width=3)
    ids = {slot: [] for slot in range(4)}
    found = {0: session.start(0)}
    # (parents, tokens, slots): a prefix in place, one copied, a parent overwritten while another still reads it
    for parents, tokens, slots in [
        ([0, 0], [1, 2], [1, 2]),
        ([1, 2, 0], [3, 4, 5], [1, 3, 0]),
        ([3, 3], [6, 7], [3, 2]),
        ([2], [8], [0]),
    ]:
        grown = [[*ids[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        for slot, prefix, row in zip(slots, grown, session.extend(parents, tokens, slots), strict=True):
            ids[slot], found[slot] = prefix, row
    boundary = model().vocabulary.boundary
    for slot, prefix in ids.items():
        row = np.zeros((1, 80), np.int32)
        row[0, : len(prefix) + 1] = [boundary, *prefix]
        expected = np.asarray(_forward()(model().params, row))[0, len(prefix), : boundary + 1]
        assert found[slot][0] == -math.inf
        np.testing.assert_allclose(found[slot][1:], expected[1:], atol=1e-4)
    with pytest.raises(ValueError, match="width 3 was asked to extend 4"):
        session.extend([0] * 4, [1] * 4, [0, 1, 2, 3])


def test_a_session_refuses_prefixes_that_are_too_long():
    session = model().session(slots=1, length=2, width=1)
    session.start(0)
    session.extend([0], [1], [0])
    session.extend([0], [1], [0])
    with pytest.raises(ValueError, match="more than 2 tokens"):
        session.extend([0], [1], [0])
