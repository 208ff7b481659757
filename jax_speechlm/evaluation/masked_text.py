"""Evaluates masked language models: accuracy and loss, compared with unigram frequencies."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.table import Table

from data_pipelines.storage import index as indexes
from data_pipelines.storage.tokens import TokenStore, open_tokens
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.batches import text_batches
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.training.runs import LoadedRun


class MaskedReport(base.SetReport):
    """The evaluation of one masked language model.

    Attributes:
      tokens: number of masked tokens; each row has one draw of masks, identical in every evaluation.
      accuracy: share of the masked tokens predicted correctly.
      loss: cross-entropy in nats.
      unigram_accuracy, unigram_loss: expected values over all masks for the add-one smoothed token frequencies of the
        training text: the baseline that ignores the context.
    """

    tokens: int
    accuracy: float
    loss: float
    unigram_accuracy: float
    unigram_loss: float

    def tables(self) -> Iterator[Table]:
        """Yields the accuracies and losses of the model and of the baseline."""
        table = base.new_table("", "accuracy", "loss", title=f"{self.title}: {self.tokens:,} masked tokens")
        table.add_row("masked language model", f"{self.accuracy:.2%}", f"{self.loss:.3f}")
        table.add_row("token frequencies", f"{self.unigram_accuracy:.2%}", f"{self.unigram_loss:.3f}")
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
    evaluate = jax.jit(lambda params, batch: objective.loss(params, batch, None)[1])
    sums: Counter[str] = Counter()
    for batch in text_batches(run, tokens, is_packed=True):
        metrics = jax.device_get(evaluate(run.params, batch))
        sums.update({name: float(total) for name, (total, _) in metrics.items()})
        sums["tokens"] += round(float(metrics["loss"][1]))
    # imported models do not record their training sets
    training = open_tokens(indexes.read_sets(data_dir, run.experiment.data.sets or sets, "train"), run.tokenizer)
    boundary = Vocabulary.of(run.tokenizer).boundary
    accuracy, loss = unigram(count_tokens(training, boundary), count_tokens(tokens, boundary))
    report = MaskedReport(
        checkpoint=str(run.checkpoint),
        sets=sets,
        split=split,
        tokens=sums["tokens"],
        accuracy=sums["masked_accuracy"] / max(1, sums["tokens"]),
        loss=sums["loss"] / max(1, sums["tokens"]),
        unigram_accuracy=accuracy,
        unigram_loss=loss,
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
