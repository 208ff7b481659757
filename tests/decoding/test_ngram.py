"""N-gram files as they are read, and as scorers of a search over characters and over pieces."""

import gzip
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer, train_tokenizer
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.decoding.lm.kneser_ney import estimate, write_arpa
from jax_speechlm.decoding.lm.ngram import NGram, sentences
from jax_speechlm.decoding.lm.ngram_fusion import OOV_PENALTY, TokenNGram, WordNGram, ngram_scorer

pytest.importorskip("kenlm", reason="n-gram models need kenlm: pip install -e '.[ngram]'")

TEXTS = ["the cat sat", "the cat ran", "a cat sat on the mat", "the dog ran", "a dog sat", "the mat"]
CHARACTERS = CharTokenizer(" abcdeghimnorst")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, NGram]:
    folder = tmp_path_factory.mktemp("ngrams")
    for unit in ("word", "char"):
        write_arpa(estimate((s for text in TEXTS for s in sentences(text, unit)), 3), folder / f"{unit}.arpa")
    return {unit: NGram(folder / f"{unit}.arpa") for unit in ("word", "char")}


def total(scorer, tokens) -> float:
    """The score of a transcript, step by step as a search takes it."""
    states, gained = np.array([scorer.start(4, 100)]), 0.0
    for token in tokens:
        gained += scorer.score(states, np.array([token]))[0]
        states = scorer.advance(states, np.array([token]))
    return gained + scorer.final(states)[0]


def test_units_of_a_text():
    assert list(sentences("the  cat\n\n a <s> b ", "word")) == [["the", "cat"], ["a", "b"]]
    assert list(sentences("a b", "char")) == [["a", "▁", "b"]]


def test_a_model_knows_its_units(models):
    assert models["word"].unit == "word"
    assert models["char"].unit == "char"
    assert models["word"].vocabulary >= {"the", "cat", "</s>"}
    assert models["word"].count_unknown("the horse sat") == 1
    assert models["char"].score("a cat") > models["char"].score("c aat")


def test_a_compressed_file_says_the_same(models, tmp_path):
    packed = tmp_path / "x.arpa.gz"
    with open(models["word"].path, "rb") as plain, gzip.open(packed, "wb") as file:
        shutil.copyfileobj(plain, file)
    again = NGram(packed)
    assert again.score("the cat sat") == models["word"].score("the cat sat")
    assert again.vocabulary == models["word"].vocabulary


def test_a_binary_file_says_what_its_text_form_says(tmp_path):
    golden = np.load(GOLDEN / "ngram.npz")
    lines = golden["corpus"].tolist()
    write_arpa(estimate(map(str.split, lines), 4, golden["pruned_prune"].tolist()), tmp_path / "x.arpa")
    binary, text = NGram(GOLDEN / "ngram.binary"), NGram(tmp_path / "x.arpa")
    assert binary.vocabulary is None
    assert binary._model.order == text._model.order == 4
    assert binary.score("\n".join(lines[:20])) == pytest.approx(text.score("\n".join(lines[:20])), rel=1e-5)


def test_words_are_scored_as_they_end(models):
    scorer = WordNGram(models["word"], CHARACTERS.pieces)
    for text in ("the cat sat", "", "a", "mat the mat"):
        assert total(scorer, CHARACTERS.encode(text)) == pytest.approx(
            models["word"].score(text) if text else models["word"].extend(models["word"].begin(), "</s>")[0], abs=1e-9
        )


@pytest.mark.parametrize("text", ["the rat sat", "the ca", "catt a", "the xx".replace("x", "g")])
def test_an_unknown_word_costs_the_penalty_once_however_early_it_shows(models, text):
    scorer = WordNGram(models["word"], CHARACTERS.pieces)
    expected = models["word"].score(text) + OOV_PENALTY * models["word"].count_unknown(text)
    assert total(scorer, CHARACTERS.encode(text)) == pytest.approx(expected, abs=1e-9)
    listless = NGram(models["word"].path)
    listless.vocabulary = None  # as for a binary file, whose words nobody can list
    assert total(WordNGram(listless, CHARACTERS.pieces), CHARACTERS.encode(text)) == pytest.approx(expected, abs=1e-9)


def test_a_beginning_that_no_word_has_is_charged_at_once(models):
    scorer = WordNGram(models["word"], CHARACTERS.pieces)
    states = np.array([scorer.start(4, 100)] * 2)
    t, g = CHARACTERS.encode("tg")
    assert scorer.score(states, np.array([t, g])).tolist() == [0.0, OOV_PENALTY]


def test_bonus_counts_words_and_weights_scale(models):
    scorer = WordNGram(models["word"], CHARACTERS.pieces)
    scorer.alpha, scorer.beta = 0.5, 2.0
    expected = 0.5 * models["word"].score("the cat sat") + 3 * 2.0
    assert total(scorer, CHARACTERS.encode("the cat sat")) == pytest.approx(expected)


def test_pieces_spell_the_same_words(models):
    pieces = train_tokenizer(TEXTS * 4, "bpe", 30)
    scorer = ngram_scorer(models["word"], pieces)
    assert isinstance(scorer, WordNGram)
    for text in ("the cat sat", "a dog ran"):
        assert total(scorer, pieces.encode(text)) == pytest.approx(models["word"].score(text), abs=1e-9)


def test_characters_score_every_token_of_either_tokenizer(models):
    pieces = train_tokenizer(TEXTS * 4, "bpe", 30)
    for tokenizer in (CHARACTERS, pieces):
        scorer = ngram_scorer(models["char"], tokenizer)
        assert isinstance(scorer, TokenNGram)
        assert total(scorer, tokenizer.encode("the cat sat")) == pytest.approx(models["char"].score("the cat sat"))


def test_a_model_of_the_tokenizers_own_pieces(tmp_path):
    tokenizer = train_tokenizer(TEXTS * 4, "bpe", 30)
    spelled = [[tokenizer.pieces[number] for number in tokenizer.encode(text)] for text in TEXTS]
    write_arpa(estimate(spelled, 2), tmp_path / "x.arpa")
    ngram = NGram(tmp_path / "x.arpa")
    scorer = ngram_scorer(ngram, tokenizer)
    state, expected = ngram.begin(), 0.0
    for unit in (*spelled[2], "</s>"):
        log_prob, state = ngram.extend(state, unit)
        expected += log_prob
    assert total(scorer, tokenizer.encode(TEXTS[2])) == pytest.approx(expected)
    with pytest.raises(DataError, match="over a tokenizer's pieces"):
        ngram.score(TEXTS[2])  # by words or characters it would be another text


def test_letters_that_are_words_do_not_make_a_character_model(tmp_path):
    spelling = [["a", "b", "c"], ["b", "a"], list("abcdeghimnorst")]
    write_arpa(estimate(spelling, 2), tmp_path / "x.arpa")
    assert isinstance(ngram_scorer(NGram(tmp_path / "x.arpa"), CHARACTERS), WordNGram)


def broken(models, change) -> str:
    return change(Path(models["word"].path).read_text())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\\data\\", "\\dota\\", 1),
        lambda text: text.replace("ngram 1=", "ngram 1=9", 1),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "the cat sat on the mat\n",
    ],
)
def test_a_broken_file_is_named_with_the_remedy(models, tmp_path, change):
    file = tmp_path / "x.arpa"
    file.write_text(broken(models, change))
    with pytest.raises(DataError, match=r"x\.arpa is not a readable n-gram model .*train-ngram"):
        NGram(file)


def test_a_missing_file_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="train-ngram"):
        NGram(tmp_path / "nothing.arpa")
    (tmp_path / "x.arpa.gz").write_bytes(b"not compressed")
    with pytest.raises(DataError, match="not a readable"):
        NGram(tmp_path / "x.arpa.gz")


def test_the_command_reads_text_files(tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS))
    out = tmp_path / "made" / "x.arpa.gz"
    run = ["train-ngram", "--text", str(tmp_path / "corpus.txt"), "--order", "2", "--out", str(out)]
    assert cli.main(run) == 0
    assert "x.arpa.gz" in capsys.readouterr().out
    by_hand = estimate((s for text in TEXTS for s in sentences(text, "word")), 2)
    write_arpa(by_hand, tmp_path / "y.arpa")
    assert NGram(out).score("the cat sat") == NGram(tmp_path / "y.arpa").score("the cat sat")
    assert cli.main(["train-ngram", "--out", str(out)]) == USER_ERROR
    assert "--sets" in capsys.readouterr().err
    (tmp_path / "latin.txt").write_bytes("señor".encode("latin-1"))
    assert cli.main(["train-ngram", "--text", str(tmp_path / "latin.txt"), "--out", str(out)]) == USER_ERROR
    assert "latin.txt is not UTF-8 (byte 2)" in capsys.readouterr().err


def test_states_with_the_same_future_are_one(models):
    scorer = ngram_scorer(models["char"], CHARACTERS)
    a, c = CHARACTERS.encode("ac")
    states = np.array([scorer.start(4, 100)])
    ends = set()
    for before in itertools.product((a, c), repeat=4):
        state = states
        for token in (*before, a, c, a):
            state = scorer.advance(state, np.array([token]))
        ends.add(int(state[0]))
    assert len(ends) == 1
