"""Which frames masked prediction hides: spans drawn for each utterance, whatever batch it lies in."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import SAMPLE_RATE


def span_frames(seconds: float, frontend: FrontEnd) -> int:
    """The whole frames of a front end nearest to so many seconds; at least one."""
    return max(1, round(seconds * SAMPLE_RATE / frontend.mel.frame_samples))


def most_spans(num_frames: int, span: int, ratio: float) -> int:
    """The most spans that `draw_mask` draws for an utterance of `num_frames`."""
    return math.floor(_span_density(span, ratio) * num_frames) + 1


def most_masked(num_frames: int, span: int, ratio: float) -> int:
    """The most frames that `draw_mask` masks in an utterance of `num_frames`."""
    return min(num_frames, most_spans(num_frames, span, ratio) * span)


def _span_density(span: int, ratio: float) -> float:
    """Spans a frame for which the spans, which may overlap, cover `ratio` of the frames on average."""
    return -math.log1p(-ratio) / span


def draw_mask(
    keys_B: Key[Array, " batch"], length_B: Int[Array, " batch"], num_frames: int, span: int, ratio: float
) -> Bool[Array, "batch {num_frames}"]:
    """Masks whole spans of frames: about `ratio` of each utterance, and at least one span.

    The number of spans is rounded up or down at random, their starts are independent. So many spans at most fit into
    `num_frames` that the loss can gather the masked frames into a fixed shape (`most_masked`). In an utterance shorter
    than two spans a span is half the utterance, so that something stays to predict from; one of a single frame has no
    masked frame. What a row draws depends on its key and length only.
    """

    def draw(key: PRNGKeyArray, length: Int[Array, ""]) -> Bool[Array, " time"]:
        count_key, start_key = jax.random.split(key)
        width = jnp.minimum(span, length // 2)
        count = jnp.maximum(1, jnp.floor(_span_density(span, ratio) * length + jax.random.uniform(count_key)))
        slots = jnp.arange(most_spans(num_frames, span, ratio))
        # One key a slot, not one draw for all: the slots that padding adds must not change the others.
        chance = jax.vmap(lambda slot: jax.random.uniform(jax.random.fold_in(start_key, slot)))(slots)
        offset = jnp.arange(num_frames) - jnp.floor(chance * (length - width + 1))[:, None]
        return jnp.any((slots < count)[:, None] & (offset >= 0) & (offset < width), axis=0)

    return jax.vmap(draw)(keys_B, length_B)
