"""Interface of an objective: a model to build and a pure loss over its parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.units import FrameGrid
from jax_speechlm.core.batch import Batch, example_keys
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths
from jax_speechlm.frontend.frontend import AnyMel, FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.encoders import EncoderConfig, forward_flops, outside_vectors
from jax_speechlm.nn import functional

Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Each metric is a (sum, weight) pair and so adds up exactly over shards, micro-batches and steps."""

Loss = Callable[[functional.Params, Batch, PRNGKeyArray | None], tuple[Float[Array, ""], Metrics]]
Score = Callable[[nnx.Module, Batch, PRNGKeyArray | None], Metrics]


@runtime_checkable
class Runs(Protocol):
    """Access to other runs, for an objective that reads their checkpoints before training starts."""

    def find(self, path: str) -> str:
        """Returns the newest checkpoint of a run, or the given checkpoint. Raises `CheckpointError`."""

    def experiment(self, checkpoint: str) -> Any:
        """Returns the experiment of a checkpoint."""

    def params(self, checkpoint: str) -> tuple[functional.Params, Tokenizer | None]:
        """Returns a checkpoint's parameters, on the host, and its tokenizer."""


class ObjectiveConfig(Config):
    """Settings of an objective. Its task (`jax_speechlm.tasks`) declares the inputs that it reads."""

    @property
    def model_kind(self) -> str:
        """Identifier of the trained model's type, which is a task's name."""
        return self.kind

    @property
    def of_model(self) -> "ObjectiveConfig":
        """The objective whose model is trained: itself, or that of a distillation's student."""
        return self

    @property
    def couples_rows(self) -> bool:
        """Whether the loss is not a plain mean over a batch's targets, so that micro-batches change the gradient."""
        return False

    @property
    def text_column(self) -> str:
        """The index column of the transcripts."""
        return "text"

    @property
    def num_labels(self) -> int:
        """How many classes a row has, of objectives that predict several."""
        return 0

    @property
    def reads_units(self) -> bool:
        """Whether the texts are speech units, of the k-means `data.units`, instead of an index column."""
        return False

    @property
    def reads_targets(self) -> bool:
        """Whether documents are texts with their targets, instead of texts alone."""
        return False

    def build(self, model: Config, frontend: FrontEnd | None, tokenizer: Tokenizer | None) -> "Objective":
        """Builds the objective for a model.

        Args:
          frontend: None if the inputs are texts.
          tokenizer: None if the objective needs none.

        Raises:
          ValueError: the settings, model, front end and tokenizer do not fit together.
        """
        raise NotImplementedError

    def check_data(self, data: Config) -> None:
        """Raises ValueError if settings of the data contradict the objective."""

    def check_optimizer(self, optimizer: Config) -> None:
        """Raises ValueError if settings of the optimizer contradict the objective."""

    def added_tokens(self, tokenizer: Tokenizer | None) -> int | None:
        """Returns how many tokens an utterance has in a row of text besides its transcript, where transcripts are put
        into such a row, whose length packed rows have to bound; None where they are not."""
        del tokenizer

    def of_stream(self, name: str) -> "ObjectiveConfig":
        """Returns the objective whose inputs a stream of a mixture provides; this one if all streams are alike."""
        del name
        return self

    def of_data(self, column: Callable[[str], list[str]]) -> "ObjectiveConfig":
        """Returns the objective with the settings that it takes from the training data filled in.

        Args:
          column: returns a column of the index of the training data (`Index.column`).
        """
        del column
        return self

    def resolve(self, runs: Runs) -> "ObjectiveConfig":
        """Returns the objective with the settings that it takes from other runs filled in."""
        del runs
        return self


@dataclasses.dataclass(frozen=True)
class Objective:
    """A model and its training loss.

    Attributes:
      make: declares the model's parameters.
      loss: `(params, batch, key) -> (loss, metrics)`, pure and jittable. The loss is the mean over the batch's valid
        targets; `metrics["loss"]` is the same as (sum, number of targets). `key` drives augmentation, masking and
        dropout; None means evaluation, deterministic (BEST-RQ's masks then use fixed keys).
      frozen: parameter groups excluded from optimization, such as BEST-RQ's quantizer.
      borrowed: frozen groups with other runs' parameters: read by `load_borrowed` at every start, never saved.
      training_only: groups not needed by the trained model; `training.runs.LoadedRun` omits them.
      forward_flops: `(samples or tokens of a row, batch_size) -> FLOPs` of one forward pass, analytic, for MFU.
      batch_flops: `batch -> FLOPs`, used instead if batches differ in more than length; depends on shapes only. With
        frozen parts it is a third of a training step's FLOPs.
      logits: `(params, batch) -> (logits [B, T, V], lengths [B] or segments of packed rows)` if the objective has token
        posteriors, or None.
      load_borrowed: `(shapes of all parameters, tokenizer, runs) -> parameters` of the groups in `borrowed`.
      health_check: `(metrics averaged over steps, after_warmup) -> warning with a remedy, or None`; the loop prints it.
        Metrics of the last validation are included as "dev_<name>"; `after_warmup` is True once training is long past
        its warm-up.
      pictures: `(params, batch) -> pictures and waveforms by name`, or None. The loop shows those of the first
        validation batch in TensorBoard: [height, width], the first row at the top, as pictures, [samples] in [-1, 1] as
        audio; NaN where there is nothing (such edges are cut off).
    """

    make: functional.MakeModule
    loss: Loss
    frozen: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    training_only: tuple[str, ...] = ()
    forward_flops: Callable[[int, int], float] | None = None
    batch_flops: Callable[[Mapping[str, Any]], float] | None = None
    logits: Callable[[functional.Params, Batch], tuple[Array, Lengths]] | None = None
    load_borrowed: Callable[[functional.Params, Tokenizer | None, Runs], functional.Params] | None = None
    health_check: Callable[[Mapping[str, float], bool], str | None] | None = None
    pictures: Callable[[functional.Params, Batch], dict[str, Array]] | None = None

    @classmethod
    def of(cls, make: functional.MakeModule, score: Score, **parts: Any) -> "Objective":
        """Builds an objective from `(module, batch, key) -> metrics` and, in `parts`, the other attributes."""
        metrics_of = on_params(make, score)

        def loss(params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> tuple[Float[Array, ""], Metrics]:
            metrics = metrics_of(params, batch, key)
            return mean(*metrics["loss"]), metrics

        return cls(make, loss, **parts)

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Returns the FLOPs of a forward pass over a batch of arrays or shapes; 0 if the objective defines none."""
        if self.batch_flops is not None:
            return self.batch_flops(batch)
        if self.forward_flops is None:
            return 0.0
        rows, length = batch["audio" if "audio" in batch else "tokens"].shape
        return self.forward_flops(length, rows)


def on_params(make: functional.MakeModule, function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns `(module, *args) -> result` into `(params, *args) -> result`."""
    graphdef = functional.declare(make).graphdef
    return lambda params, *args: function(functional.bind(graphdef, params), *args)


def row_keys(key: PRNGKeyArray | None, batch: Batch) -> Key[Array, "*utterances"] | None:
    """Returns a key per row, or per utterance of packed rows; None in evaluation."""
    return None if key is None else example_keys(key, batch["example_id"])


def split_row_keys(
    key: PRNGKeyArray | None, batch: Batch
) -> tuple[Key[Array, "*utterances"], Key[Array, "*utterances"] | None]:
    """Returns keys for the objective's own draws, fixed in evaluation, and for dropout, None in evaluation.

    There is one per row, or per utterance of packed rows.
    """
    own_key, dropout_key = (jax.random.key(0), None) if key is None else jax.random.split(key)
    return example_keys(own_key, batch["example_id"]), row_keys(dropout_key, batch)


def weighted(weight: Float[Array, "*places"], values: Mapping[str, Float[Array, "*places"] | Bool[Array, "*places"]]):
    """Returns metrics from values with one weight for all."""
    total = jnp.sum(weight)
    return {name: (jnp.sum(weight * value), total) for name, value in values.items()}


def mean(total: Float[Array, ""], weight: Float[Array, ""]) -> Float[Array, ""]:
    """Returns total / weight, or 0 if both are 0."""
    return total / jnp.maximum(weight, 1e-9)


def speech_flops(model: EncoderConfig, frontend: FrontEnd, head: Callable[[int], float]) -> Callable[[int, int], float]:
    """Returns `forward_flops` of a speech encoder with a head, given as `feature vectors of a row -> FLOPs`."""

    def flops(num_samples: int, batch_size: int) -> float:
        num_vectors = frontend.mel.num_frames(num_samples)
        return forward_flops(model, num_vectors, batch_size) + batch_size * head(num_vectors)

    return flops


def check_no_crop(frontend: FrontEnd, what: str) -> None:
    """Raises ValueError if augmentation may crop the audio that a row's labels refer to."""
    if frontend.augment.crop_seconds is not None:
        raise ValueError(
            f"frontend.augment.crop_seconds would cut audio away from under its {what}: set it to None; where labels "
            "are of frames, data.max_crop takes them along"
        )


def check_keeps_time(frontend: FrontEnd, what: str) -> None:
    """Raises ValueError if augmentation moves feature vectors in time, away from what refers to them."""
    if frontend.augment.time_warp or frontend.augment.frame_jitter:
        raise ValueError(
            f"frontend.augment.time_warp and frame_jitter would move feature vectors away from their {what}: set both "
            "to 0"
        )


def frame_grid(model: Config, mel: AnyMel) -> str:
    """Describes a speech encoder's frames; equal descriptions imply equal frame counts for the same audio."""
    distance = mel.frame_samples * model.subsampling
    return f"a {model.kind}'s frame every {distance} samples, {mel.variant} at {mel.sample_rate} Hz"


def label_grid(model: Config, mel: AnyMel) -> FrameGrid:
    """Returns where the frames of a speech model, with labels of their own, lie in an utterance."""
    context = mel.context_samples + outside_vectors(model) * mel.frame_samples
    return FrameGrid(mel.frame_samples * getattr(model, "subsampling", 1), context)


def check_features(model: Config, mel: AnyMel) -> None:
    """Raises ValueError unless the front end's features fit the speech encoder."""
    if isinstance(mel, SynthesisMel):
        raise ValueError(
            f"a speech encoder takes normalised log-mel features, and frontend.mel ({mel.variant}) has those of "
            "synthesis: choose a recipe whose frontend.mel is a LogMel"
        )
    if model.subsampling > 1 and mel.stack > 1:
        raise ValueError(
            f"a {model.kind} subsamples log-mel frames itself, and the front end stacks {mel.stack} of them: set "
            "--frontend.mel.stack 1"
        )
    if model.input_dim != mel.input_dim:
        raise ValueError(
            f"the front end gives {mel.input_dim} features, model.input_dim is {model.input_dim}; set "
            f"--model.input_dim {mel.input_dim}"
        )
    window, most = getattr(mel, "window_seconds", None), getattr(model, "max_frames", None)
    if window and most and (frames := model.num_frames(mel.num_frames(1))) > most:
        raise ValueError(
            f"the front end gives windows of {window} s, {frames} frames, and the encoder has positions for {most}: "
            f"set --frontend.mel.window_seconds to at most {window * most // frames}"
        )
