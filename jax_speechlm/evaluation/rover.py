"""ROVER: combines several recognizers' transcripts of an utterance by word alignment and voting (Fiscus 1997).

Hypotheses are aligned one at a time to a network of slots. A slot has one entry per hypothesis, a word or nothing. Each
hypothesis is aligned so that it disagrees with as few entries of its predecessors as possible; for the second this is
the edit distance to the first. The most frequent entry of a slot wins.

The network depends on the order of alignment, which is therefore derived from the hypotheses: ascending total distance
to all others. So the order of the systems only breaks ties, in favour of the first; between two systems without
confidences the first always wins.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pydantic
from rich.progress import track
from tyro.conf import Positional

from data_pipelines.core.lines import text_lines
from data_pipelines.core.paths import AnyPath, as_path
from jax_speechlm.evaluation import report as reports
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer, written_without_spaces
from jax_speechlm.evaluation.report import EvaluationReport, Utterance

NOTHING = ""
"""The entry of a hypothesis without a word in a slot."""

Slot = tuple[str, ...]
"""One entry per hypothesis: a word, or `NOTHING`."""

Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class Hypothesis(Utterance):
    """One system's transcript of an utterance.

    Attributes:
      confidences: confidence from 0 to 1 per word of the normalised hypothesis; None if unknown.
    """

    confidences: tuple[Share, ...] | None = None


def network(hypotheses: Sequence[Sequence[str]]) -> list[Slot]:
    """Aligns hypotheses, whose words are not empty; a slot's entries are in the order given."""
    distance = [sum(_align([(word,) for word in one], other)[0] for other in hypotheses) for one in hypotheses]
    order = sorted(range(len(hypotheses)), key=lambda system: (distance[system], tuple(hypotheses[system])))
    slots: list[Slot] = []
    for aligned, system in enumerate(order):
        words = hypotheses[system]
        _, moves = _align(slots, words, aligned)
        slots = [
            (slots[slot] if slot is not None else (NOTHING,) * aligned) + (NOTHING if word is None else words[word],)
            for slot, word in moves
        ]
    return [tuple(slot[order.index(system)] for system in range(len(hypotheses))) for slot in slots]


def _align(
    slots: Sequence[Slot], words: Sequence[str], aligned: int = 1
) -> tuple[int, list[tuple[int | None, int | None]]]:
    """Aligns a hypothesis to the slots of `aligned` others by dynamic programming.

    Ties are resolved from the end: match word and slot if possible, else leave a slot empty, else insert a slot.

    Returns:
      The number of disagreements, and the moves (slot, word), with None for a new slot or for no word.
    """
    counts = [Counter(slot) for slot in slots]
    costs = [[aligned * index for index in range(len(words) + 1)]]
    for count in counts:
        above, without = costs[-1], aligned - count[NOTHING]
        row = [above[0] + without]
        for index, word in enumerate(words):
            row.append(min(above[index] + aligned - count[word], above[index + 1] + without, row[index] + aligned))
        costs.append(row)
    moves, slot, word = [], len(slots), len(words)
    while slot or word:
        cost = costs[slot][word]
        if slot and word and cost == costs[slot - 1][word - 1] + aligned - counts[slot - 1][words[word - 1]]:
            slot, word = slot - 1, word - 1
            moves.append((slot, word))
        elif slot and cost == costs[slot - 1][word] + aligned - counts[slot - 1][NOTHING]:
            slot -= 1
            moves.append((slot, None))
        else:
            word -= 1
            moves.append((None, word))
    return costs[-1][-1], moves[::-1]


def combine(
    hypotheses: Sequence[Sequence[str]],
    confidences: Sequence[Sequence[float]] | None = None,
    *,
    alpha: float = 1.0,
    null_confidence: float = 0.7,
) -> list[str]:
    """Returns the words that win the vote; ties go to the entry of the hypothesis given first.

    The score of a word is alpha * (share of the hypotheses with the word) + (1 - alpha) * (mean of their confidences):
    Fiscus's "average confidence"; alpha 1 is voting by frequency.

    Args:
      confidences: one per word and hypothesis; required for alpha below 1.
      null_confidence: confidence of having no word in a slot.
    """
    winners = []
    of_words = [iter(system) for system in confidences or [itertools.repeat(0.0)] * len(hypotheses)]
    for slot in network(hypotheses):
        votes: dict[str, list[float]] = defaultdict(list)
        for word, confidence in zip(slot, of_words, strict=True):
            votes[word].append(null_confidence if word == NOTHING else next(confidence))
        # Rounded, so that rounding errors do not break ties; `max` then returns the entry that was voted for first.
        scores = {
            word: round(alpha * len(votes_of) / len(slot) + (1 - alpha) * sum(votes_of) / len(votes_of), 9)
            for word, votes_of in votes.items()
        }
        winners.append(max(scores, key=scores.get))
    return [word for word in winners if word != NOTHING]


def rover_reports(
    systems: Positional[tuple[Path, ...]],
    out: Path,
    alpha: Share = 1.0,
    null_confidence: Share = 0.7,
    normalizer: NormalizerName | None = None,
) -> EvaluationReport:
    """Combines the transcripts of several evaluations of the same utterances by voting on every word (ROVER).

    Writes a report like `jax-speechlm eval`, which `jax-speechlm compare` reads. Ties go to the system given first, so
    give the best first. References in a script without spaces are voted on by character.

    Args:
      systems: report.json files of `jax-speechlm eval`, or .jsonl files with a line per utterance: id, reference,
        hypothesis, and confidences, one from 0 to 1 per word.
      out: folder of the report.
      alpha: weight of the number of votes; 1 - alpha is the weight of the mean confidence, which every system must then
        provide.
      null_confidence: confidence of a system in having no word where others have one.
      normalizer: applied to the texts before the alignment; by default as in the reports, or "basic".
    """
    names, hypotheses = zip(*(_read(as_path(path)) for path in systems), strict=True)
    different = {name for name in names if name} if normalizer is None else {normalizer}
    if len(different) > 1:
        raise ValueError(
            f"the reports are normalised in different ways ({', '.join(sorted(different))}): say --normalizer"
        )
    name: NormalizerName = different.pop() if different else "basic"
    votes = "frequency" if alpha == 1 else f"frequency ({alpha:g}) and confidence, {null_confidence:g} for no word"
    joined = join(hypotheses, name, alpha=alpha, null_confidence=null_confidence)
    report = reports.evaluate(joined, name, decoder=f"ROVER of {', '.join(map(str, systems))}, by {votes}")
    return report.publish(out, report.decoder)


def join(
    systems: Sequence[Sequence[Hypothesis]],
    normalizer_name: NormalizerName,
    *,
    alpha: float = 1.0,
    null_confidence: float = 0.7,
) -> list[Utterance]:
    """Combines the transcripts of several systems, utterance by utterance.

    Returns:
      Utterances with the normalised, combined hypothesis, in the order of the first system.

    Raises:
      ValueError: fewer than two systems, systems that differ in utterances or references, or confidences that are
        missing or do not match the words.
    """
    if len(systems) < 2:
        raise ValueError("a vote needs two systems at least; it is worth something from three on")
    clean = normalizer(normalizer_name)
    by_character = written_without_spaces(hypothesis.reference for hypothesis in systems[0])
    joined = []
    for hypotheses in track(reports.matched(systems), description="voting", transient=True):
        texts = [clean(hypothesis.hypothesis, hypothesis.language) for hypothesis in hypotheses]
        words = [list(text.replace(" ", "")) if by_character else text.split() for text in texts]
        confidences = None
        if alpha != 1:
            confidences = [_confidences(*pair) for pair in zip(hypotheses, words, strict=True)]
        text = ("" if by_character else " ").join(
            combine(words, confidences, alpha=alpha, null_confidence=null_confidence)
        )
        first = hypotheses[0].model_dump(exclude={"confidences", "hypothesis"})
        joined.append(Utterance(**first, hypothesis=text))
    return joined


def _confidences(hypothesis: Hypothesis, words: Sequence[str]) -> tuple[float, ...]:
    """Returns the confidences of a hypothesis. Raises ValueError unless there is one for each word."""
    if hypothesis.confidences is None or len(hypothesis.confidences) != len(words):
        count = "none" if hypothesis.confidences is None else str(len(hypothesis.confidences))
        raise ValueError(
            f"utterance {hypothesis.id!r} has {count} confidences for the {len(words)} words "
            f"{' '.join(words)[:60]!r}: give one for each word of the normalised text, or leave --alpha at 1"
        )
    return hypothesis.confidences


def _read(path: AnyPath) -> tuple[NormalizerName | None, list[Hypothesis]]:
    """Reads the transcripts of a file, and its normalizer if it is a report."""
    if path.suffix != ".jsonl":
        report = EvaluationReport.load(path)
        return report.normalizer, [Hypothesis(**each.model_dump()) for each in report.utterances]
    try:
        return None, [Hypothesis.from_json(line) for _, line in text_lines(path) if line.strip()]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: a line is not an utterance with id, reference and hypothesis: {error}") from error
