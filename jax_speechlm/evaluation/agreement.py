"""Agreement of two raters who score the same answers."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from rich.table import Table

from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.resampling import MIN_UTTERANCES, RESAMPLES, Interval, bootstrap, share_interval


class AgreementReport(base.Report):
    """Agreement of predicted scores with those of a person, on answers that the predictor was not fitted on.

    Attributes:
      kappa: quadratic weighted; None if all scores are the same.
      interval: of 95 %, by bootstrap over answers; None for fewer than `MIN_UTTERANCES`.
      equal: share of answers with the person's score.
      held_out: what each fold held out, such as "questions".
      folds: their number.
    """

    answers: int
    kappa: float | None
    interval: tuple[float, float] | None
    equal: float
    equal_interval: Interval | None = None
    held_out: str
    folds: int = 5

    @classmethod
    def of(
        cls, scores: Float[np.ndarray, " answers"], predicted: Float[np.ndarray, " answers"], held_out: str, folds: int
    ) -> "AgreementReport":
        """Compares predicted scores with those of a person."""
        kappa, bounds = weighted_kappa(scores, predicted)
        is_equal = predicted == scores
        equal = {"equal": float(np.mean(is_equal)), "equal_interval": share_interval(is_equal)}
        return cls(answers=len(scores), kappa=kappa, interval=bounds, **equal, held_out=held_out, folds=folds)

    def tables(self) -> Iterator[Table]:
        """Yields kappa and the share of equal scores."""
        table = base.new_table(
            "answers",
            "quadratic weighted kappa [95 %]",
            "equal scores [95 %]",
            title=f"{self.held_out} held out, {self.folds} folds",
        )
        value = "-" if self.kappa is None else base.number(self.kappa, self.interval)
        table.add_row(f"{self.answers:,}", value, base.percent(self.equal, self.equal_interval))
        if self.interval is None:
            table.caption = f"no interval: fewer than {MIN_UTTERANCES} answers, or equal scores"
        yield table


def weighted_kappa(
    first: Float[np.ndarray, " answers"], second: Float[np.ndarray, " answers"], resamples: int = RESAMPLES
) -> tuple[float | None, tuple[float, float] | None]:
    """Computes the quadratic weighted kappa of two raters (Cohen 1968), and its 95 % interval by bootstrap.

    With quadratic weights it is 1 minus the mean squared difference over the one expected of independent raters, so it
    needs sums over the answers alone.

    Returns:
      Kappa, None if both raters give one and the same score to all; and its interval, None for fewer answers than
      `MIN_UTTERANCES`.
    """
    rows = [np.ones(len(first)), first, second, first**2, second**2, first * second]

    def kappa(sums: np.ndarray) -> np.ndarray:
        count, a, b, aa, bb, ab = sums
        expected = (aa + bb) / count - 2 * a * b / count**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(expected > 1e-12, 1 - (aa + bb - 2 * ab) / count / expected, np.nan)

    value = float(kappa(np.sum(rows, axis=1)))
    if np.isnan(value):
        return None, None
    return value, bootstrap(rows, kappa, resamples=resamples)
