"""Purities, information and leakage against definitions written out, scikit-learn and known answers."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score
from sklearn.naive_bayes import MultinomialNB

from jax_speechlm.units.measures import agreement, bitrate, speaker_leakage, usage


def test_usage_counts_frames_and_runs():
    found = usage([np.array([0, 0, 1, 1, 1, 0]), np.array([3]), np.array([3, 3])], num_units=5, frame_seconds=0.02)
    share = np.array([3, 3, 3]) / 9
    assert (found.frames, found.used) == (9, 0.6)
    assert found.entropy == pytest.approx(-(share * np.log(share)).sum())
    assert found.perplexity == pytest.approx(3)
    assert found.run_frames == pytest.approx(9 / 5)  # a run ends with its utterance
    assert (found.frames_per_second, found.units_per_second) == (pytest.approx(50), pytest.approx(5 / 0.18))


def test_a_bit_rate_counts_units_of_the_seconds_that_they_stand_for():
    found = bitrate([np.array([0, 1, 0]), np.array([], int), np.array([2])], num_units=8, seconds=2.0)
    assert (found.num_units, found.units_per_second) == (8, 2.0)
    assert found.bits_per_second == pytest.approx(2 * 3)
    assert found.entropy_per_second == pytest.approx(2 * 1.5)  # halves of 1 bit, quarters of 2
    one = bitrate([np.array([0, 0])], num_units=1, seconds=1.0)
    assert one.bits_per_second == one.entropy_per_second == 0


def test_agreement_of_random_labels_is_what_scikit_learn_says():
    rng = np.random.default_rng(0)
    units = rng.integers(8, size=3000)
    labels = (units // 2 + (rng.random(3000) < 0.3) * rng.integers(5, size=3000)) % 5
    counts = np.zeros((8, 6), int)  # a sixth class that nothing has
    np.add.at(counts, (units, labels), 1)
    found = agreement(counts)
    share = np.bincount(labels) / 3000
    information = mutual_info_score(labels, units)
    commonest = {unit: np.bincount(labels[units == unit]).argmax() for unit in range(8)}
    assert (found.classes, found.frames) == (5, 3000)
    assert found.information == pytest.approx(information)
    assert found.pnmi == pytest.approx(information / -(share * np.log(share)).sum())
    assert found.label_purity == pytest.approx(np.mean(labels == [commonest[unit] for unit in units]))
    assert found.majority == pytest.approx(share.max())
    of_label = {label: np.bincount(units[labels == label]).argmax() for label in range(5)}
    assert found.unit_purity == pytest.approx(np.mean(units == [of_label[label] for label in labels]))


def test_agreement_at_its_ends():
    perfect = agreement(np.diag([4, 3, 5]))
    assert (perfect.label_purity, perfect.unit_purity) == (1, 1)
    assert perfect.pnmi == pytest.approx(1)
    nothing = agreement(np.outer([2, 4], [3, 1]))
    assert nothing.pnmi == pytest.approx(0, abs=1e-12)
    assert nothing.label_purity == nothing.majority == 0.75
    assert agreement(np.array([[5], [2]])).pnmi == 0  # one class: nothing to tell


def histograms(speakers: np.ndarray, separation: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    taste = rng.dirichlet(np.ones(30), speakers.max() + 1)
    shares = separation * taste[speakers] + (1 - separation) / 30
    return np.stack([rng.multinomial(60, share) for share in shares])


def test_leakage_is_that_of_naive_bayes():
    speakers = np.random.default_rng(1).integers(6, size=400)
    found = speaker_leakage(histograms(speakers, 1.0), speakers)
    assert found.speakers == 6
    assert found.accuracy > 0.95
    blind = speaker_leakage(histograms(speakers, 0.0), speakers)
    assert blind.accuracy < 0.3
    assert blind.majority < 0.3


def test_leakage_equals_scikit_learn_on_the_same_halves():
    """With one utterance a speaker repeated, every half is the same, however it was drawn."""
    rng = np.random.default_rng(2)
    of_speaker = rng.multinomial(40, rng.dirichlet(np.ones(12), 9))
    speakers = np.repeat(np.arange(9), 4)
    noisy = of_speaker[speakers]
    found = speaker_leakage(noisy, speakers)
    peer = MultinomialNB(alpha=1.0, fit_prior=False).fit(noisy, speakers)
    assert found.accuracy == pytest.approx(peer.score(noisy, speakers))
    assert found.utterances == 18


def test_leakage_needs_two_speakers_with_two_utterances():
    counts = np.ones((4, 3), int)
    assert speaker_leakage(counts, np.array([0, 0, 0, 0])) is None
    assert speaker_leakage(counts, np.array([0, 1, 2, 3])) is None
    assert speaker_leakage(counts, np.array([0, 0, 5, 5])).speakers == 2  # numbers may have gaps
    assert speaker_leakage(counts, np.array([0, 0, 5, 5])).utterances == 2
