"""Evaluates masked language models: accuracy and loss, compared with unigram frequencies."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array
from rich.table import Table

from data_pipelines.storage import index as indexes
from data_pipelines.storage.tokens import TokenStore, open_tokens
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.batches import text_batches
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.training.runs import LoadedRun


class MaskedReport(base.SetReport):
    """The evaluation of one masked language model.

    Attributes:
      tokens: number of masked tokens; each row has one draw of masks, identical in every evaluation.
      accuracy: share of the masked tokens predicted correctly.
      loss: cross-entropy in nats.
      accuracy_interval, loss_interval: 95 % intervals by bootstrap over rows of the model's context, which hold several
        short texts or a part of a long one; None for few.
      items: by row.
      unigram_accuracy, unigram_loss: expected values over all masks for the add-one smoothed token frequencies of the
        training text: the baseline that ignores the context.
    """

    tokens: int
    accuracy: float
    accuracy_interval: resampling.Interval | None = None
    loss: float
    loss_interval: resampling.Interval | None = None
    unigram_accuracy: float
    unigram_loss: float
    items: tuple[base.Item, ...] = ()

    def measures(self) -> dict[str, base.Measure]:
        """Returns accuracy and loss, by row."""
        if not self.items:
            return {}
        return {
            name: base.Measure.of_items(self.items, name, as_percent=name == "accuracy")
            for name in ("accuracy", "loss")
        }

    def tables(self) -> Iterator[Table]:
        """Yields the accuracies and losses of the model and of the baseline."""
        table = base.new_table(
            "", "accuracy [95 %]", "loss [95 %]", title=f"{self.title}: {self.tokens:,} masked tokens"
        )
        accuracy = base.percent(self.accuracy, self.accuracy_interval)
        table.add_row("masked language model", accuracy, base.number(self.loss, self.loss_interval))
        table.add_row("token frequencies", base.percent(self.unigram_accuracy, None), f"{self.unigram_loss:.3f}")
        yield table


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    data_dir: Path = Path("data"),
    out: base.Out = None,
) -> MaskedReport:
    """Measures masked accuracy on prepared sets of text, and the unigram baseline of the run's training text.

    Args:
      data_dir: folder of the prepared data sets, including the training sets of the run.
    """
    run = LoadedRun.load(checkpoint, MaskedLM, "fill gaps from both sides")
    tokens = open_tokens(indexes.read_sets(data_dir, sets, split), run.tokenizer)
    objective = run.experiment.objective.build(run.experiment.model, run.experiment.frontend, run.tokenizer)

    def of_row(params: Params, row: Batch) -> dict[str, tuple[Array, Array]]:
        return objective.loss(params, {name: value[None] for name, value in row.items()}, None)[1]

    of_rows, terms = jax.jit(jax.vmap(of_row, in_axes=(None, 0))), []
    for batch in text_batches(run, tokens, is_packed=True):
        metrics = jax.device_get(of_rows(run.params, batch))
        rows = np.stack([metrics["masked_accuracy"][0], metrics["loss"][0], metrics["loss"][1]], axis=1)
        terms.append(rows[rows[:, 2] > 0].astype(np.float64))
    right, nats, masked = np.concatenate(terms).T
    # imported models do not record their training sets
    training = open_tokens(indexes.read_sets(data_dir, run.experiment.data.sets or sets, "train"), run.tokenizer)
    boundary = Vocabulary.of(run.tokenizer).boundary
    accuracy, loss = unigram(count_tokens(training, boundary), count_tokens(tokens, boundary))
    report = MaskedReport(
        checkpoint=str(run.checkpoint),
        sets=sets,
        split=split,
        tokens=round(masked.sum()),
        accuracy=float(right.sum() / max(1, masked.sum())),
        accuracy_interval=resampling.bootstrap([right, masked]),
        loss=float(nats.sum() / max(1, masked.sum())),
        loss_interval=resampling.bootstrap([nats, masked]),
        unigram_accuracy=accuracy,
        unigram_loss=loss,
        items=tuple(
            base.Item(
                id=str(row),
                reference=f"{of_row[2]:g} masked",
                sums={"accuracy": (of_row[0], of_row[2]), "loss": (of_row[1], of_row[2])},
            )
            for row, of_row in enumerate(zip(right.tolist(), nats.tolist(), masked.tolist(), strict=True))
        ),
    )
    return report.publish(out or base.report_folder(checkpoint, sets, split), report.checkpoint)


def count_tokens(tokens: TokenStore, vocab_size: int) -> np.ndarray:
    """Counts the occurrences per id; returns int64 [vocab]."""
    counts = np.zeros(vocab_size, np.int64)
    for row, length in enumerate(tokens.lengths.tolist()):
        counts += np.bincount(tokens.read(row, 0, length), minlength=vocab_size)
    return counts


def unigram(training: np.ndarray, evaluated: np.ndarray) -> tuple[float, float]:
    """Computes the unigram baseline with add-one smoothing.

    Args:
      training, evaluated: occurrences per id; id 0 is padding and has none.

    Returns:
      Accuracy of always predicting the most frequent token, and cross-entropy in nats.
    """
    share = (training[1:] + 1) / (training[1:] + 1).sum()
    count = max(1, evaluated.sum())
    return float(evaluated[1:][share.argmax()] / count), float(-(evaluated[1:] @ np.log(share)) / count)
