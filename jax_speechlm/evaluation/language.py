"""Evaluates language models: bits per byte and perplexity, compared with n-gram models on the same bytes."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.core.paths import AnyPath, as_path
from data_pipelines.storage import index as indexes
from data_pipelines.tokenizers.base import find_unknown
from jax_speechlm.core.config import Config
from jax_speechlm.decoding.lm.ngram import NGram, sentences
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.ensemble import LanguageEnsemble


class Prediction(Config):
    """The log-likelihood of some documents under one model.

    Attributes:
      nats: negative log-probability of the documents, their ends included.
      units: number of predictions: tokens, words or characters, and ends.
      bytes: size of the documents in UTF-8, independent of tokenization.
      words: number of words, separated by white space.
      documents: number of documents.
      unknown: out-of-vocabulary characters or units. A language model drops these characters and an n-gram model
        replaces them by one symbol, so the figures are optimistic by their cost.
    """

    nats: float
    units: int
    bytes: int
    words: int
    documents: int
    unknown: int = 0

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.bytes)

    @property
    def perplexity(self) -> float:
        """Perplexity per unit; comparable only between models with the same units."""
        return math.exp(self.nats / max(1, self.units))

    @property
    def word_perplexity(self) -> float:
        """Perplexity per word: the probability of the whole text, ends and spaces included, divided among its words."""
        return _exp(self.nats / max(1, self.words))


class LanguageReport(Config):
    """The evaluation of one language model.

    Attributes:
      checkpoint: the model.
      sets, split: the test data.
      context, stride: documents longer than `context` tokens are scored in windows that start `stride` tokens apart, so
        that every token after the first window has at least `context - stride` tokens of history.
      total: over all documents.
      sources: per source, where the sets name several.
      ngrams: n-gram models on the same documents, by file.
    """

    checkpoint: str
    sets: tuple[str, ...]
    split: str
    context: int
    stride: int
    total: Prediction
    sources: dict[str, Prediction]
    ngrams: dict[str, Prediction]

    def table(self) -> Table:
        """Returns the report as a table for the terminal."""
        table = Table(title=f"{', '.join(self.sets)} {self.split}", title_justify="left")
        for column in ("", "bits/byte", "perplexity", "per word", "units", "MB", "texts", "unknown"):
            table.add_column(column, justify="right" if column else "left")
        for rows in ({"this model": self.total} | self.ngrams, self.sources):
            for name, each in rows.items():
                perplexities = f"{each.perplexity:.2f}", f"{each.word_perplexity:.4g}"
                counts = f"{each.units:,}", f"{each.bytes / 1e6:.3f}", f"{each.documents:,}", f"{each.unknown:,}"
                table.add_row(name, f"{each.bits_per_byte:.4f}", *perplexities, *counts)
            table.add_section()
        return table


def predict(lm: LanguageModel | LanguageEnsemble, texts: Sequence[str], stride: int | None = None) -> list[Prediction]:
    """Scores each text with a language model. `stride` as in `LanguageModel.token_nll`."""
    nats = lm.text_nll(texts, stride)
    return [
        _prediction(text, float(each.sum(dtype=np.float64)), len(each), _count_unknown(lm, text))
        for text, each in zip(texts, nats, strict=True)
    ]


def predict_by_ngram(ngram: NGram, texts: Sequence[str]) -> list[Prediction]:
    """Scores each text line by line with an n-gram model.

    White space is reduced to single spaces and blank lines are skipped, so the model has slightly less to predict.
    """
    units = [sum(len(line) + 1 for line in sentences(text, ngram.unit)) for text in texts]  # + 1: the end of the line
    return [
        _prediction(text, -ngram.score(text), count, ngram.count_unknown(text))
        for text, count in zip(texts, units, strict=True)
    ]


def total(predictions: Sequence[Prediction]) -> Prediction:
    """Returns the sum of predictions."""
    sums: Counter[str] = Counter()
    for each in predictions:
        sums.update(each.model_dump())
    return Prediction.model_validate({name: sums[name] for name in Prediction.model_fields})


def evaluate_run(
    checkpoint: Positional[Path],
    sets: tuple[str, ...],
    split: str = "test",
    ensemble: tuple[Path, ...] = (),
    ngram: tuple[Path, ...] = (),
    stride: int | None = None,
    data_dir: Path = Path("data"),
    out: Path | None = None,
) -> LanguageReport:
    """Measures bits per byte and perplexity of a language model on prepared sets of text, or on transcripts of speech.

    Every token of every document counts, its end included. Writes `report.json`.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      sets: names of prepared data sets; "name:split" selects another split than --split.
      split: "test", "dev" or "train".
      ensemble: further runs with the same vocabulary; probabilities are averaged over all models.
      ngram: n-gram models (`jax-speechlm train-ngram`) to measure on the same bytes.
      stride: tokens between the starts of the windows in which documents longer than the context are scored; by default
        half of the context.
      data_dir: folder of the prepared data sets.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>, plus the names of the ensemble.
    """
    lm = LanguageEnsemble.load((checkpoint, *ensemble)) if ensemble else LanguageModel.load(checkpoint)
    index = indexes.read_sets(data_dir, sets, split)
    texts = index.column("text").to_pylist()
    predictions = predict(lm, texts, stride)
    report = LanguageReport(
        checkpoint=str(lm.checkpoint),
        sets=sets,
        split=split,
        context=lm.context,
        stride=stride or max(1, lm.context // 2),
        total=total(predictions),
        sources={name: total([predictions[row] for row in rows]) for name, rows in _sources(index).items()},
        ngrams={str(path): total(predict_by_ngram(NGram(path), texts)) for path in ngram},
    )
    out = as_path(
        out or checkpoint / "eval" / "+with-".join((f"{'+'.join(sets)}-{split}", *(run.name for run in ensemble)))
    )
    save_report(report, out)
    console = Console(highlight=False)
    console.print(report.table())
    if report.total.unknown:
        console.print(f"[yellow]{find_unknown(lm.tokenizer, texts)}", soft_wrap=True)
    console.print(
        f"{lm.checkpoint}: windows of {lm.context} tokens, {report.stride} apart; {out / 'report.json'}", soft_wrap=True
    )
    return report


def save_report(report: Config, out: AnyPath) -> None:
    """Writes `report.json` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _prediction(text: str, nats: float, units: int, unknown: int) -> Prediction:
    num_bytes, num_words = len(text.encode()), len(text.split())
    return Prediction(nats=nats, units=units, bytes=num_bytes, words=num_words, documents=1, unknown=unknown)


def _count_unknown(lm: LanguageModel | LanguageEnsemble, text: str) -> int:
    return len(lm.tokenizer.unknown(text))


def _sources(index: indexes.Index) -> dict[str, list[int]]:
    """Groups rows by set and source; empty if all rows have the same."""
    rows: dict[str, list[int]] = {}
    for part, first in zip(index.parts, index.first_row, strict=False):
        names = part.column("source").to_pylist() if part.records_dir is None else [""] * part.num_rows
        for row, name in enumerate(names, start=int(first)):
            title = f"{part.set_dir.name} {name}".strip()
            rows.setdefault(title, []).append(row)
    return rows if len(rows) > 1 else {}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
