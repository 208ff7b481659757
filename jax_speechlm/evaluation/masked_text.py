"""Evaluates masked language models: accuracy and loss, compared with unigram frequencies."""

from collections import Counter
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from data_pipelines.batching import packing
from data_pipelines.batching.text import open_text_batches
from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from data_pipelines.storage.tokens import TokenStore, open_tokens
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.evaluation.language import save_report
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.training.runs import LoadedRun

_TOKENS_PER_BATCH = 8192


class MaskedReport(Config):
    """The evaluation of one masked language model.

    Attributes:
      checkpoint, sets, split: the run and its test data.
      tokens: number of masked tokens; each row has one draw of masks, identical in every evaluation.
      accuracy: share of the masked tokens predicted correctly.
      loss: cross-entropy in nats.
      unigram_accuracy, unigram_loss: expected values over all masks for the add-one smoothed token frequencies of the
        training text: the baseline that ignores the context.
    """

    checkpoint: str
    sets: tuple[str, ...]
    split: str
    tokens: int
    accuracy: float
    loss: float
    unigram_accuracy: float
    unigram_loss: float

    def table(self) -> Table:
        """Returns the report as a table for the terminal."""
        title = f"{', '.join(self.sets)} {self.split}: {self.tokens:,} masked tokens"
        table = Table("", "accuracy", "loss", title=title, title_justify="left")
        table.add_row("masked language model", f"{self.accuracy:.2%}", f"{self.loss:.3f}")
        table.add_row("token frequencies", f"{self.unigram_accuracy:.2%}", f"{self.unigram_loss:.3f}")
        return table


def evaluate_run(
    checkpoint: Positional[Path],
    sets: tuple[str, ...],
    split: str = "test",
    data_dir: Path = Path("data"),
    out: Path | None = None,
) -> MaskedReport:
    """Measures masked accuracy on prepared sets of text, and the unigram baseline of the run's training text.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      sets: names of prepared data sets; "name:split" selects another split than --split.
      split: "test", "dev" or "train".
      data_dir: folder of the prepared data sets, including the training sets of the run.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>.
    """
    run = LoadedRun.load(checkpoint, MaskedLM, "fill gaps from both sides")
    data = run.experiment.data
    tokens = open_tokens(indexes.read_sets(data_dir, sets, split), run.tokenizer)
    objective = run.experiment.objective.build(run.experiment.model, run.experiment.frontend, run.tokenizer)
    evaluate = jax.jit(lambda params, batch: objective.loss(params, batch, None)[1])
    rows = max(1, _TOKENS_PER_BATCH // data.context)
    plan = packing.make_text_eval_plan(tokens.lengths, context=data.context, sequences_per_batch=rows)
    boundary = Vocabulary.of(run.tokenizer).boundary
    sums: Counter[str] = Counter()
    for batch in open_text_batches(
        tokens, plan, boundary=boundary, begin=run.tokenizer.begin, num_steps=plan.steps_per_epoch
    ):
        metrics = jax.device_get(evaluate(run.params, batch))
        sums.update({name: float(total) for name, (total, _) in metrics.items()})
        sums["tokens"] += round(float(metrics["loss"][1]))
    # imported models do not record their training sets
    training = open_tokens(indexes.read_sets(data_dir, data.sets or sets, "train"), run.tokenizer)
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
    out = as_path(out or checkpoint / "eval" / f"{'+'.join(sets)}-{split}")
    save_report(report, out)
    console = Console(highlight=False)
    console.print(report.table())
    console.print(f"{run.checkpoint}; {out / 'report.json'}", soft_wrap=True)
    return report


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
