"""Word tables: the arithmetic of vectors, nearest words, analogies, and the word2vec format."""

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.storage.word2vec import read_word2vec, write_word2vec
from jax_speechlm.inference.word_vectors import WordTable, cosine

WORDS = ("king", "queen", "man", "woman", "apple")
VECTORS = np.array([[1, 1, 0], [1, -1, 0], [0, 2, 0.1], [0, -2, 0.1], [0, 0, 3]], np.float32)
TABLE = WordTable(WORDS, VECTORS)


def test_the_mean_of_a_texts_words_and_its_similarity():
    table = WordTable(("one", "two"), np.array([[1, 2, 3], [7, 8, 9]], np.float32))
    (mean,) = table.embed(["One, two."])
    np.testing.assert_array_equal(mean, [4, 5, 6])
    assert cosine(table.vector("one"), mean) == pytest.approx(0.9746, abs=5e-5)  # 32 / sqrt(14 * 77)
    assert not table.embed(["nothing known"]).any()


def test_nearest_words_are_ranked_by_cosine():
    ranked = TABLE.nearest("king", 4)
    assert next(word for word, _ in ranked) == "man"
    norms = np.linalg.norm(VECTORS, axis=1)
    expected = {word: VECTORS[0] @ VECTORS[n] / norms[0] / norms[n] for n, word in enumerate(WORDS)}
    for word, similarity in ranked:
        assert similarity == pytest.approx(expected[word], abs=1e-6)
        assert TABLE.similarity("king", word) == pytest.approx(similarity, abs=1e-6)
    values = [similarity for _, similarity in ranked]
    assert values == sorted(values, reverse=True)
    assert "king" not in dict(ranked)
    assert len(TABLE.nearest("KING", 99)) == 4
    assert TABLE.nearest(VECTORS[4], 1)[0].word == "apple"


def test_analogies_leave_out_their_words():
    assert TABLE.analogy("man", "king", "woman")[0].word == "queen"
    assert {word for word, _ in TABLE.analogy("man", "king", "woman", 9)} == {"queen", "apple"}


def test_unknown_words_are_named():
    with pytest.raises(DataError, match="no vector of 'pear', only of 5 other words"):
        TABLE.nearest("pear")
    assert "KING" in TABLE
    assert "pear" not in TABLE


def test_a_vector_of_zeros_is_like_nothing():
    assert cosine(np.zeros(3, np.float32), np.ones(3, np.float32)) == 0


def test_the_text_format_keeps_every_bit(tmp_path):
    rng = np.random.default_rng(0)
    vectors = np.exp(rng.normal(0, 20, (5, 7))).astype(np.float32) * rng.choice([-1, 1], (5, 7)).astype(np.float32)
    write_word2vec(tmp_path / "x" / "vectors.txt", ("a", "b\u0301", "\u6f22", "don't", "\x85x"[1:]), vectors)
    words, again = read_word2vec(tmp_path / "x" / "vectors.txt")
    assert words == ("a", "b\u0301", "\u6f22", "don't", "x")
    np.testing.assert_array_equal(again, vectors)
    assert WordTable.load(tmp_path / "x" / "vectors.txt").words == words
    with pytest.raises(ValueError, match="no place for the word 'a b'"):
        write_word2vec(tmp_path / "y.txt", ("a b",), vectors[:1])


@pytest.mark.parametrize(
    ("content", "line"),
    [("", 1), ("two words\n", 1), ("2 2\na 1 2\n", 3), ("2 2\na 1 2\nb 1\n", 3), ("1 2\na 1 x\n", 2), ("1 2\n", 2)],
)
def test_a_damaged_file_is_named_with_its_line(content, line, tmp_path):
    (tmp_path / "vectors.txt").write_text(content)
    with pytest.raises(DataError, match=f"vectors.txt: line {line} is not of the text format"):
        WordTable.load(tmp_path / "vectors.txt")
