"""Entities in texts, and answers to questions found in texts, by models with a head on every token."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.inference.predictor import RunPredictor, print_lines
from jax_speechlm.inference.text_batches import outputs_of_rows
from jax_speechlm.objectives.heads.text_tokens import QuestionAnswering, TokenClassification

_OUTSIDE = "O"
_MOST_ANSWER_TOKENS = 15  # as transformers' pipeline had it
_SHORTEST_WINDOW = 8  # tokens of the text beside the question


@dataclasses.dataclass(frozen=True)
class Entity:
    """A part of a text, from character `start` to before `end`; the probability is the mean of its tokens'."""

    text: str
    label: str
    start: int
    end: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """A part of a text, from character `start` to before `end`, and the product of both ends' probabilities."""

    text: str
    start: int
    end: int
    probability: float


class _TokenPredictor(RunPredictor):
    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """The imported tokenizer, which knows the characters of each token."""
        return self.run.tokenizer

    @property
    def context(self) -> int:
        """Most tokens of a row."""
        return self.run.experiment.data.context

    @functools.cached_property
    def _logits(self):
        experiment = self.run.experiment
        compute = experiment.objective.classifier(experiment.model, None, self.tokenizer)
        jitted = jax.jit(lambda params, batch: compute(params, batch, None).astype(jnp.float32))
        return functools.partial(jitted, self.run.params)


class Tagger(_TokenPredictor):
    """Finds entities with a model of `token_classification`."""

    objective = TokenClassification
    purpose = "tag texts"
    abilities = ("tag",)

    def tag(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Returns the entities of each text in order: neighbouring tokens of one label, but for a label "O".

        A text longer than `data.context` is cut into parts of as many tokens.
        """
        vocabulary = Vocabulary.of(self.tokenizer)
        before = len(vocabulary.prefix)
        room = self.context - len(vocabulary.enclose([]))
        encoded = [self.tokenizer.encode_with_offsets(text) for text in texts]
        starts = [(index, at) for index, (ids, _) in enumerate(encoded) for at in range(0, len(ids), room)]
        rows = [vocabulary.enclose(encoded[index][0][at : at + room]) for index, at in starts]
        shares: list[list[np.ndarray]] = [[] for _ in texts]
        for (index, _), row, logits in zip(
            starts, rows, outputs_of_rows(self._logits, rows, self.context), strict=True
        ):
            shares[index].append(_softmax(logits[before : len(row) - 1]))
        return [
            self._entities(text, np.concatenate(parts) if parts else np.zeros((0, 1)), offsets)
            for text, parts, (_, offsets) in zip(texts, shares, encoded, strict=True)
        ]

    def _entities(
        self, text: str, shares: Float[np.ndarray, "tokens classes"], offsets: Sequence[tuple[int, int]]
    ) -> list[Entity]:
        groups: list[tuple[str, list[int]]] = []
        classes = self.run.experiment.objective.classes
        for token, best in enumerate(shares.argmax(-1).tolist()):
            begins, label = classes[best].startswith("B-"), classes[best].removeprefix("B-").removeprefix("I-")
            if groups and not begins and groups[-1][0] == label:
                groups[-1][1].append(token)
            else:
                groups.append((label, [token]))
        entities = []
        for label, tokens in groups:
            if label != _OUTSIDE:
                start, end = offsets[tokens[0]][0], offsets[tokens[-1]][1]
                probability = float(shares[tokens].max(-1).mean())
                entities.append(Entity(text[start:end], label, start, end, probability))
        return entities


class Reader(_TokenPredictor):
    """Finds answers with a model of `question_answering`."""

    objective = QuestionAnswering
    purpose = "answer questions"
    abilities = ("answer",)

    def answer(self, question: str, texts: Sequence[str]) -> list[Answer | None]:
        """Returns the likeliest answer to a question in each text; None in a text without tokens.

        A text longer than the model takes is read in windows that overlap by half; the likeliest answer counts.

        Raises:
          ValueError: the question fills the context.
        """
        rows, types, owners = [], [], []
        pairs = [self.tokenizer.encode_pair(question, text) for text in texts]
        for index, pair in enumerate(pairs):
            begin, end = pair.second
            room = self.context - (len(pair.ids) - (end - begin))
            if room < _SHORTEST_WINDOW:
                raise ValueError(f"the question has {begin} tokens, and the model takes {self.context}: shorten it")
            for at in _window_starts(end - begin, room):
                first, last = begin + at, min(begin + at + room, end)
                owners.append((index, first, last))
                rows.append([*pair.ids[:begin], *pair.ids[first:last], *pair.ids[end:]])
                types.append([*pair.types[:begin], *pair.types[first:last], *pair.types[end:]])
        answers: list[Answer | None] = [None] * len(texts)
        outputs = outputs_of_rows(self._logits, rows, self.context, types)
        for (index, first, last), logits in zip(owners, outputs, strict=True):
            pair = pairs[index]
            begin = pair.second[0]
            start, end, probability = best_span(logits[begin : begin + last - first])
            if answers[index] is None or probability > answers[index].probability:
                left, right = pair.offsets[first + start][0], pair.offsets[first + end][1]
                answers[index] = Answer(texts[index][left:right], left, right, probability)
        return answers


def best_span(logits_Tx2: Float[np.ndarray, "tokens 2"]) -> tuple[int, int, float]:
    """Returns first and last token of the likeliest answer of at most 15 tokens, and its probability."""
    shares = _softmax(logits_Tx2.T).T
    both = np.tril(np.triu(np.outer(shares[:, 0], shares[:, 1])), _MOST_ANSWER_TOKENS - 1)
    start, end = divmod(int(both.argmax()), len(shares))
    return start, end, float(both[start, end])


def _window_starts(length: int, room: int) -> range:
    """Returns where windows of `room` tokens begin that overlap by half and cover a text; none of an empty text."""
    return range(0, max(length - room, 0) + room // 2, room // 2) if length > room else range(min(length, 1))


def _softmax(logits: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    shares = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True, initial=-np.inf))
    return shares / shares.sum(-1, keepdims=True)


def tag_texts(checkpoint: Positional[Path], texts: Positional[tuple[str, ...]]) -> None:
    """Finds entities in texts; prints one line of JSON for each text.

    Args:
      checkpoint: a run of token_classification: its directory, or one of its checkpoints/<step> folders.
      texts: texts of any length.
    """
    tagger = Tagger.load(checkpoint)

    def describe(text: str) -> dict:
        (entities,) = tagger.tag([text])
        return {"text": text, "entities": [dataclasses.asdict(entity) for entity in entities]}

    print_lines(texts, describe)


def answer_question(
    checkpoint: Positional[Path], question: Positional[str], files: Positional[tuple[Path, ...]]
) -> None:
    """Finds the answer to a question in text files; prints one line of JSON for each file, the likeliest first.

    Args:
      checkpoint: a run of question_answering: its directory, or one of its checkpoints/<step> folders.
      question: a question.
      files: text files of any length.
    """
    try:
        texts = [file.read_text(encoding="utf-8") for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"a file cannot be read as text in UTF-8 ({error}): leave it out") from error
    found = zip(files, Reader.load(checkpoint).answer(question, texts), strict=True)
    known = [{"file": str(file)} | dataclasses.asdict(answer) for file, answer in found if answer is not None]
    for line in sorted(known, key=lambda each: -each["probability"]):
        print(json.dumps(line, ensure_ascii=False))
