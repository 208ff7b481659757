"""BLEU and chrF come from sacrebleu; the report says over what."""

import pytest
from sacrebleu import corpus_bleu, corpus_chrf

from jax_speechlm.evaluation.report import Utterance
from jax_speechlm.evaluation.translation import TranslationReport, evaluate

PAIRS = [
    ("The cat sat on the mat.", "the cat sat on a mat"),
    ("A dog ran far away!", "a dog ran very far away"),
    ("", "something that nobody translated"),
    ("Look at that old temple, there.", "see the old temple there"),
]


def utterances():
    return [Utterance(id=str(n), reference=ref, hypothesis=hyp) for n, (ref, hyp) in enumerate(PAIRS)]


def test_scores_are_sacrebleus_over_what_has_a_reference(tmp_path):
    report = evaluate(utterances(), "basic", decoder="beam 4")
    hypotheses = [hyp for ref, hyp in PAIRS if ref]
    references = ["the cat sat on the mat", "a dog ran far away", "look at that old temple there"]
    assert report.bleu.score == pytest.approx(corpus_bleu(hypotheses, [references]).score)
    assert report.chrf.score == pytest.approx(corpus_chrf(hypotheses, [references]).score)
    assert (report.scored, len(report.utterances)) == (3, 4)
    assert report.bleu.interval is None
    assert str(report.bleu) == f"{report.bleu.score:.1f}"
    report.save(tmp_path)
    assert TranslationReport.from_json((tmp_path / "report.json").read_text()) == report
    assert "hyp  see the old temple there" in (tmp_path / "translations.txt").read_text()


def test_few_translations_have_no_interval():
    again = [each.replace(id=f"{each.id} {copy}") for copy in range(10) for each in utterances()]  # 30 references
    report = evaluate(again)
    assert report.bleu.interval[0] < report.bleu.score < report.bleu.interval[1]
    assert "[" in str(report.bleu)
    assert evaluate(again[:-2]).chrf.interval is None


def test_the_texts_themselves_are_scored_without_a_normalizer():
    raw, basic = (evaluate(utterances(), name).bleu.score for name in ("none", "basic"))
    assert raw < basic


def test_a_set_without_translations_is_an_error():
    with pytest.raises(ValueError, match="no utterance has a translation"):
        evaluate([Utterance(id="a", reference=" ", hypothesis="b")])
