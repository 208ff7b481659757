"""Beam search of transducers against the losses of its transcripts and the greedy search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings
from jax_speechlm.decoding.transducer.beam import Network, beam_search
from jax_speechlm.decoding.transducer.greedy import init_state, step
from jax_speechlm.objectives.asr.transducer_loss import transducer_loss
from tests.decoding.scorers import Pairs
from tests.decoding.transducers import CASES, DIM, FRAMES, VOCAB, frames, model

EVERYTHING = BeamSettings(size=600, token_floor=-np.inf, gap=np.inf)


@functools.cache
def network(name: str) -> Network:
    module = model(name)

    @jax.jit
    def advance(states, origin, tokens, frames):
        states = module.step(jax.tree.map(lambda x: x[origin], states), tokens)
        return states, *module.log_probs(frames, states.output)

    return Network(module.init_state, advance, CASES[name][1])


@functools.cache
def losses(name: str):
    """-log P of token sequences for one utterance, from the logits of all nodes."""
    module = model(name)

    def run(encoder_TxJ, tokens_BxU, length_B):
        encoder = jnp.broadcast_to(encoder_TxJ, (len(tokens_BxU), *encoder_TxJ.shape))
        predictor = module.predict(tokens_BxU[:, None], None)[:, 0]
        hidden = jax.nn.relu(encoder[:, :, None] + predictor[:, None])
        frames = jnp.full(len(tokens_BxU), len(encoder_TxJ))
        return transducer_loss(module.joint(hidden), frames, tokens_BxU, length_B, durations=CASES[name][1])[0]

    return jax.jit(run)


@pytest.mark.parametrize("name", CASES)
def test_a_search_that_drops_nothing_gives_exact_probabilities(name):
    encoder = frames(2)[:, :3]
    found = beam_search(network(name), encoder, np.array([3, 2]), (), EVERYTHING, 1000, max_symbols=2)
    for row, length in enumerate([3, 2]):
        # Longer transcripts have alignments with more tokens in a frame than the search allows.
        short = [each for each in found[row] if len(each.tokens) <= 2]
        assert len(short) == 1 + (VOCAB - 1) + (VOCAB - 1) ** 2
        tokens = np.array([each.tokens + (0,) * (2 - len(each.tokens)) for each in short])
        lengths = np.array([len(each.tokens) for each in short])
        expected = -losses(name)(encoder[row, :length], tokens, lengths)
        np.testing.assert_allclose([each.acoustic for each in short], expected, atol=1e-4)
        assert [each.score for each in found[row]] == sorted((each.score for each in found[row]), reverse=True)
        assert all(len(each.frames) == len(each.tokens) == len(each.log_probs) for each in short)


def test_a_beam_of_one_is_greedy():
    encoder, length = frames(3), np.array([FRAMES, 6, 0])
    _, emissions = step(model("rnnt"), init_state(model("rnnt"), 3), jnp.asarray(encoder), jnp.asarray(length))
    found = beam_search(network("rnnt"), encoder, length, (), BeamSettings(size=1))
    for row, (best,) in enumerate(found):
        places = np.argwhere(emissions.tokens[row])
        assert best.tokens == tuple(emissions.tokens[row][tuple(places.T)].tolist())
        assert best.frames == tuple(places[:, 0].tolist())
        np.testing.assert_allclose(best.log_probs, emissions.log_probs[row][tuple(places.T)], atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_depends_on_neither_batch_nor_padding(name):
    encoder, length = frames(3), np.array([FRAMES, 6, 11])
    search = functools.partial(beam_search, network(name), scorers=(), settings=BeamSettings(size=4), num_best=4)
    together = search(encoder, length)
    for row in range(3):
        alone = search(encoder[row : row + 1, : length[row]], length[row : row + 1])
        assert [each.tokens for each in alone[0]] == [each.tokens for each in together[row]]
        np.testing.assert_allclose([e.score for e in alone[0]], [e.score for e in together[row]], atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_scorers_add_to_the_score_of_every_hypothesis(name):
    scorer, encoder, length = Pairs(VOCAB), frames(2)[:, :2], np.array([2, 2])
    scorer.alpha, scorer.beta = 0.7, 0.1
    plain = beam_search(network(name), encoder, length, (), EVERYTHING, 1000, max_symbols=2)
    fused = beam_search(network(name), encoder, length, (scorer,), EVERYTHING, 1000, max_symbols=2)
    for without, with_scorer in zip(plain, fused, strict=True):
        acoustic = {each.tokens: each.acoustic for each in without}
        assert acoustic.keys() == {each.tokens for each in with_scorer}
        for each in with_scorer:
            steps = [0, *each.tokens, 0]
            log_prob = sum(scorer.table[pair] for pair in itertools.pairwise(steps))
            np.testing.assert_allclose(each.fusion, 0.7 * log_prob + 0.1 * len(each.tokens), atol=1e-6)
            np.testing.assert_allclose(each.acoustic, acoustic[each.tokens], atol=1e-4)


def test_without_frames_there_is_the_empty_transcript():
    (hypotheses,) = beam_search(network("rnnt"), np.zeros((1, 0, DIM), np.float32), np.array([0]), (), num_best=3)
    assert [each.tokens for each in hypotheses] == [()]
