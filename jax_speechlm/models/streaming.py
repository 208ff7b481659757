"""Encoders of streams: the hidden states of one pass under a chunk mask, chunk by chunk.

    stream = StreamingEncoder(config, chunk_length=8)
    state = stream.init_state(batch=2)
    state, hidden, num_frames = stream.step(params, state, vectors, num_vectors)

A frame depends on its whole chunk and on `left_context` frames before it, in training (`draw_chunk`) as here, so a
chunk's hidden states do not change when later audio arrives.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.encoder_base import EncoderState
from jax_speechlm.models.encoders import EncoderConfig, make_encoder
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.attention.relative import Chunk


def check_streams(config: EncoderConfig) -> None:
    """Raises ValueError if the encoder was not trained to stream; the message names the setting and what to train."""
    if not isinstance(config, ConformerConfig | FastConformerConfig):
        raise ValueError(
            f"model.kind is {config.kind}, which encodes whole utterances: train a conformer with "
            "--model.chunk-lengths 8 16 --model.left-context 64"
        )
    if isinstance(config, FastConformerConfig) and not config.causal:
        raise ValueError(
            "model.causal is False, so the convolutions of the FastConformer look ahead: train with "
            "--model.causal True --model.chunk-lengths 2 4 --model.left-context 32"
        )
    if not config.chunk_lengths:
        raise ValueError(
            "model.chunk_lengths is empty, so the model has seen whole utterances only: train (or finetune) with "
            "--model.chunk-lengths 8 16 --model.left-context 64"
        )
    if config.left_context is None:
        raise ValueError(
            "model.left_context is None, so the model attends to everything before a chunk, without end in a stream: "
            "train (or finetune) with --model.left-context 64"
        )


@dataclasses.dataclass(frozen=True)
class StreamingEncoder:
    """An encoder as a streaming function; the encoder itself with `chunk` is the full pass.

    Attributes:
      config: settings with `chunk_lengths` and `left_context`.
      chunk_length: frames of a chunk, one of `chunk_lengths`.

    Raises:
      ValueError: the encoder was not trained to stream, or not with such chunks.
    """

    config: EncoderConfig
    chunk_length: int

    def __post_init__(self):
        check_streams(self.config)
        if self.chunk_length not in self.config.chunk_lengths:
            lengths = ", ".join(map(str, sorted(self.config.chunk_lengths)))
            raise ValueError(
                f"the model was not trained on chunks of {self.chunk_length} frames: model.chunk_lengths has {lengths}"
            )

    @property
    def num_vectors(self) -> int:
        """Feature vectors of a chunk."""
        return self.chunk_length * self.config.subsampling

    @property
    def chunk(self) -> Chunk:
        """The mask of the full pass that gives the same hidden states."""
        return self.chunk_length, self.config.left_context // self.chunk_length

    def init_state(self, batch: int) -> EncoderState:
        """Returns the state before the first frame of `batch` streams."""

        def init(params: functional.Params) -> EncoderState:
            return functional.bind(self._declared.graphdef, params).init_state(batch, self.chunk_length)

        shapes = jax.eval_shape(init, self._declared.shapes)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def step(
        self,
        params: functional.Params,
        state: EncoderState,
        x_BxVxF: Float[Array, "batch vectors features"],
        num_vectors_B: Int[Array, " batch"],
    ) -> tuple[EncoderState, Float[Array, "batch chunk dim"], Int[Array, " batch"]]:
        """Encodes the next chunk (`models.encoder_base.Encoder.step`); pure.

        A stream's first chunk begins with `config.lead_vectors` that are no part of the recording, and not read.
        """
        return functional.bind(self._declared.graphdef, params).step(state, x_BxVxF, num_vectors_B)

    @functools.cached_property
    def _declared(self) -> functional.Declaration:
        return functional.declare(lambda rngs: make_encoder(self.config, rngs=rngs))
