"""Evaluates word vectors on rated pairs of words and on analogies.

A file of rated pairs has a pair and its rating in each line, as WordSim-353 and SimLex-999 do: "tiger, cat, 7.35" with
tabs, commas or spaces. A file of analogies has four words in each line, "athens greece oslo norway", as Google's
questions-words.txt. Lines that start with # or : are skipped.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import scipy.stats
from rich.table import Table
from tyro.conf import arg

from data_pipelines.core.errors import DataError
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.resampling import MIN_UTTERANCES, wilson_interval
from jax_speechlm.inference.word_vectors import WordTable

Interval = tuple[float, float] | None


class FileResult(Config):
    """The measure of one file.

    Attributes:
      file: its name.
      kind: what its lines are.
      lines: how many there are.
      known: lines whose words all have vectors; the others are left out.
      value: of pairs, Spearman's rank correlation of ratings and cosine similarities; of analogies, the share right.
      interval: 95 % of `value`; None if few lines are known.
    """

    file: str
    kind: Literal["pairs", "analogies"]
    lines: int
    known: int
    value: float
    interval: Interval = None


class WordReport(base.Report):
    """The evaluation of word vectors.

    Attributes:
      checkpoint: a run's checkpoint, or a file of vectors.
      words: number of words.
      files: measures by file.
    """

    checkpoint: str
    words: int
    files: tuple[FileResult, ...]

    def tables(self) -> Iterator[Table]:
        """Yields the measures, one file a row."""
        table = base.new_table("file", "lines", "known", "rank correlation", "right", title=f"{self.words:,} words")
        for each in self.files:
            if each.kind == "pairs":
                measures = base.number(each.value, each.interval), ""
            else:
                measures = "", base.percent(each.value, each.interval)
            table.add_row(each.file, f"{each.lines:,}", f"{each.known:,}", *measures)
        yield table


def evaluate_run(
    checkpoint: base.Checkpoint,
    files: Annotated[tuple[str, ...], arg(help="rated pairs of words, or analogies; one or several text files.")],
    out: Annotated[Path | None, arg(help="folder of the report; by default <checkpoint>/eval/words.")] = None,
) -> WordReport:
    """Measures word vectors on files of rated pairs of words, and of analogies.

    Lines with words that have no vectors are left out and counted.
    """
    table = WordTable.load(checkpoint)
    results = tuple(measure_file(table, Path(file)) for file in files)
    report = WordReport(checkpoint=table.source, words=len(table.words), files=results)
    return report.publish(out or checkpoint / "eval" / "words", report.checkpoint)


def measure_file(table: WordTable, path: Path) -> FileResult:
    """Measures a table on one file.

    Raises:
      DataError: the file cannot be read, or a line has neither a rated pair nor four words.
    """
    pairs, ratings, analogies = [], [], []
    for number, words in _lines(path):
        if len(words) == 4:
            analogies.append(words)
        elif (rating := _rating(words)) is not None:
            pairs.append(words[:2])
            ratings.append(rating)
        else:
            raise DataError(f"{path}: line {number} has neither two words and a rating nor four words: correct it")
    if bool(pairs) == bool(analogies):
        raise DataError(f"{path} should have rated pairs or analogies, one kind in each file; it has both, or neither")
    lines = pairs or analogies
    known = [number for number, words in enumerate(lines) if all(word in table for word in words)]
    kept = [lines[number] for number in known]
    rated = [ratings[number] for number in known] if pairs else []
    value = _correlation(table, kept, rated) if pairs else _share_right(table, kept)
    interval = None
    if len(known) >= MIN_UTTERANCES:
        interval = (_interval_of_correlation if pairs else wilson_interval)(value, len(known))
    kind = "pairs" if pairs else "analogies"
    return FileResult(file=path.name, kind=kind, lines=len(lines), known=len(known), value=value, interval=interval)


def _correlation(table: WordTable, pairs: Sequence[Sequence[str]], ratings: Sequence[float]) -> float:
    """Returns Spearman's rank correlation of ratings and similarities; 0 for fewer than two pairs."""
    if len(pairs) < 2:
        return 0.0
    return float(scipy.stats.spearmanr([table.similarity(*pair) for pair in pairs], ratings).statistic)


def _interval_of_correlation(value: float, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a rank correlation by Fisher's transformation (Fieller et al. 1957)."""
    middle, half = np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9)), 1.96 * np.sqrt(1.06 / (count - 3))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def _share_right(table: WordTable, analogies: Sequence[Sequence[str]]) -> float:
    """Returns the share of analogies whose fourth word is the nearest; 0 without any."""
    right = [table.analogy(*words[:3])[0].word == table.spelling(words[3]) for words in analogies]
    return float(np.mean(right)) if right else 0.0


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8 ({error}): name a text file with --files") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith(("#", ":")):
            separator = "\t" if "\t" in line else "," if "," in line else None
            yield number, [word.strip() for word in line.split(separator)]


def _rating(words: Sequence[str]) -> float | None:
    try:
        return float(words[2]) if len(words) == 3 else None
    except ValueError:
        return None
