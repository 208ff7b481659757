"""What a step is given: a batch, and the keys that its randomness is drawn from."""

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray, Shaped

Batch = Mapping[str, Shaped[Array, "..."]]
"""A flat dict of fixed-shape arrays: those of `data_pipelines.batching.fields.BatchSpec`.

To what a source yields the train step adds `step` int32 []: the steps taken before it, for what changes as training
goes on, such as a temperature. So a loss stays a pure function, and a resumed run continues exactly."""


Seed = Annotated[int, pydantic.Field(ge=0, lt=2**64)]
"""A setting that names random draws; all of its bits count."""


def seed_key(seed: int) -> PRNGKeyArray:
    """The key of a seed: below 2^32 the one that `jax.random.key` gives, which knows no more bits.

    Raises:
      ValueError: the seed is negative, or has more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed is a whole number from 0 to 2^64 - 1, got {seed}")
    high, low = divmod(seed, 2**32)
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, np.uint32(high)) if high else key


def step_key(seed: int, step: int | Int[Array, ""]) -> PRNGKeyArray:
    """The key of one training step: all of a step's randomness comes from the seed and the step's number."""
    return jax.random.fold_in(seed_key(seed), step)


def example_keys(key: PRNGKeyArray, example_id: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One key a row, drawn from the row's identity: what it draws depends on neither batch layout nor host count."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(example_id)


def frame_mask(length: Int[Array, " batch"], num_frames: int) -> Bool[Array, "batch time"]:
    """Returns True where a frame belongs to its utterance, False where it is padding."""
    return jnp.arange(num_frames) < length[:, None]
