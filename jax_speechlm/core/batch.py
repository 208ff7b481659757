"""Batches, and the random keys of a step and of its rows."""

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray, Shaped

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


def example_keys(key: PRNGKeyArray, example_id: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """Returns one key per row, derived from its example_id: independent of batch layout and host count."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(example_id)


def frame_mask(length: Int[Array, " batch"], num_frames: int) -> Bool[Array, "batch time"]:
    """Returns True at valid frames, False at padding."""
    return jnp.arange(num_frames) < length[:, None]
