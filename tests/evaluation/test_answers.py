"""Exact match and F1 of answers, by cases made by hand, and what is lost by recognition."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation.answers import (
    AnswerReport,
    Question,
    answer_f1,
    evaluate_answers,
    is_exact,
    normal_answer,
    read_questions,
    score_answers,
)


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], True, 1.0),
        ("an apple a day", ["apple day"], True, 1.0),
        ("theatre", ["the atre"], False, 0.0),  # an article is a word
        ("in 1959 by Hoare", ["Tony Hoare"], False, 2 * 1 / (4 + 2)),
        ("Tony Hoare", ["C. A. R. Hoare", "Tony"], False, 2 / 3),  # the nearest reference; "A." is taken for an article
        ("dog dog dog", ["dog"], False, 2 * 1 / (3 + 1)),  # a word counts as often as both have it
        ("", ["dog"], False, 0.0),
        ("the", ["a"], True, 1.0),  # nothing remains of either
        ("Zürich", ["zürich"], True, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(answer, references, exact, f1):
    assert is_exact(answer, references) == exact
    assert answer_f1(answer, references) == pytest.approx(f1)


def test_what_is_removed_is_removed_once_and_for_all():
    for text in ("The A-Team: an 'analysis'", "  a  b\tthe c ", "", "!?"):
        assert normal_answer(normal_answer(text)) == normal_answer(text)


def question(text, *references, audio=None):
    return Question(text, audio, references)


def test_questions_without_an_answer_are_counted_apart():
    asked = [question("a", "x"), question("b", "x y"), question("c", "z"), question("d"), question("e"), question("f")]
    score, given = score_answers(asked, ["x", "x", None, None, "w", None])
    assert (score.answerable, score.unanswerable) == (3, 3)
    assert (score.exact, score.silent, score.refused) == pytest.approx((1 / 3, 1 / 3, 2 / 3))
    assert score.f1 == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert score.f1_interval is None  # of three
    assert score.silent_interval[0] <= score.silent <= score.silent_interval[1]
    assert [each.f1 for each in given] == pytest.approx([1, 2 / 3, 0, 1, 0, 1])
    only_known, _ = score_answers(asked[:3], ["x", "x", None])
    assert only_known.exact_interval == score.exact_interval  # the others change nothing, nor does the hour
    assert only_known.refused is None
    only_unknown, _ = score_answers(asked[3:], [None, "w", None])
    assert (only_unknown.exact, only_unknown.f1, only_unknown.refused) == (None, None, score.refused)
    with pytest.raises(ValueError, match="no questions"):
        score_answers([], [])


def test_the_bootstrap_of_the_mean_is_that_of_direct_resampling():
    rng = np.random.default_rng(1)
    asked = [question(str(number), "x y") for number in range(40)]
    answers = [["x y", "x", None][draw] for draw in rng.integers(3, size=40)]
    score, given = score_answers(asked, answers)
    f1 = np.array([each.f1 for each in given])
    means = f1[rng.integers(40, size=(20_000, 40))].mean(1)
    # 10,000 and 20,000 draws: their bounds differ by a few steps of 1/3/40
    np.testing.assert_allclose(score.f1_interval, np.percentile(means, [2.5, 97.5]), atol=3 / 120)


def test_what_recognition_loses_is_measured_on_the_same_questions(tmp_path):
    asked = [
        question("one", "1", audio=Path("one.wav")),
        question("two", "2", audio=Path("two.wav")),
        question("three", "3"),
        question("", "4", audio=Path("four.wav")),
        question("none", audio=Path("none.wav")),
    ]
    known = {"one": "1", "two": "2", "three": "3", "four": "4"}
    hear = {"one.wav": "one", "two.wav": "too", "four.wav": "four", "none.wav": ""}
    report = evaluate_answers(asked, known.get, lambda file: hear[file.name], "by heart")
    typed, recognised = report.scores
    assert (typed.asked, typed.answerable, typed.f1, typed.refused) == ("typed", 3, 1.0, 1.0)
    assert (recognised.asked, recognised.answerable, recognised.refused) == ("recognised", 3, 1.0)
    assert recognised.f1 == pytest.approx(2 / 3)
    assert (report.compared, report.loss) == (2, 0.5)
    assert report.answers[-3].question == "too"
    report.publish(tmp_path, "test")
    assert AnswerReport.from_json((tmp_path / "report.json").read_text()) == report
    alone = evaluate_answers(asked, known.get, None, "by heart")
    assert (alone.scores, alone.loss) == ((typed,), None)
    with pytest.raises(DataError, match="--asr"):
        evaluate_answers(asked[3:4], known.get, None, "by heart")


def test_questions_are_read_with_their_recordings(tmp_path):
    rows = [{"question": " who? ", "answer": ["a", ""]}, {"audio": "q.wav", "answer": ""}]
    (tmp_path / "q.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert read_questions(tmp_path / "q.jsonl") == [
        Question("who?", None, ("a",)),
        Question("", tmp_path / "q.wav", ()),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"}', 'line 1: "answer" should be'),
        ('{"question": "a", "answer": [1]}', 'line 1: "answer" should be'),
        ('{"question": " ", "answer": "b"}', "line 1: a question needs"),
        ('{"question": 3, "answer": "b"}', "line 1: a question needs"),
        ('{"question": "a", "answers": ["b"]}', "line 1: has answers"),
        ("[1]", "line 1: expected a JSON object"),
        ("{", "line 1: "),
        ("", "no questions"),
    ],
)
def test_errors_of_questions_name_the_line(tmp_path, line, message):
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        read_questions(tmp_path / "none.jsonl")
