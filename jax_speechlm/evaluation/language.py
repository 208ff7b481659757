"""Evaluates language models: bits per byte and perplexity, compared with n-gram models on the same bytes."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float
from rich.table import Table
from tyro.conf import arg

from data_pipelines.core.errors import DataError
from data_pipelines.storage import index as indexes
from data_pipelines.tokenizers.base import find_unknown
from jax_speechlm.core.config import Config
from jax_speechlm.decoding.lm.ngram import NGram, sentences
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.batches import item_ids
from jax_speechlm.evaluation.resampling import Interval
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.ensemble import LanguageEnsemble

_MOST_NATS = 700  # whose exponential a float can hold

Stride = Annotated[
    int | None,
    arg(
        help="tokens between the starts of the windows in which documents longer than the context are scored; by "
        "default half of the context."
    ),
]


@dataclasses.dataclass(frozen=True)
class Rate:
    """Nats or bits per something.

    Attributes:
      per: name of the count.
      is_perplexity: whether it is the exponential of nats per count; else it is bits per count.
    """

    per: str
    is_perplexity: bool = False

    def statistic(self, sums: Float[np.ndarray, "2 resamples"]) -> Float[np.ndarray, " resamples"]:
        """Computes it from sums of nats or bits, and of the count."""
        share = resampling.ratio(sums)
        return np.exp(np.minimum(share, _MOST_NATS)) if self.is_perplexity else share


Self = TypeVar("Self", bound="LogLikelihood")


class LogLikelihood(Config):
    """The log-likelihood of some data under one model.

    Attributes:
      nats: negative log-probability.
      units: number of predictions.
      perplexity_interval: 95 % interval by bootstrap over documents or utterances, or over speakers where there are
        many; None for few.
    """

    RATES: ClassVar[dict[str, Rate]] = {"perplexity": Rate("units", is_perplexity=True)}
    """Measures that have an interval."""

    nats: float
    units: int
    perplexity_interval: Interval | None = None

    @property
    def perplexity(self) -> float:
        """Perplexity per unit; comparable only between models with the same units."""
        return math.exp(self.nats / max(1, self.units))

    @classmethod
    def total(cls: type[Self], parts: Iterable[Self], speakers: Sequence[str | None] = ()) -> Self:
        """Returns the sums over independent parts of the data, such as documents, with intervals over them.

        Args:
          speakers: of the parts, if they have some.
        """
        parts = list(parts)
        counted = [name for name in cls.model_fields if not name.endswith("_interval")]
        terms = {name: np.array([getattr(part, name) for part in parts]) for name in counted}
        units = resampling.units_of(speakers) if speakers else None
        bounds = {}
        for name, rate in cls.RATES.items():
            rows = [terms["nats"] if rate.is_perplexity else terms["nats"] / math.log(2), terms[rate.per]]
            bounds[f"{name}_interval"] = resampling.bootstrap(rows, rate.statistic, units)
        return cls(**{name: each.sum().item() for name, each in terms.items()}, **bounds)


class Prediction(LogLikelihood):
    """The log-likelihood of some documents, their ends included; units are tokens, words or characters, and ends.

    Attributes:
      bytes: size of the documents in UTF-8, independent of tokenization.
      words: number of words, separated by white space.
      documents: number of documents.
      bits_per_byte_interval, word_perplexity_interval: as `perplexity_interval`.
      unknown: out-of-vocabulary characters or units. A language model drops these characters and an n-gram model
        replaces them by one symbol, so the figures are optimistic by their cost.
    """

    RATES: ClassVar[dict[str, Rate]] = LogLikelihood.RATES | {
        "bits_per_byte": Rate("bytes"),
        "word_perplexity": Rate("words", is_perplexity=True),
    }

    bytes: int
    words: int
    documents: int
    unknown: int = 0
    bits_per_byte_interval: Interval | None = None
    word_perplexity_interval: Interval | None = None

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.bytes)

    @property
    def word_perplexity(self) -> float:
        """Perplexity per word: the probability of the whole text, ends and spaces included, divided among its words."""
        exponent = self.nats / max(1, self.words)
        return math.exp(exponent) if exponent < _MOST_NATS else math.inf

    def cells(self) -> tuple[str, ...]:
        """Formats bits per byte, perplexity, word perplexity, units, megabytes, documents and unknown units."""
        perplexities = (
            base.number(self.perplexity, self.perplexity_interval, ".2f"),
            base.number(self.word_perplexity, self.word_perplexity_interval, ".4g"),
        )
        counts = f"{self.units:,}", f"{self.bytes / 1e6:.3f}", f"{self.documents:,}", f"{self.unknown:,}"
        return base.number(self.bits_per_byte, self.bits_per_byte_interval, ".4f"), *perplexities, *counts

    def item(self, name: str) -> base.Item:
        """Returns a document as what a report keeps of it."""
        bits = self.nats / math.log(2)
        return base.Item(id=name, reference=f"{self.bytes} bytes", sums={"bits/byte": (bits, self.bytes)})


class LanguageReport(base.SetReport):
    """The evaluation of one language model.

    Attributes:
      context, stride: documents longer than `context` tokens are scored in windows that start `stride` tokens apart, so
        that every token after the first window has at least `context - stride` tokens of history.
      total: over all documents.
      sources: per source, where the sets name several.
      ngrams: n-gram models on the same documents, by file.
    """

    context: int
    stride: int
    total: Prediction
    sources: dict[str, Prediction]
    ngrams: dict[str, Prediction]
    items: tuple[base.Item, ...] = ()

    def measures(self) -> dict[str, base.Measure]:
        """Returns bits per byte, by document."""
        name = "bits/byte"
        return {name: base.Measure.of_items(self.items, name, as_percent=False)} if self.items else {}

    def tables(self) -> Iterator[Table]:
        """Yields the figures of the model, of the n-gram models, and of the model by source."""
        columns = "", "bits/byte [95 %]", "perplexity [95 %]", "per word [95 %]", "units", "MB", "texts", "unknown"
        table = base.new_table(*columns, title=self.title)
        for rows in ({"this model": self.total} | self.ngrams, self.sources):
            for name, prediction in rows.items():
                table.add_row(name, *prediction.cells())
            table.add_section()
        yield table


def predict(lm: LanguageModel | LanguageEnsemble, texts: Sequence[str], stride: int | None = None) -> list[Prediction]:
    """Scores each text with a language model. `stride` as in `LanguageModel.token_nll`."""
    return [
        _prediction(text, float(nats.sum(dtype=np.float64)), len(nats), len(lm.tokenizer.unknown(text)))
        for text, nats in zip(texts, lm.text_nll(texts, stride), strict=True)
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


def _prediction(text: str, nats: float, units: int, unknown: int) -> Prediction:
    num_bytes, num_words = len(text.encode()), len(text.split())
    return Prediction(nats=nats, units=units, bytes=num_bytes, words=num_words, documents=1, unknown=unknown)


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    ensemble: tuple[Path, ...] = (),
    ngram: tuple[Path, ...] = (),
    stride: Stride = None,
    data_dir: base.DataDir = Path("data"),
    out: Path | None = None,
    adapter: base.Adapter = None,
) -> LanguageReport:
    """Measures bits per byte and perplexity of a language model on prepared sets of text, or on transcripts of speech.

    Every token of every document counts, its end included. Writes `report.json`.

    Args:
      ensemble: further runs with the same vocabulary; probabilities are averaged over all models.
      ngram: n-gram models (`jax-speechlm train-ngram`) to measure on the same bytes.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>, plus the names of the ensemble.
    """
    if ensemble and adapter:
        raise DataError("an ensemble takes no adapter: leave out --ensemble or --adapter")
    lm = LanguageEnsemble.load((checkpoint, *ensemble)) if ensemble else LanguageModel.load(checkpoint, adapter)
    index = indexes.read_sets(data_dir, sets, split)
    texts = index.column("text").to_pylist()
    predictions = predict(lm, texts, stride)
    report = LanguageReport(
        checkpoint=str(lm.checkpoint),
        sets=sets,
        split=split,
        context=lm.context,
        stride=stride or max(1, lm.context // 2),
        total=Prediction.total(predictions),
        sources={name: Prediction.total([predictions[row] for row in rows]) for name, rows in _sources(index).items()},
        ngrams={str(path): Prediction.total(predict_by_ngram(NGram(path), texts)) for path in ngram},
        items=tuple(each.item(name) for each, name in zip(predictions, item_ids(index), strict=True)),
    )
    warning = str(find_unknown(lm.tokenizer, texts)) if report.total.unknown else ""
    others = (*ensemble, *([adapter] if adapter else ()))
    folder = base.report_folder(checkpoint, sets, "+with-".join((split, *(other.name for other in others))))
    source = (
        f"{lm.checkpoint}{f' with {adapter}' * bool(adapter)}: windows of {lm.context} tokens, {report.stride} apart"
    )
    return report.publish(out or folder, source, warning=warning)


def _sources(index: indexes.Index) -> dict[str, list[int]]:
    """Groups rows by set and source; empty if all rows have the same."""
    rows: dict[str, list[int]] = defaultdict(list)
    for part, first in zip(index.parts, index.first_row, strict=False):
        names = part.column("source").to_pylist() if part.records_dir is None else [""] * part.num_rows
        for row, name in enumerate(names, start=int(first)):
            rows[f"{part.set_dir.name} {name}".strip()].append(row)
    return rows if len(rows) > 1 else {}
