"""Word vectors against gensim: its program again, the file that it opens, neighbours, analogies and evaluations."""

import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.storage.word2vec import read_word2vec, write_word2vec
from jax_speechlm.evaluation.word_vectors import measure_file
from jax_speechlm.inference.word_vectors import WordTable

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def gensim():
    return pytest.importorskip("gensim")


@pytest.fixture(scope="module")
def words(gensim) -> list[str]:
    """Words of gensim's files of pairs and analogies, of which some are left out."""
    folder = Path(gensim.__file__).parent / "test" / "test_data"
    lines = [line.lower().split() for line in (folder / "questions-words.txt").read_text().splitlines()[:400:7]]
    lines += [line.lower().split("\t")[:2] for line in (folder / "wordsim353.tsv").read_text().splitlines()[2:300]]
    return sorted({word for line in lines for word in line if line[0] != ":"})


@pytest.fixture(scope="module")
def tables(gensim, words, tmp_path_factory):
    """The same vectors in both: ours, and gensim's reading of our file."""
    rng = np.random.default_rng(0)
    table = WordTable(tuple(words), rng.normal(0, 1, (len(words), 12)).astype(np.float32))
    path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    write_word2vec(path, table.words, table.vectors)
    return table, gensim.models.KeyedVectors.load_word2vec_format(str(path), binary=False)


def test_the_golden_arrays_are_gensims(gensim):
    sys.path.insert(0, str(GOLDEN))
    from make_word_vectors import golden

    with np.load(GOLDEN / "word_vectors.npz") as kept:
        made = golden()
        assert set(kept.files) == set(made)
        for name in kept.files:
            np.testing.assert_allclose(kept[name], made[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_either_reads_the_others_file(tables, tmp_path):
    table, other = tables
    assert tuple(other.index_to_key) == table.words
    np.testing.assert_array_equal(other.vectors, table.vectors)
    other.save_word2vec_format(str(tmp_path / "theirs.txt"), binary=False)
    words, vectors = read_word2vec(tmp_path / "theirs.txt")
    assert words == table.words
    np.testing.assert_array_equal(vectors, table.vectors)


def test_neighbours_and_analogies_are_the_same(tables):
    table, other = tables
    for one, two, three in zip(table.words[::9], table.words[1::9], table.words[2::9], strict=False):
        for ours, theirs in (
            (table.nearest(one, 5), other.most_similar(one, topn=5)),
            (table.analogy(one, two, three, 5), other.most_similar(positive=[two, three], negative=[one], topn=5)),
        ):
            assert [word for word, _ in ours] == [word for word, _ in theirs]
        np.testing.assert_allclose(
            [value for _, value in table.nearest(one, 5)],
            [value for _, value in other.most_similar(one, topn=5)],
            atol=1e-5,
        )
        assert table.similarity(one, two) == pytest.approx(float(other.similarity(one, two)), abs=1e-5)


def test_evaluations_are_the_same(gensim, tables, tmp_path):
    table, other = tables
    folder = Path(gensim.__file__).parent / "test" / "test_data"
    measured = measure_file(table, folder / "wordsim353.tsv")
    (_, (spearman, _), unknown) = other.evaluate_word_pairs(str(folder / "wordsim353.tsv"))
    assert measured.value == pytest.approx(float(spearman), abs=1e-6)
    assert 1 - measured.known / measured.lines == pytest.approx(unknown / 100, abs=1e-6)
    lines = (folder / "questions-words.txt").read_text().splitlines()[:400:7]
    (tmp_path / "some.txt").write_text("\n".join([": some", *lines[1:]]))
    measured = measure_file(table, tmp_path / "some.txt")
    assert measured.known == len(lines) - 1
    score, _ = other.evaluate_word_analogies(str(tmp_path / "some.txt"))
    assert measured.value == pytest.approx(score, abs=1e-6)
