"""States of streams.

A layer, model or search that can stream has `init_state(batch) -> state` and `step(state, chunk) -> (state, output)`
with fixed shapes. A state is a pytree of arrays whose first dimension is the stream, so that streams of a batch can
be saved, moved and replaced one by one.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

State = TypeVar("State")


def select_streams(chosen_B: Bool[Array, " batch"], new: State, old: State) -> State:
    """Returns the new state of the chosen streams, and the old one of the others."""

    def select(new: Array, old: Array) -> Array:
        return jnp.where(chosen_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(select, new, old)
