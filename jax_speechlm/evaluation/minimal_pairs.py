"""Evaluates language models on minimal pairs, without training: is the acceptable sentence the more probable one?

Reference: Warstadt et al. 2020 (BLiMP); Nguyen et al. 2020 (sBLIMP, the syntactic task of ZeroSpeech 2021).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import check_storable, csv_rows, parse_object, text_lines
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.resampling import wilson_interval
from jax_speechlm.inference.lm.causal import LanguageModel


class Pair(NamedTuple):
    """An acceptable sentence and its unacceptable counterpart; `group` is the linguistic phenomenon."""

    good: str
    bad: str
    group: str


class Accuracy(Config):
    """Share of the pairs in which the good sentence is more probable; a tie counts half.

    Attributes:
      interval: 95 % interval: Wilson's (1927) for independent pairs, valid for small samples; else by bootstrap, and
        None for fewer than `resampling.MIN_UTTERANCES` samples.
      pairs: number of pairs, or of items.
    """

    accuracy: float
    interval: tuple[float, float] | None
    pairs: int


class PairReport(base.Report):
    """The evaluation of one language model on minimal pairs."""

    checkpoint: str
    total: Accuracy
    groups: dict[str, Accuracy]
    items: tuple[base.Item, ...] = ()

    def measures(self) -> dict[str, base.Measure]:
        """Returns the accuracy; the pairs of an item count as one."""
        return {"accuracy": base.Measure.of_items(self.items, "accuracy")} if self.items else {}

    def tables(self) -> Iterator[Table]:
        """Yields the accuracies by group and over all pairs."""
        table = base.new_table("", "accuracy [95 %]", "pairs", title="minimal pairs (chance is 50 %)")
        for name, each in (self.groups | {"all": self.total}).items():
            table.add_row(escape(name), base.percent(each.accuracy, each.interval), f"{each.pairs:,}")
        yield table


def read_pairs(paths: Sequence[Path]) -> list[Pair]:
    """Reads files of minimal pairs.

    - `.jsonl`, the format of BLiMP: objects with `sentence_good` and `sentence_bad`; the group is `UID`, or else the
      name of the file.
    - `.csv`, the format of sBLIMP's `gold.csv`: lines with `id`, `transcription` and `correct` (1 or 0), two per id;
      the group is `type`. A pair spoken in several voices counts once.

    Raises:
      DataError: a file is missing or malformed; the message names file and line.
    """
    pairs = []
    for path in paths:
        try:
            of_file = list((_from_gold_csv if path.suffix.lower() == ".csv" else _from_json_lines)(path))
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: name .jsonl or .csv files of minimal pairs") from None
        if not of_file:
            raise DataError(f"{path} holds no pairs")
        pairs += of_file
    return pairs


def compare(pairs: Sequence[Pair], score: Callable[[list[str]], Iterable[float]], checkpoint: str) -> PairReport:
    """Scores both sentences of every pair by a function such as `LanguageModel.score`."""
    scores = score([sentence for pair in pairs for sentence in pair[:2]])
    groups: dict[str, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        groups[pair.group].append(row)
    names = [f"{pair.good} / {pair.bad}" for pair in pairs]
    return report_of(checkpoint, scores, groups, names, lambda wins, rows: _accuracy(wins[rows]))


def report_of(
    checkpoint: str,
    scores: Iterable[float],
    groups: Mapping[str, list[int]],
    names: Sequence[str],
    accuracy: Callable[[np.ndarray, list[int]], Accuracy],
) -> PairReport:
    """Builds the report of scored pairs.

    Args:
      scores: log-probabilities of the good and the bad side of every pair, alternating.
      groups: pairs by group; groups of all pairs are left out.
      names: of the item of each pair; pairs of one item count as one.
      accuracy: computes the accuracy of some pairs from the wins of all: 1, 0, or 0.5 for a tie.
    """
    good, bad = np.array(list(scores), np.float64).reshape(-1, 2).T
    wins = np.where(good == bad, 0.5, good > bad)
    by_group = {name: accuracy(wins, rows) for name, rows in groups.items() if len(rows) < len(wins)}
    of_items: dict[str, list[float]] = defaultdict(list)
    for name, win in zip(names, wins.tolist(), strict=True):
        of_items[name].append(win)
    items = tuple(base.Item(id=name, sums={"accuracy": (np.mean(won), 1)}) for name, won in of_items.items())
    return PairReport(checkpoint=checkpoint, total=accuracy(wins, list(range(len(wins)))), groups=by_group, items=items)


def score_pairs(
    checkpoint: base.Checkpoint, files: Positional[tuple[Path, ...]], out: Path | None = None
) -> PairReport:
    """Measures how often a language model assigns the acceptable sentence of a minimal pair the higher probability.

    Args:
      files: JSON lines with `sentence_good` and `sentence_bad` (BLiMP), or sBLIMP's `gold.csv`, whose transcriptions
        are compared.
      out: folder of report.json; by default <checkpoint>/eval/pairs.
    """
    pairs = read_pairs(files)
    lm = LanguageModel.load(checkpoint)
    report = compare(pairs, lm.score, str(lm.checkpoint))
    return report.publish(out or checkpoint / "eval" / "pairs", report.checkpoint)


def _from_json_lines(path: Path) -> Iterable[Pair]:
    for line_number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            item = parse_object(line)
            good, bad, group = item["sentence_good"], item["sentence_bad"], item.get("UID", path.stem)
            if not (isinstance(good, str) and isinstance(bad, str)):
                raise TypeError("the sentences are not strings")
            for key, value in (("sentence_good", good), ("sentence_bad", bad), ("UID", str(group))):
                check_storable(key, value)
        except (ValueError, KeyError, TypeError) as error:
            hint = "; pairs of audio need a model of speech" if "audio" in line or ".wav" in line else ""
            raise DataError(
                f"{path}, line {line_number}: not a pair ({error!r}); it needs sentence_good and sentence_bad{hint}"
            ) from error
        yield Pair(good, bad, str(group))


def _from_gold_csv(path: Path) -> Iterable[Pair]:
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for line_number, row in csv_rows(path):
        try:
            # Ids are unique only within a type and subtype.
            identity = row["id"], row.get("type") or "", row.get("subtype") or ""
            correct, sentence = row["correct"].strip(), row["transcription"]
            if correct not in ("0", "1"):
                raise ValueError(f"correct is {correct!r}")
        except (KeyError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}, line {line_number}: not a line of pairs ({error!r}); it needs the columns id, transcription "
                "and correct (1 or 0); pairs of audio alone need a model of speech"
            ) from error
        rows.setdefault(identity, {})[correct] = sentence
    for (name, group, _), sentences in rows.items():
        if len(sentences) != 2:
            raise DataError(f"{path}: id {name!r} has no sentence with correct {'0' if '1' in sentences else '1'}")
        yield Pair(sentences["1"], sentences["0"], group or path.stem)


def _accuracy(wins: np.ndarray) -> Accuracy:
    share = float(wins.mean())
    return Accuracy(accuracy=share, interval=wilson_interval(share, len(wins)), pairs=len(wins))
