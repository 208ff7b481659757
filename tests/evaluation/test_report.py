"""The report: what it holds, what it writes, what it refuses."""

import io

import pytest
from rich.console import Console

from jax_speechlm.evaluation.comparison import compare
from jax_speechlm.evaluation.report import TOO_FEW, EvaluationReport, Score, Utterance, evaluate

UTTERANCES = [
    Utterance(id="one", reference="The cat sat.", hypothesis="the cat sat", speaker="ann", duration=1.5),
    Utterance(id="two", reference="on the mat", hypothesis="on a big mat", speaker="bob", duration=7.0),
    Utterance(id="three", reference="", hypothesis="uh", speaker="ann", duration=0.0),
]


def many(utterances):
    """The same twenty times over, each with an id of its own."""
    return [each.replace(id=f"{each.id} {number}") for number in range(20) for each in utterances]


def test_few_utterances_have_no_interval_in_report_table_and_comparison():
    one = evaluate([Utterance(id="one", reference="yes", hypothesis="no")])
    assert (one.wer.rate, one.wer.interval, one.cer.interval) == (1, None, None)
    assert str(one.wer) == "100.0 %"
    few = evaluate(many(UTTERANCES)[:40])  # 27 of which have a reference
    out = io.StringIO()
    Console(file=out, width=120).print(*few.tables())
    assert "[" not in out.getvalue().replace("[95 %]", "")
    assert TOO_FEW in out.getvalue()
    assert "30" in TOO_FEW
    (comparison,) = compare(few, few)
    assert (comparison.interval, comparison.p_value) == (None, None)
    assert TOO_FEW in str(comparison)
    assert "[" not in str(comparison)
    assert TOO_FEW not in str(compare(evaluate(many(UTTERANCES)), evaluate(many(UTTERANCES))))
    counts = {"substitutions": 1, "deletions": 0, "insertions": 0, "tokens": 1, "utterances": 1}
    before = Score.model_validate({"rate": 1.0, "interval": (1.0, 1.0)} | counts)  # of an earlier version
    assert before.interval is None


def test_rates_and_tables():
    report = evaluate(UTTERANCES)
    assert (report.headline, report.normalizer) == ("wer", "basic")
    assert report.wer.rate == 3 / 6
    assert (report.wer.substitutions, report.wer.deletions, report.wer.insertions, report.wer.tokens) == (1, 0, 2, 6)
    low, high = evaluate(many(UTTERANCES)).wer.interval
    assert low < 0.5 < high
    assert {name: score.rate for name, score in report.speakers.items()} == {"ann": 1 / 3, "bob": 2 / 3}
    assert {name: score.utterances for name, score in report.lengths.items()} == {"under 2 s": 2, "5 to 10 s": 1}
    assert evaluate(UTTERANCES, "none").wer.rate == 5 / 6  # "The" and "sat." are errors now


def test_does_not_depend_on_the_order_of_utterances():
    forward, backward = evaluate(UTTERANCES), evaluate(UTTERANCES[::-1])
    assert (forward.wer.rate, forward.cer.rate, forward.speakers) == (
        backward.wer.rate,
        backward.cer.rate,
        backward.speakers,
    )


def test_characters_lead_where_words_have_no_spaces():
    report = evaluate(
        [Utterance(id="a", reference="\u4eca\u5929 \u5929\u6c14\u3002", hypothesis="\u4eca\u5929\u5929\u5668")]
    )
    assert report.headline == "cer"
    assert report.cer.rate == 1 / 4  # neither the space nor the full stop counts
    assert "hyp  \u4eca \u5929 \u5929 \u5668\n              S" in report.alignments()


def test_alignments_mark_the_edits_and_begin_with_the_worst():
    text = evaluate(UTTERANCES).alignments()
    assert text.startswith(
        "two  S 1 D 0 I 1 of 3  bob  7.0 s\nref  on   the mat\nhyp  on a big mat\n        I S\n\nthree"
    )
    long = Utterance(id="x", reference="word " * 80, hypothesis="")
    assert max(map(len, evaluate([long]).alignments().splitlines())) < 110


def test_files_round_trip(tmp_path):
    report = evaluate(UTTERANCES)
    report.save(tmp_path / "eval")
    assert EvaluationReport.load(tmp_path / "eval" / "report.json") == report
    assert (tmp_path / "eval" / "alignments.txt").read_text(encoding="utf-8") == report.alignments()


def test_table_names_the_normalizer_and_both_rates():
    out = io.StringIO()
    Console(file=out, width=120).print(*evaluate(UTTERANCES, "whisper-english").tables())
    assert "whisper-english" in out.getvalue()
    assert "WER" in out.getvalue()
    assert "CER" in out.getvalue()
    assert "bob" in out.getvalue()


def test_a_group_without_reference_words_has_no_rate():
    report = evaluate(UTTERANCES[2:])
    assert report.wer.rate is None
    assert report.wer.interval is None
    assert "1 insertions" in str(report.wer)


@pytest.mark.parametrize(
    ("utterances", "message"), [([], "nothing to evaluate"), ([UTTERANCES[0]] * 2, "'one' occurs twice")]
)
def test_what_cannot_be_evaluated_is_refused(utterances, message):
    with pytest.raises(ValueError, match=message):
        evaluate(utterances)


def test_compare_pairs_utterances_by_id():
    better = [UTTERANCES[2].replace(hypothesis=""), UTTERANCES[0], UTTERANCES[1].replace(hypothesis="on the mat")]
    (comparison,) = compare(evaluate(UTTERANCES), evaluate(better))
    assert (comparison.first, comparison.second, comparison.difference) == (0.5, 0.0, -0.5)
    (paired,) = compare(evaluate(many(UTTERANCES)), evaluate(many(better)))
    assert paired.interval[0] < -0.5 < paired.interval[1]
    assert "WER 50.00 % -> 0.00 %" in str(comparison)


def test_reports_that_do_not_belong_together_are_not_compared(tmp_path):
    report = evaluate(UTTERANCES)
    changed = [UTTERANCES[0].replace(reference="another"), *UTTERANCES[1:]]
    for other, message in [
        (evaluate(UTTERANCES, "none"), "--normalizer"),
        (evaluate(UTTERANCES[:2]), "'three'"),
        (evaluate(changed), "'one'"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(report, other)
    with pytest.raises(ValueError, match=r"missing.json does not exist"):
        EvaluationReport.load(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text('{"headline": "wer"}')
    with pytest.raises(ValueError, match=r"bad.json is not a report"):
        EvaluationReport.load(tmp_path / "bad.json")
