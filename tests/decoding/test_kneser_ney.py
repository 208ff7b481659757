"""Modified Kneser-Ney against a slow reading of the paper, and through the kenlm package."""

import collections
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.core.errors import DataError
from jax_speechlm.decoding.lm.kneser_ney import Estimate, estimate, write_arpa
from jax_speechlm.decoding.lm.ngram import BEGIN, END, UNKNOWN, NGram

pytest.importorskip("kenlm", reason="n-gram models need kenlm: pip install -e '.[ngram]'")


def corpus(seed: int, size: int = 60, words: int = 12) -> list[list[str]]:
    """Sentences with a Zipf-like vocabulary and some order in them."""
    rng = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(words)]
    sentences = []
    for _ in range(size):
        word = 0
        sentence = []
        for _ in range(rng.randint(1, 7)):
            word = (word + min(int(rng.paretovariate(1.0)), words)) % words if rng.random() < 0.7 else 0
            sentence.append(vocabulary[word])
        sentences.append(sentence)
    return sentences


class Oracle:
    """Chen and Goodman's interpolated model with dictionaries, one n-gram at a time."""

    def __init__(self, sentences, order, prune=0):
        self.order = order
        raw = [collections.Counter() for _ in range(order + 1)]
        for sentence in sentences:
            padded = (BEGIN, *sentence, END)
            for n in range(1, order + 1):
                raw[n].update(padded[start : start + n] for start in range(len(padded) - n + 1))
        self.vocabulary = {gram[0] for gram in raw[1]} - {BEGIN} | {UNKNOWN}
        self.count = [None] * (order + 1)
        self.count[order] = dict(raw[order])
        for n in range(1, order):
            left = collections.defaultdict(set)
            for gram in raw[n + 1]:
                left[gram[1:]].add(gram[0])
            self.count[n] = {
                gram: times if gram[0] == BEGIN else len(left[gram])
                for gram, times in raw[n].items()
                if gram != (BEGIN,)
            }
        self.dropped = {gram for n in range(3, order + 1) for gram, times in raw[n].items() if times <= prune}
        self.discounts = [None] + [self._discounts(n) for n in range(1, order + 1)]
        self.extensions = collections.defaultdict(list)
        for n in range(1, order + 1):
            for gram in self.count[n]:
                self.extensions[gram[:-1]].append(gram)

    def _discounts(self, n):
        times = collections.Counter(self.count[n].values())
        try:
            y = times[1] / (times[1] + 2 * times[2])
            found = [k - (k + 1) * y * times[k + 1] / times[k] for k in (1, 2, 3)]
        except ZeroDivisionError:
            return 0.5, 1.0, 1.5
        return found if all(0 <= d <= k for k, d in enumerate(found, start=1)) else (0.5, 1.0, 1.5)

    def prob(self, context: tuple[str, ...], word: str) -> float:
        while context and context not in self.extensions:
            context = context[1:]
        extensions = self.extensions[context]
        n = len(context) + 1
        total = freed = here = 0.0
        for gram in extensions:
            count = self.count[n][gram]
            lost = count if gram in self.dropped else self.discounts[n][min(count, 3) - 1]
            total, freed = total + count, freed + lost
            if gram[-1] == word:
                here = count - lost
        below = self.prob(context[1:], word) if context else 1 / len(self.vocabulary)
        return (here + freed * below) / total


def through_kenlm(model: Estimate, path) -> NGram:
    write_arpa(model, path)
    return NGram(path)


def contexts(sentences, order):
    """Every context that occurs, and some that do not."""
    found = {()}
    for sentence in sentences:
        padded = (BEGIN, *sentence)
        found |= {padded[max(0, end - order + 1) : end] for end in range(1, len(padded) + 1)}
    return [*sorted(found), ("w1", "w1", "w1")[: order - 1], ("nonsense", "w0")[: order - 1]]


def prob_after(ngram: NGram, context: tuple[str, ...], word: str) -> float:
    state = ngram.begin()
    if context[:1] != (BEGIN,):
        ngram._model.NullContextWrite(state)
    for each in context:
        if each != BEGIN:
            _, state = ngram.extend(state, each)
    return math.exp(ngram.extend(state, word)[0])


@settings(max_examples=12)
@given(st.integers(0, 99), st.integers(2, 4), st.sampled_from([0, 1]))
def test_it_is_the_slow_model_and_every_context_sums_to_one(tmp_path_factory, seed, order, prune):
    sentences = corpus(seed)
    oracle = Oracle(sentences, order, prune)
    model = estimate(sentences, order, (0, 0, prune))
    ngram = through_kenlm(model, tmp_path_factory.mktemp("arpa") / "x.arpa")
    assert set(model.words) - {BEGIN} == oracle.vocabulary
    for context in contexts(sentences, order)[::3]:
        probs = {word: prob_after(ngram, context, word) for word in oracle.vocabulary}
        assert sum(probs.values()) == pytest.approx(1.0, abs=2e-6)
        for word, prob in probs.items():
            assert prob == pytest.approx(oracle.prob(context, word), rel=3e-6)


def test_pruning_drops_rare_ngrams_and_only_those():
    sentences = corpus(0)
    full, pruned = estimate(sentences, 3), estimate(sentences, 3, (0, 0, 1))
    assert len(pruned.orders[2].word) == (full.orders[2].count > 1).sum() < len(full.orders[2].word)
    assert [len(grams.word) for grams in pruned.orders[:2]] == [len(grams.word) for grams in full.orders[:2]]
    assert pruned.discounts == full.discounts


def test_the_order_of_sentences_does_not_matter(tmp_path):
    sentences = corpus(3)
    one, two = (
        through_kenlm(estimate(each, 3), tmp_path / f"{number}.arpa")
        for number, each in enumerate((sentences, sentences[::-1]))
    )
    text = "w0 w1 w2\nw3 nonsense"
    assert one.score(text) == pytest.approx(two.score(text), rel=1e-6)


def test_text_too_regular_for_discounts_says_so():
    model = estimate([["a", "b"]] * 5, 2)
    assert model.fallbacks == (1, 2)
    assert model.discounts[0] == (0.5, 1.0, 1.5)


@pytest.mark.parametrize(("order", "prune"), [(1, ()), (7, ()), (3, (1,)), (3, (0, 2, 1))])
def test_settings_that_kenlm_or_arithmetic_cannot_take(order, prune):
    with pytest.raises(ValueError, match=r"(order|prune) is"):
        estimate([["a"]], order, prune)


def test_no_text_is_an_error():
    with pytest.raises(DataError, match="no sentence"):
        estimate([], 3)


@pytest.mark.parametrize("name", ["full", "pruned"])
def test_it_is_what_lmplz_makes(name):
    golden = np.load(Path(__file__).parents[1] / "golden" / "ngram.npz")
    sentences = [line.split() for line in golden["corpus"].tolist()]
    model = estimate(sentences, 4, golden[f"{name}_prune"].tolist())
    found, spelled = {}, None
    words = np.array(model.words, object)
    for grams in model.orders:
        last = words[grams.word]
        spelled = last if spelled is None else spelled[grams.context] + " " + last
        found |= dict(zip(spelled, zip(grams.log10_prob, grams.log10_backoff, strict=True), strict=True))
    theirs = golden[f"{name}_ngrams"].tolist()
    assert set(found) == set(theirs)
    ours = np.array([found[gram] for gram in theirs])
    ours[theirs.index(BEGIN), 0] = 0.0  # never asked for; the tools fill it in as they like
    np.testing.assert_allclose(ours, golden[f"{name}_log10"], atol=1e-6)
