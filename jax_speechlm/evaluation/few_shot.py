"""Few-shot evaluation of language models in context: accuracy over the number of demonstrations in the prompt.

A prompt has some solved examples and a question; the answer is the candidate that makes the whole text the most
probable, which is the one of the highest log-probability given the prompt (Brown et al. 2020). Questions are texts,
or recordings for a language model of text and speech units.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import check_storable, parse_object, text_lines
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.resampling import wilson_interval
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.units import UnitModel
from jax_speechlm.inference.load import load
from jax_speechlm.inference.unit_encoder import UnitEncoder

Encode = Callable[[Sequence[str | Path]], list[int]]
"""Maps the parts of a document, texts and recordings, to its tokens, without an end."""


class Example(NamedTuple):
    """A question with its answer.

    Attributes:
      question: a text, or the path of a recording.
      choices: candidates; empty for the answers of all examples.
    """

    question: str | Path
    answer: str
    choices: tuple[str, ...] = ()


class Shots(Config):
    """Accuracy with a number of demonstrations.

    Attributes:
      shots: demonstrations in each prompt.
      accuracy: share of the questions whose answer is the best candidate; of n equally good ones it counts 1 / n.
      interval: 95 % interval over the questions (Wilson).
      cut: share of the texts that are longer than the model's context, so that later parts lack the first ones.
    """

    shots: int
    accuracy: float
    interval: tuple[float, float]
    cut: float


class FewShotReport(base.Report):
    """The evaluation of one language model by prompts with demonstrations.

    Attributes:
      questions: number of questions.
      chance: accuracy of guessing among the candidates.
      majority: accuracy of always giving the most frequent answer of the demonstrations.
      seed: of the choice of demonstrations.
      results: by number of demonstrations.
    """

    checkpoint: str
    questions: int
    chance: float
    majority: float
    seed: int
    results: tuple[Shots, ...]
    items: tuple[base.Item, ...] = ()

    def measures(self) -> dict[str, base.Measure]:
        """Returns the accuracies by number of demonstrations."""
        names = [f"{each.shots} shots" for each in self.results] if self.items else []
        setting = f"--seed {self.seed}"
        return {name: base.Measure.of_items(self.items, name, setting=setting) for name in names}

    def tables(self) -> Iterator[Table]:
        """Yields the accuracies over the number of demonstrations."""
        caption = f"guessing: {self.chance:.1%}; most frequent answer: {self.majority:.1%}"
        title = f"{self.questions:,} questions"
        table = base.new_table("demonstrations", "accuracy [95 %]", "over the context", title=title, caption=caption)
        for each in self.results:
            table.add_row(str(each.shots), base.percent(each.accuracy, each.interval), f"{each.cut:.0%}")
        yield table


def read_examples(path: Path) -> list[Example]:
    """Reads JSON lines with "question", a text, or "audio", a path; "answer"; and perhaps "choices", all candidates.

    Raises:
      DataError: the file is missing, empty or malformed; the message names the line.
    """
    examples = []
    try:
        for line_number, line in text_lines(path):
            if line.strip():
                examples.append(_example(path, line_number, line))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: name a .jsonl file with question and answer") from None
    if not examples:
        raise DataError(f"{path} holds no questions")
    return examples


def _example(path: Path, line_number: int, line: str) -> Example:
    try:
        item = parse_object(line)
        audio, answer, choices = item.get("audio"), item["answer"], tuple(item.get("choices", ()))
        question = item["question"] if audio is None else audio
        for key, value in (("question", question), ("answer", answer), *(("choices", each) for each in choices)):
            if not isinstance(value, str):
                raise TypeError(f"{key} is not a string")
            check_storable(key, value)
        if choices and answer not in choices:
            raise ValueError(f"the answer {answer!r} is not among the choices")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, line {line_number}: not a question ({error!r}); it needs question (or audio) and answer"
        ) from error
    return Example(question if audio is None else path.parent / audio, answer, choices)


def evaluate(
    lm: LanguageModel,
    encode: Encode,
    train: Sequence[Example],
    test: Sequence[Example],
    *,
    shots: Sequence[int],
    joiner: str,
    separator: str,
    seed: int,
) -> FewShotReport:
    """Ranks the candidates of every question after each number of demonstrations.

    Args:
      lm, encode: the language model, and what turns texts into its tokens.
      shots, joiner, separator, seed: as of `few_shot`.

    Raises:
      DataError: there are fewer examples to demonstrate than `shots`.
    """
    if max(shots) > len(train):
        raise DataError(f"{max(shots)} demonstrations cannot be drawn from {len(train)}: give fewer --shots")
    every = tuple(dict.fromkeys(example.answer for example in (*train, *test)))
    choices = [example.choices or every for example in test]
    drawn = [np.random.default_rng((seed, row)).permutation(len(train)) for row in range(len(test))]

    def solved(question: str | Path, answer: str) -> tuple[str | Path, ...]:
        return question, joiner + answer + separator

    results, right_of = [], {}
    for count in shots:
        documents = []
        for example, order, candidates in zip(test, drawn, choices, strict=True):
            # The first demonstrations of a question are the same for all counts, and stand next to it.
            shown = [part for row in order[:count][::-1] for part in solved(train[row].question, train[row].answer)]
            documents += [encode([*shown, *solved(example.question, answer)]) for answer in candidates]
        scores = np.array([-nats.sum(dtype=np.float64) for nats in lm.token_nll(documents)])
        right = np.array(list(_right(scores, test, choices)))
        right_of[f"{count} shots"] = right.tolist()
        results.append(
            Shots(
                shots=count,
                accuracy=float(right.mean()),
                interval=wilson_interval(float(right.mean()), len(right)),
                cut=float(np.mean([len(ids) > lm.context for ids in documents])),
            )
        )
    (usual, _), *_ = collections.Counter(example.answer for example in train or test).most_common()
    return FewShotReport(
        checkpoint=str(lm.checkpoint),
        questions=len(test),
        chance=float(np.mean([1 / len(candidates) for candidates in choices])),
        majority=float(np.mean([example.answer == usual for example in test])),
        seed=seed,
        results=tuple(results),
        items=tuple(
            base.Item(
                id=str(row),
                reference=f"{example.question}: {example.answer}",
                sums={name: (right[row], 1) for name, right in right_of.items()},
            )
            for row, example in enumerate(test)
        ),
    )


def _right(
    scores: Float[np.ndarray, " candidates"], test: Sequence[Example], choices: Sequence[tuple[str, ...]]
) -> Iterator[float]:
    """Yields for each question 1 if its answer is the best candidate, 1 / n if one of n, and 0 otherwise."""
    first = 0
    for example, candidates in zip(test, choices, strict=True):
        own = scores[first : first + len(candidates)]
        best = [answer for answer, score in zip(candidates, own, strict=True) if score == own.max()]
        yield (example.answer in best) / max(1, len(best))
        first += len(candidates)


def few_shot(
    checkpoint: base.Checkpoint,
    test: Positional[Path],
    train: Path | None = None,
    shots: tuple[int, ...] = (0, 1, 2, 4, 8),
    joiner: str = " ",
    separator: str = "\n",
    seed: int = 0,
    out: Path | None = None,
) -> FewShotReport:
    """Measures how often a language model prefers the right answer, after demonstrations of the task in its prompt.

    Args:
      test: JSON lines with "question" (for a model of speech units also "audio", a path) and "answer"; "choices" are
        the candidates, by default all answers of both files.
      train: such lines, from which demonstrations are drawn; needed for any but 0 shots.
      shots: numbers of demonstrations.
      joiner: text between a question and its answer.
      separator: text after an answer.
      seed: of the demonstrations, which are drawn for each question.
      out: folder of report.json; by default <checkpoint>/eval/few-shot.
    """
    demonstrations, questions = read_examples(train) if train else [], read_examples(test)
    files = [each.question for each in (*demonstrations, *questions) if isinstance(each.question, Path)]
    model = load(checkpoint).model
    if isinstance(model, UnitModel):
        lm, units = model.lm, {}
        if files:
            units = dict(zip(files, UnitEncoder.load(model.check()).encode_sequences(files), strict=True))

        def encode(parts: Sequence[str | Path]) -> list[int]:
            return model.prompt([units[part] if isinstance(part, Path) else part for part in parts])
    else:
        lm = model
        if files:
            raise DataError(f"{files[0]}: {checkpoint} is a language model of text: give question, or a run of unit_lm")

        def encode(parts: Sequence[str | Path]) -> list[int]:
            return lm.prompt("".join(parts))

    settings = {"shots": shots, "joiner": joiner, "separator": separator, "seed": seed}
    report = evaluate(lm, encode, demonstrations, questions, **settings)
    return report.publish(out or checkpoint / "eval" / "few-shot", report.checkpoint)
