"""Greedy search of transducers over streams (`decoding.stream.StreamSearch`)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_speechlm.decoding.stream import Emissions
from jax_speechlm.decoding.transducer import greedy
from jax_speechlm.models.transducer import TransducerModel
from jax_speechlm.nn import functional
from jax_speechlm.nn.streaming import select_streams


@dataclasses.dataclass(frozen=True, eq=False)
class StreamingGreedy:
    """Greedy search of a transducer as a streaming function.

    Attributes:
      make: declares the model's parameters.
      durations: those of a TDT model; () for RNN-T.
    """

    make: functional.MakeModule
    durations: tuple[int, ...] = ()

    def init_state(self, params: functional.Params, batch: int) -> greedy.SearchState:
        """Returns the state before the first frame of `batch` streams."""
        return greedy.init_state(self._model(params), batch)

    def step(
        self,
        params: functional.Params,
        state: greedy.SearchState,
        hidden_BxCxD: Float[Array, "batch chunk dim"],
        num_frames_B: Int[Array, " batch"],
    ) -> tuple[greedy.SearchState, Emissions]:
        """Searches the next chunk; a token lasts as long as its duration, one frame at least."""
        model = self._model(params)
        encoder_BxCxJ = model.project(hidden_BxCxD)
        new, found = greedy.step(model, state, encoder_BxCxJ, num_frames_B, self.durations)
        frame_BxCxS = jnp.broadcast_to(jnp.arange(found.tokens.shape[1])[:, None], found.tokens.shape)
        width_BxCxS = jnp.maximum(found.durations, 1)
        parts = found.tokens, frame_BxCxS, width_BxCxS, found.log_probs, jnp.zeros_like(found.tokens, bool)
        emissions = jax.tree.map(lambda x: x.reshape(len(x), -1), Emissions(*parts))
        return select_streams(num_frames_B > 0, new, state), emissions

    def _model(self, params: functional.Params) -> TransducerModel:
        return functional.bind(self._graphdef, params)

    @functools.cached_property
    def _graphdef(self) -> nnx.GraphDef:
        return functional.declare(self.make).graphdef
