"""A decoder of named parts: what it loads, how weights act on it, and how they are tuned."""

from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer, train_tokenizer
from jax_speechlm.decoding.ctc.prefix_beam import Hypothesis
from jax_speechlm.decoding.lm.kneser_ney import estimate, write_arpa
from jax_speechlm.decoding.lm.ngram import NGram, sentences
from jax_speechlm.evaluation.tuning import tune_weights
from jax_speechlm.inference.asr import decoder as decoders
from jax_speechlm.inference.asr.decoder import Decoder, Decoding
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from tests.objectives.text import MODEL, TOKENIZER

pytest.importorskip("kenlm", reason="n-gram models need kenlm: pip install -e '.[ngram]'")

TEXTS = ["the cat sat", "a cat ran", "the dog sat on a mat", "a dog ran", "the mat"]
CHARACTERS = CharTokenizer(" abcdeghimnorst")


def heard(text: str, tokenizer, seed: int, noise: float) -> np.ndarray:
    """Log probabilities of someone who says the text, a token every third frame."""
    rng = np.random.default_rng(seed)
    ids = [number for token in tokenizer.encode(text) for number in (token, token, 0)]
    logits = noise * rng.standard_normal((len(ids), tokenizer.vocab_size))
    logits[range(len(ids)), ids] += 4.0
    return (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lms")
    for unit in ("word", "char"):
        write_arpa(estimate((s for text in TEXTS for s in sentences(text, unit)), 3), folder / f"{unit}.arpa")
    (folder / "words.txt").write_text("mat\t14\n")
    return {path.stem: path for path in folder.iterdir()}


def neural(tokenizer) -> LanguageModel:
    built = CausalLM().build(MODEL, None, tokenizer)
    return LanguageModel(MODEL, tokenizer, functional.init(built.make, jax.random.key(0)), 64)


def test_what_is_decoded_by_default():
    assert Decoding().is_greedy
    assert str(Decoding()) == "greedy"
    assert not Decoding(lm=Path("x.arpa")).is_greedy
    assert not Decoding(decoder="beam").is_greedy
    assert Decoding(lm=Path("x"), alpha=1.0, rescore=Path("y")).untuned == ("beta", "rescore_alpha", "rescore_beta")
    assert Decoding(decoder="beam").untuned == ()
    with pytest.raises(ValueError, match="take decoder beam"):
        Decoding(decoder="greedy", lm=Path("x.arpa"))


def test_ways_of_decoding_have_folders_of_their_own():
    lm = Path("runs/lm")
    ways = Decoding(), Decoding(decoder="beam"), Decoding(lm=lm), Decoding(rescore=lm), Decoding(lm=lm, rescore=lm)
    assert [way.name for way in ways] == ["greedy", "beam", "beam+lm", "beam+ranked-by-lm", "beam+lm+ranked-by-lm"]


def test_a_language_model_mends_what_was_heard(files):
    spoken = [heard(text, CHARACTERS, seed, noise=2.2) for seed, text in enumerate(TEXTS)]
    plain = Decoder(Decoding(decoder="beam"), CHARACTERS).decode(spoken)
    for unit in ("word", "char"):
        fused = Decoder(Decoding(lm=files[unit], alpha=1.0, beta=1.0), CHARACTERS).decode(spoken)
        right = [sum(a == b for a, b in zip(texts, TEXTS, strict=True)) for texts in (plain, fused)]
        assert right[1] > right[0]


def test_many_utterances_are_decoded_as_each_alone(files):
    spoken = [heard(TEXTS[seed % 5], CHARACTERS, seed, noise=2.5) for seed in range(40)]
    decoder = Decoder(Decoding(lm=files["word"], boost=files["words"], rescore=files["char"]), CHARACTERS)
    alone = [decoder.decode([each])[0] for each in spoken[:6]]
    assert decoder.decode(spoken)[:6] == alone
    assert decoder.decode([]) == []


def test_boosted_words_turn_up(files):
    spoken = [heard("the cat", CHARACTERS, 0, noise=0.2)]
    assert Decoder(Decoding(decoder="beam"), CHARACTERS).decode(spoken) == ["the cat"]
    (boosted,) = Decoder(Decoding(boost=files["words"]), CHARACTERS).decode(spoken)
    assert "mat" in boosted.split()


@pytest.mark.parametrize("kind", ["word", "char"])
def test_ranking_anew_adds_the_models_score_and_a_bonus_for_words(files, kind):
    decoder = Decoder(Decoding(rescore=files[kind], rescore_alpha=0.6, rescore_beta=1.5), CHARACTERS)
    texts = ["the cat sat", "a cat sat", "thecatsat"]
    scores = [-20.0, -18.0, -12.0]
    row = [Hypothesis(tuple(CHARACTERS.encode(text)), score, 0.0) for text, score in zip(texts, scores, strict=True)]
    model = NGram(files[kind])
    totals = {
        text: score + 0.6 * model.score(text) + 1.5 * len(text.split())
        for text, score in zip(texts, scores, strict=True)
    }
    assert [best.text for best, *_ in decoder.rank([row])] == [max(totals, key=totals.__getitem__)]


def test_silence_is_ranked_as_an_empty_sentence_not_as_a_certainty(files):
    decoder = Decoder(Decoding(rescore=files["word"], rescore_alpha=1.0, rescore_beta=0.0), CHARACTERS)
    row = [Hypothesis((), -6.0, 0.0), Hypothesis(tuple(CHARACTERS.encode("the mat")), -4.5, 0.0)]
    model = NGram(files["word"])
    end, _ = model.extend(model.begin(), "</s>")
    assert -6.0 + end < -4.5 + model.score("the mat") < -6.0  # else this shows nothing
    assert [best.text for best, *_ in decoder.rank([row])] == ["the mat"]


def test_a_neural_model_ranks_whatever_its_tokenizer(monkeypatch, files):
    lm = neural(TOKENIZER)
    monkeypatch.setattr(LanguageModel, "load", lambda path: lm)
    decoder = Decoder(Decoding(rescore=files["word"].parent, rescore_alpha=1.0, rescore_beta=0.0), CHARACTERS)
    texts = ["the cat", "a cat"]
    row = [Hypothesis(tuple(CHARACTERS.encode(text)), 0.0, 0.0) for text in texts]
    assert [best.text for best, *_ in decoder.rank([row])] == [texts[int(lm.score(texts).argmax())]]


def test_fusion_needs_the_same_tokens(monkeypatch, files):
    folder, lm = files["word"].parent, neural(TOKENIZER)
    monkeypatch.setattr(LanguageModel, "load", lambda path: lm)
    fewer = CharTokenizer("abc ")  # the model knows these characters, under other numbers
    spoken = [heard("a bc", fewer, 0, noise=0.5)]
    ((best, *_),) = Decoder(Decoding(lm=folder, alpha=1.0, beta=0.0), fewer).search(spoken)
    assert best.fusion == pytest.approx(lm.score([fewer.decode(best.tokens)])[0], rel=1e-4)
    for other in (CharTokenizer("abcß"), train_tokenizer(TEXTS * 4, "bpe", 30)):
        with pytest.raises(DataError, match=r"another tokenizer \(char, 23 ids\).*--rescore"):
            Decoder(Decoding(lm=folder), other)


def test_tuning_finds_weights_that_make_fewer_errors(files):
    spoken = {row: heard(TEXTS[row % 5], CHARACTERS, row, noise=2.5) for row in range(12)}
    references = [TEXTS[row % 5] for row in range(12)]
    decoder = Decoder(Decoding(lm=files["word"], rescore=files["char"], beam_size=8), CHARACTERS)

    def right(decoder: Decoder) -> int:
        return sum(a == b for a, b in zip(decoder.decode(list(spoken.values())), references, strict=True))

    off = decoder.with_weights(alpha=0.0, beta=0.0, rescore_alpha=0.0, rescore_beta=0.0)
    tuned = tune_weights(decoder, spoken, references, "basic")
    assert right(tuned) > right(off)
    assert right(tuned) >= right(decoder)
    assert tuned.decoding.alpha > 0
    assert decoder.decoding.alpha == decoders._UNTUNED["alpha"]  # the one it started from is as it was
    assert f"alpha {tuned.decoding.alpha:g}" in str(tuned.decoding)


@pytest.mark.parametrize("kind", ["word", "char"])
def test_a_candidates_parts_make_up_its_score(files, kind):
    spoken = [heard(text, CHARACTERS, number, noise=2.5) for number, text in enumerate(TEXTS)]
    decoder = Decoder(Decoding(lm=files[kind], alpha=0.7, beta=1.3, beam_size=8), CHARACTERS)
    model, known = NGram(files[kind]), {word for text in TEXTS for word in text.split()}
    for row, candidates in zip(decoder.search(spoken), decoder.fusion_candidates(spoken), strict=True):
        assert [each.tokens for each in candidates] == [each.tokens for each in row]
        for hypothesis, each in zip(row, candidates, strict=True):
            assert each.rest == pytest.approx(hypothesis.acoustic, abs=1e-9)
            assert each.rest + 0.7 * each.log_prob + 1.3 * each.units == pytest.approx(hypothesis.score)
            if kind == "word" and each.text and {*each.text.split(" ")} <= known:
                assert each.log_prob == pytest.approx(model.score(each.text))
                assert each.units == len(each.text.split())


def test_a_neural_models_part_is_its_log_probability(monkeypatch, files):
    lm = neural(CHARACTERS)
    monkeypatch.setattr(LanguageModel, "load", lambda path: lm)
    decoder = Decoder(Decoding(lm=files["word"].parent, alpha=0.7, beta=1.3, beam_size=4), CHARACTERS)
    spoken = [heard(text, CHARACTERS, number, noise=1.5) for number, text in enumerate(TEXTS[:2])]
    candidates = [each for row in decoder.fusion_candidates(spoken) for each in row]
    np.testing.assert_allclose(
        [each.log_prob for each in candidates], lm.score([each.text for each in candidates]), 1e-4
    )
    assert [each.units for each in candidates] == [len(each.tokens) for each in candidates]


def test_tuning_searches_a_few_times_only(files, monkeypatch):
    spoken = {row: heard(TEXTS[row % 5], CHARACTERS, row, noise=2.5) for row in range(12)}
    decoder = Decoder(Decoding(lm=files["word"], beam_size=8), CHARACTERS)
    searches = []
    search = Decoder.search
    monkeypatch.setattr(Decoder, "search", lambda self, posteriors: searches.append(1) or search(self, posteriors))
    tune_weights(decoder, spoken, [TEXTS[row % 5] for row in range(12)], "basic")
    assert 4 <= len(searches) <= 9
