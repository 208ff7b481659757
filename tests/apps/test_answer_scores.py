"""Scores of short answers: kappa beside scikit-learn's, features, a regression that learns, files that are wrong."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from data_pipelines.core.errors import DataError
from jax_speechlm.apps.tutoring.answers import (
    Answer,
    AnswerScorer,
    features,
    fit,
    overlap_f1,
    read_answers,
)
from jax_speechlm.cli import main
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.evaluation.agreement import weighted_kappa
from tests.trained_tones import trained_run

FACTS = [
    ("What do plants make from light?", "plants make sugar from light and water"),
    ("Why does ice float?", "ice floats because it is less dense than water"),
    ("What is a verb?", "a verb is a word for an action or a state"),
    ("Why is the sky blue?", "air scatters blue light more than red light"),
    ("What does the heart do?", "the heart pumps blood through the body"),
    ("What makes the tides?", "the moon pulls the water of the sea"),
]


def graded() -> list[Answer]:
    """Answers with all, half, and none of the reference's words, worth 2, 1 and 0."""
    rows = []
    for question, reference in FACTS:
        words = reference.split()
        rows += [
            Answer(question, reference, reference.upper() + ".", 2),
            Answer(question, reference, " ".join(words[: len(words) // 2]), 1),
            Answer(question, reference, "nobody knows", 0),
        ]
    return rows


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
def test_kappa_is_that_of_scikit_learn(pairs):
    first, second = np.array(pairs, np.float64).T
    value, _ = weighted_kappa(first, second, resamples=10)
    if len({*first, *second}) == 1:
        assert value is None
    else:
        labels = [0, 1, 2, 3, 4]  # all, or the weights would be of the places of those that occur
        expected = cohen_kappa_score(first.astype(int), second.astype(int), labels=labels, weights="quadratic")
        assert value == pytest.approx(expected, abs=1e-9)


def test_the_interval_of_kappa():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 200).astype(float)
    second = np.where(rng.random(200) < 0.8, first, rng.integers(0, 4, 200))
    value, (low, high) = weighted_kappa(first, second)
    assert low < value < high
    assert high - low < 0.3
    assert weighted_kappa(first[:29], second[:29])[1] is None
    perfect = weighted_kappa(first, first)
    assert perfect == (1.0, (1.0, 1.0))


def test_overlap():
    assert overlap_f1("The cat sat.", "the CAT sat") == 1
    assert overlap_f1("a b c d", "a b") == pytest.approx(2 / 3)
    assert overlap_f1("a a b", "a") == pytest.approx(0.5)
    assert overlap_f1("", "") == overlap_f1("a", "") == overlap_f1("a", "?!") == 0


def test_vectors_are_compared_by_their_cosine():
    def embed(texts):
        return np.array([[len(text), 1.0] if text else [0.0, 0.0] for text in texts])

    answers = [Answer("q", "aaa", "bbb"), Answer("q", "a", "")]
    values = features(answers, embed)
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values[:, 2], [1, 0])


def test_a_regression_learns_scores_and_is_saved(tmp_path):
    scorer, report = fit(graded())
    assert report.held_out == "questions"
    assert report.kappa > 0.9
    assert report.interval is None  # of 18 answers
    path = tmp_path / "scorer.json"
    path.write_text(scorer.model_dump_json())
    loaded = AnswerScorer.load(path)
    assert loaded == scorer
    answers = [row._replace(score=None) for row in graded()]
    scores = loaded.score(answers)
    assert np.mean(np.array(scores) == [row.score for row in graded()]) > 0.9
    assert [loaded.score([answer])[0] for answer in answers] == scores
    assert loaded.score([]) == []


def test_few_questions_hold_out_answers():
    _, report = fit([row._replace(question="q") for row in graded()])
    assert report.held_out == "answers"


def test_a_run_without_vectors_of_texts_is_refused():
    with pytest.raises(CheckpointError, match="makes no vectors of texts"):
        fit(graded(), str(trained_run()))


def test_too_few_answers_or_scores():
    with pytest.raises(DataError, match="3 answers with 3 different scores"):
        fit(graded()[:3])
    with pytest.raises(DataError, match="18 answers with 1 different scores"):
        fit([row._replace(score=1.0) for row in graded()])


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"question": "q"}', '{"question": 1, "reference": "r", "answer": "a", "score": 1}']
    + [
        f'{{"question": "q", "reference": "r", "answer": "a", "score": {bad}}}'
        for bad in ('"2"', "true", "null", "1e999")
    ],
)
def test_lines_that_are_no_answers_are_named(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(graded()[0]._asdict()) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"answers\.jsonl, line 2"):
        read_answers(path, scored=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"weights": [1], "intercept": 0, "scale": [0]}', '{"weights": [1, 2]}']
)
def test_a_file_that_is_no_scorer_is_named(tmp_path, capsys, text):
    (tmp_path / "scorer.json").write_text(text)
    (tmp_path / "answers.jsonl").write_text(json.dumps(graded()[0]._asdict()))
    assert main(["tutor", "score", str(tmp_path / "scorer.json"), str(tmp_path / "answers.jsonl")]) != 0
    assert "scorer.json: is no scorer" in capsys.readouterr().err
