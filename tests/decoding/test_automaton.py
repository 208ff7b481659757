"""Automata accept what they were built from, and decodings held to them are exact."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_speechlm.decoding.automaton import AutomatonScorer, Graph, TokenAutomaton, TooManyStatesError
from jax_speechlm.decoding.ctc.alignment import force_align
from jax_speechlm.decoding.ctc.constrained import best_path_within
from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings, prefix_beam_search
from jax_speechlm.decoding.transducer.beam import Network, beam_search

VOCAB, FRAMES, LONGEST = 4, 6, 4
SEQUENCES = st.sets(
    st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=LONGEST).map(tuple), min_size=1, max_size=8
)
EXACT = BeamSettings(size=2000, token_floor=-np.inf, gap=np.inf)


def graph_of(sequences):
    graph = Graph(10_000)
    for sequence in sequences:
        graph.final.add(graph.add_path(0, sequence))
    return graph


def accepted(graph, longest=LONGEST + 1):
    return {
        tokens
        for length in range(longest + 1)
        for tokens in itertools.product(range(1, VOCAB), repeat=length)
        if _ends(graph, tokens) & graph.final
    }


def _ends(graph, tokens):
    states = graph._closure([0])
    for token in tokens:
        states = graph._closure([target for state in states for label, target in graph.arcs[state] if label == token])
    return states


def posteriors(seed, frames=FRAMES):
    logits = np.random.default_rng(seed).normal(0, 2, (frames, VOCAB))
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def ctc_score(log_probs, tokens):
    """Sums all paths of a token sequence, one by one."""
    total = -np.inf
    for path in itertools.product(range(VOCAB), repeat=len(log_probs)):
        if tuple(key for key, _ in itertools.groupby(path) if key) == tokens:
            total = np.logaddexp(total, log_probs[np.arange(len(path)), path].sum())
    return total


def best_alignment(log_probs, tokens):
    (spans,) = force_align([log_probs], [tokens])
    if spans is None:
        return -np.inf
    used = {frame for span in spans for frame in range(span.start, span.end)}
    blanks = sum(log_probs[frame, 0] for frame in range(len(log_probs)) if frame not in used)
    return sum(span.log_prob for span in spans) + blanks


@given(sequences=SEQUENCES)
def test_smaller_automata_accept_the_same(sequences):
    graph = graph_of(sequences)
    deterministic = graph.determinized()
    smallest = deterministic.minimized()
    assert accepted(graph) == accepted(deterministic) == accepted(smallest) == sequences
    assert len(smallest.arcs) <= len(deterministic.arcs)
    assert all(len({label for label, _ in arcs}) == len(arcs) for arcs in smallest.arcs)


def test_paths_without_an_end_are_left_out():
    graph = graph_of({(1, 2)})
    graph.add_path(0, (1, 3, 3))  # ends in no final state
    assert len(graph.determinized().arcs) == 3


def test_automata_are_bounded():
    with pytest.raises(TooManyStatesError, match="more than 3 states"):
        Graph(3).add_path(0, (1, 2, 3))


@given(sequences=SEQUENCES, seed=st.integers(0, 10**6))
def test_the_best_path_is_that_of_the_best_accepted_sequence(sequences, seed):
    log_probs = posteriors(seed)
    scores = {tokens: best_alignment(log_probs, tokens) for tokens in sequences}
    found = best_path_within(log_probs, TokenAutomaton.of(graph_of(sequences).determinized().minimized()))
    if max(scores.values()) == -np.inf:
        assert found is None
    else:
        tokens, score = found
        np.testing.assert_allclose(score, max(scores.values()), rtol=1e-9)
        np.testing.assert_allclose(score, scores[tokens], rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_held_to_an_automaton_finds_the_best_sum_over_alignments(seed):
    sequences = {(1,), (1, 1), (2, 3), (3, 1, 2)}
    log_probs = posteriors(seed, frames=5)
    scorer = AutomatonScorer(TokenAutomaton.of(graph_of(sequences)), VOCAB)
    lengths = np.array([len(log_probs)])
    (found,) = prefix_beam_search(log_probs[None].astype(np.float64), lengths, [scorer], EXACT, num_best=10)
    found = {each.tokens: each.acoustic for each in found if np.isfinite(each.score)}
    assert set(found) == sequences
    for tokens, score in found.items():
        np.testing.assert_allclose(score, ctc_score(log_probs, tokens), rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_transducer_held_to_an_automaton_emits_nothing_else(seed):
    sequences = {(1,), (1, 1), (2, 3), (3, 1, 2)}
    log_probs = posteriors(seed, frames=8)
    network = Network(
        lambda prefixes: np.zeros(prefixes),
        lambda states, origin, tokens, frames: (states, frames, np.zeros((len(frames), 0))),  # frames are log-probs
    )
    scorer = AutomatonScorer(TokenAutomaton.of(graph_of(sequences)), VOCAB)
    inputs = log_probs[None], np.array([len(log_probs)])
    (found,) = beam_search(network, *inputs, [scorer], EXACT, num_best=10, max_symbols=1)
    found = {each.tokens: each.acoustic for each in found if np.isfinite(each.score)}
    assert set(found) == sequences
    for tokens, score in found.items():
        np.testing.assert_allclose(score, transducer_score(log_probs, tokens), rtol=1e-9)


def transducer_score(log_probs, tokens):
    """Sums over the frames of the tokens, at most one a frame, each followed by a blank at some frame."""
    total = -np.inf
    for frames in itertools.combinations(range(len(log_probs)), len(tokens)):
        emitted = sum(log_probs[frame, token] for frame, token in zip(frames, tokens, strict=True))
        total = np.logaddexp(total, emitted + log_probs[:, 0].sum())
    return total


def test_words_after_the_first_have_their_own_tokens():
    words = Graph(100)
    after = words.add_path(0, ["b"])
    words.add_arc(after, "a", after)  # a skip word
    words.final.add(words.add_path(after, ["c"]))
    words.add_arc(0, "a", 0)
    encode = {("a", True): (1,), ("a", False): (9, 1), ("b", True): (2,), ("b", False): (9, 2), ("c", False): (9, 3)}
    automaton = TokenAutomaton.of_words(words, lambda word, is_first: encode[word, is_first], 100)

    def accepts(tokens):
        state = 0
        for token in tokens:
            state = automaton.arcs.get((state, token))
            if state is None:
                return False
        return bool(automaton.final[state])

    assert accepts((2, 9, 3))
    assert accepts((1, 9, 1, 9, 2, 9, 1, 9, 3))
    assert not accepts((2,))
    assert not accepts((9, 2, 9, 3))
    assert not accepts((1, 2, 9, 3))
