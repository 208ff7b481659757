"""Goodness of pronunciation, against the sum over every path of a tiny case."""

import itertools

import numpy as np
import pytest

from jax_speechlm.decoding.ctc.alignment import force_align
from jax_speechlm.decoding.ctc.goodness import by_alignment, without_alignment


def posteriors(seed: int, num_frames: int, vocab: int) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).normal(size=(num_frames, vocab))
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token)


def by_enumeration(log_probs: np.ndarray, text: tuple[int, ...]) -> list[float]:
    """Sums the probabilities of all paths of the text, and of all texts with one token replaced or left out."""
    probability: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        value = np.exp(log_probs[np.arange(len(path)), path].sum(dtype=np.float64))
        probability[collapsed(path)] = probability.get(collapsed(path), 0.0) + value
    scores = []
    for place in range(len(text)):
        changed = {(*text[:place], *middle, *text[place + 1 :]) for middle in [(), *((v,) for v in range(1, 99))]}
        scores.append(np.log(probability[text] / sum(probability.get(each, 0.0) for each in changed)))
    return scores


@pytest.mark.parametrize("text", [(1,), (1, 2), (2, 2), (1, 2, 1), (1, 1, 2), (1, 2, 3), (3, 1, 1)])
def test_sums_are_those_over_all_paths(text):
    log_probs = posteriors(len(text), 6, 4)
    (scores,) = without_alignment([log_probs], [text])
    np.testing.assert_allclose(scores, by_enumeration(log_probs, text), atol=2e-5)


def test_a_row_does_not_depend_on_padding_or_on_other_rows():
    rows = [posteriors(0, 6, 4), posteriors(1, 40, 4), posteriors(2, 9, 4)]
    texts = [(1, 2), (3, 1, 2, 1), ()]
    together = without_alignment(rows, texts)
    assert together[2] == []
    for row, text, scores in zip(rows, texts, together, strict=True):
        np.testing.assert_allclose(without_alignment([row], [text])[0], scores, atol=1e-5)
    padded = without_alignment([*rows, rows[0]], [*texts, tuple([1, 2] * 10)])  # 20 tokens in 6 frames
    assert padded[3] is None
    np.testing.assert_allclose(padded[1], together[1], atol=1e-5)


def test_a_text_that_just_fits_has_scores():
    log_probs = posteriors(3, 5, 3)
    (scores,) = without_alignment([log_probs], [(1, 1, 1)])
    np.testing.assert_allclose(scores, by_enumeration(log_probs, (1, 1, 1)), atol=2e-5)
    assert without_alignment([log_probs[:4]], [(1, 1, 1)]) == [None]


def test_scores_by_alignment_are_relative_to_the_best_token():
    log_probs = np.log(
        np.array([[0.1, 0.6, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1], [0.05, 0.7, 0.2, 0.05]])
    ).astype(np.float32)
    (spans,) = force_align([log_probs], [(1, 2)])
    assert [(span.start, span.end) for span in spans] == [(0, 2), (3, 4)]
    np.testing.assert_allclose(by_alignment(log_probs, spans), [0.0, np.log(0.2 / 0.7)], atol=1e-6)
