"""What a run will be fed: the static shapes of its batches, from its data where that is prepared, else assumed."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import plan as plans
from data_pipelines.audio import SAMPLE_RATE
from data_pipelines.paths import as_path
from data_pipelines.tokenizers import CharTokenizer, Tokenizer
from jax_speechlm.experiment import Experiment, PackedRows, UnitText
from jax_speechlm.training.source import open_source, plan_speech, read_tokenizer

ASSUMED_UTTERANCES = 50_000
CHARACTERS, PIECES = 64, 1024  # ids of a tokenizer that is not there
TOKENS_PER_SECOND = 15.0  # characters of read English, to size transcripts that are not there yet


@dataclasses.dataclass(frozen=True)
class Shape:
    """One static batch shape of a run.

    Attributes:
      rows: of a global batch.
      length: samples or tokens of a padded row.
      tokens: length of the padded transcripts; 0 for audio alone and for text.
      share: of an epoch's steps.
    """

    rows: int
    length: int
    tokens: int
    share: float


@dataclasses.dataclass(frozen=True)
class Workload:
    """The shapes of a run's batches.

    Attributes:
      shapes: by ascending length.
      unit: what lengths and useful amounts are counted in, "samples" or "tokens".
      useful: share of the padded positions that hold data.
      tokenizer: the run's, or one of the assumed size; None where the objective needs none.
      holds_units: whether documents may hold speech, whose duration goes with it.
      assumed: what is assumed about the data in place of a prepared set, for the user to read; empty if nothing.
    """

    shapes: tuple[Shape, ...]
    unit: str
    useful: float
    tokenizer: Tokenizer | None
    assumed: str = ""
    holds_units: bool = False

    def abstract(
        self, shape: Shape, noise: bool, labels: bool, frames: int | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of a shape, as abstract arrays without sharding; with speech units where `frames` says how many."""
        rows, length = shape.rows, shape.length
        if self.unit == "tokens":
            arrays = {name: ((rows, length), jnp.int32) for name in ("tokens", "segment", "position")}
            if self.holds_units:
                arrays["samples"] = (rows, length), jnp.int32
        else:
            arrays = {
                "audio": ((rows, length), jnp.int16),
                "audio_length": ((rows,), jnp.int32),
                "tokens": ((rows, shape.tokens), jnp.int32),
                "token_length": ((rows,), jnp.int32),
            }
        arrays |= {"example_id": ((rows,), jnp.int32), "weight": ((rows,), jnp.float32)}
        if noise:
            arrays["noise"] = ((rows, length), jnp.int16)
        if labels:
            arrays["label"] = ((rows,), jnp.int32)
        if frames is not None:
            arrays["codes"] = ((rows, frames), jnp.int32)
        return {name: jax.ShapeDtypeStruct(*each) for name, each in arrays.items()}


def workload(experiment: Experiment, vocab_size: int | None) -> Workload:
    """The batches of an experiment: its own where its sets are prepared on this machine, else of assumed lengths.

    Args:
      vocab_size: ids of the tokenizer, where the one that the experiment names is not there; None takes the number
        that its folder's name ends with, "data/bpe-2048", and else few for characters and many for pieces.
    """
    data = experiment.data
    missing = [name for name in data.sets if not (as_path(data.data_dir) / name.partition(":")[0]).is_dir()]
    if experiment.objective.reads_codes and data.units and not as_path(data.units).is_dir():
        missing.append(data.units)
    if not missing:
        return _prepared(experiment)
    tokenizer, said = _tokenizer(data.tokenizer, vocab_size)
    if isinstance(data, PackedRows):
        shape = Shape(data.sequences_per_batch, data.context, 0, 1.0)
        assumed = f"{', '.join(missing)} not prepared here{said}: rows are full"
        return Workload((shape,), "tokens", 1.0, tokenizer, assumed, isinstance(data, UnitText))
    reads_text = experiment.objective.reads_text
    # Uniform durations: real sets have their peak somewhere between, and buckets wherever it is.
    seconds = np.linspace(data.min_seconds, data.max_seconds, ASSUMED_UTTERANCES)
    samples = (seconds * SAMPLE_RATE).astype(np.int64)
    rate = TOKENS_PER_SECOND if tokenizer.vocab_size < 200 else TOKENS_PER_SECOND / 4
    tokens = np.maximum((seconds * rate).astype(np.int64), 1) if reads_text else None
    plan = plan_speech(experiment, samples, tokens)
    text = f" with {rate:g} tokens a second" if reads_text else ""
    assumed = f"{', '.join(missing)} not prepared here{said if reads_text else ''}: durations even from "
    assumed += f"{data.min_seconds:g} to {data.max_seconds:g} s{text}"
    return _of_plan(plan, tokenizer if reads_text else None, assumed)


def _prepared(experiment: Experiment) -> Workload:
    source = open_source(experiment)
    if isinstance(experiment.data, PackedRows):
        data, plan = experiment.data, source.plan
        shape = Shape(data.sequences_per_batch, data.context, 0, 1.0)
        return Workload((shape,), "tokens", plan.fill_share, source.tokenizer, "", isinstance(data, UnitText))
    return _of_plan(source.plan, source.tokenizer, "")


def _of_plan(plan: plans.Plan, tokenizer: Tokenizer | None, assumed: str) -> Workload:
    shapes = tuple(
        Shape(bucket.batch_size, bucket.num_samples, bucket.num_tokens, bucket.num_batches / plan.steps_per_epoch)
        for bucket in plan.buckets
    )
    return Workload(shapes, "samples", 1 - plan.padding_share, tokenizer, assumed)


def _tokenizer(path: str | None, vocab_size: int | None) -> tuple[Tokenizer, str]:
    """The tokenizer of a folder, or one of as many ids, and what is to be said about that."""
    if path is not None and as_path(path).is_dir():
        return read_tokenizer(path), ""
    if vocab_size is None:
        named = re.search(r"\d+$", path or "")
        vocab_size = int(named.group()) if named else CHARACTERS if path is None else PIECES
    return CharTokenizer("".join(map(chr, range(0x20000, 0x20000 + vocab_size - 1)))), f", {vocab_size} token ids"
