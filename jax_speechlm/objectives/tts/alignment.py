"""Alignment of tokens and frames: diagonal prior, forward-sum loss, best monotonic path, binarisation.

Reference: Badlani et al. 2021.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.core.segments import Segments
from jax_speechlm.models.tts.aligner import IMPOSSIBLE, token_mask
from jax_speechlm.objectives.asr.ctc_loss import packed_forward_sum

BLANK_LOGIT = -1.0
"""Log-probability, before normalisation, that a frame has no token, as published."""


def diagonal_prior(
    token_length_BxN: Int[Array, "batch utterances"], segments: Segments, num_tokens: int, num_frames: int
) -> Float[Array, "batch time {num_tokens}"]:
    """Returns log-probabilities of the tokens of each frame that favour an even pace.

    A beta-binomial distribution over the utterance's tokens; with frame t of T it has a = t and b = T + 1 - t.
    """

    def log_beta(a: Array, b: Array) -> Array:
        return gammaln(a) + gammaln(b) - gammaln(a + b)

    mask = token_mask(token_length_BxN, segments, num_tokens, num_frames)
    frame = (segments.position(num_frames) + 1).astype(jnp.float32)[..., None]
    length = segments.spread(segments.length, num_frames).astype(jnp.float32)[..., None]
    last = segments.spread(token_length_BxN, num_frames).astype(jnp.float32)[..., None] - 1
    token = jnp.minimum(jnp.arange(num_tokens), jnp.maximum(last, 0))  # in the domain of the functions at padding too
    a, b = frame, jnp.maximum(length + 1 - frame, 1)
    log_choices = -jnp.log(last + 1) - log_beta(last - token + 1, token + 1)
    log_p = log_choices + log_beta(token + a, last - token + b) - log_beta(a, b)
    return jnp.where(mask, log_p, IMPOSSIBLE)


def forward_sum_loss(
    log_p_BxTxU: Float[Array, "batch time tokens"],
    segments: Segments,
    token_length_BxN: Int[Array, "batch utterances"],
) -> tuple[Float[Array, "batch utterances"], Bool[Array, "batch utterances"]]:
    """Computes the negative log-likelihood of each utterance's tokens in order: CTC with a weak blank.

    Returns:
      Nats per utterance, and a mask of utterances with at least as many frames as tokens; the loss of others is 0.
    """
    num_frames = log_p_BxTxU.shape[1]
    logits = jnp.concatenate([jnp.full_like(log_p_BxTxU[..., :1], BLANK_LOGIT), log_p_BxTxU], axis=-1)
    log_p = jax.nn.log_softmax(logits)
    return packed_forward_sum(log_p[..., 0], log_p[..., 1:], segments.segment(num_frames), token_length_BxN)


def monotonic_path(
    log_p_BxTxU: Float[Array, "batch time tokens"],
    segments: Segments,
    token_length_BxN: Int[Array, "batch utterances"],
) -> Int[Array, "batch time"]:
    """Returns the token of each frame on the most probable path through an utterance, -1 at padding.

    A path starts with the first token, ends with the last, and gives every token at least one frame. An utterance with
    fewer frames than tokens has no path: the result is of no use there.
    """
    num_frames, num_tokens = log_p_BxTxU.shape[1:]
    segment = segments.segment(num_frames)
    position = segments.position(num_frames)
    length = segments.spread(token_length_BxN, num_frames)
    is_last = position == segments.spread(segments.length, num_frames) - 1
    token = jnp.arange(num_tokens)

    def forward(before: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        log_p, first = frame
        entered = jnp.pad(before[:, :-1], ((0, 0), (1, 0)), constant_values=IMPOSSIBLE)
        moved = (entered > before) & ~first[:, None]
        start = jnp.where(token == 0, 0.0, IMPOSSIBLE)
        best = jnp.where(first[:, None], start, jnp.maximum(before, entered))
        # Bounded, so that impossible sums of long utterances stay far from infinity and are still ordered.
        return jnp.maximum(best + log_p, 1e3 * IMPOSSIBLE), moved

    def backward(at: Array, frame: tuple[Array, ...]) -> tuple[Array, Array]:
        moved, last, length = frame
        at = jnp.where(last, length - 1, at)
        step = jnp.sum(jnp.where(token == at[:, None], moved, False), axis=-1)
        return jnp.maximum(at - step, 0), at

    def by_time(x: Array) -> Array:
        return jnp.moveaxis(x, 1, 0)

    start = jnp.full_like(log_p_BxTxU[:, 0], IMPOSSIBLE)
    _, moved = jax.lax.scan(forward, start, (by_time(log_p_BxTxU), by_time(position == 0)))
    frames = moved, by_time(is_last), by_time(length)
    _, path = jax.lax.scan(backward, jnp.zeros_like(length[:, 0]), frames, reverse=True)
    return jnp.where(segment > 0, by_time(path), -1)


def binarisation_loss(
    log_p_BxTxU: Float[Array, "batch time tokens"], path_BxT: Int[Array, "batch time"]
) -> Float[Array, "batch time"]:
    """Returns the negative log-probability of each frame's token on the path, 0 at padding."""
    log_p = jax.nn.log_softmax(log_p_BxTxU)
    on_path = jnp.arange(log_p.shape[-1]) == path_BxT[..., None]
    return -jnp.sum(jnp.where(on_path, log_p, 0), axis=-1)
