"""Greedy decoding of CTC posteriors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.decoding.stream import Emissions
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear


def best_path(
    logits_BxTxV: Float[Array, "batch time vocab"], length_B: Int[Array, " batch"]
) -> Int[Array, "batch time"]:
    """Returns the most probable id per frame, the blank at padding. Jit it with the model, to transfer ids only."""
    inside = jnp.arange(logits_BxTxV.shape[1]) < length_B[:, None]
    return jnp.where(inside, jnp.argmax(logits_BxTxV, axis=-1), BLANK)


def collapse(path_BxT: Int[np.ndarray, "batch time"]) -> list[list[int]]:
    """Returns token ids per row: merges runs of one id, then removes blanks (Graves et al. 2006, section 3.1)."""
    path = np.asarray(path_BxT)
    starts = np.ones(path.shape, bool)
    starts[:, 1:] = path[:, 1:] != path[:, :-1]
    return [row[kept].tolist() for row, kept in zip(path, starts & (path != BLANK), strict=True)]


@dataclasses.dataclass(frozen=True)
class StreamingBestPath:
    """The best path of a stream (`decoding.stream.StreamSearch`); its state is the id at each stream's last frame.

    Attributes:
      dim: width of the hidden states.
      vocab_size: ids of the model's `head`.
    """

    dim: int
    vocab_size: int

    def init_state(self, params: functional.Params, batch: int) -> Int[Array, " batch"]:
        """Returns the blank, which no token continues."""
        del params
        return jnp.full(batch, BLANK, jnp.int32)

    def step(
        self,
        params: functional.Params,
        last_B: Int[Array, " batch"],
        hidden_BxCxD: Float[Array, "batch chunk dim"],
        num_frames_B: Int[Array, " batch"],
    ) -> tuple[Int[Array, " batch"], Emissions]:
        """Emits the most probable id of each frame; it continues a token if it is the id of the frame before."""
        log_probs_BxCxV = self.log_probs(params, hidden_BxCxD)
        path_BxC = best_path(log_probs_BxCxV, num_frames_B).astype(jnp.int32)
        frame_BxC = jnp.broadcast_to(jnp.arange(path_BxC.shape[1]), path_BxC.shape)
        with_last = jnp.concatenate([last_B[:, None], path_BxC], axis=1)
        continues_BxC = (path_BxC != BLANK) & (path_BxC == with_last[:, :-1])
        last_B = jnp.take_along_axis(with_last, num_frames_B[:, None], axis=1)[:, 0]
        width_BxC = jnp.ones_like(path_BxC)
        return last_B, Emissions(path_BxC, frame_BxC, width_BxC, log_probs_BxCxV.max(-1), continues_BxC)

    def log_probs(
        self, params: functional.Params, hidden_BxCxD: Float[Array, "batch chunk dim"]
    ) -> Float[Array, "batch chunk vocab"]:
        """Returns the log-probabilities of all ids at each frame, in nats."""
        logits_BxCxV = functional.bind(self._head, params["head"])(hidden_BxCxD)
        return jax.nn.log_softmax(logits_BxCxV.astype(jnp.float32))

    @functools.cached_property
    def _head(self) -> nnx.GraphDef:
        shape = (self.dim,), (self.vocab_size,), (None, None)
        return functional.declare(lambda rngs: Linear(*shape, rngs=rngs)).graphdef
