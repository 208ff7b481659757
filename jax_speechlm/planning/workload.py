"""Static batch shapes of a run, from its data if prepared on this machine, otherwise from assumed lengths."""

import dataclasses
import re

import jax
import numpy as np

from data_pipelines.batching import fields
from data_pipelines.batching import plan as plans
from data_pipelines.batching.fields import BatchSpec
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.paths import as_path
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.pitch import find_pitch
from data_pipelines.storage.units import read_units
from data_pipelines.storage.word_times import find_word_times
from data_pipelines.tokenizers.words import WordTokenizer
from jax_speechlm.recipes.experiment import Experiment, Mixture, PackedRows, UnitText
from jax_speechlm.tasks.inputs import DURATION, FRAME_PITCH, FRAME_UNITS, SPEECH_OR_SILENCE, TRANSCRIPT
from jax_speechlm.training.runs import read_tokenizer
from jax_speechlm.training.source import (
    BatchSource,
    inputs_of,
    open_source,
    plan_speech,
    read_indexes,
    stream_experiments,
)

ASSUMED_UTTERANCES = 50_000
CHARACTERS, PIECES = 64, 1024  # ids of an absent tokenizer
TOKENS_PER_SECOND = 15.0  # characters of read English, to size absent transcripts
UNITS_PER_SECOND = 30.0  # of a k-means with a frame every 20 ms, without repeats


@dataclasses.dataclass(frozen=True)
class Shape:
    """One static batch shape of a run.

    Attributes:
      rows: of a global batch.
      length: samples or tokens of a padded row.
      tokens: length of a padded transcript; 0 for audio alone and for text.
      share: of an epoch's steps; in a mixture, of all steps.
      unit: of `length`, "samples" or "tokens".
      stream: of a mixture, else "".
      utterances: most utterances of a packed row of speech; 0 if a row is one utterance, and for text.
      text: most tokens of a packed row of speech and text; 0 if they are not bounded.
    """

    rows: int
    length: int
    tokens: int
    share: float
    unit: str = "samples"
    stream: str = ""
    utterances: int = 0
    text: int = 0


@dataclasses.dataclass(frozen=True)
class Workload:
    """The shapes of a run's batches.

    Attributes:
      shapes: by ascending length.
      unit: of useful amounts, "samples" or "tokens"; in a mixture of both, samples.
      useful: share of the padded positions that hold data.
      tokenizer: the run's, or one of the assumed size; None if the objective needs none.
      assumed: description of the assumptions that replace unprepared data; empty without assumptions.
      sample_rate: of audio, in Hz.
    """

    shapes: tuple[Shape, ...]
    unit: str
    useful: float
    tokenizer: Tokenizer | None
    assumed: str = ""
    sample_rate: int = DEFAULT_SAMPLE_RATE

    def abstract(self, shape: Shape, experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns a batch of a shape, as abstract arrays without sharding."""
        wanted = {field for each in inputs_of(experiment, shape.stream) for field in each.fields}
        if shape.unit == "tokens":
            optional = {"row_label": fields.ROW_LABEL, "duration": fields.DURATION, "word_pairs": fields.COUNT}
            spec = BatchSpec.text(**{name: field in wanted for name, field in optional.items()})
            sizes = {"rows": shape.rows, "context": shape.length}
        else:
            spec = BatchSpec.speech(
                packed=shape.utterances > 0,
                noise=experiment.frontend.augment.noise_probability > 0,
                row_label=fields.ROW_LABEL in wanted,
                row_labels=fields.ROW_LABELS in wanted,
                domain=fields.DOMAIN in wanted,
                frame_labels=fields.FRAME_LABELS in wanted,
                pitch=fields.PITCH in wanted,
                text=shape.text > 0,
            )
            frames = int(experiment.frame_grid.num_frames(shape.length))
            sizes = {"rows": shape.rows, "samples": shape.length, "tokens": shape.tokens, "frames": frames}
            sizes |= {"utterances": shape.utterances, "text": shape.text, "labels": experiment.objective.num_labels}
        shapes = spec.shapes(sizes)
        return {field.name: jax.ShapeDtypeStruct(shapes[field.name], field.dtype) for field in spec.fields}


def workload(experiment: Experiment, vocab_size: int | None) -> Workload:
    """Computes the batch shapes of an experiment, from its prepared sets or from assumed lengths.

    Args:
      vocab_size: ids of the tokenizer, if the one that the experiment names is absent; None takes the number at the end
        of its folder's name, "data/bpe-2048", or else a few for characters and more for pieces.

    Returns:
      The shapes.
    """
    data = experiment.data
    if isinstance(data, Mixture):
        return _of_streams(experiment, vocab_size)
    sets = (*data.sets, *data.text_sets) if isinstance(data, UnitText) else data.sets
    missing = [name for name in sets if not (as_path(data.data_dir) / name.partition(":")[0]).is_dir()]
    inputs = inputs_of(experiment)
    reads_units = DURATION in inputs or FRAME_UNITS in inputs or experiment.objective.reads_units
    if reads_units and data.units and not as_path(data.units).is_dir():
        missing.append(data.units)
    if not missing and SPEECH_OR_SILENCE in inputs:
        parts = [part for index in read_indexes(experiment) if index is not None for part in index.parts]
        missing = [f"the times of words of {part}" for part in parts if find_word_times(part) is None]
    if not missing and FRAME_PITCH in inputs:
        parts = [part for index in read_indexes(experiment) if index is not None for part in index.parts]
        missing = [f"the pitch of {part}" for part in parts if find_pitch(part) is None]
    if not missing:
        return _prepared(experiment)
    texts_are_units = experiment.objective.reads_units
    if texts_are_units and as_path(data.units).is_dir():
        tokenizer, said = read_units(data.units).tokenizer, ""
    else:
        tokenizer, said = _tokenizer(data.units if texts_are_units else data.tokenizer, vocab_size)
    if isinstance(data, PackedRows):
        assumed = f"{', '.join(missing)} not prepared here{said}: rows are full"
        return Workload((_text_shape(data),), "tokens", 1.0, tokenizer, assumed)
    reads_text = TRANSCRIPT in inputs
    # Uniform durations: real sets have their peak somewhere between, and buckets wherever it is.
    seconds = np.linspace(data.min_seconds, data.max_seconds, ASSUMED_UTTERANCES)
    samples = (seconds * experiment.sample_rate).astype(np.int64)
    rate = TOKENS_PER_SECOND if tokenizer.vocab_size < 200 else TOKENS_PER_SECOND / 4
    rate = UNITS_PER_SECOND if texts_are_units else rate
    tokens = np.maximum((seconds * rate).astype(np.int64), 1) if reads_text else None
    plan = plan_speech(experiment, samples, tokens, tokenizer if reads_text else None)
    text = f" with {rate:g} tokens a second" if reads_text else ""
    assumed = f"{', '.join(missing)} not prepared here{said if reads_text else ''}: durations even from "
    assumed += f"{data.min_seconds:g} to {data.max_seconds:g} s{text}"
    return _of_plan(plan, tokenizer if reads_text else None, assumed)


def _prepared(experiment: Experiment) -> Workload:
    return _of_source(experiment, open_source(experiment))


def _of_source(experiment: Experiment, source: BatchSource) -> Workload:
    data = experiment.data
    if isinstance(data, PackedRows):
        shapes, fill = (_text_shape(data),), source.plan.fill_share
        return Workload(shapes, "tokens", fill, source.tokenizer, "")
    return _of_plan(source.plan, source.tokenizer, "")


def _text_shape(data: PackedRows) -> Shape:
    return Shape(data.sequences_per_batch, data.context, 0, 1.0, "tokens")


def _of_streams(experiment: Experiment, vocab_size: int | None) -> Workload:
    """Computes the shapes of a mixture's streams, with the longest rows for the model last."""
    data, streams = experiment.data, stream_experiments(experiment)
    if all((as_path(data.data_dir) / name.partition(":")[0]).is_dir() for name in data.sets):
        source = open_source(experiment)
        tokenizer = source.tokenizer
        loads = [_of_source(each, source.parts[name]) for name, each in streams.items()]
    else:
        tokenizer, _ = _tokenizer(data.tokenizer, vocab_size)
        loads = [workload(each, vocab_size) for each in streams.values()]
    frame, total, shapes, useful = experiment.frame_samples, sum(s.weight for s in data.streams), [], []
    for stream, load in zip(data.streams, loads, strict=True):
        share = stream.weight / total
        shapes += [dataclasses.replace(s, share=s.share * share, stream=stream.name) for s in load.shapes]
        useful.append((load.unit, load.useful, sum(share * s.share * s.rows * s.length for s in load.shapes)))
    unit = "samples" if any(load.unit == "samples" for load in loads) else "tokens"
    counted = [(share, padded) for of_unit, share, padded in useful if of_unit == unit]
    shapes.sort(key=lambda s: s.length if s.unit == "tokens" else s.length / frame + (s.text or s.tokens))
    return Workload(
        tuple(shapes),
        unit,
        sum(share * padded for share, padded in counted) / sum(padded for _, padded in counted),
        tokenizer,
        "; ".join(
            f"{stream.name}: {load.assumed}" for stream, load in zip(data.streams, loads, strict=True) if load.assumed
        ),
        experiment.sample_rate,
    )


def _of_plan(plan: plans.SpeechPlan, tokenizer: Tokenizer | None, assumed: str) -> Workload:
    shapes = tuple(
        Shape(
            bucket.batch_size,
            bucket.num_samples,
            bucket.num_tokens,
            share,
            utterances=bucket.num_utterances,
            text=bucket.num_text,
        )
        for bucket, share in zip(plan.buckets, plan.step_shares, strict=True)
    )
    return Workload(shapes, "samples", 1 - plan.padding_share, tokenizer, assumed, plan.sample_rate)


def _tokenizer(path: str | None, vocab_size: int | None) -> tuple[Tokenizer, str]:
    """Returns the tokenizer of a folder, or one with as many ids and a note on the assumption."""
    if path is not None and as_path(path).is_dir():
        return read_tokenizer(path), ""
    if vocab_size is None:
        named = re.search(r"\d+$", path or "")
        vocab_size = int(named.group()) if named else CHARACTERS if path is None else PIECES
    ranks = range(1, vocab_size)  # of frequencies by Zipf's law, which only objectives of words read
    words = WordTokenizer(tuple(chr(0x20000 + rank) for rank in ranks), tuple(vocab_size // rank for rank in ranks))
    return words, f", {vocab_size} token ids"
