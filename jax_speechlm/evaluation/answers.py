"""Evaluates answers to questions: exact match and F1 as SQuAD defines them, and questions without an answer.

Reference: Rajpurkar et al. 2016 (SQuAD); 2018 (SQuAD 2.0, the questions without an answer).
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import parsed_objects
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.resampling import Interval, bootstrap_mean, share_interval, wilson_interval

TYPED, RECOGNISED = "typed", "recognised"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Question(NamedTuple):
    """A question of a test.

    Attributes:
      text: as it is typed; '' if there is audio only.
      audio: its recording; None if there is text only.
      references: answers of which each is right; none if the question has no answer.
    """

    text: str
    audio: Path | None
    references: tuple[str, ...]


class AnswerScore(Config):
    """Measures of the answers to questions that were asked in one way, with 95 % intervals.

    Attributes:
      asked: "typed" or "recognised".
      answerable: number of questions that have an answer; the next five are of them, None if there are none.
      exact: share of the answers that equal a reference. The intervals of shares are Wilson's (1927).
      f1: mean F1 of the words shared with the nearest reference. The interval is by bootstrap over questions; None for
        few.
      silent: share without any answer.
      unanswerable: number of questions without an answer.
      refused: share of these that get none, which is right; None if there are none.
    """

    asked: str
    answerable: int
    exact: float | None
    exact_interval: Interval | None
    f1: float | None
    f1_interval: Interval | None
    silent: float | None
    silent_interval: Interval | None = None
    unanswerable: int
    refused: float | None
    refused_interval: Interval | None


class GivenAnswer(Config):
    """One answer: how it was asked, the question as it was understood, the answer (None for none), and its F1."""

    asked: str
    question: str
    answer: str | None
    references: tuple[str, ...]
    f1: float


class AnswerReport(base.Report):
    """The evaluation of a way to answer questions.

    Attributes:
      method: description of the method.
      scores: one for each way of asking.
      compared: number of answerable questions that were both typed and recognised.
      loss: F1 of these when typed, less F1 when recognised: the recognizer's share. None if there are none.
    """

    method: str
    scores: tuple[AnswerScore, ...]
    compared: int
    loss: float | None
    loss_interval: Interval | None
    answers: tuple[GivenAnswer, ...]

    def measures(self) -> dict[str, base.Measure]:
        """Returns the F1 of the answerable questions, and the share of the others that get no answer."""
        measures = {}
        for asked in (score.asked for score in self.scores):
            given = [each for each in self.answers if each.asked == asked]
            for name, is_answerable in (("F1", True), ("not answered", False)):
                items = [
                    base.Item(id=str(row), reference=" / ".join(each.references), sums={name: (each.f1, 1)})
                    for row, each in enumerate(given)
                    if bool(each.references) == is_answerable
                ]
                if items:
                    measures[f"{name}, {asked}"] = base.Measure.of_items(items, name)
        return measures

    def tables(self) -> Iterator[Table]:
        """Yields a table with a row for each way of asking, and the recognizer's share of the loss."""
        columns = ("answerable", "exact match", "F1", "not answered", "unanswerable", "not answered")
        table = base.new_table("", *columns, title=self.method)
        for each in self.scores:
            table.add_row(
                each.asked,
                f"{each.answerable:,}",
                _shown(each.exact, each.exact_interval),
                _shown(each.f1, each.f1_interval),
                _shown(each.silent, each.silent_interval),
                f"{each.unanswerable:,}",
                _shown(each.refused, each.refused_interval),
            )
        yield table
        if self.loss is not None:
            lost = base.new_table("F1 lost by recognition", f"of {self.compared:,} questions")
            lost.add_row("", _shown(self.loss, self.loss_interval))
            yield lost


def _shown(share: float | None, interval: Interval | None = None) -> str:
    return "-" if share is None else base.percent(share, interval)


def normal_answer(text: str) -> str:
    """Returns a text in lower case, without ASCII punctuation and English articles, as SQuAD compares answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_exact(answer: str, references: Sequence[str]) -> bool:
    """Returns whether an answer equals a reference but for what `normal_answer` removes."""
    return normal_answer(answer) in map(normal_answer, references)


def answer_f1(answer: str, references: Sequence[str]) -> float:
    """Returns the F1 of the words that an answer shares with the nearest reference: harmonic mean of both shares."""
    words = normal_answer(answer).split()
    return max((_f1(words, normal_answer(reference).split()) for reference in references), default=0.0)


def _f1(words: Sequence[str], reference: Sequence[str]) -> float:
    if not words or not reference:
        return float(words == reference)
    return 2 * (Counter(words) & Counter(reference)).total() / (len(words) + len(reference))


def read_questions(path: Path) -> list[Question]:
    """Reads questions from JSON lines: `question`, `audio` (a file, relative to the lines' own) or both, and `answer`.

    `answer` is a string, or a list of strings of which each is right; empty for a question that has no answer.

    Raises:
      DataError: a file is missing or malformed; the message names file and line.
    """
    parse = functools.partial(_question, folder=path.parent)
    questions = list(parsed_objects(path, parse, "name JSON lines with question, audio and answer"))
    if not questions:
        raise DataError(f"{path} holds no questions: write a line of JSON with question and answer for each")
    return questions


def _question(row: dict, folder: Path) -> Question:
    if unknown := row.keys() - {"question", "audio", "answer"}:
        raise ValueError(f"has {', '.join(sorted(unknown))}: a question has question, audio and answer")
    text, audio, answer = row.get("question", ""), row.get("audio"), row.get("answer")
    answers = [answer] if isinstance(answer, str) else answer
    if not isinstance(answers, list) or not all(isinstance(each, str) for each in answers):
        raise ValueError('"answer" should be a string or a list of strings, "" for a question that has no answer')
    if not isinstance(text, str) or not isinstance(audio, str | None) or not (text.strip() or audio):
        raise ValueError('a question needs its text as "question", or a recording as "audio"')
    references = tuple(each for each in answers if each.strip())
    return Question(text.strip(), None if audio is None else folder / audio, references)


def score_answers(
    questions: Sequence[Question], answers: Sequence[str | None], asked: str = TYPED
) -> tuple[AnswerScore, tuple[GivenAnswer, ...]]:
    """Compares answers, None for none, with the references of their questions.

    Raises:
      ValueError: there are none.
    """
    if not questions:
        raise ValueError("there is nothing to evaluate: there are no questions")
    pairs = list(zip(questions, answers, strict=True))
    known = [(question, answer) for question, answer in pairs if question.references]
    others = [answer for question, answer in pairs if not question.references]
    f1 = np.array([0.0 if answer is None else answer_f1(answer, each.references) for each, answer in known])
    exact = _share([answer is not None and is_exact(answer, each.references) for each, answer in known])
    refused = _share([answer is None for answer in others])
    score = AnswerScore(
        asked=asked,
        answerable=len(known),
        exact=exact,
        exact_interval=None if exact is None else wilson_interval(exact, len(known)),
        f1=float(f1.mean()) if known else None,
        f1_interval=bootstrap_mean(f1),
        silent=_share([answer is None for _, answer in known]),
        silent_interval=share_interval([answer is None for _, answer in known]),
        unanswerable=len(others),
        refused=refused,
        refused_interval=None if refused is None else wilson_interval(refused, len(others)),
    )
    given = tuple(
        GivenAnswer(
            asked=asked,
            question=question.text,
            answer=answer,
            references=question.references,
            f1=float(answer is None) if not question.references else answer_f1(answer or "", question.references),
        )
        for question, answer in pairs
    )
    return score, given


def evaluate_answers(
    questions: Sequence[Question],
    answer: Callable[[str], str | None],
    transcribe: Callable[[Path], str] | None,
    method: str,
) -> AnswerReport:
    """Answers questions as they are typed and, with a recognizer, as they are recognised; compares both.

    Args:
      answer: returns the answer to a question, or None.
      transcribe: returns the text of a recording; without it recordings are not used.

    Raises:
      DataError: no question can be asked.
    """
    typed = [each for each in questions if each.text]
    heard = [each for each in questions if each.audio is not None] if transcribe is not None else []
    if not typed and not heard:
        raise DataError("the questions are recordings: name a run that transcribes with --asr")
    parts, f1 = [], {}
    for asked, chosen in ((TYPED, typed), (RECOGNISED, heard)):
        if chosen:
            texts = [each.text if asked == TYPED else transcribe(each.audio) for each in chosen]
            understood = [each._replace(text=text) for each, text in zip(chosen, texts, strict=True)]
            score, given = score_answers(understood, [answer(text) for text in texts], asked)
            parts.append((score, given))
            f1[asked] = {id(each): row.f1 for each, row in zip(chosen, given, strict=True) if each.references}
    both = [(f1[TYPED][key], f1[RECOGNISED][key]) for key in f1.get(TYPED, {}) if key in f1.get(RECOGNISED, {})]
    lost = np.array([before - after for before, after in both])
    return AnswerReport(
        method=method,
        scores=tuple(score for score, _ in parts),
        compared=len(both),
        loss=float(lost.mean()) if both else None,
        loss_interval=bootstrap_mean(lost),
        answers=tuple(row for _, given in parts for row in given),
    )


def _share(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None
