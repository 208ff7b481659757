"""Error rates against jiwer, intervals against a naive bootstrap, the paired test against known answers."""

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_speechlm.evaluation import resampling, wer

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "c"]), max_size=7).map(" ".join)
CORPUS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8)


@given(CORPUS)
def test_totals_equal_jiwer(corpus):
    references, hypotheses = map(list, zip(*corpus, strict=True))
    for unit, process in (("word", jiwer.process_words), ("character", jiwer.process_characters)):
        expected = process(references, hypotheses)
        totals = wer.count(wer.align(references, hypotheses, unit)).sum(0)
        tokens = expected.hits + expected.substitutions + expected.deletions
        assert totals.tolist() == [expected.substitutions, expected.deletions, expected.insertions, tokens]


@given(CORPUS)
def test_an_alignment_reads_back_as_both_texts(corpus):
    references, hypotheses = map(list, zip(*corpus, strict=True))
    for reference, hypothesis, row in zip(
        references, hypotheses, wer.align(references, hypotheses, "word"), strict=True
    ):
        assert [said for kind, said, _ in row.edits if kind != "I"] == reference.split()
        assert [heard for kind, _, heard in row.edits if kind != "D"] == hypothesis.split()
        assert all((said == heard) == (kind == "=") for kind, said, heard in row.edits)


def test_the_corpus_rate_is_total_errors_over_total_words():
    counts = wer.count(wer.align(["a b c d", "a", ""], ["a b c d", "b", "c c"], "word"))
    assert wer.rate(counts) == 3 / 5  # not the mean of 0, 1 and infinity; the empty reference counts
    assert wer.rate(counts[2:]) is None
    assert wer.bootstrap(counts[2:]) is None


def some_counts(seed: int, utterances: int) -> wer.Counts:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.integers(0, 3, (utterances, 3)), rng.integers(0, 9, (utterances, 1))], axis=1)


def test_interval_equals_a_naive_bootstrap():
    counts, rng, rates = some_counts(0, 40), np.random.default_rng(7), []
    for _ in range(2_000):
        drawn = [counts[rng.integers(40)] for _ in range(40)]
        rates.append(sum(int(row[:3].sum()) for row in drawn) / sum(int(row[3]) for row in drawn))
    np.testing.assert_allclose(wer.bootstrap(counts), np.percentile(rates, [2.5, 97.5]), rtol=0.03)
    assert wer.bootstrap(counts) == wer.bootstrap(counts)
    assert wer.bootstrap(counts) != wer.bootstrap(counts, seed=1)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    population = some_counts(0, 20_000)
    truth, rng = wer.rate(population), np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = wer.bootstrap(population[rng.integers(len(population), size=100)], resamples=400)
        covered += low <= truth <= high
    assert 0.88 < covered / 200 < 0.99


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    counts = some_counts(0, 40)
    whole = wer.bootstrap(counts, resamples=1_000)
    monkeypatch.setattr(resampling, "_DRAWS_AT_ONCE", 40 * 7)
    assert wer.bootstrap(counts, resamples=1_000) == whole


def test_paired_bootstrap():
    base = some_counts(0, 200)
    worse = base + np.array([1, 0, 0, 0]) * (np.arange(200) % 4 == 0)[:, None]
    difference = wer.paired_bootstrap(base, worse)
    assert difference.value == pytest.approx(50 / base[:, 3].sum())
    lowest, highest = difference.interval
    assert 0 < lowest < difference.value < highest
    assert difference.p_value < 0.01
    low, high = wer.bootstrap(base)
    assert highest - lowest < 0.5 * (high - low)  # pairing is what makes it sharp
    same = wer.paired_bootstrap(base, base)
    assert (same.value, same.interval, same.p_value) == (0, (0, 0), 1)


def test_few_utterances_have_no_interval():
    counts = some_counts(0, resampling.MIN_UTTERANCES)
    counts[:, 3] += 1
    assert wer.bootstrap(counts) is not None
    assert wer.paired_bootstrap(counts, counts).interval is not None
    counts[0, 3] = 0  # what has no reference does not count
    for few in (counts, counts[:1], counts[1:2]):
        assert wer.bootstrap(few) is None
    assert wer.paired_bootstrap(counts, counts) == resampling.Difference(0.0)
    assert wer.bootstrap(np.concatenate([counts[1:], np.zeros((99, 4), int)])) is None


def test_paired_bootstrap_is_calibrated_where_there_is_no_difference():
    rng, p_values = np.random.default_rng(2), []
    for seed in range(100):
        one, other = some_counts(seed, 80), some_counts(seed + 1_000, 80)
        other[:, 3] = one[:, 3] = rng.integers(1, 9, 80)
        p_values.append(wer.paired_bootstrap(one, other, resamples=400).p_value)
    assert np.mean(np.array(p_values) < 0.05) < 0.13
    assert 0.3 < np.mean(p_values) < 0.7


def test_different_references_are_not_compared():
    counts = some_counts(0, 10)
    with pytest.raises(ValueError, match="same references"):
        wer.paired_bootstrap(counts, counts + 1)
