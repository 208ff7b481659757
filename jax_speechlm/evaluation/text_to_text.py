"""Evaluates text-to-text models: exact answers, BLEU and chrF against the targets of prepared texts."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.table import Table

from data_pipelines.core.errors import DataError
from data_pipelines.storage import index as indexes
from jax_speechlm.decoding.lm.generate import GREEDY, Beam
from jax_speechlm.evaluation import base, resampling, translation
from jax_speechlm.evaluation.batches import item_ids
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer
from jax_speechlm.evaluation.report import Utterance
from jax_speechlm.inference.lm.text_to_text import TextToTextModel


class TextToTextReport(translation.TranslationReport):
    """The evaluation of a text-to-text model.

    Attributes:
      checkpoint, sets, split: the run and its test data.
      exact: share of the documents whose answer is the target, both normalised.
      exact_interval: its 95 % interval by bootstrap over documents.
    """

    checkpoint: str
    sets: tuple[str, ...]
    split: str
    exact: float
    exact_interval: resampling.Interval | None = None

    def measures(self) -> dict[str, base.Measure]:
        """Returns BLEU, chrF and the share of exact answers."""
        columns = ([getattr(each, name) for each in self.utterances] for name in ("id", "reference", "speaker"))
        terms = _exact(self.utterances, self.normalizer)
        return super().measures() | {"exact": base.Measure(*columns, terms, setting=f"--normalizer {self.normalizer}")}

    def tables(self) -> Iterator[Table]:
        """Yields the scores."""
        (table,) = super().tables()
        table.add_row("exact", base.percent(self.exact, self.exact_interval), f"{self.scored:,}")
        yield table


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    normalizer: NormalizerName = "basic",
    beam_size: int = 0,
    max_tokens: int = 128,
    data_dir: base.DataDir = Path("data"),
    limit: base.Limit = None,
    out: base.Out = None,
) -> TextToTextReport:
    """Measures a text-to-text model on prepared texts with targets: exact answers, BLEU, chrF.

    Writes `report.json` and `translations.txt`, with the answers.

    Args:
      normalizer: applied to answers and targets before they are compared.
      beam_size: above 0: beam search with this many hypotheses instead of greedy search.
      max_tokens: most tokens of an answer.
    """
    model = TextToTextModel.load(checkpoint)
    index = indexes.read_sets(data_dir, sets, split)
    rows = zip(item_ids(index), *(index.column(name).to_pylist() for name in ("text", "target")), strict=True)
    rows = [row for row in rows if row[2].strip()][:limit]
    if not rows:
        raise DataError(
            f'{", ".join(sets)} {split}: no document has a target; prepare JSON lines with "text" and "target"'
        )
    method = Beam(size=beam_size) if beam_size else GREEDY
    answers = model.generate([text for _, text, _ in rows], method, max_tokens=max_tokens)
    utterances = tuple(
        Utterance(id=name, reference=target, hypothesis=found[0].text if found else "")
        for (name, _, target), found in zip(rows, answers, strict=True)
    )
    scored = translation.evaluate(utterances, normalizer, decoder=f"beam {beam_size}" if beam_size else "greedy")
    exact = _exact(utterances, normalizer)
    report = TextToTextReport(
        **dict(scored),
        checkpoint=str(model.checkpoint),
        sets=sets,
        split=split,
        exact=float(exact[:, 0].mean()),
        exact_interval=resampling.bootstrap(exact.T),
    )
    return report.publish(out or base.report_folder(checkpoint, sets, split), f"{model.checkpoint}: {report.decoder}")


def _exact(utterances: Sequence[Utterance], normalizer_name: NormalizerName) -> Float[np.ndarray, "utterances 2"]:
    """Returns for each document whether its answer is the target, and 1."""
    clean = normalizer(normalizer_name)
    return np.array([[clean(each.reference) == clean(each.hypothesis), 1] for each in utterances], np.float64)
