"""Connectionist temporal classification (CTC) with intermediate losses and CR-CTC consistency between two views."""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray
from pydantic import Field, PositiveInt

from data_pipelines.core.tokenizer import BLANK, Tokenizer
from jax_speechlm.core.batch import Batch, example_keys, frame_mask
from jax_speechlm.frontend.augment import spec_augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.encoders import EncoderConfig, draw_chunk, forward_flops, make_encoder
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, check_features, check_no_crop, on_params
from jax_speechlm.parallel.mesh import shard_batch_dim


def ctc_loss(
    logits_BxTxV: Float[Array, "batch time vocab"],
    length_B: Int[Array, " batch"],
    tokens_BxU: Int[Array, "batch tokens"],
    token_length_B: Int[Array, " batch"],
) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
    """Computes the negative log-likelihood of each row's tokens, summed over all alignments. Graves et al. 2006.

    Args:
      logits_BxTxV: unnormalised; id 0 is the blank.
      tokens_BxU: ids 1..V-1.
      token_length_B: 0 is allowed; the only alignment is then all blanks.

    Returns:
      The loss in nats, never negative, and a mask of feasible rows. A row with too few frames for its tokens and the
      blanks between equal neighbours, or without frames, has no alignment: its loss and gradient are 0.
    """
    num_frames, num_tokens = logits_BxTxV.shape[1], tokens_BxU.shape[1]
    no_frame = jnp.arange(num_frames) >= length_B[:, None]
    no_token = jnp.arange(num_tokens) >= token_length_B[:, None]
    feasible_B = is_feasible(length_B, tokens_BxU, token_length_B)
    # Masked before the loss: gradients of jnp.where also flow through the branch not taken, where they may be NaN.
    logits = jnp.where(feasible_B[:, None, None] & ~no_frame[..., None], logits_BxTxV.astype(jnp.float32), 0)
    loss_B = optax.ctc_loss(
        logits, no_frame.astype(jnp.float32), tokens_BxU, no_token.astype(jnp.float32), blank_id=BLANK
    )
    return jnp.where(feasible_B, jnp.maximum(loss_B, 0), 0), feasible_B  # float32 rounding can give -1e-6


def is_feasible(
    length_B: Int[Array, " batch"], tokens_BxU: Int[Array, "batch tokens"], token_length_B: Int[Array, " batch"]
) -> Bool[Array, " batch"]:
    """Returns whether a row has frames for all tokens and the blanks between equal neighbours, and at least one."""
    inside = jnp.arange(1, tokens_BxU.shape[1]) < token_length_B[:, None]
    repeats_B = jnp.sum((tokens_BxU[:, 1:] == tokens_BxU[:, :-1]) & inside, axis=-1)
    return (length_B > 0) & (length_B >= token_length_B + repeats_B)


def consistency_loss(
    one_BxTxV: Float[Array, "batch time vocab"],
    two_BxTxV: Float[Array, "batch time vocab"],
    length_B: Int[Array, " batch"],
) -> Float[Array, " batch"]:
    """Computes the symmetric KL divergence of two views' frame posteriors, summed over frames. Yao et al. 2024.

    Each view is trained towards the other, without gradient through the target. Takes logits; returns nats per row.
    """
    valid_BxT = jnp.arange(one_BxTxV.shape[1]) < length_B[:, None]
    one, two = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (one_BxTxV, two_BxTxV))

    def divergence(target, view):
        return optax.losses.kl_divergence_with_log_targets(view, jax.lax.stop_gradient(target))

    return 0.5 * jnp.sum(jnp.where(valid_BxT, divergence(one, two) + divergence(two, one), 0), axis=-1)


class CTCModel(nnx.Module):
    """A speech encoder with a linear output layer, shared by the intermediate losses."""

    def __init__(self, config: EncoderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.encoder = make_encoder(config, rngs=rngs)
        self.head = Linear((config.dim,), (vocab_size,), ("embed", "vocab"), rngs=rngs)

    def __call__(
        self,
        features_BxTxF: Float[Array, "batch time feature"],
        length_B: Int[Array, " batch"],
        *,
        keys: Key[Array, " batch"] | None = None,
        chunk: Chunk | None = None,
        taps: tuple[int, ...] = (),
    ) -> list[Float[Array, "batch frames vocab"]]:
        """Returns logits of the last layer, then of each layer in `taps`."""
        hidden, tapped = self.encoder(features_BxTxF, length_B, keys=keys, chunk=chunk, taps=taps)
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

        def logits(module: CTCModel, batch: Batch) -> tuple[Array, Array]:
            x_BxTxF, length_B = features(batch, frontend, None)
            return module(x_BxTxF, length_B)[0], model.num_frames(length_B)

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
        if key is None:
            x_BxTxF, length_B = features(batch, frontend, None)
            keys, chunk = None, None
        else:
            # Views share waveform augmentation, so that their frames correspond, but not SpecAugment and dropout.
            augment_key, spec_key, dropout_key, chunk_key = jax.random.split(key, 4)
            x_BxTxF, length_B = features(batch, frontend.waveform_only(), augment_key)
            x_BxTxF, length_B = (jnp.repeat(x, views, axis=0) for x in (x_BxTxF, length_B))
            spec_keys = _view_keys(spec_key, batch, views)
            x_BxTxF = spec_augment(x_BxTxF, length_B, spec_keys, frontend.augment, frontend.mel.num_mel_bins)
            keys, chunk = _view_keys(dropout_key, batch, views), draw_chunk(model.encoder.config, chunk_key)
        wanted = tuple(dict.fromkeys((*self.intermediate, *taps)))
        hidden, tapped = model.encoder(x_BxTxF, length_B, keys=keys, chunk=chunk, taps=wanted)
        intermediate = [model.ctc_logits(tapped[layers]) for layers in self.intermediate]
        length_B = model.encoder.config.num_frames(length_B)
        return CTCOutput(model.ctc_logits(hidden), {tap: tapped[tap] for tap in taps}, intermediate, length_B, views)

    def score(self, output: "CTCOutput", batch: Batch) -> Metrics:
        """Computes the loss, its parts and gauges of a forward pass; losses are weighted by the number of targets."""
        logits, length_B, views = output.logits, output.length, output.views
        tokens_BxU, token_length_B = output.repeat(batch["tokens"]), output.repeat(batch["token_length"])
        loss_B, feasible_B = ctc_loss(logits, length_B, tokens_BxU, token_length_B)
        weight_B = output.repeat(batch["weight"]) / views  # an utterance counts once, whatever its number of views
        learnt_B = weight_B * feasible_B
        frames_BxT = frame_mask(length_B, logits.shape[1]) * weight_B[:, None]
        sums = {"loss": jnp.sum(learnt_B * loss_B)}
        targets = jnp.sum(learnt_B * jnp.maximum(token_length_B, 1))
        if self.intermediate:
            losses = [ctc_loss(x, length_B, tokens_BxU, token_length_B)[0] for x in output.intermediate]
            sums |= {"ctc": sums["loss"], "intermediate": jnp.sum(learnt_B * sum(losses)) / len(losses)}
            share = self.intermediate_weight
            sums["loss"] = (1 - share) * sums["ctc"] + share * sums["intermediate"]
        if views == 2:
            consistency_B = consistency_loss(logits[0::2], logits[1::2], length_B[0::2])
            sums.setdefault("ctc", sums["loss"])
            sums["consistency"] = jnp.sum(learnt_B * output.repeat(consistency_B))
            sums["loss"] += self.consistency * sums["consistency"]
        metrics = {name: (total, targets) for name, total in sums.items()}
        metrics["infeasible"] = jnp.sum(weight_B * ~feasible_B), jnp.sum(weight_B)
        metrics["blank"] = jnp.sum(frames_BxT * (jnp.argmax(logits, axis=-1) == BLANK)), jnp.sum(frames_BxT)
        return metrics


class CTCOutput(NamedTuple):
    """Output of a CTC model for a batch. Views of a row are adjacent, so that sharded rows are not moved."""

    logits: Float[Array, "rows time vocab"]
    tapped: dict[int, Float[Array, "rows time dim"]]  # hidden states by layer count, for the requested layers
    intermediate: list[Float[Array, "rows time vocab"]]  # logits after the layers of `CTC.intermediate`
    length: Int[Array, " rows"]  # valid frames
    views: int  # of a row of the batch

    def repeat(self, x: Array) -> Array:
        """Repeats a per-row array for the views of every row."""
        return jnp.repeat(x, self.views, axis=0)


def _view_keys(key: PRNGKeyArray, batch: Batch, views: int) -> Key[Array, " rows"]:
    """Returns a key per view of every row; views of a row are adjacent."""
    return jax.vmap(lambda row: jax.random.split(row, views))(example_keys(key, batch["example_id"])).reshape(-1)
