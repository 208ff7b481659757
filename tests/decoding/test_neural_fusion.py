"""A neural model as a scorer: the same numbers as the model gives to whole texts, at fixed shapes."""

import dataclasses

import jax
import numpy as np
import pytest

from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings, prefix_beam_search
from jax_speechlm.decoding.lm.neural_fusion import NeuralScorer
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from tests.decoding.test_ngram import total
from tests.decoding.test_prefix_beam import posteriors
from tests.objectives.text import MODEL, TOKENIZER

VOCAB = TOKENIZER.vocab_size


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    built = CausalLM().build(MODEL, None, TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))
    return LanguageModel(MODEL, TOKENIZER, params, 64)


@pytest.fixture(scope="module")
def scorer(lm) -> NeuralScorer:
    return NeuralScorer(lm, np.arange(VOCAB), lm.vocabulary.boundary)


def test_step_by_step_it_is_the_score_of_the_text(lm, scorer):
    for text in ("a bad cab", "", "hello there"):
        assert total(scorer, TOKENIZER.encode(text)) == pytest.approx(lm.score([text])[0], rel=1e-5)


def test_a_search_ranks_by_the_models_scores(lm, scorer):
    log_probs, lengths = posteriors(1, (3, 8, VOCAB), sharpness=3.0), np.array([8, 5, 8])
    scorer.alpha, scorer.beta = 0.7, 0.3
    found = prefix_beam_search(log_probs, lengths, (scorer,), BeamSettings(size=6), num_best=6)
    for hypotheses in found:
        texts = [TOKENIZER.decode(each.tokens) for each in hypotheses]
        expected = 0.7 * lm.score(texts) + 0.3 * np.array([len(each.tokens) for each in hypotheses])
        np.testing.assert_allclose([each.fusion for each in hypotheses], expected, rtol=1e-4, atol=1e-4)
    (alone,) = prefix_beam_search(log_probs[1:2, :5], lengths[1:2], (scorer,), BeamSettings(size=6), num_best=6)
    assert [each.tokens for each in alone] == [each.tokens for each in found[1]]
    np.testing.assert_allclose([each.score for each in alone], [each.score for each in found[1]], atol=1e-4)
    scorer.alpha, scorer.beta = 1.0, 0.0


def test_searches_of_one_size_compile_one_program(lm, scorer):
    for seed in range(2):
        prefix_beam_search(posteriors(seed, (3, 8, VOCAB)), np.array([8, 3, 7]), (scorer,), BeamSettings(size=6))
        if seed == 0:
            compiled = lm._step._cache_size()
    assert lm._step._cache_size() == compiled


def test_a_prefix_longer_than_the_context_goes_on_from_its_last_half(lm):
    short = dataclasses.replace(lm, context=8)
    scorer = NeuralScorer(short, np.arange(VOCAB), lm.vocabulary.boundary)
    tokens = TOKENIZER.encode("abcabcabcab")
    assert len(tokens) == 11
    states = np.array([scorer.start(1, 100)])
    for token in tokens[:9]:
        states = scorer.advance(states, np.array([token]))
    # The ninth token did not fit: the model was given the boundary and tokens 5 to 8 before it.
    fresh = NeuralScorer(short, np.arange(VOCAB), lm.vocabulary.boundary)
    expected = np.array([fresh.start(1, 100)])
    for token in tokens[4:9]:
        expected = fresh.advance(expected, np.array([token]))
    candidates = np.arange(1, VOCAB)
    np.testing.assert_allclose(
        scorer.score(np.repeat(states, VOCAB - 1), candidates),
        fresh.score(np.repeat(expected, VOCAB - 1), candidates),
        rtol=1e-5,
    )
