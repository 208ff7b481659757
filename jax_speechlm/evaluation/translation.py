"""Scores translations with sacrebleu's BLEU and chrF, with bootstrap intervals."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table

from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer
from jax_speechlm.evaluation.report import TOO_FEW, Utterance

_RESAMPLES = 1_000  # each costs a call of sacrebleu


class TranslationScore(Config):
    """One metric over a corpus.

    Attributes:
      score: corpus score, 0 to 100.
      interval: 95 % interval by bootstrap over utterances, or over speakers where there are many; None for few.
      signature: sacrebleu's description of the metric.
    """

    score: float
    interval: resampling.Interval | None = None
    signature: str

    def __str__(self) -> str:
        return base.number(self.score, self.interval, ".1f")


class TranslationReport(base.Report):
    """The evaluation of one system's translations of one corpus.

    Attributes:
      normalizer: applied to both texts before scoring.
      bleu, chrf: the scores; utterances without a reference are left out.
      scored: number of utterances with a reference.
    """

    normalizer: NormalizerName
    decoder: str
    bleu: TranslationScore
    chrf: TranslationScore
    scored: int
    utterances: tuple[Utterance, ...]

    def measures(self) -> dict[str, base.Measure]:
        """Returns BLEU and chrF."""
        referenced = [each for each in self.utterances if each.reference.strip()]
        columns = ([getattr(each, name) for each in referenced] for name in ("id", "reference", "speaker"))
        about, options = list(columns), {"as_percent": False, "setting": f"--normalizer {self.normalizer}"}
        return {
            name: base.Measure(*about, *_terms(metric, referenced, self.normalizer), **options)
            for name, metric in _metrics().items()
        }

    def texts(self) -> dict[str, str]:
        """Returns `translations.txt`, for reading."""
        pairs = (f"{each.id}\nref  {each.reference}\nhyp  {each.hypothesis}\n" for each in self.utterances)
        return {"translations.txt": "\n".join(pairs)}

    def tables(self) -> Iterator[Table]:
        """Yields the scores."""
        caption = TOO_FEW if self.bleu.interval is None else None
        columns = "", "score [95 %]", "utterances"
        table = base.new_table(*columns, title=f"normalizer: {self.normalizer}", caption=caption)
        for name, score in (("BLEU", self.bleu), ("chrF", self.chrf)):
            table.add_row(name, str(score), f"{self.scored:,}")
        yield table


def evaluate(
    utterances: Sequence[Utterance], normalizer_name: NormalizerName = "basic", *, decoder: str = "greedy"
) -> TranslationReport:
    """Scores translations against one reference each. Raises `ValueError` if no utterance has a reference."""
    referenced = [utterance for utterance in utterances if utterance.reference.strip()]
    if not referenced:
        raise ValueError("there is nothing to evaluate: no utterance has a translation")
    units = resampling.units_of([utterance.speaker for utterance in referenced])
    scores = {}
    for name, metric in _metrics().items():
        terms, statistic = _terms(metric, referenced, normalizer_name)
        scores[name.lower()] = TranslationScore(
            score=float(statistic(terms.sum(0)[:, None])[0]),
            interval=resampling.bootstrap(terms.T, statistic, units, resamples=_RESAMPLES),
            signature=str(metric.get_signature()),
        )
    return TranslationReport(
        normalizer=normalizer_name,
        decoder=decoder,
        **scores,
        scored=len(referenced),
        utterances=tuple(utterances),
    )


def _metrics() -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF  # slow import

    return {"BLEU": BLEU(), "chrF": CHRF()}


def _terms(
    metric: Any, utterances: Sequence[Utterance], normalizer_name: NormalizerName
) -> tuple[Float[np.ndarray, "utterances terms"], resampling.Statistic]:
    """Returns sacrebleu's counts of every utterance, and its score of sums of them."""
    clean = normalizer(normalizer_name)
    references, hypotheses = (
        [clean(getattr(each, name)) for each in utterances] for name in ("reference", "hypothesis")
    )
    counts = np.array(metric._extract_corpus_statistics(hypotheses, [references]), np.float64)

    def statistic(sums: Float[np.ndarray, "terms resamples"]) -> Float[np.ndarray, " resamples"]:
        return np.array([metric._aggregate_and_compute([column.astype(int).tolist()]).score for column in sums.T])

    return counts, statistic
