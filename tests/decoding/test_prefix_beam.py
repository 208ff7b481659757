"""CTC prefix beam search against sums over all alignments, and against plain arithmetic with scorers."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.decoding.ctc.greedy import collapse
from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings, prefix_beam_search
from jax_speechlm.decoding.lm.fusion import StepScorer

EXACT = BeamSettings(size=700, token_floor=-np.inf, gap=np.inf)
BATCHES = st.tuples(st.integers(0, 999), st.integers(2, 4), st.lists(st.integers(0, 5), min_size=1, max_size=4))


def posteriors(seed: int, shape: tuple[int, ...], sharpness: float = 2.0) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).standard_normal(shape)
    return (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).astype(np.float32)


def transcripts(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log probability of every transcript, by adding up all paths."""
    num_frames, vocab = log_probs.shape
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(vocab), repeat=num_frames):
        spelled = tuple(token for token, _ in itertools.groupby(path) if token)
        log_prob = float(log_probs[range(num_frames), path].sum(dtype=np.float64))
        found[spelled] = np.logaddexp(found.get(spelled, -np.inf), log_prob)
    return found


class Bigram(StepScorer):
    """A table of scores: `table[last, token]`, and `ends[last]`; token 0 is the start."""

    def __init__(self, seed: int, vocab: int):
        super().__init__(vocab)
        rng = np.random.default_rng(seed)
        self.table, self.ends = rng.standard_normal((vocab, vocab)), rng.standard_normal(vocab)

    def initial(self):
        return 0

    def step(self, value, token):
        return self.table[value, token], 1, token

    def end(self, value):
        return self.ends[value], 0

    def total(self, tokens) -> float:
        pairs = itertools.pairwise((0, *tokens))
        log_prob = sum(self.table[pair] for pair in pairs) + self.ends[tokens[-1] if tokens else 0]
        return self.alpha * log_prob + self.beta * len(tokens)


@settings(max_examples=40)
@given(BATCHES)
def test_a_wide_beam_adds_up_all_alignments(case):
    seed, vocab, lengths = case
    log_probs = posteriors(seed, (len(lengths), 5, vocab))
    found = prefix_beam_search(log_probs, np.array(lengths), settings=EXACT, num_best=1000)
    for hypotheses, row, length in zip(found, log_probs, lengths, strict=True):
        expected = transcripts(row[:length])
        assert {each.tokens for each in hypotheses} == set(expected)
        for each in hypotheses:
            assert each.acoustic == pytest.approx(expected[each.tokens], abs=1e-5)
            assert each.fusion == 0
        assert [each.score for each in hypotheses] == sorted((each.score for each in hypotheses), reverse=True)


@settings(max_examples=20)
@given(BATCHES, st.sampled_from([(1.0, 0.0), (0.4, 0.7), (0.0, -1.0)]))
def test_scorers_add_their_weighted_share(case, weights):
    seed, vocab, lengths = case
    log_probs = posteriors(seed, (len(lengths), 5, vocab))
    first, second = Bigram(seed, vocab), Bigram(seed + 1, vocab)
    first.alpha, first.beta = weights
    found = prefix_beam_search(log_probs, np.array(lengths), (first, second), EXACT)
    for (best,), row, length in zip(found, log_probs, lengths, strict=True):
        scores = {
            tokens: log_prob + first.total(tokens) + second.total(tokens)
            for tokens, log_prob in transcripts(row[:length]).items()
        }
        assert best.score == pytest.approx(max(scores.values()), abs=1e-5)
        assert best.tokens == max(scores, key=scores.__getitem__)


@settings(max_examples=20)
@given(st.integers(0, 999), st.integers(1, 30), st.integers(0, 30))
def test_a_row_does_not_depend_on_padding_or_on_other_rows(seed, length, extra):
    log_probs = posteriors(seed, (4, 30 + extra, 6))
    scorer = functools.partial(Bigram, seed, 6)
    search = functools.partial(prefix_beam_search, settings=BeamSettings(size=5), num_best=5)
    (alone,) = search(log_probs[2:3, :length], np.array([length]), (scorer(),))
    together = search(log_probs, np.array([30, 3, length, 17]), (scorer(),))
    assert together[2] == alone


def test_a_prefix_that_was_dropped_and_comes_back_still_merges():
    # With one token and beam 2, "a" leaves the beam and comes back: its extensions must not appear twice.
    for seed in range(30):
        log_probs = posteriors(seed, (1, 12, 3), sharpness=3.0)
        (found,) = prefix_beam_search(log_probs, np.array([12]), settings=BeamSettings(size=3), num_best=3)
        assert len({each.tokens for each in found}) == len(found)


def test_the_search_finds_what_is_likelier_than_the_best_path():
    gains = []
    for seed in range(30):
        log_probs = posteriors(seed, (1, 6, 3), sharpness=1.0)
        exact = transcripts(log_probs[0])
        (greedy,) = collapse(log_probs.argmax(-1))
        ((best,),) = prefix_beam_search(log_probs, np.array([6]), settings=BeamSettings(size=8))
        gains.append(exact[best.tokens] - exact[tuple(greedy)])
    assert min(gains) > -1e-9
    assert max(gains) > 0.1


def test_no_row_and_no_frame_are_well_defined():
    assert prefix_beam_search(np.zeros((0, 4, 3), np.float32), np.zeros(0, np.int64)) == []
    ((empty,),) = prefix_beam_search(np.zeros((1, 0, 3), np.float32), np.zeros(1, np.int64))
    assert (empty.tokens, empty.score) == ((), 0.0)
