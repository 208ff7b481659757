"""Scores hypotheses and reports error rates: JSON for programs, a table for the terminal, readable alignments."""

import bisect
import collections
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import pydantic
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from data_pipelines.core.paths import AnyPath
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, comparison, resampling, wer
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer, written_without_spaces

Metric = Literal["wer", "cer"]

_LENGTH_EDGES = (2, 5, 10, 20)  # seconds
_LENGTH_NAMES = ("under 2 s", "2 to 5 s", "5 to 10 s", "10 to 20 s", "20 s and over")
_LINE_WIDTH = 100  # columns of the alignment file

TOO_FEW = f"no interval: fewer than {resampling.MIN_UTTERANCES} utterances have a reference"
"""Explains a missing interval."""


class Utterance(Config):
    """One recognised utterance.

    Attributes:
      id: unique in the corpus.
      reference, hypothesis: correct and recognised text; may be empty.
      duration: seconds; None if unknown, like the speaker.
      language: its code, for normalisation; '' if unknown.
    """

    id: str
    reference: str
    hypothesis: str
    speaker: str | None = None
    duration: Annotated[float, pydantic.Field(ge=0)] | None = None
    language: str = ""


UtteranceT = TypeVar("UtteranceT", bound=Utterance)


class Score(Config):
    """Errors of a set of utterances.

    Attributes:
      rate: errors / `tokens`, as a share (0.25 is 25 %); may exceed 1; None if `tokens` is 0.
      interval: 95 % bootstrap interval of the rate, over speakers if there are 30 or more, else over
        utterances; None for fewer than 30 of them.
      tokens: words or characters of the references.
      utterances: number of utterances, empty references included.
    """

    rate: float | None
    interval: tuple[float, float] | None = None
    substitutions: int
    deletions: int
    insertions: int
    tokens: int
    utterances: int

    @pydantic.model_validator(mode="before")
    @classmethod
    def _of_few_no_interval(cls, values: Any) -> Any:
        """Drops the interval of few utterances, which reports of earlier versions have."""
        few = isinstance(values, dict) and values.get("utterances", 0) < resampling.MIN_UTTERANCES
        return values | {"interval": None} if few else values

    def __str__(self) -> str:
        if self.rate is None:
            return f"- ({self.insertions} insertions, no reference)"
        return base.percent(self.rate, self.interval)


class EvaluationReport(base.Report):
    """The evaluation of one system on one corpus.

    Attributes:
      headline: the rate to report: "cer" if the references are written without spaces between words, else "wer".
      normalizer: applied to both texts before scoring.
      decoder: description of the decoding, language models and weights included.
      wer: word errors over the corpus.
      cer: character errors; spaces count as characters, but are removed if `headline` is "cer".
      speakers, lengths: the score of `headline` per speaker, and by duration; empty if none is known.
      resamples, seed: of the bootstrap intervals.
    """

    headline: Metric
    normalizer: NormalizerName
    decoder: str = "greedy"
    wer: Score
    cer: Score
    speakers: dict[str, Score]
    lengths: dict[str, Score]
    resamples: int
    seed: int
    utterances: tuple[Utterance, ...]

    @classmethod
    def load(cls, path: AnyPath) -> "EvaluationReport":
        """Reads `report.json`. Raises `ValueError` if the file is missing or is not a report."""
        try:
            return cls.from_json(path.read_bytes())
        except FileNotFoundError:
            raise ValueError(
                f"{path} does not exist: run `jax-speechlm eval` first, and name its report.json"
            ) from None
        except pydantic.ValidationError as error:
            raise ValueError(f"{path} is not a report of `jax-speechlm eval`: {error}") from error

    def tables(self) -> Iterator[Table]:
        """Yields both rates over the corpus, then `headline` by length and by speaker."""
        caption = TOO_FEW if self.wer.interval is None else None
        columns = "", "rate [95 %]", "S", "D", "I", "tokens", "utterances"
        table = base.new_table(*columns, title=f"normalizer: {self.normalizer}", caption=caption)
        rates = {"WER": self.wer, "CER": self.cer}
        if self.headline == "cer":
            rates = dict(reversed(rates.items()))
        for rows in (rates, self.lengths, self.speakers):
            for name, score in rows.items():
                counts = score.substitutions, score.deletions, score.insertions, score.tokens, score.utterances
                table.add_row(escape(name), str(score), *(f"{n:,}" for n in counts))
            table.add_section()
        yield table

    def measures(self) -> dict[str, base.Measure]:
        """Returns the headline rate."""
        counts = count_errors(self.utterances, self.normalizer, self.headline, self.headline)
        columns = ([getattr(each, name) for each in self.utterances] for name in ("id", "reference", "speaker"))
        terms = np.stack([counts[:, :3].sum(1), counts[:, 3]], axis=1).astype(np.float64)
        return {self.headline.upper(): base.Measure(*columns, terms, setting=f"--normalizer {self.normalizer}")}

    def texts(self) -> dict[str, str]:
        return {"alignments.txt": self.alignments()}

    def alignments(self) -> str:
        """Returns the alignments of all utterances, most errors first, with the edits S, D and I marked below."""
        return "\n".join(_render(self.utterances[place], alignment) for place, alignment in self.most_errors())

    def most_errors(self) -> list[tuple[int, wer.Alignment]]:
        """Returns the place of each utterance and its alignment, most errors first."""
        aligned = _align(self.utterances, self.normalizer, self.headline, self.headline)
        return sorted(enumerate(aligned), key=lambda pair: -sum(pair[1].count()[:3]))


def evaluate(
    utterances: Sequence[Utterance],
    normalizer: NormalizerName = "basic",
    *,
    decoder: str = "greedy",
    resamples: int = resampling.RESAMPLES,
    seed: int = 0,
) -> EvaluationReport:
    """Scores hypotheses against references.

    Raises:
      ValueError: the list is empty, or an id occurs twice.
    """
    if not utterances:
        raise ValueError("there is nothing to evaluate: no utterance was given")
    counted = collections.Counter(utterance.id for utterance in utterances)
    if len(counted) < len(utterances):
        raise ValueError(f"utterance {counted.most_common(1)[0][0]!r} occurs twice: ids must be unique")
    headline: Metric = "cer" if written_without_spaces(utterance.reference for utterance in utterances) else "wer"
    counts = {metric: count_errors(utterances, normalizer, metric, headline) for metric in get_args(Metric)}

    everything = range(len(utterances))

    def score(metric: Metric, rows: Sequence[int] = everything) -> Score:
        speakers = [utterances[row].speaker for row in rows]
        return score_counts(counts[metric][rows], speakers, resamples, seed)

    by_speaker = _group([utterance.speaker for utterance in utterances])
    durations = [utterance.duration for utterance in utterances]
    by_length = _group([None if each is None else bisect.bisect(_LENGTH_EDGES, each) for each in durations])
    return EvaluationReport(
        headline=headline,
        normalizer=normalizer,
        decoder=decoder,
        wer=score("wer"),
        cer=score("cer"),
        speakers={speaker: score(headline, rows) for speaker, rows in by_speaker.items()},
        lengths={_LENGTH_NAMES[length]: score(headline, rows) for length, rows in by_length.items()},
        resamples=resamples,
        seed=seed,
        utterances=tuple(utterances),
    )


def score_counts(
    counts: wer.Counts, speakers: Sequence[str | None], resamples: int = resampling.RESAMPLES, seed: int = 0
) -> Score:
    """Adds up counts of utterances; the interval is over speakers where there are many, else over utterances."""
    totals = zip(("substitutions", "deletions", "insertions", "tokens"), counts.sum(0).tolist(), strict=True)
    bounds = wer.bootstrap(wer.of_units(counts, speakers), resamples, seed)
    return Score(rate=wer.rate(counts), interval=bounds, utterances=len(counts), **dict(totals))


def matched(systems: Sequence[Sequence[UtteranceT]]) -> list[tuple[UtteranceT, ...]]:
    """Matches the utterances of several systems by id.

    Returns:
      One tuple per utterance, in the order of the first system.

    Raises:
      ValueError: the systems differ in utterances or references.
    """
    columns = [([each.id for each in system], [each.reference for each in system]) for system in systems]
    rows = zip(*comparison.matching_rows(columns), strict=True)
    return [tuple(system[row] for system, row in zip(systems, each, strict=True)) for each in rows]


def count_errors(
    utterances: Sequence[Utterance], normalizer: NormalizerName, metric: Metric, headline: Metric
) -> wer.Counts:
    """Counts substitutions, deletions, insertions and reference tokens of each utterance, after normalisation."""
    return wer.count(_align(utterances, normalizer, metric, headline))


def _align(
    utterances: Sequence[Utterance], normalizer_name: NormalizerName, metric: Metric, headline: Metric
) -> list[wer.Alignment]:
    clean = normalizer(normalizer_name)
    references = [clean(utterance.reference, utterance.language) for utterance in utterances]
    hypotheses = [clean(utterance.hypothesis, utterance.language) for utterance in utterances]
    if metric == "wer":
        return wer.align(references, hypotheses, "word")
    if headline == "cer":  # spaces carry no information there and vary between transcribers
        references, hypotheses = ([text.replace(" ", "") for text in texts] for texts in (references, hypotheses))
    return wer.align(references, hypotheses, "character")


def _group(keys: Sequence[Any]) -> dict[Any, list[int]]:
    """Groups rows by key, sorted by key; rows whose key is None are left out."""
    groups = collections.defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    groups.pop(None, None)
    return dict(sorted(groups.items()))


def _render(utterance: Utterance, alignment: wer.Alignment) -> str:
    head = [utterance.id, "S {} D {} I {} of {}".format(*alignment.count())]
    if utterance.speaker is not None:
        head.append(utterance.speaker)
    if utterance.duration is not None:
        head.append(f"{utterance.duration:.1f} s")
    lines = ["  ".join(head)]
    for edits in _lines(alignment.edits):
        widths = [max(map(cell_len, edit)) for edit in edits]
        for name, column in (("ref", 1), ("hyp", 2), ("", 0)):
            cells = ("" if edit[column] == "=" and column == 0 else edit[column] for edit in edits)
            padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
            lines.append(f"{name:5}{' '.join(padded)}".rstrip())
        if not lines[-1]:
            del lines[-1]  # nothing to mark
    return "\n".join(lines) + "\n"


def _lines(edits: Sequence[tuple[str, str, str]]) -> Iterator[list[tuple[str, str, str]]]:
    """Splits the edits into runs that fit on a line."""
    line, used = [], 0
    for edit in edits:
        width = max(map(cell_len, edit)) + 1
        if line and used + width > _LINE_WIDTH:
            yield line
            line, used = [], 0
        line.append(edit)
        used += width
    if line:
        yield line
