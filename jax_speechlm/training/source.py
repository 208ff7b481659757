"""Sources of a run's batches: prepared data sets, planned and read by `data_pipelines`."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from data_pipelines.audio.speed import with_speeds
from data_pipelines.batching import packing, unit_documents
from data_pipelines.batching import plan as plans
from data_pipelines.batching.joins import Joins, draw_joins
from data_pipelines.batching.mixture import MixturePlan, make_mixture_plan
from data_pipelines.batching.noise import NoiseReader
from data_pipelines.batching.rows import make_row_plan
from data_pipelines.batching.speech import Batch, Batches, open_batches
from data_pipelines.batching.text import TextBatches, open_text_batches
from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.core.shuffle import derive_key
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage import index as indexes
from data_pipelines.storage import tokens as token_store
from data_pipelines.storage.frame_labels import FrameLabels
from data_pipelines.storage.pitch import FramePitch
from data_pipelines.storage.units import UnitIdStore, Units, UnitTexts, open_unit_ids, read_units
from data_pipelines.tokenizers import base
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.parallel.mesh import row_group
from jax_speechlm.recipes.experiment import Experiment, Mixture, Speech, Text, UnitText, WordPairs
from jax_speechlm.tasks import TASKS
from jax_speechlm.tasks.base import Input
from jax_speechlm.tasks.inputs import TRANSCRIPT, row_domains
from jax_speechlm.training.runs import read_tokenizer
from jax_speechlm.training.word_pairs import WordPairSource

log = logging.getLogger(__name__)

RowLabels = Int[np.ndarray, " _"] | Int[np.ndarray, "_ labels"] | None
"""Class id per row of an index, or several, for classification."""


@runtime_checkable
class BatchSource(Protocol):
    """The interface between the training loop and its data."""

    plan: plans.SpeechPlan | packing.TextPlan | MixturePlan
    dev_plan: plans.BatchPlan | packing.TextPlan | None
    tokenizer: Tokenizer | None

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields this process's rows of the training batches of steps `first_step` to `num_steps` - 1.

        By the current mesh several processes may have the same rows (`parallel.mesh.row_group`).
        """

    def dev_batches(self) -> Iterator[Batch]:
        """Yields this process's rows of every validation batch, once."""

    def fingerprints(self) -> dict[str, str | None]:
        """Returns fingerprints that a resumed run must match: "units" of the k-means, "labels" of frame classes or
        pitch.
        """
        return {"units": None, "labels": None}

    def stream(self, step: int) -> str:
        """Returns the stream of a mixture that provides a step's batch; "" without streams."""
        del step
        return ""


def open_source(experiment: Experiment) -> BatchSource:
    """Opens and plans the prepared data sets of an experiment.

    Raises:
      DataError: a set is not prepared, or its index does not match its records; the message gives the remedy.
      ValueError: the settings are inconsistent.
    """
    return _SOURCES[type(experiment.data)].open(experiment)


def with_labels(experiment: Experiment) -> Experiment:
    """Returns an experiment whose objective has the settings that it takes from the training data."""

    def column(name: str) -> list[str]:
        return read_indexes(experiment)[0].column(name).to_pylist()

    return experiment.replace(objective=experiment.objective.of_data(column))


def plan_speech(
    experiment: Experiment,
    num_samples: Int[np.ndarray, " items"],
    tokens: Int[np.ndarray, " items"] | None,
    tokenizer: Tokenizer | None = None,
) -> plans.SpeechPlan:
    """Plans the training batches of an experiment for utterances of these lengths, with speed perturbation and pairs.

    Args:
      tokenizer: the transcripts', if there are `tokens`.

    Raises:
      ValueError: the settings are inconsistent, or no utterance is left.
    """
    data = experiment.data
    lengths = with_speeds(num_samples, tokens, data.speeds)
    if (joins := joins_of(experiment, num_samples, tokens, tokenizer)) is not None:
        pairs = zip(lengths, joins.lengths(num_samples, tokens), strict=True)
        lengths = tuple(None if each is None else np.concatenate([each, more]) for each, more in pairs)
    limits = {"min_seconds": data.min_seconds, "max_seconds": data.max_seconds}
    shared = limits | {"seed": experiment.seed, "shortest_first_epochs": data.shortest_first_epochs}
    shared |= _shapes(experiment)
    if not data.packed:
        return plans.make_plan(*lengths, num_buckets=data.num_buckets, max_crop=data.max_crop, **shared)
    if data.max_crop:
        raise ValueError(
            f"data.max_crop is {data.max_crop:g}, and packed rows have hardly any padding that crops could save: set "
            "--data.max-crop 0, or --data.packed False"
        )
    rows = {"row_seconds": data.row_seconds, "max_utterances": data.max_utterances}
    rows |= {"added_tokens": experiment.objective.added_tokens(tokenizer)}
    shared |= {"frame_samples": experiment.slot_samples}
    return make_row_plan(*lengths, gap_samples=experiment.gap_samples, **rows, **shared)


def joins_of(
    experiment: Experiment,
    num_samples: Int[np.ndarray, " items"],
    tokens: Int[np.ndarray, " items"] | None,
    tokenizer: Tokenizer | None,
) -> Joins | None:
    """Returns the pairs of utterances that an experiment joins, or None; arguments as of `plan_speech`."""
    data = experiment.data
    if not data.joined:
        return None
    if experiment.objective.reads_units:
        raise ValueError("units are read one utterance at a time: set data.joined to 0")
    limits = {"longest": data.max_seconds, "sample_rate": experiment.sample_rate, "seed": experiment.seed}
    return draw_joins(num_samples, tokens, tokenizer, share=data.joined, **limits)


def _shapes(experiment: Experiment) -> dict[str, Any]:
    """Returns the arguments that the plans of training and validation batches share."""
    data = experiment.data
    return {
        "seconds_per_batch": data.seconds_per_batch,
        "batch_multiple": data.batch_multiple,
        "frame_samples": experiment.frame_samples,
        "sample_rate": experiment.sample_rate,
    }


class _PlannedSource(BatchSource):
    """A source with one plan for training and one for validation, whose batches `_open` reads."""

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        return self._open(0, self.train, self.plan, start_step=first_step, num_steps=num_steps - first_step, **_host())

    def dev_batches(self) -> Iterator[Batch]:
        return self._open(1, self.dev, self.dev_plan, num_steps=self.dev_plan.steps_per_epoch, **_host())


def _host() -> dict[str, int]:
    host, num_hosts = row_group()
    return {"host": host, "num_hosts": num_hosts}


@dataclasses.dataclass(frozen=True)
class SpeechSource(_PlannedSource):
    """Prepared utterances, packed into rows or in batches of similar length.

    Attributes:
      train, dev: indexes of the utterances; `dev` is None if no set has a dev split.
      tokenizer: None for objectives without text.
      speeds, noise: of speed perturbation, and to mix in, in training.
      labels, frame_labels: classes of the rows, and units or classes of their frames, of `train` and of `dev`; None if
        the task does not use them.
      domains: of the rows of `train` and of `dev`; None without an adversary.
      text_column: column of the indexes with the transcripts.
      pitch: of the frames of `train` and of `dev`; None if the task does not use it.
      unit_texts: units of the rows of `train` and of `dev` that are their texts; None if a column is.
      joins: pairs of rows of `train` that are further utterances.
    """

    train: indexes.Index
    dev: indexes.Index | None
    plan: plans.SpeechPlan
    dev_plan: plans.BatchPlan | None
    tokenizer: Tokenizer | None
    speeds: tuple[float, ...] = (1.0,)
    noise: NoiseReader | None = None
    labels: tuple[RowLabels, RowLabels] = (None, None)
    frame_labels: tuple[FrameLabels | UnitIdStore | None, FrameLabels | UnitIdStore | None] = (None, None)
    text_column: str = "text"
    pitch: tuple[FramePitch | None, FramePitch | None] = (None, None)
    unit_texts: tuple[UnitTexts | None, UnitTexts | None] = (None, None)
    joins: Joins | None = None
    domains: tuple[RowLabels, RowLabels] = (None, None)

    def fingerprints(self) -> dict[str, str | None]:
        labels = self.frame_labels[0] if self.frame_labels[0] is not None else self.pitch[0]
        units = self.unit_texts[0].store if self.unit_texts[0] is not None else labels
        return {
            "units": units.units.fingerprint if isinstance(units, UnitIdStore) else None,
            "labels": labels.fingerprint if isinstance(labels, FrameLabels | FramePitch) else None,
        }

    @classmethod
    def open(cls, experiment: Experiment, tokenizer: Tokenizer | None = None) -> "SpeechSource":
        """Opens and plans data sets, with the tokenizer of the mixture, if any; see `open_source`."""
        data = experiment.data
        train, dev = read_indexes(experiment)
        column, unit_texts = experiment.objective.text_column, (None, None)
        if TRANSCRIPT not in inputs_of(experiment):
            tokenizer = None
        elif experiment.objective.reads_units:
            tokenizer = read_units(data.units).tokenizer
            unit_texts = tuple(_unit_texts(index, data.units) for index in (train, dev))
        elif tokenizer is None:
            tokenizer = _tokenizer(data.tokenizer, train)

        def lengths(index: indexes.Index, texts: UnitTexts | None) -> Int[np.ndarray, " items"] | None:
            if texts is not None:
                return texts.token_lengths()
            return indexes.token_lengths(index, tokenizer, column) if tokenizer else None

        of_train = train.num_samples, lengths(train, unit_texts[0]), tokenizer
        plan, dev_plan = plan_speech(experiment, *of_train), None
        labels = _read(experiment, ("label", "labels"), train, dev)
        if labels[1] is not None and (labels[1] < 0).all():
            log.warning("nothing validates: of the dev split's speakers none is of the training data")
            dev, labels = None, (labels[0], None)
        if dev is not None:
            shapes = {"max_seconds": data.max_seconds, "num_buckets": data.num_buckets} | _shapes(experiment)
            dev_plan = plans.make_eval_plan(dev.num_samples, lengths(dev, unit_texts[1]), **shapes)
        frame_labels = _read(experiment, ("frame_labels",), train, dev)
        known = labels, frame_labels, column, _read(experiment, ("pitch",), train, dev), unit_texts
        joins = joins_of(experiment, *of_train)
        domains = _read(experiment, ("domain",), train, dev)
        return cls(train, dev, plan, dev_plan, tokenizer, data.speeds, _noise(experiment), *known, joins, domains)

    def _open(self, split: int, index: indexes.Index, plan: plans.SpeechPlan, **options: int) -> Batches:
        augmentation = {"speeds": self.speeds, "joins": self.joins, "noise": self.noise} if split == 0 else {}
        return open_batches(
            index,
            plan,
            self.tokenizer,
            labels=self.labels[split],
            domains=self.domains[split],
            frame_labels=self.frame_labels[split],
            pitch=self.pitch[split],
            column=self.text_column,
            texts=self.unit_texts[split],
            **augmentation,
            **options,
        )


@dataclasses.dataclass(frozen=True)
class TextSource(_PlannedSource):
    """Prepared documents, packed into rows of one length.

    Attributes:
      train, dev: tokens of the documents; `dev` is None if no set has a dev split.
      labels: classes of the documents of `train` and of `dev`; None if the task does not use them.
      units: k-means of the speech units among the tokens, or None.
    """

    train: token_store.TokenStore
    dev: token_store.TokenStore | None
    plan: packing.TextPlan
    dev_plan: packing.TextPlan | None
    tokenizer: Tokenizer
    labels: tuple[RowLabels, RowLabels] = (None, None)
    units: Units | None = None

    def fingerprints(self) -> dict[str, str | None]:
        return {"units": self.units and self.units.fingerprint, "labels": None}

    @classmethod
    def open(cls, experiment: Experiment, tokenizer: Tokenizer | None = None) -> "TextSource":
        """Encodes and plans data sets, with the tokenizer of the mixture, if any; see `open_source`."""
        data = experiment.data
        train, dev = read_indexes(experiment)
        tokenizer = tokenizer or _tokenizer(data.tokenizer, train)
        targets = experiment.objective.reads_targets
        tokens = token_store.open_tokens(train, tokenizer, targets=targets)
        labels = _read(experiment, ("label",), train, dev)
        shape = {"context": data.context, "sequences_per_batch": data.sequences_per_batch}
        shape["is_packed"] = data.packed and labels[0] is None
        mixture = {"weights": data.weights, "source_rows": [part.num_rows for part in train.parts]}
        plan = packing.make_text_plan(
            tokens.lengths, seed=experiment.seed, **(mixture if data.weights else {}), **shape
        )
        dev_tokens = token_store.open_tokens(dev, tokenizer, targets=targets) if dev is not None else None
        dev_plan = packing.make_text_eval_plan(dev_tokens.lengths, **shape) if dev is not None else None
        return cls(tokens, dev_tokens, plan, dev_plan, tokenizer, labels)

    def _open(self, split: int, tokens: token_store.TokenStore, plan: packing.TextPlan, **options: int) -> TextBatches:
        return open_text_batches(
            tokens,
            plan,
            boundary=Vocabulary.of(self.tokenizer).boundary,
            begin=self.tokenizer.begin,
            labels=self.labels[split],
            frame_samples=self.units and self.units.frame_samples,
            **options,
        )


@dataclasses.dataclass(frozen=True)
class UnitSource(TextSource):
    """Utterances as units, texts, and both interleaved, packed into rows of one length.

    Each kind of document is a source of the plan; `tokenizer` is the text's.
    """

    @classmethod
    def open(cls, experiment: Experiment) -> "UnitSource":
        """Creates and plans an experiment's documents; see `open_source`."""
        data, units = experiment.data, read_units(experiment.data.units)
        if units.num_units != experiment.objective.num_units:
            raise ValueError(
                f"{data.units} has {units.num_units} units and the model's vocabulary "
                f"{experiment.objective.num_units}: set --objective.num_units {units.num_units}"
            )
        if units.sample_rate != experiment.sample_rate:
            raise DataError(
                f"{data.units} has units of speech at {units.sample_rate} Hz, and the front end is at "
                f"{experiment.sample_rate} Hz: set --frontend.mel.sample-rate {units.sample_rate}"
            )
        train, dev = read_indexes(experiment)
        text_sets = data.text_sets or data.sets
        texts = indexes.read_sets(data.data_dir, text_sets, "train")
        tokenizer = _tokenizer(data.tokenizer, texts)
        vocabulary = Vocabulary.of(tokenizer, num_units=units.num_units)
        markers = unit_documents.Markers(vocabulary.speech, vocabulary.text, vocabulary.first_unit)

        def read_texts(index: indexes.Index) -> unit_documents.UnitDocuments:
            return unit_documents.UnitDocuments(token_store.open_tokens(index, tokenizer), Counter())

        made = {}
        if data.spoken:
            made["spoken"] = unit_documents.spoken_documents(train, data.units, markers)
        if data.text:
            made["text"] = read_texts(texts)
        if data.interleaved:
            drawing = {"mean_words": data.stretch_words, "draws": data.draws, "seed": experiment.seed}
            made["interleaved"] = unit_documents.interleaved_documents(train, data.units, tokenizer, markers, **drawing)
        shape = {"context": data.context, "sequences_per_batch": data.sequences_per_batch}
        tokens = token_store.TokenStore.join([each.store for each in made.values()])
        plan = packing.make_text_plan(
            tokens.lengths,
            seed=experiment.seed,
            source_rows=[len(each.store.lengths) for each in made.values()],
            weights=[getattr(data, name) for name in made],
            **shape,
        )
        missing = {f"{name} {why}": n for name, each in made.items() for why, n in each.missing.items()}
        empty = plan.dropped["empty"] - sum(missing.values())
        plan = dataclasses.replace(plan, names=tuple(made), dropped=missing | {"empty": empty})

        dev_stores = [unit_documents.spoken_documents(dev, data.units, markers).store] if dev is not None else []
        if data.text and (dev_texts := _with_dev_split(data.data_dir, text_sets)):
            dev_stores.append(read_texts(indexes.read_sets(data.data_dir, dev_texts, "dev")).store)
        dev_tokens = token_store.TokenStore.join(dev_stores) if dev_stores else None
        dev_plan = packing.make_text_eval_plan(dev_tokens.lengths, **shape) if dev_stores else None
        return cls(tokens, dev_tokens, plan, dev_plan, tokenizer, units=units)


@dataclasses.dataclass(frozen=True)
class MixtureSource(BatchSource):
    """Several sources by stream; each step takes the next batch of one of them. Each is validated separately."""

    parts: Mapping[str, BatchSource]
    plan: MixturePlan
    tokenizer: Tokenizer | None
    dev_plan: None = None

    @classmethod
    def open(cls, experiment: Experiment) -> "MixtureSource":
        """Opens the streams of an experiment's mixture; see `open_source`."""
        streams = stream_experiments(experiment)
        readers = [read_indexes(each)[0] for each in streams.values() if _reads_text(each)]
        tokenizer = _tokenizer(experiment.data.tokenizer, *readers) if readers else None
        return cls.of({name: _open_stream(name, each, tokenizer) for name, each in streams.items()}, experiment)

    @classmethod
    def of(cls, parts: Mapping[str, BatchSource], experiment: Experiment) -> "MixtureSource":
        """Combines the open sources of an experiment's streams."""
        weights = [stream.weight for stream in experiment.data.streams]
        plan = make_mixture_plan(tuple(parts), [part.plan for part in parts.values()], weights, experiment.seed)
        tokenizer = next((part.tokenizer for part in parts.values() if part.tokenizer), None)
        return cls(parts, plan, tokenizer)

    def stream(self, step: int) -> str:
        return self.plan.names[self.plan.place(step)[0]]

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        spans = zip(self.plan.taken(first_step), self.plan.taken(num_steps), strict=True)
        open_parts = zip(self.parts.values(), spans, strict=True)
        each = [part.batches(first, end) if first < end else iter(()) for part, (first, end) in open_parts]
        return (next(each[self.plan.place(step)[0]]) for step in range(first_step, num_steps))


def stream_experiments(experiment: Experiment) -> dict[str, Experiment]:
    """Returns every stream of a mixture as an experiment, with its data, objective and seed."""
    return {
        name: experiment.model_copy(  # not validated: no task trains the mixture's model on one stream
            update={
                "data": data,
                "objective": experiment.objective.of_stream(name),
                "seed": derive_key(experiment.seed, number),
            }
        )
        for number, (name, data) in enumerate(experiment.data.parts.items())
    }


def _reads_text(experiment: Experiment) -> bool:
    return isinstance(experiment.data, Text) or TRANSCRIPT in inputs_of(experiment)


def _open_stream(name: str, experiment: Experiment, tokenizer: Tokenizer | None) -> BatchSource:
    try:
        return _SOURCES[type(experiment.data)].open(experiment, tokenizer)
    except (DataError, ValueError) as error:
        kind = DataError if isinstance(error, DataError) else ValueError
        raise kind(f"stream {name}: {error}") from error


_SOURCES = {
    Speech: SpeechSource,
    Text: TextSource,
    UnitText: UnitSource,
    WordPairs: WordPairSource,
    Mixture: MixtureSource,
}


def read_indexes(experiment: Experiment) -> tuple[indexes.Index, indexes.Index | None]:
    """Reads the indexes of the training rows and of the validation rows; the latter may be None."""
    data = experiment.data
    rate = None if isinstance(data, Text) else experiment.sample_rate
    train = indexes.read_sets(data.data_dir, data.sets, "train", rate)
    dev_sets = data.dev_sets or _with_dev_split(data.data_dir, data.sets)
    return train, indexes.read_sets(data.data_dir, dev_sets, "dev", rate) if dev_sets else None


def _with_dev_split(data_dir: str, sets: tuple[str, ...]) -> tuple[str, ...]:
    names = dict.fromkeys(name.partition(":")[0] for name in sets)
    return tuple(name for name in names if "dev" in indexes.splits_of(as_path(data_dir) / name))


def inputs_of(experiment: Experiment, stream: str = "") -> tuple[Input, ...]:
    """Returns the inputs that an experiment's task reads from its data, or from one stream of its mixture."""
    if stream:
        experiment = stream_experiments(experiment)[stream]
    inputs = TASKS[experiment.objective.kind].inputs_of(experiment.data)
    return (*inputs, row_domains(experiment.adversary)) if experiment.adversary.classes else inputs


def _read(
    experiment: Experiment, names: tuple[str, ...], train: indexes.Index, dev: indexes.Index | None
) -> tuple[Any, Any]:
    """Reads the field of one of these names, of the training and the validation rows; None without such an input."""
    settings = experiment.objective, experiment.data, experiment.frontend.mel, experiment.frame_grid
    for each in inputs_of(experiment):
        if each.read is not None and any(field.name in names for field in each.fields):
            known = each.read(*settings, train, True)
            return known, None if dev is None else each.read(*settings, dev, False)
    return None, None


def _noise(experiment: Experiment) -> NoiseReader | None:
    data, probability = experiment.data, experiment.frontend.augment.noise_probability
    if (data.noise_set is None) != (probability == 0):
        raise ValueError(
            f"data.noise_set is {data.noise_set} and frontend.augment.noise_probability is {probability:g}: set both "
            "to mix noise in, or neither"
        )
    if data.noise_set is None:
        return None
    index = indexes.read_sets(data.data_dir, (data.noise_set,), "train", experiment.sample_rate)
    return NoiseReader(index, experiment.seed)


def _unit_texts(index: indexes.Index | None, units: str) -> UnitTexts | None:
    return None if index is None else UnitTexts(open_unit_ids(index, units))


def _tokenizer(path: str | None, *train: indexes.Index) -> Tokenizer:
    if path is None:
        texts = (text for index in train for part in index.parts for text in part.written())
        return base.train_tokenizer(texts, "char")
    return read_tokenizer(path)
