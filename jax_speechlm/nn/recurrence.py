"""Recurrent layers over time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear


class LSTMState(NamedTuple):
    """State of an LSTM; the cell is float32."""

    hidden: Float[Array, "batch dim"]
    cell: Float[Array, "batch dim"]


class LSTM(nnx.Module):
    """One layer of an LSTM, from zeros; gates are in PyTorch's order: input, forget, cell, output.

    Args:
      dim: width of the state.
      dim_in: width of the input; None for `dim`.
    """

    def __init__(self, dim: int, dim_in: int | None = None, *, rngs: nnx.Rngs):
        self.dim = dim
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.input = Linear((dim_in or dim,), (4 * dim,), ("embed", None), gain=3**-0.5, rngs=rngs)
        self.recurrent = parameter(rngs.params(), (dim, 4 * dim), ("embed", None), uniform)

    def init_state(self, batch: int, dtype: jnp.dtype = jnp.float32) -> LSTMState:
        """Returns the state before the first step."""
        return LSTMState(jnp.zeros((batch, self.dim), dtype), jnp.zeros((batch, self.dim), jnp.float32))

    def step(self, state: LSTMState, x_BxD: Float[Array, "batch in"]) -> LSTMState:
        """Returns the state after an input; its `hidden` is the output."""
        return self._advance(state, self.input(x_BxD), jnp.asarray(self.recurrent[...], x_BxD.dtype))

    def __call__(
        self,
        x_BxTxD: Float[Array, "batch time in"],
        restart_BxT: Bool[Array, "batch time"] | None = None,
        *,
        reverse: bool = False,
    ) -> Float[Array, "batch time dim"]:
        """Runs the layer over rows.

        Args:
          restart_BxT: steps before which the state is set to zeros; None for none.
          reverse: whether time runs from the end of a row to its beginning.
        """
        recurrent = jnp.asarray(self.recurrent[...], x_BxTxD.dtype)
        gates_TxBxG = jnp.swapaxes(self.input(x_BxTxD), 0, 1)
        restart_TxB = None if restart_BxT is None else restart_BxT.T

        def step(state: LSTMState, inputs: tuple[Array, Array | None]) -> tuple[LSTMState, Array]:
            gates, restart = inputs
            if restart is not None:
                state = restarted(state, restart)
            state = self._advance(state, gates, recurrent)
            return state, state.hidden

        start = self.init_state(len(x_BxTxD), x_BxTxD.dtype)
        _, hidden_TxBxD = jax.lax.scan(step, start, (gates_TxBxG, restart_TxB), reverse=reverse)
        return jnp.swapaxes(hidden_TxBxD, 0, 1)

    def _advance(self, state: LSTMState, gates: Array, recurrent: Array) -> LSTMState:
        gates = gates + state.hidden @ recurrent
        into, forget, value, out = jnp.split(gates.astype(jnp.float32), 4, axis=-1)
        cell = jax.nn.sigmoid(forget) * state.cell + jax.nn.sigmoid(into) * jnp.tanh(value)
        return LSTMState((jax.nn.sigmoid(out) * jnp.tanh(cell)).astype(gates.dtype), cell)


def restarted(state: tuple, restart_B: Bool[Array, " batch"]) -> tuple:
    """Returns a state, arrays [batch, ...], that is zeros in rows that restart."""
    return jax.tree.map(lambda x: jnp.where(restart_B.reshape(-1, *(1,) * (x.ndim - 1)), 0, x), state)
