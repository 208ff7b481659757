"""LSTM: a step at a time, restarts and both directions of time."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_speechlm.nn import functional
from jax_speechlm.nn.recurrence import LSTM

MAKE = lambda rngs: LSTM(4, 3, rngs=rngs)  # noqa: E731


def lstm():
    return functional.bind(functional.declare(MAKE).graphdef, functional.init(MAKE, jax.random.key(0)))


def by_step(x):
    module = lstm()
    state, outputs = module.init_state(1), []
    for row in x:
        state = module.step(state, row[None])
        outputs.append(state.hidden[0])
    return np.asarray(jnp.stack(outputs))


def test_rows_with_restarts_are_sequences_of_their_own_in_both_directions():
    x = jax.random.normal(jax.random.key(1), (1, 9, 3))
    first, second = x[0, :5], x[0, 5:]
    starts = jnp.isin(jnp.arange(9), jnp.array([0, 5]))[None]
    ends = jnp.isin(jnp.arange(9), jnp.array([4, 8]))[None]
    forward, backward = lstm()(x, starts)[0], lstm()(x, ends, reverse=True)[0]
    np.testing.assert_allclose(forward, np.concatenate([by_step(first), by_step(second)]), atol=1e-6)
    reversed_parts = [by_step(part[::-1])[::-1] for part in (first, second)]
    np.testing.assert_allclose(backward, np.concatenate(reversed_parts), atol=1e-6)
    np.testing.assert_allclose(lstm()(x)[0], by_step(x[0]), atol=1e-6)
