"""Scores of short answers to questions: features of answer and reference, and a ridge regression on scores."""

import collections
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pydantic
from jaxtyping import Float

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import parsed_objects
from data_pipelines.text import scripts
from jax_speechlm.core.config import Config
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.evaluation.agreement import AgreementReport
from jax_speechlm.inference.load import load
from jax_speechlm.inference.text_embed import TextEmbedder
from jax_speechlm.inference.word_vectors import WordTable

_FOLDS = 5

Embed = Callable[[Sequence[str]], Float[np.ndarray, "texts dim"]]


class Answer(NamedTuple):
    """An answer to a question, and the reference; `score` is None of one that has none."""

    question: str
    reference: str
    answer: str
    score: float | None = None


class AnswerScorer(Config):
    """A linear function of the features of an answer; its values are the nearest of the scores that were trained on.

    Attributes:
      embedder: run whose vectors of texts are compared; None to compare words alone.
      weights: of the features, in the order of `features`.
      scale: the scores, ascending.
    """

    embedder: str | None = None
    weights: tuple[float, ...]
    intercept: float
    scale: Annotated[tuple[float, ...], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _has_a_weight_for_each_feature(self):
        if len(self.weights) != 2 + (self.embedder is not None):
            raise ValueError("there must be a weight for each feature: two, and one for vectors of a run")
        return self

    @classmethod
    def load(cls, path: Path) -> "AnswerScorer":
        """Reads a scorer. Raises `DataError` if the file is none."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, pydantic.ValidationError) as error:
            raise DataError(
                f"{path}: is no scorer of answers ({' '.join(str(error).split())}); make one by jax-speechlm tutor fit"
            ) from error

    def score(self, answers: Sequence[Answer]) -> list[float]:
        """Scores answers; an answer's score does not depend on the others."""
        if not answers:
            return []
        return self.of_features(features(answers, open_embedder(self.embedder))).tolist()

    def of_features(self, values: Float[np.ndarray, "answers features"]) -> Float[np.ndarray, " answers"]:
        return nearest(self.scale, values @ np.array(self.weights) + self.intercept)


def read_answers(path: Path, *, scored: bool) -> list[Answer]:
    """Reads JSON lines with question, reference, answer and, if `scored`, score.

    Raises:
      DataError: the file is missing, empty or malformed; the message names the line.
    """
    needed = "question, reference, answer" + (", score" if scored else "")
    parse = functools.partial(_answer, scored=scored)
    if not (answers := list(parsed_objects(path, parse, f"name JSON lines with {needed}"))):
        raise DataError(f"{path} holds no answers")
    return answers


def _answer(row: dict[str, Any], scored: bool) -> Answer:
    texts = [row[key] for key in ("question", "reference", "answer")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("question, reference and answer should be texts")
    if not scored:
        return Answer(*texts)
    score = row["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not np.isfinite(score):
        raise TypeError(f"the score {score!r} is no number")
    return Answer(*texts, float(score))


def open_embedder(run: str | None) -> Embed | None:
    """Opens a run that makes vectors of texts. Raises `CheckpointError` if it makes none."""
    if run is None:
        return None
    model = load(run)
    if not isinstance(model.model, TextEmbedder | WordTable):
        raise CheckpointError(
            f"{run}: was trained by {model.kind}, which makes no vectors of texts: name a text encoder"
        )
    return model.embed


def features(answers: Sequence[Answer], embed: Embed | None) -> Float[np.ndarray, "answers features"]:
    """Compares answers with their references: F1 of words, ratio of lengths and, with `embed`, cosine of vectors."""
    columns = [
        [overlap_f1(each.reference, each.answer) for each in answers],
        [_length_ratio(each.reference, each.answer) for each in answers],
    ]
    if embed is not None:
        vectors = np.asarray(embed([text for each in answers for text in (each.reference, each.answer)]), np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        columns.append(np.sum(vectors[::2] * vectors[1::2], axis=1).tolist())
    return np.array(columns, np.float64).T


def _words(text: str) -> list[str]:
    words = ("".join(each for each in word if each.isalnum()) for word in scripts.words(text.casefold()))
    return [word for word in words if word]


def overlap_f1(reference: str, answer: str) -> float:
    """Returns the F1 of the answer's words, as a bag, without case and punctuation; 0 if one of the two has none."""
    expected, given = _words(reference), _words(answer)
    common = sum((collections.Counter(expected) & collections.Counter(given)).values())
    return 2 * common / (len(expected) + len(given)) if common else 0.0


def _length_ratio(reference: str, answer: str) -> float:
    shorter, longer = sorted((len(_words(reference)), len(_words(answer))))
    return shorter / longer if longer else 0.0


def nearest(scale: Sequence[float], values: Float[np.ndarray, " answers"]) -> Float[np.ndarray, " answers"]:
    """Rounds values to the nearest scores of a scale."""
    steps = np.array(scale)
    return steps[np.abs(values[:, None] - steps).argmin(1)]


def fit(answers: Sequence[Answer], embedder: str | None = None) -> tuple[AnswerScorer, AgreementReport]:
    """Fits a scorer, and measures its agreement on answers held out: whole questions where there are enough of them.

    Raises:
      DataError: there are too few answers, or all have the same score.
    """
    scores = np.array([answer.score for answer in answers], np.float64)
    if len(answers) < 2 * _FOLDS or len(set(scores)) < 2:
        raise DataError(
            f"{len(answers)} answers with {len(set(scores))} different scores: {2 * _FOLDS} answers with two "
            "scores are the least to fit on"
        )
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = features(answers, open_embedder(embedder))
    scale = tuple(sorted(set(scores.tolist())))
    questions = np.unique([answer.question for answer in answers], return_inverse=True)[1]
    held_out = "questions" if questions.max() + 1 >= _FOLDS else "answers"
    groups = questions if held_out == "questions" else np.arange(len(answers))
    model, folds = make_pipeline(StandardScaler(), Ridge()), GroupKFold(_FOLDS)
    predicted = nearest(scale, cross_val_predict(model, values, scores, groups=groups, cv=folds))
    scaler, ridge = (step for _, step in model.fit(values, scores).steps)
    weights = ridge.coef_ / scaler.scale_  # of the features as they are
    scorer = AnswerScorer(
        embedder=embedder,
        weights=tuple(weights.tolist()),
        intercept=float(ridge.intercept_ - weights @ scaler.mean_),
        scale=scale,
    )
    return scorer, AgreementReport.of(scores, predicted, held_out, _FOLDS)
