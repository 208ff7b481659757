"""An experiment: everything that decides a run's result, in one frozen record."""

from typing import Annotated, Any, ClassVar, Literal, Union

import pydantic

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.units import FrameGrid
from jax_speechlm.core.batch import Seed
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizerConfig
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoderConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config
from jax_speechlm.models.tts.tacotron import TacotronConfig
from jax_speechlm.models.vocoders.vocoders import VocoderModel
from jax_speechlm.models.word_vectors import WordVectorsConfig
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.adaptation import adapted
from jax_speechlm.objectives.base import Objective as BuiltObjective
from jax_speechlm.objectives.base import label_grid
from jax_speechlm.objectives.domain import DomainAdversary, against_domains
from jax_speechlm.objectives.perturbation import Perturbation, perturbed
from jax_speechlm.optim.optimizers import Optimizer
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.tasks import TASKS

Objective = Annotated[Union[tuple(task.objective for task in TASKS.values())], pydantic.Field(discriminator="kind")]  # noqa: UP007
"""The objective of any task."""

Model = Annotated[
    EncoderConfig
    | TransformerConfig
    | SpeechLMConfig
    | EncoderDecoderConfig
    | TextEncoderDecoderConfig
    | FastSpeech2Config
    | TacotronConfig
    | VocoderModel
    | WavTokenizerConfig
    | WordVectorsConfig,
    pydantic.Field(discriminator="kind"),
]


class Speech(Config):
    """Prepared data sets of speech, and the composition of batches from their utterances.

    Attributes:
      sets: names of prepared data sets; their "train" splits are concatenated. "name:split" takes another split.
      dev_sets: sets whose "dev" splits validate, or "name:split"; empty takes the dev splits of `sets`.
      data_dir: folder of the prepared data sets.
      tokenizer: folder of a trained tokenizer, or of a run that has one; None takes the characters of the transcripts.
      label: column of the index with the classes of a classification: "text", "speaker", "language".
      seconds_per_batch: padded audio of one global batch.
      packed: whether several utterances share a row in training; otherwise a row is one utterance, padded to the length
        of its bucket. Evaluation has one utterance a row.
      row_seconds: lengths of packed rows, each a static batch shape; utterances longer than the longest are dropped,
        and counted. Empty chooses one from the longest utterance that is kept to twice its length.
      max_utterances: most utterances of a packed row.
      num_buckets: static batch shapes of rows that are not packed, hence compiled programs.
      batch_multiple: every global batch size is a multiple of it: the data shards must divide it.
      min_seconds, max_seconds: utterances outside are dropped, and counted.
      max_dropped: largest share of the audio that training or validation may leave out; more is an error.
      max_crop: share of an utterance that a pass may leave out to fit a shorter bucket; training on audio alone only,
        and not for packed rows.
      shortest_first_epochs: epochs in order of length, before shuffling begins.
      speeds: factors of speed perturbation; one is drawn for each utterance and epoch.
      joined: pairs of utterances, as a share of the utterances, that are played one after the other as one more
        utterance, with both transcripts; pairs over `max_seconds` are left out. Every epoch has the same.
      noise_set: the prepared set that `frontend.augment` mixes in as noise: its "train" split, or "name:split".
      units: folder of the k-means whose units HuBERT predicts, or a voice speaks; `jax-speechlm units label` labels the
        sets with them.
    """

    ADDED: ClassVar[dict[str, Any]] = {"packed": False, "row_seconds": (), "max_utterances": 32, "joined": 0.0}

    kind: Literal["speech"] = "speech"
    sets: tuple[str, ...]
    dev_sets: tuple[str, ...] = ()
    data_dir: str = "data"
    tokenizer: str | None = None
    label: str = "text"
    seconds_per_batch: pydantic.PositiveFloat = 120.0
    packed: bool = True
    row_seconds: tuple[pydantic.PositiveFloat, ...] = ()
    max_utterances: pydantic.PositiveInt = 32
    num_buckets: pydantic.PositiveInt = 8
    batch_multiple: pydantic.PositiveInt = 8
    min_seconds: pydantic.NonNegativeFloat = 0.3
    max_seconds: pydantic.PositiveFloat = 30.0
    max_dropped: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    max_crop: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    shortest_first_epochs: pydantic.NonNegativeInt = 0
    speeds: tuple[float, ...] = (1.0,)
    joined: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    noise_set: str | None = None
    units: str | None = None

    @property
    def sizes(self) -> dict[str, float]:
        """Returns the settings that determine the batch size, by their dotted names."""
        return {"seconds_per_batch": self.seconds_per_batch}

    def scaled(self, factor: float) -> "Speech":
        """Returns a copy with a multiple of the batch size."""
        return self.replace(seconds_per_batch=self.seconds_per_batch * factor)


class PackedRows(Config):
    """Base of data whose documents are packed into rows of `context` tokens."""

    @pydantic.model_validator(mode="after")
    def _rows_are_whole(self):
        if self.tokens_per_batch % self.context:
            raise ValueError(f"tokens_per_batch {self.tokens_per_batch} is not a multiple of context {self.context}")
        return self

    @property
    def sequences_per_batch(self) -> int:
        """Number of rows of a global batch."""
        return self.tokens_per_batch // self.context

    @property
    def sizes(self) -> dict[str, int]:
        """Returns the settings that determine the batch size, by their dotted names."""
        return {"tokens_per_batch": self.tokens_per_batch}

    def scaled(self, factor: float) -> "PackedRows":
        """Returns a copy with a multiple of the batch size, to the nearest row."""
        return self.replace(tokens_per_batch=max(1, round(self.sequences_per_batch * factor)) * self.context)


class Text(PackedRows):
    """Prepared sets of text, and the composition of batches from their documents.

    Attributes:
      sets: names of prepared sets of text, or of speech, whose transcripts are then the documents; their "train"
        splits. "name:split" takes another split.
      dev_sets: sets whose "dev" splits validate, or "name:split"; empty takes the dev splits of `sets`.
      data_dir: folder of the prepared data sets.
      tokenizer: folder of a trained tokenizer, or of a run that has one; None takes the training texts' characters.
      label: column of the index with the classes of a classification; every document then has a row of its own.
      weights: share of the rows for each of `sets`; empty passes over all of them together.
      packed: whether several documents share a row; otherwise a row has one document, truncated at the end.
      context: tokens of a row.
      tokens_per_batch: positions of one global batch; a multiple of `context`.
    """

    kind: Literal["text"] = "text"
    sets: tuple[str, ...]
    dev_sets: tuple[str, ...] = ()
    data_dir: str = "data"
    tokenizer: str | None = None
    label: str = "text"
    weights: tuple[pydantic.PositiveFloat, ...] = ()
    packed: bool = True
    context: Annotated[int, pydantic.Field(ge=3)] = 512
    tokens_per_batch: pydantic.PositiveInt = 8192

    @pydantic.model_validator(mode="after")
    def _weights_belong_to_sets(self):
        if self.weights and len(self.weights) != len(self.sets):
            ones = " ".join("1" for _ in self.sets)
            raise ValueError(
                f"data.weights has {len(self.weights)} values and data.sets {len(self.sets)}: one for each, such as "
                f"--data.weights {ones}"
            )
        return self


class UnitText(PackedRows):
    """Speech as units, text, and both interleaved, as documents of one language model.

    Attributes:
      sets: names of prepared sets of speech labelled by `jax-speechlm units label`; their "train" splits. "name:split"
        takes another split.
      text_sets: sets whose texts are the documents of text; empty takes the transcripts of `sets`.
      dev_sets: sets of speech whose "dev" splits validate, or "name:split"; empty takes the dev splits of `sets`.
        Validation is on speech alone and on text alone, of the sets of text that have a dev split.
      units: folder of the k-means that the sets are labelled with.
      data_dir: folder of the prepared data sets.
      tokenizer: folder of a trained tokenizer, or of a run that has one; None takes the training texts' characters.
      spoken, text, interleaved: relative shares of the rows with utterances as units, texts, and utterances whose words
        alternate between units and text; the last needs `jax-speechlm align --format index`.
      stretch_words: mean number of words between two changes in an interleaved document.
      draws: interleaved documents per utterance, with different words spoken.
      context: tokens of a row.
      tokens_per_batch: positions of one global batch; a multiple of `context`.
    """

    kind: Literal["unit_text"] = "unit_text"
    sets: tuple[str, ...]
    text_sets: tuple[str, ...] = ()
    dev_sets: tuple[str, ...] = ()
    units: str
    data_dir: str = "data"
    tokenizer: str | None = None
    spoken: pydantic.NonNegativeFloat = 1.0
    text: pydantic.NonNegativeFloat = 1.0
    interleaved: pydantic.NonNegativeFloat = 1.0
    stretch_words: Annotated[float, pydantic.Field(ge=1)] = 5.0
    draws: pydantic.PositiveInt = 1
    context: Annotated[int, pydantic.Field(ge=3)] = 512
    tokens_per_batch: pydantic.PositiveInt = 8192

    @pydantic.model_validator(mode="after")
    def _something_is_left(self):
        if not self.spoken + self.text + self.interleaved:
            raise ValueError("spoken, text and interleaved are all 0: give one of them a share")
        return self


class WordPairs(PackedRows):
    """Pairs of words that co-occur in text, with their counts.

    Attributes:
      sets: names of prepared sets of text, or of speech, whose transcripts are then the documents; their "train"
        splits. "name:split" takes another split.
      data_dir: folder of the prepared data sets.
      tokenizer: folder of a tokenizer of words, or of a run that has one.
      window: largest distance of two words that co-occur.
      held_out: share of the pairs that validate instead of being trained on; 0 for no validation.
      context: pairs of a row.
      tokens_per_batch: pairs of one global batch; a multiple of `context`.
    """

    kind: Literal["word_pairs"] = "word_pairs"
    sets: tuple[str, ...]
    data_dir: str = "data"
    tokenizer: str
    window: pydantic.PositiveInt = 10
    held_out: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.01
    context: pydantic.PositiveInt = 1024
    tokens_per_batch: pydantic.PositiveInt = 16384


class Stream(Config):
    """One stream of a mixture.

    Attributes:
      name: its name in the objective, and the prefix of its metrics.
      data: its batches; `data_dir` and `tokenizer` are the mixture's.
      weight: relative share of the steps.
    """

    name: Annotated[str, pydantic.Field(pattern="^[a-z][a-z0-9_]*$")]
    data: Annotated[Speech | Text, pydantic.Field(discriminator="kind")]
    weight: pydantic.PositiveFloat = 1.0


class Mixture(Config):
    """Several streams of data; each step takes a batch of one.

    Attributes:
      streams: the streams.
      data_dir: folder of the prepared data sets.
      tokenizer: of all streams: folder of a trained one, or of a run that has one; None takes the characters of the
        training texts of all streams.
    """

    kind: Literal["mixture"] = "mixture"
    streams: Annotated[tuple[Stream, ...], pydantic.Field(min_length=1)]
    data_dir: str = "data"
    tokenizer: str | None = None

    @pydantic.model_validator(mode="after")
    def _streams_share_what_they_must(self):
        names = [stream.name for stream in self.streams]
        if len(set(names)) != len(names):
            raise ValueError(f"streams must have names of their own, got {', '.join(names)}")
        for stream in self.streams:
            for name in ("data_dir", "tokenizer"):
                if getattr(stream.data, name) != type(stream.data).model_fields[name].default:
                    raise ValueError(
                        f"stream {stream.name} has a {name} of its own: a model has one vocabulary, and the sets of a "
                        f"mixture lie in one folder; set --data.{name} instead"
                    )
        return self

    @property
    def parts(self) -> dict[str, Speech | Text]:
        """Returns the data of the streams by name, completed by the shared settings."""
        shared = {"data_dir": self.data_dir, "tokenizer": self.tokenizer}
        return {stream.name: stream.data.replace(**shared) for stream in self.streams}

    @property
    def sets(self) -> tuple[str, ...]:
        """Returns the sets of all streams."""
        return tuple(dict.fromkeys(name for stream in self.streams for name in stream.data.sets))

    @property
    def sizes(self) -> dict[str, float]:
        """Returns the settings that determine the batch sizes, by their dotted names."""
        named = enumerate(stream.data.sizes.items() for stream in self.streams)
        return {f"streams.{index}.data.{name}": size for index, sizes in named for name, size in sizes}

    def scaled(self, factor: float) -> "Mixture":
        """Returns a copy with a multiple of every stream's batch size."""
        return self.replace(streams=tuple(stream.replace(data=stream.data.scaled(factor)) for stream in self.streams))


Data = Annotated[Speech | Text | UnitText | WordPairs | Mixture, pydantic.Field(discriminator="kind")]


class InitFrom(Config):
    """Initial parameters from another run.

    Attributes:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      groups: path prefixes to load; "encoder=speech/encoder" fills the model's `encoder` from the checkpoint's
        `speech/encoder`; empty loads every parameter. None loads `encoder` and `transformer` as far as both have them,
        so that several runs may each contribute a part.
    """

    checkpoint: str
    groups: tuple[str, ...] | None = None


class LoopConfig(Config):
    """Intervals of the training loop, in steps. But for `patience` they do not change the parameters of a run.

    Attributes:
      log_every: between lines of the JSONL and TensorBoard logs.
      eval_every: between validations; the last step always validates.
      checkpoint_every: between checkpoints; the last step and new best steps always save.
      keep_last, keep_best: checkpoints kept: the newest, and the best in validation (NaN is the worst).
      patience: validations in a row without a lower dev loss after which the run ends; None trains all steps.
      hung_after_seconds: time without the end of a step after which every thread's stack is written to stderr, to
        distinguish a stuck reader from a stuck device; None for never. Includes compilation, so allow large models
        time.
      profile_steps: (first, last): steps that `jax.profiler` traces for TensorBoard, the last excluded; or None.
    """

    log_every: pydantic.PositiveInt = 20
    eval_every: pydantic.PositiveInt = 500
    checkpoint_every: pydantic.PositiveInt = 500
    keep_last: pydantic.PositiveInt = 2
    keep_best: pydantic.NonNegativeInt = 1
    patience: pydantic.PositiveInt | None = None
    hung_after_seconds: pydantic.PositiveFloat | None = 1800.0
    profile_steps: tuple[pydantic.NonNegativeInt, pydantic.PositiveInt] | None = None


class Experiment(Config):
    """One training run.

    Attributes:
      num_steps: optimizer steps.
      seed: of the batches, the augmentation and the initial parameters.
      init_from: other runs to load parameters from, in order; empty trains from scratch.
      adversary: training against a head that tells domains apart, such as speakers; none by default.
      lora: train low-rank updates of a trained model (init_from) alone: of `lora.targets`, or of every linear map of
        stacked layers; none by default.
      perturbation: adversarial training on perturbed inputs or embeddings; none by default.
      max_bad_steps: number of consecutive steps with a non-finite loss or gradient after which a run stops.
      topology: the hardware it was sized for, "v5e-16", "2xv5p-512" or "cpu-1", for `jax-speechlm plan`; or None.
    """

    OLD_NAMES: ClassVar[dict[str, str]] = {"start": "init_from", "cadence": "loop"}

    data: Data
    objective: Objective
    frontend: FrontEnd = FrontEnd()
    model: Model
    optimizer: Optimizer = Optimizer()
    num_steps: pydantic.PositiveInt = 1000
    seed: Seed = 0
    init_from: tuple[InitFrom, ...] = ()
    adversary: DomainAdversary = DomainAdversary()
    lora: LoRA = LoRA(targets=())
    perturbation: Perturbation = Perturbation()
    max_bad_steps: pydantic.PositiveInt = 20
    mesh: MeshShape = MeshShape()
    topology: str | None = None
    loop: LoopConfig = LoopConfig()

    @pydantic.field_validator("init_from", mode="before")
    @classmethod
    def _one_start_or_none(cls, value: Any) -> Any:
        """Accepts a single start or null, as in checkpoints of earlier versions."""
        return () if value is None else (value,) if isinstance(value, dict | InitFrom) else value

    @pydantic.model_validator(mode="after")
    def _data_suit_the_objective(self):
        task = TASKS[self.objective.kind]
        self.objective.check_data(self.data)
        self.objective.check_optimizer(self.optimizer)
        self.optimizer.privacy.check(self.data, self.objective)
        task.inputs_of(self.data)
        task.check_model(self.model)
        if self.adversary.classes and not isinstance(self.data, Speech):
            raise ValueError(f"adversary.classes are domains of speech, and data is {self.data.kind}: leave them empty")
        if self.lora.rank and not self.init_from:
            raise ValueError("lora.rank is set, and there is no trained model to adapt: name its run with --from")
        if self.lora.rank and self.adversary.classes:
            raise ValueError(
                "lora.rank freezes the adversary's head, which has to learn: leave adversary.classes empty"
            )
        return self

    def build(self, tokenizer: Tokenizer | None) -> BuiltObjective:
        """Builds the objective to train, with its adversary, LoRA and its perturbation.

        Raises:
          ValueError: the parts do not fit together.
        """
        objective = self.objective.build(self.model, self.frontend, tokenizer)
        objective = against_domains(objective, self.adversary, self.model, self.frontend)
        return perturbed(adapted(objective, self.lora), self.perturbation)

    @property
    def sample_rate(self) -> int:
        """Rate of the audio in Hz, the front end's."""
        return self.frontend.mel.sample_rate

    @property
    def frame_samples(self) -> int:
        """Hop of the speech encoder's frames, in samples."""
        return self.frontend.mel.frame_samples * self.model.subsampling

    @property
    def frame_grid(self) -> FrameGrid:
        """Frames of labels, of a speech encoder or, of other models, of the front end."""
        return label_grid(self.model, self.frontend.mel)

    @property
    def gap_samples(self) -> int:
        """Samples between utterances of packed rows, so that no window and no frame reads two of them."""
        encoder, mel = getattr(self.model, "encoder", self.model), self.frontend.mel
        return mel.gap_samples + getattr(encoder, "lead_vectors", 0) * mel.frame_samples

    @property
    def slot_samples(self) -> int:
        """Divisor of the first sample of an utterance in packed rows: a frame, or an adapter's window of frames."""
        return self.frame_samples * getattr(self.model, "alignment", 1)


def differences(first: Experiment, second: Experiment) -> list[str]:
    """Returns the dotted names of the settings that differ and affect the result; `loop`, `mesh`, `topology` do not."""
    limits = {"max_dropped": True}  # only raises errors
    streams = {"streams": {"__all__": {"data": limits}}}
    ignored = {"loop": True, "mesh": True, "topology": True, "data": limits | streams}

    def walk(a, b, prefix: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return [name for key in a | b for name in walk(a.get(key), b.get(key), f"{prefix}.{key}")]
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and any(isinstance(x, dict) for x in a):
            return [name for index in range(len(a)) for name in walk(a[index], b[index], f"{prefix}.{index}")]
        return [] if a == b else [prefix.lstrip(".")]

    return walk(first.model_dump(exclude=ignored), second.model_dump(exclude=ignored), "")
