"""Batches of prepared sets for evaluation: every row once, at its full length."""

from data_pipelines.batching import packing
from data_pipelines.batching import plan as plans
from data_pipelines.batching.speech import Batches, open_batches
from data_pipelines.batching.text import TextBatches, open_text_batches
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.frame_labels import FrameLabels
from data_pipelines.storage.index import Index, token_lengths
from data_pipelines.storage.tokens import TokenStore
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.training.runs import LoadedRun

_TOKENS_PER_BATCH = 8192


def item_ids(index: Index) -> list[str]:
    """Returns a unique id of every row: its own, and its set before it if there are several sets."""
    ids = index.column("id").to_pylist()
    if len({part.set_dir for part in index.parts}) == 1:
        return ids
    return [f"{index.locate(row)[0].set_dir.name}/{name}" for row, name in enumerate(ids)]


def speech_batches(
    index: Index,
    frame_samples: int,
    seconds_per_batch: float,
    *,
    batch_multiple: int = 1,
    frame_labels: FrameLabels | None = None,
    tokenizer: Tokenizer | None = None,
    limit: int | None = None,
) -> Batches:
    """Reads every utterance of an index, or the first `limit`, once, in batches of similar length.

    Args:
      frame_samples: as in `make_plan`.
    """
    plan = plans.make_eval_plan(
        index.num_samples,
        None if tokenizer is None else token_lengths(index, tokenizer),
        seconds_per_batch=seconds_per_batch,
        batch_multiple=batch_multiple,
        frame_samples=frame_samples,
        sample_rate=index.sample_rate,
        limit=limit,
    )
    return open_batches(index, plan, tokenizer, num_steps=plan.steps_per_epoch, frame_labels=frame_labels)


def text_batches(run: LoadedRun, tokens: TokenStore, *, is_packed: bool) -> TextBatches:
    """Reads every non-empty text once, in rows of the model's context.

    Args:
      is_packed: whether texts share rows and long texts are cut; otherwise each text is one row, truncated.
    """
    context = run.experiment.data.context
    rows = max(1, _TOKENS_PER_BATCH // context)
    plan = packing.make_text_eval_plan(tokens.lengths, context=context, sequences_per_batch=rows, is_packed=is_packed)
    boundary = Vocabulary.of(run.tokenizer).boundary
    return open_text_batches(tokens, plan, boundary=boundary, begin=run.tokenizer.begin, num_steps=plan.steps_per_epoch)
