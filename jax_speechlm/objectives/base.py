"""What an objective is to the rest of the code: a model to make, and a pure loss over it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.nn import functional

Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Each metric is a (sum, weight) pair, so that it adds up exactly over shards, micro-batches and steps."""

Loss = Callable[[functional.Params, Batch, PRNGKeyArray | None], tuple[Float[Array, ""], Metrics]]


class ObjectiveConfig(Config):
    """Settings of an objective. What it wants of its data is said by its class, for the source to read.

    Attributes:
      reads_text: whether batches of speech must carry the transcripts' tokens.
      reads_labels: whether batches must carry the class of each row; `numbers` then gives it from the label.
      reads_codes: whether batches of speech must carry the speech unit, or the class, of each frame.
      reads_word_times: whether that is a class: 1 where a word is said, 0 in pauses of at least `min_pause`.
      encoders: the kinds of speech encoder that it can train; one that subsamples has fewer frames than features.
    """

    reads_text: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False
    reads_codes: ClassVar[bool] = False
    reads_word_times: ClassVar[bool] = False
    encoders: ClassVar[tuple[str, ...]] = ("conformer",)

    @property
    def model_kind(self) -> str:
        """The kind of model that comes out, by the objective that alone would train it: what its uses go by."""
        return self.kind

    @property
    def couples_rows(self) -> bool:
        """Whether the loss is more than a mean over a batch's targets, so that micro-batches change the gradient."""
        return False

    @property
    def text_column(self) -> str:
        """The column of an index whose texts the tokens of speech spell."""
        return "text"

    def check_encoder(self, kind: str) -> None:
        """Raises ValueError where it cannot train a speech encoder of this kind."""
        if kind == "fast_conformer" and kind not in self.encoders:
            raise ValueError(
                f"{self.kind} needs an encoder with a frame for each feature vector, and a fast_conformer has fewer: "
                "set model to a ConformerConfig, or the objective to ctc, classification, "
                "speaker_verification or speech_lm"
            )

    def check_data(self, data: Config) -> None:
        """Raises ValueError where such data cannot train it; what they hold is seen when they are opened."""

    def of_stream(self, name: str) -> "ObjectiveConfig":
        """The objective that says what one stream of a mixture is read for; this one, if all are read alike."""
        del name
        return self


@dataclasses.dataclass(frozen=True)
class Objective:
    """A model and the loss that trains it.

    Attributes:
      make: declares the model's parameters.
      loss: `(params, batch, key) -> (loss, metrics)`, pure and jittable. The loss is the mean over the valid targets
        of the batch; `metrics["loss"]` holds the same as (sum, number of targets). `key` drives augmentation, masking
        and dropout; None is evaluation: nothing random but what the objective itself needs (BEST-RQ's masks).
      frozen: top-level groups of parameters that no optimizer may touch, such as BEST-RQ's quantizer.
      borrowed: the frozen among them that are other runs' parameters: read from there at every start, never saved.
      training_only: groups that no use of the trained model needs: `checkpoints.read_params` leaves them out.
      forward_flops: `(samples or tokens of a row, batch_size) -> FLOPs` of one forward pass, analytic, for MFU.
      batch_flops: `batch -> FLOPs` instead, where batches differ in more than their length; it sees shapes alone. Where
        parts of a model do not learn it is a third of what a training step costs.
      logits: `(params, batch) -> (logits [B, T, V], lengths [B])` where the objective gives token posteriors, or None.
      health_check: `(metrics averaged over steps, after_warmup) -> what is wrong and what to do, or None`, which the
        loop prints as a warning. Metrics of the last validation are there too, as "dev_<name>"; `after_warmup` is
        True once training is long past its warm-up.
    """

    make: functional.MakeModule
    loss: Loss
    frozen: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    training_only: tuple[str, ...] = ()
    forward_flops: Callable[[int, int], float] | None = None
    batch_flops: Callable[[Mapping[str, Any]], float] | None = None
    logits: Callable[[functional.Params, Batch], tuple[Array, Array]] | None = None
    health_check: Callable[[Mapping[str, float], bool], str | None] | None = None

    def flops(self, batch: Mapping[str, Any]) -> float:
        """FLOPs of one forward pass over a batch of arrays, or of their shapes; 0 where the objective does not say."""
        if self.batch_flops is not None:
            return self.batch_flops(batch)
        if self.forward_flops is None:
            return 0.0
        rows, length = batch["audio" if "audio" in batch else "tokens"].shape
        return self.forward_flops(length, rows)


def mean(total: Float[Array, ""], weight: Float[Array, ""]) -> Float[Array, ""]:
    """total / weight, and 0 where there is nothing to average."""
    return total / jnp.maximum(weight, 1e-9)


def check_input_dim(model: int, frontend: int) -> None:
    """Raises ValueError unless the model takes as many features a frame as the front end gives."""
    if model != frontend:
        raise ValueError(
            f"the front end gives {frontend} features, model.input_dim is {model}; set --model.input_dim {frontend}"
        )


def check_no_crop(frontend: FrontEnd, what: str) -> None:
    """Raises ValueError where augmentation would leave a row's labels without their audio."""
    if frontend.augment.crop_seconds is not None:
        raise ValueError(
            f"frontend.augment.crop_seconds would cut audio away from under its {what}: set it to None; where labels "
            "are of frames, data.max_crop takes them along"
        )


def frame_grid(model: Config, mel: LogMel) -> str:
    """Where a speech encoder's frames lie, in words: two that say the same give as many frames of the same audio."""
    return f"a {model.kind}'s frame every {mel.frame_samples * model.subsampling} samples, {mel.variant}"


def check_features(model: Config, mel: LogMel) -> None:
    """Raises ValueError unless the front end gives what a speech encoder takes."""
    if model.subsampling > 1 and mel.stack > 1:
        raise ValueError(
            f"a {model.kind} subsamples log-mel frames itself, and the front end stacks {mel.stack} of them: set "
            "--frontend.mel.stack 1"
        )
    check_input_dim(model.input_dim, mel.input_dim)
