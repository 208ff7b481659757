"""Beam search of an attention decoder with CTC against enumerated transcripts and alignments."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.decoding.attention import network as steps
from jax_speechlm.decoding.attention import prefix_scores
from jax_speechlm.decoding.attention.beam import Network, beam_search
from jax_speechlm.decoding.attention.generate import Rules, generate
from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings
from jax_speechlm.models.encoder_decoder import EncoderDecoder
from jax_speechlm.nn import functional
from tests.decoding.scorers import Pairs
from tests.training import tiny

VOCAB, END, CTC_VOCAB, MOST, FRAMES = 8, 4, 4, 3, 5
"""Ids of the decoder, its end, ids of CTC (the blank and three tokens), tokens of a text, and frames."""
CONFIG = tiny.MODELS["aed"]
ALLOWED = np.isin(np.arange(VOCAB), [1, 2, 3, END])
RULES = Rules(END, ALLOWED, np.ones(VOCAB, bool), no_speech=6)
EVERYTHING = BeamSettings(size=40, gap=np.inf)
PROMPT = (5, 7)
TEXTS = [text for length in range(MOST + 1) for text in itertools.product([1, 2, 3], repeat=length)]


def make(rngs):
    return EncoderDecoder(CONFIG, VOCAB, ctc_vocab_size=CTC_VOCAB, rngs=rngs)


GRAPHDEF = functional.declare(make).graphdef


@functools.cache
def params():
    rng = np.random.default_rng(3)
    drawn = functional.init(make, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.6 * rng.standard_normal(leaf.shape), leaf.dtype), drawn)


def frames(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, FRAMES, CONFIG.encoder.dim)).astype(np.float32)


@functools.cache
def network(ctc_weight, width=3, most=MOST):
    settings, weights = {"rules": RULES, "width": width}, params()

    @functools.partial(jax.jit, static_argnames="size")
    def start(x, length, size):
        prompt = jnp.broadcast_to(jnp.array(PROMPT), (len(x), len(PROMPT)))
        model, rows = functional.bind(GRAPHDEF, weights), len(x)
        prompts = prompt, jnp.full(rows, len(PROMPT)), jnp.zeros(rows, jnp.int32)
        return steps.start(model, x, length, *prompts, size=size, has_ctc=ctc_weight > 0, **settings)

    @jax.jit
    def advance(state, origin, tokens):
        return steps.advance(functional.bind(GRAPHDEF, weights), state, origin, tokens, **settings)

    return Network(lambda x, length, size: start(x, length, size=size), advance, most, ctc_weight)


@jax.jit
def log_probs_of(params, x, length):
    """log P of the posteriors of CTC, and of every token of all texts by the decoder, whole texts at once."""
    model = functional.bind(GRAPHDEF, params)
    rows = jnp.array([[*PROMPT, *text, *[0] * (MOST - len(text))] for text in TEXTS])
    segment = jnp.broadcast_to((jnp.arange(FRAMES) < length).astype(jnp.int32), (len(TEXTS), FRAMES))
    source = model.decoder.read(jnp.broadcast_to(x, (len(TEXTS), *x.shape[1:])), segment)
    position = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    logits = model.decoder.logits(model.decoder(rows, jnp.ones_like(rows), position, source))
    return jax.nn.log_softmax(model.ctc_logits(x))[0], jax.nn.log_softmax(jnp.where(ALLOWED, logits, -jnp.inf))


def expected(row, length):
    """Returns log P of each text by CTC, summed over its alignments one by one, and by the decoder."""
    posteriors, decoder = map(np.asarray, log_probs_of(params(), frames(3)[row : row + 1], length))
    ctc = dict.fromkeys(TEXTS, 0.0)
    for path in itertools.product(range(CTC_VOCAB), repeat=length):
        text = tuple(label for label, _ in itertools.groupby(path) if label)
        ctc[text] = ctc.get(text, 0.0) + np.exp(sum(posteriors[t, label] for t, label in enumerate(path)))
    attention = {
        text: sum(decoder[i, len(PROMPT) - 1 + t, token] for t, token in enumerate([*text, END]))
        for i, text in enumerate(TEXTS)
    }
    return ctc, attention


@pytest.mark.parametrize("length", [0, 1, FRAMES - 1, FRAMES])
def test_prefix_scores_are_sums_over_all_alignments(length):
    ctc, _ = expected(0, length)
    log_probs = log_probs_of(params(), frames(3)[:1], length)[0][None]
    lengths, tokens = jnp.array([length]), jnp.array([[[1, 2, 3]] * len(TEXTS)])
    prefixes = prefix_scores.empty(log_probs, len(TEXTS))
    for place in range(MOST):
        grown = jnp.array([[text[place] if place < len(text) else 0 for text in TEXTS]])
        prefixes = prefix_scores.extend(log_probs, prefixes, grown)
    whole = np.exp(prefix_scores.ends(lengths, prefixes)[0])
    longer = np.exp(prefix_scores.scores(log_probs, lengths, prefixes, tokens)[0])
    for text, end, extended in zip(TEXTS, whole, longer, strict=True):
        np.testing.assert_allclose(end, ctc[text], atol=1e-6)
        for token, found in zip((1, 2, 3), extended, strict=True):
            prefix = (*text, token)
            total = sum(p for other, p in ctc.items() if other[: len(prefix)] == prefix)
            np.testing.assert_allclose(found, total, atol=1e-6)


@pytest.mark.parametrize("with_scorer", [False, True])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_a_search_as_wide_as_the_space_is_exhaustive(ctc_weight, with_scorer):
    scorer = Pairs(CTC_VOCAB)
    scorer.alpha, scorer.beta = 0.7, 0.1
    lengths = np.array([FRAMES, FRAMES - 1, FRAMES])
    scorers = [scorer] * with_scorer
    found = beam_search(network(ctc_weight), frames(3), lengths, scorers, EVERYTHING, num_best=100)
    for row, hypotheses in enumerate(found):
        ctc, attention = expected(row, int(lengths[row]))
        possible = {text for text in TEXTS if ctc[text] > 0 or not ctc_weight}
        scored = {each.tokens: each for each in hypotheses if each.score > -1e6}
        assert scored.keys() == possible
        ranks = [each.score / (1 if ctc_weight else len(each.tokens) + 1) for each in hypotheses]
        assert ranks == sorted(ranks, reverse=True)
        for text, each in scored.items():
            joint = (1 - ctc_weight) * attention[text] + (ctc_weight and ctc_weight * np.log(ctc[text]))
            steps = itertools.pairwise([0, *text, 0])
            fusion = with_scorer * (0.7 * sum(scorer.table[pair] for pair in steps) + 0.1 * len(text))
            np.testing.assert_allclose(each.acoustic, joint, atol=1e-4)
            np.testing.assert_allclose(each.attention, attention[text], atol=1e-4)
            np.testing.assert_allclose(each.fusion, fusion, atol=1e-6)
            assert each.ended


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_depends_on_neither_batch_nor_padding(ctc_weight):
    lengths = np.array([FRAMES, 3, FRAMES - 1])
    search = functools.partial(beam_search, network(ctc_weight), settings=BeamSettings(size=3), num_best=3)
    junk = np.where((np.arange(FRAMES) < lengths[:, None])[..., None], frames(3), 1e3).astype(np.float32)
    together = search(junk, lengths)
    for row in range(3):
        (alone,) = search(frames(3)[row : row + 1, : lengths[row]], lengths[row : row + 1])
        assert [each.tokens for each in alone] == [each.tokens for each in together[row]]
        np.testing.assert_allclose([e.score for e in alone], [e.score for e in together[row]], atol=1e-4)
        assert alone[0].no_speech == pytest.approx(together[row][0].no_speech, abs=1e-6)


def test_a_beam_of_one_is_greedy():
    most = 12
    x, rows = frames(3), 3
    model = functional.bind(GRAPHDEF, params())
    source = model.decoder.read(jnp.asarray(x), jnp.ones(x.shape[:2], jnp.int32))
    prompts = jnp.array([PROMPT] * rows), jnp.full(rows, len(PROMPT)), jnp.zeros(rows, jnp.int32)
    limits = {"max_new": most, "limit_B": jnp.full(rows, most)}
    keys = jax.random.split(jax.random.key(0), rows)
    greedy = generate(model.decoder, source, *prompts, jnp.zeros(rows), keys, RULES, **limits)
    found = beam_search(network(0.0, most=most), x, np.full(rows, FRAMES), settings=BeamSettings(size=1))
    for row, (best,) in enumerate(found):
        length = int(greedy.length[row])
        assert best.tokens == tuple(greedy.tokens[row, :length].tolist())
        if greedy.ended[row]:  # else it is cut before its end
            np.testing.assert_allclose(best.attention, greedy.log_prob[row], atol=1e-4)
        np.testing.assert_allclose(best.no_speech, greedy.no_speech[row], atol=1e-6)
