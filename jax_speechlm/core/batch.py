"""Batches, and the random keys of a step and of its rows."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray, Shaped

from jax_speechlm.core.segments import Lengths, Segments

Batch = Mapping[str, Shaped[Array, "..."]]
"""A flat dict of fixed-shape arrays, as declared by `data_pipelines.batching.fields.BatchSpec`.

The train step adds `step` int32 []: the number of steps taken before it, for quantities that change during training,
such as a temperature. The loss stays a pure function, and a resumed run continues exactly."""


Seed = Annotated[int, pydantic.Field(ge=0, lt=2**64)]
"""Seed of random draws; all 64 bits are significant."""


def seed_key(seed: int) -> PRNGKeyArray:
    """Returns the key of a seed; below 2^32 it equals `jax.random.key(seed)`, which takes 32 bits only.

    Raises:
      ValueError: the seed is negative, or has more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed is a whole number from 0 to 2^64 - 1, got {seed}")
    high, low = divmod(seed, 2**32)
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, np.uint32(high)) if high else key


def step_key(seed: int, step: int | Int[Array, ""]) -> PRNGKeyArray:
    """Returns the key of a training step, from which all randomness of the step derives."""
    return jax.random.fold_in(seed_key(seed), step)


def example_keys(key: PRNGKeyArray, example_id: Int[Array, "*rows"]) -> Key[Array, "*rows"]:
    """Returns one key per example, derived from its example_id: independent of batch layout and host count."""
    keys = jax.vmap(lambda example: jax.random.fold_in(key, example))(example_id.reshape(-1))
    return keys.reshape(example_id.shape)


_PER_UTTERANCE = ("audio_length", "example_id", "weight", "label", "labels", "domain", "tokens", "token_length")


def by_utterance(batch: Batch) -> Batch:
    """Returns a batch of speech with a dimension for the utterances of a row, of size 1 if each row is an utterance.

    Other batches are returned as they are.
    """
    if "audio" not in batch or "audio_start" in batch:
        return batch
    expanded = {name: batch[name][:, None] for name in _PER_UTTERANCE if name in batch}
    return {**batch, **expanded, "audio_start": jnp.zeros_like(expanded["audio_length"])}


def lengths_of(batch: Batch) -> Lengths:
    """Returns the segments of packed rows in samples, or the lengths of rows with one utterance each."""
    return Segments(batch["audio_start"], batch["audio_length"]) if "audio_start" in batch else batch["audio_length"]


def text_places(batch: Mapping[str, Any], added: int) -> int:
    """Returns the most tokens that the transcripts of a row have, with `added` more for each, from shapes alone.

    Packed rows have room for as many as their plan allows, rows of one utterance for its padded transcript.
    """
    return batch["text_segment"].shape[1] if "text_segment" in batch else batch["tokens"].shape[-1] + added


def frame_mask(length: Int[Array, " batch"], num_frames: int) -> Bool[Array, "batch time"]:
    """Returns True at valid frames, False at padding."""
    return jnp.arange(num_frames) < length[:, None]
