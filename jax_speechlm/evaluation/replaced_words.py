"""How well scores of pronunciation find a word that was not said: recordings beside texts with a word replaced."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from rich.table import Table

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.resampling import MIN_UTTERANCES, interval
from jax_speechlm.inference.asr.decoder import Posteriors

_FEWEST_WORDS = 2  # of an utterance, so that a word beside the replaced one is as in the recording
_RESAMPLES = 1000

Judged = tuple[float, float, bool]
"""Of a word: its score by alignment, its score without, whether it is called correct."""

Scores = list[tuple[bool, float, float, bool]]
"""Of each word: whether it was replaced, and how it was judged."""


class ReplacedWordReport(base.SetReport):
    """Area under the ROC curve of word scores between words as recorded and words replaced at random.

    Attributes:
      utterances, words: measured; each utterance has one replaced word.
      skipped: utterances with too few words, or too few frames for the changed text.
      aligned, free: the areas, by alignment and without; 0.5 is chance.
      aligned_interval, free_interval: of 95 %, by bootstrap over utterances; None for too few.
      recorded_correct, replaced_correct: how many words as recorded, and how many replaced ones, are called correct.
    """

    utterances: int
    words: int
    skipped: int
    aligned: float
    free: float
    aligned_interval: tuple[float, float] | None
    free_interval: tuple[float, float] | None
    recorded_correct: int
    replaced_correct: int

    def tables(self) -> Iterator[Table]:
        """Yields both areas, and how many words are called correct."""
        table = base.new_table("score", "area under the ROC curve [95 %]", title=self.title)
        for name, area, bounds in (
            ("by alignment", self.aligned, self.aligned_interval),
            ("without alignment", self.free, self.free_interval),
        ):
            table.add_row(name, f"{area:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""))
        table.caption = (
            f"{self.words:,} words of {self.utterances:,} utterances, one of each replaced in the text; "
            f"{self.skipped:,} left out. Not judged by people."
        )
        yield table
        verdicts = base.new_table("words", "called correct")
        verdicts.add_row("as recorded", f"{self.recorded_correct:,} of {self.words - self.utterances:,}")
        verdicts.add_row("replaced", f"{self.replaced_correct:,} of {self.utterances:,}")
        yield verdicts


def measure_replaced_words(
    rows: Iterable[tuple[int, Posteriors]],
    transcripts: Sequence[Sequence[str]],
    judge: Callable[[Posteriors, Sequence[str]], list[Judged] | None],
) -> tuple[list[Scores], int]:
    """Replaces a word of each transcript by another of the set, at random, and judges the words.

    Args:
      rows: the rows of the set with the log-probabilities of their frames.
      transcripts: words by row.
      judge: judges the words of a text by a recording; None if they have too few frames.

    Returns:
      The scores by utterance, and how many utterances are left out.

    Raises:
      DataError: there are fewer than two different words.
    """
    vocabulary = sorted({word for words in transcripts for word in words})
    if len(vocabulary) < 2:
        raise DataError(
            "the set has fewer than two words that the recognizer knows: there is none to put in place of one"
        )
    scores, skipped = [], 0
    for row, log_probs in rows:
        words, rng = list(transcripts[row]), np.random.default_rng(row)
        judged = None
        if len(words) >= _FEWEST_WORDS:
            place = int(rng.integers(len(words)))
            words[place] = str(rng.choice([word for word in vocabulary if word != words[place]]))
            judged = judge(log_probs, words)
        if judged is None:
            skipped += 1
        else:
            scores.append([(number == place, *each) for number, each in enumerate(judged)])
    return scores, skipped


def report_of(scores: Sequence[Scores], skipped: int, **about) -> ReplacedWordReport:
    """Summarises the scores of utterances.

    Raises:
      DataError: there are none.
    """
    if not scores:
        raise DataError(f"no utterance could be scored; {skipped} have too few words, or too few frames for their text")
    rng, areas = np.random.default_rng(0), []
    parts = [np.array(each, np.float64) for each in scores]
    for _ in range(_RESAMPLES if len(scores) >= MIN_UTTERANCES else 0):
        areas.append(_areas(np.concatenate([parts[row] for row in rng.integers(len(parts), size=len(parts))])))
    bounds = [interval(np.array(each)) for each in zip(*areas, strict=True)] or [None, None]
    all_words = np.concatenate(parts)
    aligned, free = _areas(all_words)
    return ReplacedWordReport(
        utterances=len(scores),
        words=len(all_words),
        skipped=skipped,
        aligned=aligned,
        free=free,
        aligned_interval=bounds[0],
        free_interval=bounds[1],
        recorded_correct=int(np.sum((all_words[:, 0] == 0) & (all_words[:, 3] == 1))),
        replaced_correct=int(np.sum((all_words[:, 0] == 1) & (all_words[:, 3] == 1))),
        **about,
    )


def _areas(words: np.ndarray) -> tuple[float, float]:
    from sklearn.metrics import roc_auc_score

    return tuple(float(roc_auc_score(words[:, 0] == 0, words[:, column])) for column in (1, 2))
