"""ROVER: several recognisers' transcripts of one utterance, aligned word by word and put to the vote (Fiscus 1997).

Hypotheses are laid one after the other into a network of slots. A slot holds one word of each, or nothing; a hypothesis
is laid so that it disagrees with as few entries of those before it as can be, which for the second is the edit distance
to the first. Then each slot takes what most of them have there.

What is laid first matters to such a network, so the order is drawn from the hypotheses themselves: the one that is
nearest to all others begins. The result depends on the order of the systems only where votes tie, and then the one that
was named first decides: of two systems without confidences that is always the first.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pydantic
from rich.console import Console
from rich.progress import track
from tyro.conf import Positional

from data_pipelines.core.lines import text_lines
from data_pipelines.core.paths import AnyPath, as_path
from jax_speechlm.evaluation import report as reports
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer, written_without_spaces
from jax_speechlm.evaluation.report import EvaluationReport, Utterance

NOTHING = ""
"""What a hypothesis without a word in a slot has there."""

Slot = tuple[str, ...]
"""What each hypothesis has at one place: a word, or `NOTHING`."""

Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class Hypothesis(Utterance):
    """One system's transcript of an utterance.

    Attributes:
      confidences: how sure it is of each word of the normalised hypothesis, from 0 to 1; None where it does not say.
    """

    confidences: tuple[Share, ...] | None = None


def network(hypotheses: Sequence[Sequence[str]]) -> list[Slot]:
    """The slots of several hypotheses, whose words are no empty strings; a slot's entries are in the order given."""
    distance = [sum(_lay([(word,) for word in one], other)[0] for other in hypotheses) for one in hypotheses]
    order = sorted(range(len(hypotheses)), key=lambda each: (distance[each], tuple(hypotheses[each])))
    slots: list[Slot] = []
    for laid, each in enumerate(order):
        words = hypotheses[each]
        _, moves = _lay(slots, words, laid)
        slots = [
            (slots[slot] if slot is not None else (NOTHING,) * laid) + (NOTHING if word is None else words[word],)
            for slot, word in moves
        ]
    place = {each: laid for laid, each in enumerate(order)}
    return [tuple(slot[place[each]] for each in range(len(hypotheses))) for slot in slots]


def _lay(slots: Sequence[Slot], words: Sequence[str], laid: int = 1) -> tuple[int, list[tuple[int | None, int | None]]]:
    """(disagreements, moves) of the best way to lay a hypothesis into slots of `laid` others.

    A move is (slot, word), with None for a new slot, or for no word. Of equally good ways the one is taken that, from
    the end, joins word and slot where it can, and leaves a slot empty before it makes a new one.
    """
    counts = [Counter(slot) for slot in slots]
    costs = [[laid * number for number in range(len(words) + 1)]]
    for count in counts:
        above, without = costs[-1], laid - count[NOTHING]
        row = [above[0] + without]
        for number, word in enumerate(words):
            row.append(min(above[number] + laid - count[word], above[number + 1] + without, row[number] + laid))
        costs.append(row)
    moves, slot, word = [], len(slots), len(words)
    while slot or word:
        here = costs[slot][word]
        if slot and word and here == costs[slot - 1][word - 1] + laid - counts[slot - 1][words[word - 1]]:
            slot, word = slot - 1, word - 1
            moves.append((slot, word))
        elif slot and here == costs[slot - 1][word] + laid - counts[slot - 1][NOTHING]:
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
    """The words that win the vote. Where votes tie, what the hypothesis named first among the tied has.

    A word's score in a slot is alpha * (share of the hypotheses that have it) + (1 - alpha) * (mean of their
    confidences in it): Fiscus's "average confidence"; alpha 1 is the vote by frequency.

    Args:
      confidences: of each word of each hypothesis; needed where alpha is below 1.
      null_confidence: the confidence of having no word in a slot.
    """
    chosen = []
    spoken = [0] * len(hypotheses)  # words of each hypothesis so far
    for slot in network(hypotheses):
        votes: dict[str, list[float]] = {}
        for each, word in enumerate(slot):
            sure = null_confidence
            if word != NOTHING:
                sure = confidences[each][spoken[each]] if confidences else 0.0
                spoken[each] += 1
            votes.setdefault(word, []).append(sure)

        # Rounded, so that what ties on paper ties here; `max` takes the first, and dicts keep the order of voting.
        def score(sure):
            return round(alpha * len(sure) / len(slot) + (1 - alpha) * sum(sure) / len(sure), 9)  # noqa: B023

        winner = max(votes, key=lambda word: score(votes[word]))
        if winner != NOTHING:
            chosen.append(winner)
    return chosen


def rover_reports(
    systems: Positional[tuple[Path, ...]],
    out: Path,
    alpha: Share = 1.0,
    null_confidence: Share = 0.7,
    normalizer: NormalizerName | None = None,
) -> EvaluationReport:
    """Joins the transcripts of several evaluations of the same utterances by a vote on every word (ROVER).

    Writes a report as `jax-speechlm eval` does, which `jax-speechlm compare` takes. Where votes tie, the system that is
    named first decides: name the best first. References of a script without spaces are voted on by character.

    Args:
      systems: what to join: report.json files of `jax-speechlm eval`, or .jsonl files with a line for each utterance:
        id, reference, hypothesis, and confidences, one from 0 to 1 for each word.
      out: folder of the report.
      alpha: weight of the number of votes; the rest is that of the mean confidence, which every system must then give.
      null_confidence: confidence of a system in having no word where others have one.
      normalizer: what the texts go through before they are aligned; by default what the reports say, else "basic".
    """
    read = [_read(as_path(path)) for path in systems]
    named = {name for name, _ in read if name} if normalizer is None else {normalizer}
    if len(named) > 1:
        raise ValueError(f"the reports are normalised in different ways ({', '.join(sorted(named))}): say --normalizer")
    name: NormalizerName = named.pop() if named else "basic"
    how = "by frequency" if alpha == 1 else f"by frequency ({alpha:g}) and confidence, {null_confidence:g} for no word"
    joined = join([each for _, each in read], name, alpha=alpha, null_confidence=null_confidence)
    report = reports.evaluate(joined, name, decoder=f"ROVER of {', '.join(map(str, systems))}, {how}")
    report.save(as_path(out))
    console = Console(highlight=False)
    console.print(report.table())
    console.print(f"{report.decoder}; {as_path(out) / 'report.json'}", markup=False, soft_wrap=True)
    return report


def join(
    systems: Sequence[Sequence[Hypothesis]],
    normalizer_name: NormalizerName,
    *,
    alpha: float = 1.0,
    null_confidence: float = 0.7,
) -> list[Utterance]:
    """Each utterance with what the systems' votes make of it, normalised, in the first system's order.

    Raises:
      ValueError: fewer than two systems, systems that differ in utterances or references, or confidences that are
        missing or do not match the words.
    """
    if len(systems) < 2:
        raise ValueError("a vote needs two systems at least; it is worth something from three on")
    by_id = [{each.id: each for each in system} for system in systems]
    for others in by_id[1:]:
        if only := sorted(others.keys() ^ by_id[0].keys()):
            raise ValueError(
                f"{len(only)} utterances are in one system's transcripts only, such as {only[0]!r}: evaluate all on "
                "the same data set"
            )
    clean = normalizer(normalizer_name)
    by_character = written_without_spaces(each.reference for each in systems[0])
    joined = []
    for first in track(systems[0], description="voting", transient=True):
        voices = [others[first.id] for others in by_id]
        if len({voice.reference for voice in voices}) > 1:
            raise ValueError(
                f"the references of utterance {first.id!r} differ: evaluate all on the same version of the data set"
            )
        words = [_units(clean(voice.hypothesis, voice.language), by_character) for voice in voices]
        confidences = None if alpha == 1 else [_confidences(*each) for each in zip(voices, words, strict=True)]
        chosen = combine(words, confidences, alpha=alpha, null_confidence=null_confidence)
        joined.append(Utterance(**{**_common(first), "hypothesis": ("" if by_character else " ").join(chosen)}))
    return joined


def _units(text: str, by_character: bool) -> list[str]:
    return list(text.replace(" ", "")) if by_character else text.split()


def _common(voice: Hypothesis) -> dict:
    return voice.model_dump(exclude={"confidences"})


def _confidences(voice: Hypothesis, words: Sequence[str]) -> tuple[float, ...]:
    if voice.confidences is None or len(voice.confidences) != len(words):
        has = "none" if voice.confidences is None else str(len(voice.confidences))
        raise ValueError(
            f"utterance {voice.id!r} has {has} confidences for the {len(words)} words {' '.join(words)[:60]!r}: give "
            "one for each word of the normalised text, or leave --alpha at 1"
        )
    return voice.confidences


def _read(path: AnyPath) -> tuple[NormalizerName | None, list[Hypothesis]]:
    """The normaliser that a file names, and its transcripts."""
    if path.suffix != ".jsonl":
        report = EvaluationReport.load(path)
        return report.normalizer, [Hypothesis(**each.model_dump()) for each in report.utterances]
    try:
        return None, [Hypothesis.from_json(line) for _, line in text_lines(path) if line.strip()]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: a line is not an utterance with id, reference and hypothesis: {error}") from error
