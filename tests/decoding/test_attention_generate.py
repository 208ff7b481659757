"""Generation with an attention decoder, against its own forward pass and rules that are written out in plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.decoding.attention import generate as module
from jax_speechlm.decoding.attention.generate import Rules, generate
from jax_speechlm.models.attention_decoder import AttentionDecoder, AttentionDecoderConfig
from jax_speechlm.nn import functional

CONFIG = AttentionDecoderConfig(dim=16, num_layers=2, num_heads=2, ffn_dim=24, max_tokens=24)
VOCAB, END, FIRST, TIMES, EARLIEST = 40, 38, 20, 16, 6
MAX_NEW = 16
ALLOWED = np.ones(VOCAB, bool)
ALLOWED[[0, 5, 6, 39]] = False
ALLOWED_FIRST = np.ones(VOCAB, bool)
ALLOWED_FIRST[[END, 7]] = False
RULES = Rules(END, ALLOWED, ALLOWED_FIRST, no_speech=5)
TIMED = RULES._replace(first_timestamp=FIRST)
MAKE = functools.partial(AttentionDecoder, CONFIG, 8, VOCAB)
GRAPHDEF = functional.declare(lambda rngs: MAKE(rngs=rngs)).graphdef


@pytest.fixture(scope="module", autouse=True)
def few_times():
    """A small vocabulary has few times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TIMESTAMPS", TIMES)
        patch.setattr(module, "_FIRST_TIMES", EARLIEST)
        yield


@functools.cache
def params():
    rng = np.random.default_rng(3)
    drawn = functional.init(lambda rngs: MAKE(rngs=rngs), jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.5 * rng.standard_normal(leaf.shape), leaf.dtype), drawn)


def frames(rows, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((rows, 9, 8)), jnp.float32)


SEGMENT = jnp.array([[1] * 9, [1] * 6 + [0] * 3, [1] * 3 + [0] * 6])
PROMPT, PROMPT_LENGTH = jnp.array([[1, 2, 3], [1, 4, 0], [2, 2, 2]]), jnp.array([3, 2, 3])


@functools.partial(jax.jit, static_argnames="timed")
def run(params, x, segment, prompt, length, temperature, keys, limit, timed=False):
    decoder = functional.bind(GRAPHDEF, params)
    start, rules = jnp.zeros(len(x), jnp.int32), TIMED if timed else RULES
    source, limits = decoder.read(x, segment), {"max_new": MAX_NEW, "limit_B": limit}
    return generate(decoder, source, prompt, length, start, temperature, keys, rules, **limits)


def generated(rows=slice(None), temperature=0.0, limit=MAX_NEW, timed=False):
    keys = jax.random.split(jax.random.key(1), 3)[rows]
    count = len(SEGMENT[rows])
    settings = jnp.full(count, temperature), keys, jnp.full(count, limit)
    return run(params(), frames(3)[rows], SEGMENT[rows], PROMPT[rows], PROMPT_LENGTH[rows], *settings, timed=timed)


@jax.jit
def next_logits(params, x, segment, tokens, last):
    """The logits after token `last` of a padded row, by one pass without a cache."""
    decoder = functional.bind(GRAPHDEF, params)
    position = jnp.arange(tokens.shape[1])[None]
    inside = (position <= last).astype(jnp.int32)
    hidden = decoder(tokens, inside, position, decoder.read(x, segment))
    return decoder.logits(hidden)[0, last]


def may_follow(text):
    """The rules of times, as OpenAI's ApplyTimestampRules words them."""
    allowed = ALLOWED & (ALLOWED_FIRST | bool(text))
    is_time = np.zeros(VOCAB, bool)
    is_time[FIRST : FIRST + TIMES] = True
    last_was_time = len(text) >= 1 and is_time[text[-1]]
    penultimate_was_time = len(text) < 2 or is_time[text[-2]]
    if last_was_time and penultimate_was_time:
        allowed &= ~is_time
    elif last_was_time:
        allowed &= is_time | (np.arange(VOCAB) == END)
    if times := [token for token in text if is_time[token]]:
        least = times[-1] if last_was_time and not penultimate_was_time else times[-1] + 1
        allowed[FIRST:least] = False
    if not text:
        allowed &= is_time
        allowed[FIRST + EARLIEST :] = False
    return allowed, is_time


@pytest.mark.parametrize("timed", [False, True])
def test_a_greedy_text_is_that_of_passes_without_a_cache(timed):
    result = jax.device_get(generated(timed=timed))
    for row in range(3):
        prompt = np.asarray(PROMPT)[row, : int(PROMPT_LENGTH[row])].tolist()
        text, log_prob, ended = [], 0.0, False
        while not ended and len(text) < min(MAX_NEW, CONFIG.max_tokens - len(prompt)):
            tokens = np.zeros((1, CONFIG.max_tokens), np.int32)
            tokens[0, : len(prompt) + len(text)] = prompt + text
            last = len(prompt) + len(text) - 1
            logits = np.asarray(next_logits(params(), frames(3)[row : row + 1], SEGMENT[row : row + 1], tokens, last))
            allowed, is_time = may_follow(text) if timed else (ALLOWED & (ALLOWED_FIRST | bool(text)), None)
            if timed:
                odds = np.where(allowed, np.exp(logits - logits.max()), 0)
                if odds[is_time].sum() > odds[~is_time].max():
                    allowed &= is_time
            logits = np.where(allowed, logits, -np.inf)
            token = int(logits.argmax())
            log_prob += logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            ended = token == END
            text += [] if ended else [token]
        assert result.tokens[row, : result.length[row]].tolist() == text
        assert bool(result.ended[row]) == ended
        assert not result.tokens[row, result.length[row] :].any()
        np.testing.assert_allclose(result.log_prob[row], log_prob, rtol=1e-4)
        first = np.zeros((1, CONFIG.max_tokens), np.int32)
        first[0, 0] = prompt[0]
        logits = np.asarray(
            next_logits(params(), frames(3)[row : row + 1], SEGMENT[row : row + 1], first, 0), np.float64
        )
        np.testing.assert_allclose(result.no_speech[row], np.exp(logits[5]) / np.exp(logits).sum(), rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_does_not_depend_on_the_others(temperature):
    together = jax.device_get(generated(temperature=temperature))
    for row in range(3):
        alone = jax.device_get(generated(slice(row, row + 1), temperature=temperature))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], other[row], rtol=1e-5)


def test_drawn_texts_differ_and_limits_hold():
    greedy, drawn = generated(), generated(temperature=1.5)
    assert (np.asarray(greedy.tokens) != np.asarray(drawn.tokens)).any()
    assert ALLOWED[np.asarray(drawn.tokens)[np.asarray(drawn.tokens) > 0]].all()
    short = generated(limit=2)
    assert np.asarray(short.length).max() <= 2
    np.testing.assert_array_equal(short.tokens[:, :2], greedy.tokens[:, :2])
    none = generated(limit=0)
    assert not np.asarray(none.tokens).any()
    assert not np.asarray(none.log_prob).any()
