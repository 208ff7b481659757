"""Scores translations with sacrebleu's BLEU and chrF, with bootstrap intervals."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer
from jax_speechlm.evaluation.report import TOO_FEW, Utterance
from jax_speechlm.evaluation.wer import MIN_UTTERANCES


class TranslationScore(Config):
    """One metric over a corpus.

    Attributes:
      score: corpus score, 0 to 100.
      mean, half_width: of the 95 % bootstrap interval over utterances; None below `wer.MIN_UTTERANCES`.
      signature: sacrebleu's description of the metric.
    """

    score: float
    mean: float | None
    half_width: float | None
    signature: str

    def __str__(self) -> str:
        if self.mean is None:
            return f"{self.score:.1f}"
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{self.score:.1f} [{low:.1f}, {high:.1f}]"


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

    def texts(self) -> dict[str, str]:
        """Returns `translations.txt`, for reading."""
        pairs = (f"{each.id}\nref  {each.reference}\nhyp  {each.hypothesis}\n" for each in self.utterances)
        return {"translations.txt": "\n".join(pairs)}

    def tables(self) -> Iterator[Table]:
        """Yields the scores."""
        caption = TOO_FEW if self.bleu.mean is None else None
        columns = "", "score [95 %]", "utterances"
        table = base.new_table(*columns, title=f"normalizer: {self.normalizer}", caption=caption)
        for name, score in (("BLEU", self.bleu), ("chrF", self.chrf)):
            table.add_row(name, str(score), f"{self.scored:,}")
        yield table


def evaluate(
    utterances: Sequence[Utterance], normalizer_name: NormalizerName = "basic", *, decoder: str = "greedy"
) -> TranslationReport:
    """Scores translations against one reference each. Raises `ValueError` if no utterance has a reference."""
    from sacrebleu.metrics import BLEU, CHRF

    referenced = [utterance for utterance in utterances if utterance.reference.strip()]
    if not referenced:
        raise ValueError("there is nothing to evaluate: no utterance has a translation")
    clean = normalizer(normalizer_name)
    references = [clean(utterance.reference) for utterance in referenced]
    hypotheses = [clean(utterance.hypothesis) for utterance in referenced]

    resamples = 1000 if len(referenced) >= MIN_UTTERANCES else 1  # 1 disables the bootstrap

    def score(metric: BLEU | CHRF) -> TranslationScore:
        of_corpus = metric.corpus_score(hypotheses, [references], n_bootstrap=resamples)
        mean, half_width = (of_corpus._mean, of_corpus._ci) if resamples > 1 else (None, None)
        return TranslationScore(
            score=of_corpus.score, mean=mean, half_width=half_width, signature=str(metric.get_signature())
        )

    return TranslationReport(
        normalizer=normalizer_name,
        decoder=decoder,
        bleu=score(BLEU()),
        chrf=score(CHRF()),
        scored=len(referenced),
        utterances=tuple(utterances),
    )
