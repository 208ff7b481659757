"""Connectionist temporal classification (CTC) with intermediate losses and CR-CTC consistency between two views."""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, PRNGKeyArray
from pydantic import Field, PositiveInt

from data_pipelines.core.tokenizer import BLANK, Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance, example_keys
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.frontend.augment import spec_augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.encoder_base import frames_of
from jax_speechlm.models.encoders import EncoderConfig, draw_chunk, forward_flops, make_encoder
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.nn.layers import Linear, split_keys
from jax_speechlm.objectives.asr.ctc_loss import packed_ctc_loss
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, check_features, check_no_crop, on_params
from jax_speechlm.parallel.mesh import shard_batch_dim


def consistency_loss(
    one_BxTxV: Float[Array, "batch time vocab"], two_BxTxV: Float[Array, "batch time vocab"], segments: Segments
) -> Float[Array, "batch utterances"]:
    """Computes the symmetric KL divergence of two views' frame posteriors, summed over frames. Yao et al. 2024.

    Each view is trained towards the other, without gradient through the target. Takes logits; returns nats per
    utterance.
    """
    one, two = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (one_BxTxV, two_BxTxV))

    def divergence(target, view):
        return optax.losses.kl_divergence_with_log_targets(view, jax.lax.stop_gradient(target))

    return 0.5 * segments.sum(divergence(one, two) + divergence(two, one))


class CTCModel(nnx.Module):
    """A speech encoder with a linear output layer, shared by the intermediate losses."""

    def __init__(self, config: EncoderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.encoder = make_encoder(config, rngs=rngs)
        self.head = Linear((config.dim,), (vocab_size,), ("embed", "vocab"), rngs=rngs)

    def __call__(
        self,
        features_BxTxF: Float[Array, "batch time feature"],
        lengths: Lengths,
        *,
        keys: Key[Array, "*utterances"] | None = None,
        chunk: Chunk | None = None,
        taps: tuple[int, ...] = (),
    ) -> list[Float[Array, "batch frames vocab"]]:
        """Returns logits of the last layer, then of each layer in `taps`."""
        hidden, tapped = self.encoder(features_BxTxF, lengths, keys=keys, chunk=chunk, taps=taps)
        return [self.ctc_logits(x) for x in (hidden, *tapped.values())]

    def ctc_logits(self, hidden_BxTxD: Float[Array, "batch time dim"]) -> Float[Array, "batch time vocab"]:
        """Computes logits of hidden states, sharded over the batch only: an alignment covers the whole time axis."""
        return shard_batch_dim(self.head(hidden_BxTxD))


class CTC(ObjectiveConfig):
    """Settings of the CTC objective.

    Attributes:
      intermediate: layer counts after which an additional CTC loss is computed through the same head (Lee and Watanabe
        2021).
      intermediate_weight: share of the mean intermediate loss in the total.
      consistency: weight of CR-CTC's consistency loss between two SpecAugment views (0.2 in Yao et al. 2024); 0 is
        plain CTC on one view. It doubles the cost of a step.
    """

    kind: Literal["ctc"] = "ctc"
    intermediate: tuple[PositiveInt, ...] = ()
    intermediate_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3
    consistency: Annotated[float, Field(ge=0)] = 0.0

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over target tokens; an empty transcript counts as one target.
        Metrics: `loss` (and its parts `ctc`, `intermediate` and `consistency` where they differ), `infeasible` (share
        of rows too short for their transcript) and `blank` (share of frames whose best token is the blank: 1 on the
        initial plateau).
        """
        check_features(model, frontend.mel)
        if tokenizer is None:
            raise ValueError("CTC needs a tokenizer: set data.tokenizer, or train on sets that have transcripts")
        vocab_size = tokenizer.vocab_size
        depth, augment = model.num_layers, frontend.augment
        if any(layers >= depth for layers in self.intermediate):
            raise ValueError(
                f"objective.intermediate is {self.intermediate}; the model has {depth} layers, so go below that"
            )
        check_no_crop(frontend, "transcript")
        if self.consistency and not (augment.time_masks or augment.freq_masks):
            raise ValueError(
                "objective.consistency compares two SpecAugment views: set frontend.augment's masks, or it to 0"
            )

        def make(rngs):
            return CTCModel(model, vocab_size, rngs=rngs)

        def score(module: CTCModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            return self.score(self.forward(module, batch, key, frontend), batch)

        def logits(module: CTCModel, batch: Batch) -> tuple[Array, Lengths]:
            x_BxTxF, lengths = features(batch, frontend, None)
            return module(x_BxTxF, lengths)[0], frames_of(model, lengths)

        def flops(num_samples: int, batch_size: int) -> float:
            num_vectors, views = frontend.mel.num_frames(num_samples), 2 if self.consistency else 1
            head = 2.0 * batch_size * model.num_frames(num_vectors) * model.dim * vocab_size
            return views * (forward_flops(model, num_vectors, batch_size) + head * (1 + len(self.intermediate)))

        return Objective.of(make, score, forward_flops=flops, logits=on_params(make, logits))

    def forward(
        self,
        model: CTCModel,
        batch: Batch,
        key: PRNGKeyArray | None,
        frontend: FrontEnd,
        taps: tuple[int, ...] = (),
    ) -> "CTCOutput":
        """Runs the forward pass of training, or of evaluation without a key; `taps` are layer counts to return."""
        views = 1 if key is None or not self.consistency else 2
        batch = by_utterance(batch)
        if key is None:
            x_BxTxF, segments = features(batch, frontend, None)
            keys, chunk = None, None
        else:
            # Views share waveform augmentation, so that their frames correspond, but not SpecAugment and dropout.
            augment_key, spec_key, dropout_key, chunk_key = jax.random.split(key, 4)
            x_BxTxF, segments = features(batch, frontend.waveform_only(), augment_key)
            x_BxTxF, segments = jnp.repeat(x_BxTxF, views, axis=0), segments.repeat(views)
            spec_keys = _view_keys(spec_key, batch, views)
            x_BxTxF = spec_augment(x_BxTxF, segments, spec_keys, frontend.augment, frontend.mel.num_mel_bins)
            keys, chunk = _view_keys(dropout_key, batch, views), draw_chunk(model.encoder.config, chunk_key)
        wanted = tuple(dict.fromkeys((*self.intermediate, *taps)))
        hidden, tapped = model.encoder(x_BxTxF, segments, keys=keys, chunk=chunk, taps=wanted)
        intermediate = [model.ctc_logits(tapped[layers]) for layers in self.intermediate]
        segments = frames_of(model.encoder.config, segments)
        return CTCOutput(model.ctc_logits(hidden), {tap: tapped[tap] for tap in taps}, intermediate, segments, views)

    def score(self, output: "CTCOutput", batch: Batch) -> Metrics:
        """Computes the loss, its parts and gauges of a forward pass; losses are weighted by the number of targets."""
        logits, segments, views, batch = output.logits, output.segments, output.views, by_utterance(batch)
        tokens_BxNxU, token_length_BxN = output.repeat(batch["tokens"]), output.repeat(batch["token_length"])
        rows = segments.segment(logits.shape[1]), tokens_BxNxU, token_length_BxN
        loss_BxN, feasible_BxN = packed_ctc_loss(logits, *rows)
        weight_BxN = output.repeat(batch["weight"]) / views  # an utterance counts once, whatever its number of views
        learnt_BxN = weight_BxN * feasible_BxN
        frames_BxT = segments.spread(weight_BxN, logits.shape[1])
        sums = {"loss": jnp.sum(learnt_BxN * loss_BxN)}
        targets = jnp.sum(learnt_BxN * jnp.maximum(token_length_BxN, 1))
        if self.intermediate:
            losses = [packed_ctc_loss(x, *rows)[0] for x in output.intermediate]
            sums |= {"ctc": sums["loss"], "intermediate": jnp.sum(learnt_BxN * sum(losses)) / len(losses)}
            share = self.intermediate_weight
            sums["loss"] = (1 - share) * sums["ctc"] + share * sums["intermediate"]
        if views == 2:
            one = Segments(segments.start[0::2], segments.length[0::2])
            consistency_BxN = consistency_loss(logits[0::2], logits[1::2], one)
            sums.setdefault("ctc", sums["loss"])
            sums["consistency"] = jnp.sum(learnt_BxN * output.repeat(consistency_BxN))
            sums["loss"] += self.consistency * sums["consistency"]
        metrics = {name: (total, targets) for name, total in sums.items()}
        metrics["infeasible"] = jnp.sum(weight_BxN * ~feasible_BxN), jnp.sum(weight_BxN)
        metrics["blank"] = jnp.sum(frames_BxT * (jnp.argmax(logits, axis=-1) == BLANK)), jnp.sum(frames_BxT)
        return metrics


class CTCOutput(NamedTuple):
    """Output of a CTC model for a batch. Views of a row are adjacent, so that sharded rows are not moved."""

    logits: Float[Array, "rows time vocab"]
    tapped: dict[int, Float[Array, "rows time dim"]]  # hidden states by layer count, for the requested layers
    intermediate: list[Float[Array, "rows time vocab"]]  # logits after the layers of `CTC.intermediate`
    segments: Segments  # utterances of the rows in frames
    views: int  # of a row of the batch

    def repeat(self, x: Array) -> Array:
        """Repeats an array of the batch for the views of every row."""
        return jnp.repeat(x, self.views, axis=0)


def _view_keys(key: PRNGKeyArray, batch: Batch, views: int) -> Key[Array, "rows utterances"]:
    """Returns a key per utterance for each view of every row; views of a row are adjacent."""
    keys_VxBxN = split_keys(example_keys(key, batch["example_id"]), views)
    return jnp.swapaxes(keys_VxBxN, 0, 1).reshape(-1, keys_VxBxN.shape[2])
