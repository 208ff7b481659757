"""Vocoders in chunks: the samples of one pass, from a window of exactly the frames that they depend on.

    stream = StreamingVocoder(config, Vocos(config, rngs=...))   # or any module of a finite context
    state = stream.init_state(batch=1)
    for chunk in chunks: state, samples = stream.step(params, state, chunk)
    last = stream.finalize(params, state)

Samples come `delay` samples late: all outputs concatenated, without the first `delay` samples, are those of one pass.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_speechlm.core.segments import Segments
from jax_speechlm.models.vocoders.base import VocoderConfig
from jax_speechlm.nn import functional


class StreamState(NamedTuple):
    """State of a stream.

    Attributes:
      frames: the newest frames, of which there are as many as a frame depends on; older ones are not needed.
      count: frames received so far.
    """

    frames: Float[Array, "batch context bins"]
    count: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class StreamingVocoder:
    """A vocoder of finite context as a streaming function; `make` declares its parameters.

    Attributes:
      config: settings with `context_frames`.
    """

    config: VocoderConfig
    make: functional.MakeModule

    @property
    def delay(self) -> int:
        """Samples by which the output is late."""
        return self.config.context_frames.after * self.config.hop

    def init_state(self, batch: int) -> StreamState:
        """Returns the state before the first frame of `batch` streams."""
        return StreamState(
            jnp.zeros((batch, sum(self.config.context_frames), self.config.input_dim)), jnp.zeros((), jnp.int32)
        )

    def step(
        self, params: functional.Params, state: StreamState, chunk: Float[Array, "batch time bins"]
    ) -> tuple[StreamState, Float[Array, "batch samples"]]:
        """Processes a chunk of any number of frames; pure.

        Returns:
          The state, and `hop` samples for each frame, `delay` samples late.
        """
        num_frames, held = chunk.shape[1], state.frames.shape[1]
        if not num_frames:
            return state, jnp.zeros((chunk.shape[0], 0))
        window = jnp.concatenate([state.frames, chunk.astype(jnp.float32)], axis=1)
        samples = self._samples(params, window, state.count, num_frames, num_frames)
        return StreamState(window[:, window.shape[1] - held :], state.count + num_frames), samples

    def finalize(self, params: functional.Params, state: StreamState) -> Float[Array, "batch samples"]:
        """Returns the last `delay` samples, for which there are no later frames."""
        return self._samples(params, state.frames, state.count, 0, self.config.context_frames.after)

    def finish(
        self,
        params: functional.Params,
        state: StreamState,
        chunk: Float[Array, "batch time bins"],
        num_frames: Int[Array, ""],
    ) -> Float[Array, "batch samples"]:
        """Processes the last chunk, of which `num_frames` are valid, and finalizes, as one program.

        Returns:
          Samples of the whole chunk and `delay` more, 0 beyond the valid frames.
        """
        window = jnp.concatenate([state.frames, chunk.astype(jnp.float32)], axis=1)
        return self._samples(params, window, state.count, num_frames, chunk.shape[1] + self.config.context_frames.after)

    def _samples(
        self, params: functional.Params, window: Array, count: Int[Array, ""], new: int | Array, num_frames: int
    ) -> Float[Array, "batch samples"]:
        """Returns the samples of `num_frames` frames of a window, from the first that has its whole context on.

        `new` is the number of valid frames that follow those of the state.
        """
        before, after = self.config.context_frames
        received = jnp.broadcast_to(jnp.minimum(count, before + after), (window.shape[0], 1))
        segments = Segments(before + after - received, received + new)
        audio = functional.bind(self._graphdef, params)(window, segments)
        return audio[:, before * self.config.hop :][:, : num_frames * self.config.hop]

    @functools.cached_property
    def _graphdef(self):
        return functional.declare(self.make).graphdef
