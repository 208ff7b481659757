"""Scores hypotheses and reports error rates: JSON for programs, a table for the terminal, readable alignments."""

import bisect
import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_args

import pydantic
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from data_pipelines.core.paths import AnyPath
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import wer
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer, written_without_spaces

Metric = Literal["wer", "cer"]

_LENGTH_EDGES = (2, 5, 10, 20)  # seconds
_LENGTH_NAMES = ("under 2 s", "2 to 5 s", "5 to 10 s", "10 to 20 s", "20 s and over")
_LINE_WIDTH = 100  # columns of the alignment file

TOO_FEW = f"no interval: fewer than {wer.MIN_UTTERANCES} utterances have a reference"
"""Explains a missing interval."""


class Utterance(Config):
    """One recognised utterance.

    Attributes:
      id: unique in the corpus.
      reference: correct transcript; may be empty.
      hypothesis: recognised text; may be empty.
      speaker: None if unknown.
      duration: seconds; None if unknown.
      language: its code, for normalisation; '' if unknown.
    """

    id: str
    reference: str
    hypothesis: str
    speaker: str | None = None
    duration: Annotated[float, pydantic.Field(ge=0)] | None = None
    language: str = ""


class Score(Config):
    """Errors of a set of utterances.

    Attributes:
      rate: errors / `tokens`, as a share (0.25 is 25 %); may exceed 1; None if `tokens` is 0.
      interval: 95 % bootstrap interval of the rate; None if not requested or below `wer.MIN_UTTERANCES`.
      substitutions, deletions, insertions: numbers of errors.
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
        few = isinstance(values, dict) and values.get("utterances", 0) < wer.MIN_UTTERANCES
        return values | {"interval": None} if few else values

    def __str__(self) -> str:
        if self.rate is None:
            return f"- ({self.insertions} insertions, no reference)"
        if self.interval is None:
            return f"{100 * self.rate:.1f} %"
        low, high = self.interval
        return f"{100 * self.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


class EvaluationReport(Config):
    """The evaluation of one system on one corpus.

    Attributes:
      headline: the rate to report: "cer" if the references are written without spaces between words, else "wer".
      normalizer: applied to both texts before scoring.
      decoder: description of the decoding, language models and weights included.
      wer: word errors over the corpus.
      cer: character errors; spaces count as characters, but are removed if `headline` is "cer".
      speakers: the score of `headline` per speaker; empty if none is known.
      lengths: the same by duration in seconds; empty if none is known.
      resamples, seed: of the bootstrap intervals.
      utterances: the scored utterances, as given.
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

    def save(self, directory: AnyPath) -> None:
        """Writes `report.json`, which `load` reads, and `alignments.txt` for reading."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (directory / "alignments.txt").write_text(self.alignments(), encoding="utf-8")

    @classmethod
    def load(cls, path: AnyPath) -> "EvaluationReport":
        """Reads a `report.json`. Raises `ValueError` if the file is missing or is not a report."""
        try:
            return cls.from_json(path.read_bytes())
        except FileNotFoundError:
            raise ValueError(
                f"{path} does not exist: run `jax-speechlm eval` first, and name its report.json"
            ) from None
        except pydantic.ValidationError as error:
            raise ValueError(f"{path} is not a report of `jax-speechlm eval`: {error}") from error

    def table(self) -> Table:
        """Returns a table for the terminal: both rates over the corpus, then `headline` by speaker and by length."""
        caption = TOO_FEW if self.wer.interval is None else None
        table = Table(title=f"normalizer: {self.normalizer}", title_justify="left", caption=caption)
        for column in ("", "rate [95 %]", "S", "D", "I", "tokens", "utterances"):
            table.add_column(column, justify="right" if column else "left")
        rates = {"WER": self.wer, "CER": self.cer}
        if self.headline == "cer":
            rates = dict(reversed(rates.items()))
        for rows in (rates, self.lengths, self.speakers):
            for name, score in rows.items():
                counts = score.substitutions, score.deletions, score.insertions, score.tokens, score.utterances
                table.add_row(escape(name), str(score), *(f"{n:,}" for n in counts))
            table.add_section()
        return table

    def alignments(self) -> str:
        """Returns the alignments of all utterances, most errors first, with the edits S, D and I marked below."""
        aligned = _align(self.utterances, self.normalizer, self.headline, self.headline)
        errors = [sum(alignment.count()[:3]) for alignment in aligned]
        order = sorted(range(len(aligned)), key=lambda row: -errors[row])
        return "\n".join(_render(self.utterances[row], aligned[row]) for row in order)


class Comparison(Config):
    """Two systems on the same utterances, by paired bootstrap.

    Attributes:
      metric: the compared rate.
      first, second: the two rates.
      difference: second minus first; negative if the second is better.
      interval: 95 % interval of the difference; None below `wer.MIN_UTTERANCES`.
      p_value: two-sided; None likewise.
    """

    metric: Metric
    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None

    def __str__(self) -> str:
        rates = f"{self.metric.upper()} {100 * self.first:.2f} % -> {100 * self.second:.2f} %: "
        rates += f"{100 * self.difference:+.2f}"
        if self.interval is None:
            return f"{rates} ({TOO_FEW})"
        low, high = self.interval
        return f"{rates} [{100 * low:+.2f}, {100 * high:+.2f}], p = {self.p_value:.2g}"


def evaluate(
    utterances: Sequence[Utterance],
    normalizer: NormalizerName = "basic",
    *,
    decoder: str = "greedy",
    resamples: int = 10_000,
    seed: int = 0,
) -> EvaluationReport:
    """Scores hypotheses against references.

    Args:
      normalizer: applied to both.
      decoder: description of the decoding, for the report.
      resamples, seed: of the bootstrap.

    Raises:
      ValueError: the list is empty, or an id occurs twice.
    """
    if not utterances:
        raise ValueError("there is nothing to evaluate: no utterance was given")
    counted = collections.Counter(utterance.id for utterance in utterances)
    if len(counted) < len(utterances):
        raise ValueError(f"utterance {counted.most_common(1)[0][0]!r} occurs twice: ids must be unique")
    headline: Metric = "cer" if written_without_spaces(utterance.reference for utterance in utterances) else "wer"
    counts = {metric: wer.count(_align(utterances, normalizer, metric, headline)) for metric in get_args(Metric)}

    def score(metric: Metric, rows: Sequence[int] | slice = slice(None), *, interval: bool = False) -> Score:
        chosen = counts[metric][rows]
        substitutions, deletions, insertions, tokens = chosen.sum(0).tolist()
        return Score(
            rate=wer.rate(chosen),
            interval=wer.bootstrap(chosen, resamples, seed) if interval else None,
            substitutions=substitutions,
            deletions=deletions,
            insertions=insertions,
            tokens=tokens,
            utterances=len(chosen),
        )

    by_speaker = _group(utterances, lambda utterance: utterance.speaker)
    by_length = _group(utterances, _length_class)
    return EvaluationReport(
        headline=headline,
        normalizer=normalizer,
        decoder=decoder,
        wer=score("wer", interval=True),
        cer=score("cer", interval=True),
        speakers={speaker: score(headline, rows) for speaker, rows in by_speaker.items()},
        lengths={_LENGTH_NAMES[length]: score(headline, rows) for length, rows in by_length.items()},
        resamples=resamples,
        seed=seed,
        utterances=tuple(utterances),
    )


def compare(first: EvaluationReport, second: EvaluationReport, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Tests the difference in the headline rate of two systems on the same utterances, which may be in any order.

    Raises:
      ValueError: the reports differ in normalizer, utterances or references.
    """
    if first.normalizer != second.normalizer:
        raise ValueError(
            f"one report was normalised with {first.normalizer!r}, the other with {second.normalizer!r}: "
            "evaluate both with the same --normalizer"
        )
    others = {utterance.id: utterance for utterance in second.utterances}
    here = {utterance.id for utterance in first.utterances}
    if only := sorted(here ^ others.keys()):
        raise ValueError(
            f"{len(only)} utterances are in one report only, such as {only[0]!r}: evaluate both on the same data set"
        )
    pairs = [(utterance, others[utterance.id]) for utterance in first.utterances]
    for one, other in pairs:
        if one.reference != other.reference:
            raise ValueError(
                f"the reference of utterance {one.id!r} is {one.reference!r} in one report, {other.reference!r} in the "
                "other: evaluate both on the same version of the data set"
            )
    counts = [
        wer.count(_align(side, first.normalizer, first.headline, first.headline)) for side in zip(*pairs, strict=True)
    ]
    difference = wer.paired_bootstrap(*counts, resamples, seed)
    return Comparison(
        metric=first.headline,
        first=wer.rate(counts[0]),
        second=wer.rate(counts[1]),
        difference=difference.value,
        interval=difference.interval,
        p_value=difference.p_value,
    )


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


def _length_class(utterance: Utterance) -> int | None:
    return None if utterance.duration is None else bisect.bisect(_LENGTH_EDGES, utterance.duration)


def _group(utterances: Sequence[Utterance], key: Callable[[Utterance], Any]) -> dict[Any, list[int]]:
    """Groups rows by key, sorted by key; rows whose key is None are left out."""
    groups = collections.defaultdict(list)
    for row, utterance in enumerate(utterances):
        groups[key(utterance)].append(row)
    groups.pop(None, None)
    return dict(sorted(groups.items()))


def _render(utterance: Utterance, alignment: wer.Alignment) -> str:
    substitutions, deletions, insertions, tokens = alignment.count()
    head = [utterance.id, f"S {substitutions} D {deletions} I {insertions} of {tokens}"]
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
