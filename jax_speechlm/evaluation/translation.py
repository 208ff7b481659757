"""Scores translations with sacrebleu's BLEU and chrF, with bootstrap intervals."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from jax_speechlm.core.config import Config
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer
from jax_speechlm.evaluation.report import TOO_FEW, Utterance
from jax_speechlm.evaluation.wer import MIN_UTTERANCES

METRICS = ("BLEU", "chrF")


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


class TranslationReport(Config):
    """The evaluation of one system's translations of one corpus.

    Attributes:
      normalizer: applied to both texts before scoring.
      decoder: description of the decoding.
      bleu, chrf: the scores; utterances without a reference are left out.
      scored: number of utterances with a reference.
      utterances: all utterances, as given.
    """

    normalizer: NormalizerName
    decoder: str
    bleu: TranslationScore
    chrf: TranslationScore
    scored: int
    utterances: tuple[Utterance, ...]

    def save(self, directory: Path) -> None:
        """Writes `report.json`, and `translations.txt` for reading."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        texts = (f"{each.id}\nref  {each.reference}\nhyp  {each.hypothesis}\n" for each in self.utterances)
        (directory / "translations.txt").write_text("\n".join(texts), encoding="utf-8")

    def table(self) -> Table:
        """Returns the report as a table for the terminal."""
        caption = TOO_FEW if self.bleu.mean is None else None
        table = Table(title=f"normalizer: {self.normalizer}", title_justify="left", caption=caption)
        for column in ("", "score [95 %]", "utterances"):
            table.add_column(column, justify="right" if column else "left")
        for name, score in zip(METRICS, (self.bleu, self.chrf), strict=True):
            table.add_row(name, str(score), f"{self.scored:,}")
        return table


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
        found = metric.corpus_score(hypotheses, [references], n_bootstrap=resamples)
        mean, half_width = (found._mean, found._ci) if resamples > 1 else (None, None)
        return TranslationScore(
            score=found.score, mean=mean, half_width=half_width, signature=str(metric.get_signature())
        )

    return TranslationReport(
        normalizer=normalizer_name,
        decoder=decoder,
        bleu=score(BLEU()),
        chrf=score(CHRF()),
        scored=len(referenced),
        utterances=tuple(utterances),
    )
