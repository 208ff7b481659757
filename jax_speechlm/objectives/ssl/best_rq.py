"""BEST-RQ: predicts the codes of masked frames, which a frozen random quantizer computes from the input.

Reference: Chiu et al. 2022, "Self-supervised learning with random-projection quantizer for speech recognition"; several
codebooks as in Zhang et al. 2023 (USM).
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import Conformer, ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import FrameKeys
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.base import Metrics, Objective, check_features, speech_flops
from jax_speechlm.objectives.masking import (
    PROBE_STRIDE,
    MaskedPrediction,
    Views,
    masked_places,
    probed_places,
    take_frames,
)
from jax_speechlm.parallel import sequence


class BestRQ(MaskedPrediction):
    """Settings of the BEST-RQ objective.

    Attributes:
      codes: entries of each codebook.
      books: independent quantizers, each with its own softmax; the loss is their mean.
      code_dim: dimension in which frames and codes are compared.
      mask_ratio: average share of masked frames. The paper's 1 % of 10 ms frames starting a span of 400 ms is 0.33.
      mask_span: length of a span in seconds.
      noise_std: standard deviation of the noise that replaces masked features, which have unit variance.
    """

    kind: Literal["best_rq"] = "best_rq"
    codes: Annotated[int, Field(ge=2)] = 8192
    books: Annotated[int, Field(ge=1, le=16)] = 1
    code_dim: Annotated[int, Field(ge=1)] = 16
    mask_ratio: Annotated[float, Field(gt=0, lt=0.9)] = 0.33
    mask_span: Annotated[float, Field(gt=0)] = 0.4
    noise_std: Annotated[float, Field(ge=0)] = 0.1

    def build(self, model: ConformerConfig, frontend: FrontEnd, tokenizer: Tokenizer | None = None) -> Objective:
        """Builds the objective. The loss is the mean over masked frames and books. Metrics: `masked_accuracy`,
        `unmasked_accuracy` (on every 16th frame); over a batch's masked frames the metrics of `gauges.of_codes`, and
        over all frames the metrics of `gauges.representation`.
        """
        check_features(model, frontend.mel)
        if not getattr(frontend.mel, "normalize", False):
            raise ValueError(
                "BEST-RQ's codes and masking noise need normalised features: set frontend.mel.normalize to True"
            )

        def make(rngs):
            return BestRQModel(model, self, rngs=rngs)

        def score(module: BestRQModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            views = self.views(batch, key, frontend, model)
            masked_BxTxF = hide_frames(views, self)
            hidden_BxTxD, _ = module.encoder(masked_BxTxF, views.segments, keys=views.dropout_keys, chunk=views.chunk)
            hidden_BxTxD = hidden_BxTxD.astype(model.dtype)
            most = self.most_masked(hidden_BxTxD.shape[1], frontend, views.segments.num)
            weight_BxN = by_utterance(batch)["weight"]
            return score_frames(module.head, module.quantizer, views, hidden_BxTxD, weight_BxN, most)

        def head_flops(num_frames: int) -> float:
            scored = self.most_masked(num_frames, frontend) + num_frames / PROBE_STRIDE
            frame = model.dim * self.codes + self.code_dim * (model.input_dim + self.codes)  # head and quantizer
            return 2.0 * scored * self.books * frame

        flops = speech_flops(model, frontend, head_flops)
        return Objective.of(make, score, frozen=("quantizer",), forward_flops=flops, health_check=health_check)


class Quantizer(nnx.Module):
    """Random projections and codebooks, never trained; stored as parameters so that checkpoints contain them."""

    def __init__(self, config: BestRQ, input_dim: int, *, rngs: nnx.Rngs):
        xavier = jax.nn.initializers.xavier_uniform(batch_axis=0)

        def on_sphere(key, shape, dtype):
            codes = jax.random.normal(key, shape, dtype)
            return codes / jnp.linalg.norm(codes, axis=-1, keepdims=True)

        axes = (None, None, None)  # small; replicated on all devices
        self.projection = functional.parameter(rngs.params(), (config.books, input_dim, config.code_dim), axes, xavier)
        self.codebook = functional.parameter(
            rngs.params(), (config.books, config.codes, config.code_dim), axes, on_sphere
        )


class Heads(nnx.Module):
    """A linear layer per book from the encoder's output to logits over the codes."""

    def __init__(self, config: BestRQ, dim: int, *, rngs: nnx.Rngs):
        small, zeros = jax.nn.initializers.normal(0.02), jax.nn.initializers.zeros  # near uniform predictions
        self.kernel = functional.parameter(
            rngs.params(), (config.books, dim, config.codes), (None, "embed", "vocab"), small
        )
        self.bias = functional.parameter(
            rngs.params(), (config.books, config.codes), (None, "vocab"), zeros, decays=False
        )


class BestRQModel(nnx.Module):
    """A conformer, the heads, which are dropped after pretraining, and the quantizer that computes the targets."""

    def __init__(self, model: ConformerConfig, config: BestRQ, *, rngs: nnx.Rngs):
        self.encoder = Conformer(model, rngs=rngs)
        self.head = Heads(config, model.dim, rngs=rngs)
        self.quantizer = Quantizer(config, model.input_dim, rngs=rngs)


def nearest_codes(
    x_BxTxF: Float[Array, "batch time feature"],
    projection_FxK: Float[Array, "feature code_dim"],
    codebook_CxK: Float[Array, "codes code_dim"],
) -> Int[Array, "batch time"]:
    """Returns the code nearest to each projected frame on the unit sphere. Chiu et al. 2022, equation 1.

    Codes have unit length, so the nearest has the largest dot product regardless of the frame's norm. Computed in full
    float32 on every backend, so that targets do not depend on the machine.
    """
    highest = jax.lax.Precision.HIGHEST
    projected = jnp.einsum("btf,fk->btk", x_BxTxF, projection_FxK, precision=highest)
    return jnp.argmax(jnp.einsum("btk,ck->btc", projected, codebook_CxK, precision=highest), axis=-1)


def hide_frames(views: Views, config: BestRQ) -> Float[Array, "batch time feature"]:
    """Returns the encoder's input: features with masked frames replaced by noise."""
    _, num_frames, dim = views.x_BxTxF.shape
    keys_BxT = FrameKeys(views.keys_BxN, views.segments).frames(num_frames)
    noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (dim,))))(keys_BxT)
    return jnp.where(views.mask_BxT[..., None], config.noise_std * noise, views.x_BxTxF)


def score_frames(
    head: Heads,
    quantizer: Quantizer,
    views: Views,
    hidden_BxTxD: Float[Array, "batch time dim"],
    weight_BxN: Float[Array, "batch utterances"],
    most_masked: int,
) -> Metrics:
    """Scores the codes of the masked frames, at most `most_masked` a row, from hidden states in the compute dtype."""
    mask_BxT, clean_BxTxF = views.mask_BxT, views.clean_BxTxF
    # Only masked frames are scored: the softmax over the codes costs as much as several layers.
    places_BxN = masked_places(mask_BxT, sequence.padded_time(most_masked))
    inside_BxT = views.weight(weight_BxN)
    masked = tuple(take_frames(x, places_BxN) for x in (hidden_BxTxD, clean_BxTxF, inside_BxT * mask_BxT))
    probes_BxP, is_probe_BxP = probed_places(views.segments, mask_BxT.shape[1])
    probed = (take_frames(x, probes_BxP) for x in (hidden_BxTxD, clean_BxTxF, inside_BxT * ~mask_BxT))
    hidden, clean, weight = map(jax.lax.stop_gradient, probed)
    probed = hidden, clean, weight * is_probe_BxP

    def score_book(book: dict[str, Array]) -> dict[str, Float[Array, ""]]:
        """Returns a book's metrics as weighted sums."""
        kernel, bias, codebook = book["kernel"], book["bias"], (book["projection"], book["codebook"])

        def score(hidden: Array, clean: Array, _: Array) -> tuple[Array, Array, Array]:
            logits = jnp.einsum("btd,dc->btc", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
            return logits + bias, jnp.argmax(logits + bias, axis=-1), nearest_codes(clean, *codebook)

        weight, probed_weight = masked[-1], probed[-1]
        _, probed_guess, probed_code = score(*probed)
        logits, guess, code = score(*masked)
        total, num_codes = jnp.sum(weight), bias.shape[0]
        spread = gauges.of_codes(code, guess, weight, num_codes)
        return {
            "loss": jnp.sum(weight * optax.softmax_cross_entropy_with_integer_labels(logits, code)),
            "masked_accuracy": jnp.sum(weight * (guess == code)),
            "unmasked_accuracy": jnp.sum(probed_weight * (probed_guess == probed_code)),
        } | {name: total * value for name, value in spread.items()}

    if len(head.bias) > 1:
        score_book = jax.checkpoint(score_book)  # keeps logits of a single book in memory
    books = {
        "kernel": head.kernel[...],
        "bias": head.bias[...],
        "projection": jax.lax.stop_gradient(quantizer.projection[...]),
        "codebook": jax.lax.stop_gradient(quantizer.codebook[...]),
    }
    sums = jax.tree.map(lambda values: jnp.mean(values, axis=0), jax.lax.map(score_book, books))
    targets, probes = jnp.sum(masked[-1]), jnp.sum(probed[-1])
    metrics = {name: (total, probes if name == "unmasked_accuracy" else targets) for name, total in sums.items()}
    return metrics | gauges.per_batch(gauges.representation(hidden_BxTxD, inside_BxT), targets)


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if codes, predictions or hidden states have collapsed, else None. Arguments as in `gauges`."""
    cause = (
        "The targets come from the audio alone: look for silent or constant clips, or features that are not normalised"
    )
    wrong = gauges.check_code_usage(metrics, after_warmup, "BEST-RQ", cause)
    return wrong or gauges.check_representation(metrics, after_warmup)
