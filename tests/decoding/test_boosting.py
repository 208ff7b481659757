"""Boosted phrases: bonuses for whole words, and none for other words with the same beginning."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer, train_tokenizer
from jax_speechlm.decoding.ctc.boosting import Boost, read_phrases
from jax_speechlm.decoding.ctc.prefix_beam import prefix_beam_search
from tests.decoding.test_ngram import total
from tests.decoding.test_prefix_beam import posteriors

TOKENIZER = CharTokenizer(" ab")
WORDS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=6)


@settings(max_examples=200)
@given(WORDS, st.lists(WORDS.map(lambda words: " ".join(words[:3])), min_size=1, max_size=4, unique=True))
def test_the_total_is_the_bonuses_of_all_occurrences(words, phrases):
    bonuses = {phrase: 1.0 + place for place, phrase in enumerate(phrases)}
    text = " ".join(words)
    expected = sum(bonus * len(re.findall(f"(?=(?:^| ){phrase}(?: |$))", text)) for phrase, bonus in bonuses.items())
    assert total(Boost(bonuses, TOKENIZER.pieces), TOKENIZER.encode(text)) == pytest.approx(expected)


def test_pieces_are_boosted_as_characters_are():
    texts = ["the cat sat on the mat"] * 4
    pieces = train_tokenizer(texts, "bpe", 20)
    boost = Boost({"cat": 2.0, "the mat": 5.0}, pieces.pieces)
    assert total(boost, pieces.encode("the cat sat on the mat")) == pytest.approx(7.0)
    assert total(boost, pieces.encode("the cats the ma")) == pytest.approx(0.0)


def test_a_partial_match_is_paid_as_it_grows_and_paid_back_when_it_fails():
    boost = Boost({"aab": 3.0}, TOKENIZER.pieces)
    space, a, b = TOKENIZER.encode(" ab")
    state, gains = np.array([boost.start(1, 9)]), []
    for token in (a, a, a, space, a, a, b, space):
        gains.append(boost.score(state, np.array([token]))[0])
        state = boost.advance(state, np.array([token]))
    assert gains == pytest.approx([0.75, 0.75, -1.5, 0, 0.75, 0.75, 0.75, 0.75])
    assert boost.final(state)[0] == 0


def test_a_search_finds_the_boosted_word():
    log_probs = posteriors(0, (1, 6, 4), sharpness=0.5)
    lengths = np.array([6])
    ((plain,),) = prefix_beam_search(log_probs, lengths)
    ((boosted,),) = prefix_beam_search(log_probs, lengths, (Boost({"aab": 8.0}, TOKENIZER.pieces),))
    assert TOKENIZER.decode(plain.tokens).split() != ["aab"]
    assert "aab" in TOKENIZER.decode(boosted.tokens).split()
    assert boosted.fusion == pytest.approx(8.0)


def test_a_file_of_phrases(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("ab\n\nab  ba\nbb\t-2.5\n")
    assert read_phrases(file, TOKENIZER) == {"ab": 5.0, "ab ba": 10.0, "bb": -2.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ab\nax\n", "line 2: .*no token for 'x'"),
        ("ab\tmuch\n", "line 1: 'much' is not a number"),
        ("\n", "has no phrase"),
    ],
)
def test_mistakes_in_a_file_of_phrases(tmp_path, content, message):
    file = tmp_path / "words.txt"
    file.write_text(content)
    with pytest.raises(DataError, match=rf"words\.txt.*{message}"):
        read_phrases(file, TOKENIZER)
    with pytest.raises(DataError, match="does not exist"):
        read_phrases(tmp_path / "none.txt", TOKENIZER)
