"""Recurrent layers over time: LSTM and GRU."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jax_speechlm.core.segments import Segments
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear


class LSTMState(NamedTuple):
    """State of an LSTM; the cell is float32."""

    hidden: Float[Array, "batch dim"]
    cell: Float[Array, "batch dim"]


class GRUState(NamedTuple):
    """State of a GRU."""

    hidden: Float[Array, "batch dim"]


class Recurrence(nnx.Module):
    """One recurrent layer, from zeros.

    Args:
      dim: width of the state.
      dim_in: width of the input; None for `dim`.
      num_gates: vectors of width `dim` that a step computes from the input and from the state before it.
    """

    def __init__(self, dim: int, dim_in: int | None, num_gates: int, *, rngs: nnx.Rngs):
        self.dim = dim
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.input = Linear((dim_in or dim,), (num_gates * dim,), ("embed", None), gain=3**-0.5, rngs=rngs)
        self.recurrent = parameter(rngs.params(), (dim, num_gates * dim), ("embed", None), uniform)

    def init_state(self, batch: int, dtype: jnp.dtype = jnp.float32) -> tuple:
        """Returns the state before the first step."""
        raise NotImplementedError

    def step(self, state: tuple, x_BxD: Float[Array, "batch in"]) -> tuple:
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

        def step(state: tuple, inputs: tuple[Array, Array | None]) -> tuple[tuple, Array]:
            gates, restart = inputs
            if restart is not None:
                state = restarted(state, restart)
            state = self._advance(state, gates, recurrent)
            return state, state.hidden

        start = self.init_state(len(x_BxTxD), x_BxTxD.dtype)
        _, hidden_TxBxD = jax.lax.scan(step, start, (gates_TxBxG, restart_TxB), reverse=reverse)
        return jnp.swapaxes(hidden_TxBxD, 0, 1)

    def _advance(self, state: tuple, gates: Array, recurrent: Array) -> tuple:
        """Returns the next state from the input's part of the gates."""
        raise NotImplementedError


class LSTM(Recurrence):
    """One layer of an LSTM, from zeros; gates are in PyTorch's order: input, forget, cell, output.

    Args:
      dim, dim_in: as of `Recurrence`.
    """

    def __init__(self, dim: int, dim_in: int | None = None, *, rngs: nnx.Rngs):
        super().__init__(dim, dim_in, 4, rngs=rngs)

    def init_state(self, batch: int, dtype: jnp.dtype = jnp.float32) -> LSTMState:
        """Returns the state before the first step."""
        return LSTMState(jnp.zeros((batch, self.dim), dtype), jnp.zeros((batch, self.dim), jnp.float32))

    def _advance(self, state: LSTMState, gates: Array, recurrent: Array) -> LSTMState:
        gates = gates + state.hidden @ recurrent
        into, forget, value, out = jnp.split(gates.astype(jnp.float32), 4, axis=-1)
        cell = jax.nn.sigmoid(forget) * state.cell + jax.nn.sigmoid(into) * jnp.tanh(value)
        return LSTMState((jax.nn.sigmoid(out) * jnp.tanh(cell)).astype(gates.dtype), cell)


class GRU(Recurrence):
    """One layer of a GRU (Cho et al. 2014), from zeros; gates are in PyTorch's order: reset, update, new.

    As in PyTorch, the reset gate scales the product of the state and its weights, bias included.

    Args:
      dim, dim_in: as of `Recurrence`.
    """

    def __init__(self, dim: int, dim_in: int | None = None, *, rngs: nnx.Rngs):
        super().__init__(dim, dim_in, 3, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        self.recurrent_bias = parameter(rngs.params(), (dim,), (None,), zeros, decays=False)

    def init_state(self, batch: int, dtype: jnp.dtype = jnp.float32) -> GRUState:
        """Returns the state before the first step."""
        return GRUState(jnp.zeros((batch, self.dim), dtype))

    def _advance(self, state: GRUState, gates: Array, recurrent: Array) -> GRUState:
        own = jnp.split((state.hidden @ recurrent).astype(jnp.float32), 3, axis=-1)
        reset, update, new = jnp.split(gates.astype(jnp.float32), 3, axis=-1)
        reset, update = jax.nn.sigmoid(reset + own[0]), jax.nn.sigmoid(update + own[1])
        new = jnp.tanh(new + reset * (own[2] + self.recurrent_bias[...]))
        return GRUState(((1 - update) * new + update * state.hidden).astype(gates.dtype))


def both_directions(
    forward: Recurrence, backward: Recurrence, x_BxTxD: Float[Array, "batch time in"], segments: Segments
) -> Float[Array, "batch time both"]:
    """Runs a layer over each utterance of a row, and another from its end to its beginning; values at padding are
    arbitrary."""
    position = segments.position(x_BxTxD.shape[1])
    is_last = position == segments.spread(segments.length, x_BxTxD.shape[1]) - 1
    return jnp.concatenate([forward(x_BxTxD, position == 0), backward(x_BxTxD, is_last, reverse=True)], axis=-1)


def restarted(state: tuple, restart_B: Bool[Array, " batch"]) -> tuple:
    """Returns a state, arrays [batch, ...], that is zeros in rows that restart."""
    return jax.tree.map(lambda x: jnp.where(restart_B.reshape(-1, *(1,) * (x.ndim - 1)), 0, x), state)
