"""Generation against exact probabilities on a vocabulary small enough to enumerate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.lm.generate import GREEDY, Beam, Sampling, beam_search, choose_tokens, sample
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional

VOCABULARY = Vocabulary(3)  # a text is made of 1 and 2, and ends with 3
END = VOCABULARY.boundary
CONFIG = TransformerConfig(dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16)
CONTEXT, MAX_NEW = 12, 4
PROMPTS = [[END], [END, 1], [END, 2, 2, 1], [END, 1, 2, 1, 2, 2, 1]]


def make(rngs):
    return Transformer(CONFIG, VOCABULARY.size, rngs=rngs)


@functools.cache
def params():
    return jax.tree.map(lambda leaf: 4 * leaf, functional.init(make, jax.random.key(1)))


@functools.cache
def _forward():
    graphdef = functional.declare(make).graphdef

    def log_probs(params, row):
        model = functional.bind(graphdef, params)
        place = jnp.arange(row.shape[1], dtype=jnp.int32)[None]
        return jax.nn.log_softmax(model.logits(model(row, place * 0 + 1, place)))

    return jax.jit(log_probs)


@functools.cache
def next_log_probs(ids: tuple[int, ...]) -> np.ndarray:
    """log-probabilities [vocab] of the next token, by the whole forward pass without a cache; float64."""
    row = np.zeros((1, CONTEXT), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(_forward()(params(), row)[0, len(ids) - 1], np.float64)


def continuations(prompt: list[int], max_new: int, ends=(END,)) -> dict[tuple[int, ...], float]:
    """Every continuation with its log-probability, whether it ends or is cut."""
    found = {}
    for length in range(1, max_new + 1):
        for ids in itertools.product([1, 2, END], repeat=length):
            if set(ends) & set(ids[:-1]) or (ids[-1] not in ends and length < max_new):
                continue
            steps = (next_log_probs((*prompt, *ids[:n]))[ids[n]] for n in range(length))
            found[ids] = sum(steps)
    return found


@functools.cache
def compiled(method, max_new=MAX_NEW, context=CONTEXT, vocabulary=VOCABULARY):
    graphdef = functional.declare(make).graphdef

    def run(params, prompt, length, keys):
        model, limits = functional.bind(graphdef, params), {"max_new": max_new, "context": context}
        if isinstance(method, Beam):
            return beam_search(model, vocabulary, prompt, length, method, **limits)
        return sample(model, vocabulary, prompt, length, keys, method, **limits)

    return jax.jit(run)


def run(method, prompts, keys=None, width=8, junk=0, **limits):
    padded = np.full((len(prompts), width), junk, np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    keys = jax.random.split(jax.random.key(0), len(prompts)) if keys is None else keys
    return jax.device_get(compiled(method, **limits)(params(), padded, lengths, keys))


def spelled(found, row) -> tuple[int, ...]:
    assert not found.tokens[row][found.length[row] :].any()
    return tuple(found.tokens[row][: found.length[row]].tolist())


def test_greedy_takes_the_likeliest_token_of_the_whole_forward_pass():
    found = run(GREEDY, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        ids, log_prob = [], 0.0
        while len(ids) < MAX_NEW and END not in ids:
            scores = next_log_probs((*prompt, *ids))[: END + 1]
            ids.append(1 + int(scores[1:].argmax()))
            log_prob += scores[ids[-1]]
        assert spelled(found, row) == tuple(ids)
        np.testing.assert_allclose(found.log_prob[row], log_prob, rtol=1e-4)


SEVERAL = Vocabulary(3, other_ends=(2,))  # 2 ends a text too


def test_several_eos_ids_end_a_greedy_text_and_a_drawn_one():
    found = run(GREEDY, PROMPTS, vocabulary=SEVERAL)
    for row, prompt in enumerate(PROMPTS):
        ids = []
        while len(ids) < MAX_NEW and not {2, END} & set(ids):
            ids.append(1 + int(next_log_probs((*prompt, *ids))[1 : END + 1].argmax()))
        assert spelled(found, row) == tuple(ids)
    drawn = run(Sampling(), [[END]] * 200, jax.random.split(jax.random.key(3), 200), vocabulary=SEVERAL)
    texts = {spelled(drawn, row) for row in range(200)}
    assert texts <= continuations([END], MAX_NEW, SEVERAL.ends).keys()  # each is cut, or has one end, at its end
    assert {text[-1] for text in texts} >= {2, END}


def test_several_eos_ids_each_end_a_text_of_a_beam():
    """As wide as there are continuations, the search finds all."""
    settings = Beam(size=9, length_penalty=0.7)
    found = run(settings, PROMPTS, vocabulary=SEVERAL)
    for row, prompt in enumerate(PROMPTS):
        expected = continuations(prompt, MAX_NEW, SEVERAL.ends)
        ranked = sorted(expected, key=lambda ids: -expected[ids] / len(ids) ** settings.length_penalty)
        assert [tuple(ids[:n]) for ids, n in zip(found.tokens[row].tolist(), found.length[row], strict=True)] == ranked
        np.testing.assert_allclose(found.log_prob[row], [expected[ids] for ids in ranked], rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-45, 1e-38, 1e-12, 9e-6])
def test_temperature_whose_inverse_overflows_is_greedy(temperature):
    logits = jnp.array([[-3.0, 80.0, 79.9, -jnp.inf], [0.0, -1.0, -2.0, 1e-3]])
    keys = jax.random.split(jax.random.key(0), 2)
    found = choose_tokens(logits, keys, Sampling(temperature=temperature))
    assert found.tolist() == [1, 3]
    assert spelled(run(Sampling(temperature=temperature), PROMPTS), 2) == spelled(run(GREEDY, PROMPTS), 2)


def test_temperature_just_above_the_greedy_one_and_very_high_ones_draw_from_the_distribution():
    logits = jnp.broadcast_to(jnp.array([90.0, 90.0, 80.0, -jnp.inf]), (500, 4))
    keys = jax.random.split(jax.random.key(0), 500)
    cold = np.bincount(choose_tokens(logits, keys, Sampling(temperature=2e-5)), minlength=4)
    assert min(cold[:2]) > 150
    assert not cold[2:].any()
    hot = np.bincount(choose_tokens(logits, keys, Sampling(temperature=1e6)), minlength=4)
    assert min(hot[:3]) > 100
    assert not hot[3]


def test_top_p_below_float32_keeps_the_likeliest():
    logits = jnp.array([[0.0, 1.0, 0.5]] * 20)
    keys = jax.random.split(jax.random.key(0), 20)
    assert set(choose_tokens(logits, keys, Sampling(top_p=1e-300)).tolist()) == {1}


NUMBERS = [float("inf"), float("nan"), -1.0, 1e300]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "top_p", "length_penalty"])
def test_settings_that_no_float32_holds_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        (Beam if name == "length_penalty" else Sampling)(**{name: value})


def narrowed(logits: np.ndarray, seen: np.ndarray, settings: Sampling) -> np.ndarray:
    """The exact distribution that a row is drawn from, written out token by token."""
    logits = [
        (x / settings.repetition_penalty if x > 0 else x * settings.repetition_penalty) if held else x
        for x, held in zip(logits.astype(float), seen, strict=True)
    ]
    share = np.exp(np.array(logits) / settings.temperature)
    share /= share.sum()
    order = sorted(range(len(share)), key=lambda token: -share[token])[: settings.top_k]
    share = np.where(np.isin(np.arange(len(share)), order), share, 0)
    share /= share.sum()
    kept, reached = [], 0.0
    for token in order:
        if reached >= settings.top_p:
            break
        kept.append(token)
        reached += share[token]
    share = np.where(np.isin(np.arange(len(share)), kept), share, 0)
    return share / share.sum()


def assert_drawn_from(counts: np.ndarray, expected: np.ndarray):
    """Pearson's statistic below 4.5 standard deviations of its mean; tokens without probability never occur."""
    assert not counts[expected == 0].any()
    expected = expected * counts.sum()
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < freedom + 4.5 * (2 * max(freedom, 1)) ** 0.5, (counts, expected)


@pytest.mark.parametrize(
    "method",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=3),
        Sampling(top_p=0.7),
        Sampling(repetition_penalty=1.8),
        Sampling(repetition_penalty=1.3, temperature=1.4, top_k=5, top_p=0.8),
    ],
    ids=str,
)
def test_a_token_is_drawn_from_the_narrowed_distribution(method):
    logits = np.array([1.2, -0.4, 0.3, 2.0, -2.5, 0.9, -np.inf], np.float32)
    seen = np.array([True, True, False, True, False, False, False])
    draws = 20_000

    def tile(x):
        return jnp.tile(x, (draws, 1))

    keys = jax.random.split(jax.random.key(7), draws)
    tokens = jax.jit(choose_tokens, static_argnums=2)(tile(logits), keys, method, tile(seen))
    expected = narrowed(np.where(np.isfinite(logits), logits, -1e9), seen, method)
    assert_drawn_from(np.bincount(tokens, minlength=len(logits)), expected)


def test_whole_texts_are_drawn_with_their_probability():
    prompt, rows = PROMPTS[2], 4000
    found = run(Sampling(), [prompt] * rows, jax.random.split(jax.random.key(3), rows))
    expected = continuations(prompt, MAX_NEW)
    drawn = [spelled(found, row) for row in range(rows)]
    for row in range(0, rows, 97):
        np.testing.assert_allclose(found.log_prob[row], expected[drawn[row]], rtol=1e-4, atol=1e-4)
    texts = sorted(expected, key=expected.get)
    # At each step the ids that can follow share the probability of the others.
    share = np.array([np.exp(expected[text] - sum(_lost((*prompt, *text), n + len(prompt)) for n in range(len(text))))
                      for text in texts])  # fmt: skip
    assert share.sum() == pytest.approx(1, abs=1e-4)
    counts = np.array([drawn.count(text) for text in texts])
    frequent = share * rows >= 5

    def pool(x):
        return np.append(x[frequent], x[~frequent].sum())

    assert_drawn_from(pool(counts), pool(share))


def _lost(ids: tuple[int, ...], place: int) -> float:
    """Log of the probability that ids which can follow have together at a place."""
    return np.log(np.exp(next_log_probs(ids[:place])[1 : END + 1]).sum())


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_wide_beam_finds_what_enumeration_finds(penalty):
    size = 12
    found = run(Beam(size=size, length_penalty=penalty), PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        expected = continuations(prompt, MAX_NEW)
        best = sorted(expected, key=lambda ids: -expected[ids] / len(ids) ** penalty)[:size]
        texts = [tuple(found.tokens[row, k, : found.length[row, k]].tolist()) for k in range(size)]
        scores = [expected[text] / len(text) ** penalty for text in texts]
        np.testing.assert_allclose(scores, [expected[text] / len(text) ** penalty for text in best], rtol=1e-4)
        np.testing.assert_allclose(found.log_prob[row], [expected[text] for text in texts], rtol=1e-4)
        assert len(set(texts)) == size


def test_a_beam_of_one_extends_the_likeliest_text():
    found = run(Beam(size=1, length_penalty=0.0), PROMPTS)
    greedy = run(GREEDY, PROMPTS)
    assert (found.log_prob[:, 0] >= greedy.log_prob - 1e-4).all()  # it may also have stopped at a likelier end before
    for row, prompt in enumerate(PROMPTS):
        text = tuple(found.tokens[row, 0, : found.length[row, 0]].tolist())
        np.testing.assert_allclose(found.log_prob[row, 0], continuations(prompt, MAX_NEW)[text], rtol=1e-4)


def test_a_beam_wider_than_there_are_texts_says_so():
    found = run(Beam(size=12), [[END]], max_new=1)
    assert np.isfinite(found.log_prob[0]).sum() == 3
    assert np.isfinite(found.log_prob[0, :3]).all()


@settings(max_examples=15)
@given(
    order=st.permutations(range(4)),
    shape=st.sampled_from([(1, 8), (4, 11)]),
    junk=st.integers(0, VOCABULARY.size - 1),
    method=st.sampled_from([GREEDY, Sampling(top_k=2, top_p=0.9, repetition_penalty=1.2), Beam(size=3)]),
)
def test_a_row_does_not_depend_on_batch_order_or_padding(order, shape, junk, method):
    size, width = shape
    keys = jax.random.split(jax.random.key(5), 4)
    whole = run(method, PROMPTS, keys)
    chosen = np.array(order[:size])
    part = run(method, [PROMPTS[row] for row in chosen], keys[chosen], width=width, junk=junk)
    np.testing.assert_array_equal(part.tokens, whole.tokens[chosen])
    np.testing.assert_array_equal(part.length, whole.length[chosen])
    np.testing.assert_allclose(part.log_prob, whole.log_prob[chosen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [Sampling(temperature=3.0), Beam(size=4)], ids=str)
def test_a_full_context_ends_a_text(method):
    prompts = [PROMPTS[2]] * 40 + [PROMPTS[3]]
    found = run(method, prompts, context=len(PROMPTS[3]) + 1)
    assert found.length[:40].max() == MAX_NEW  # the context has room for as many
    assert found.length[40].max() == 1
