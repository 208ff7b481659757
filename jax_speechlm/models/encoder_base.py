"""Base of the speech encoders, and of those with a frame for each feature vector."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments, at_rate
from jax_speechlm.nn.attention.relative import Chunk, KeysAndValues, PositionalContext
from jax_speechlm.nn.functional import bind, scan_layers, stack
from jax_speechlm.nn.layers import Count, FrameKeys, LayerNorm, Linear, dropout, split_keys
from jax_speechlm.nn.streaming import select_streams
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import shard_batch_and_time

Make = Callable[..., nnx.Module]


class FeatureEncoderConfig(Config):
    """Base of the shapes of encoders with a frame for each feature vector."""

    @property
    def subsampling(self) -> int:
        """Feature vectors of one frame."""
        return 1

    @property
    def lead_vectors(self) -> int:
        """Vectors before the first one that the first frame reads as zeros."""
        return 0

    def num_frames(self, num_vectors: Count) -> Count:
        """Returns the number of frames of `num_vectors` feature vectors."""
        return num_vectors


class LayerState(NamedTuple):
    """State of a layer over a stream, in an `EncoderState` with a dimension for the layers after the batch."""

    attention: KeysAndValues
    convolution: Float[Array, "..."]


class EncoderState(NamedTuple):
    """State of an encoder over a stream.

    Attributes:
      num_frames: frames so far.
      embedding: state of the layers' input; None if a frame needs its own feature vectors only.
      layers: states of the layers, [batch, layers, ...].
    """

    num_frames: Int[Array, " batch"]
    embedding: Float[Array, "..."] | None
    layers: LayerState


def frames_of(config: Config, lengths: Lengths) -> Lengths:
    """Returns lengths in frames of the encoder from lengths in feature vectors."""
    return at_rate(lengths, config.subsampling, config.num_frames)


class Encoder(nnx.Module):
    """Base of the encoders: encodes features to one hidden state a frame.

    The output of a frame depends only on the frames of its utterance, not on padding, batch size, row order or other
    utterances of its row. Subclasses set `config` and `layers`, a stack of layers that are called, and stream, as
    `conformer.MacaronLayer` does.
    """

    def __call__(
        self,
        x_BxTxF: Float[Array, "batch vectors features"],
        lengths: Lengths,
        *,
        keys: Key[Array, "*utterances"] | None = None,
        chunk: Chunk | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """Encodes a batch.

        Args:
          lengths: valid feature vectors per row, or the utterances of packed rows; may be 0. They become
            `frames_of(config, lengths)`.
          keys: one key an utterance (`jax_speechlm.core.batch.example_keys`) for dropout, or None for evaluation.
          chunk: limits attention (see `chunk_mask`); None for the whole utterance.
          taps: layers whose output is returned too, counted from 1; 0 is the input of the first layer.

        Returns:
          float32 hidden states after the last layer, and after each tap. Both are 0 at padding.
        """
        x_BxTxD = self.embed(x_BxTxF, lengths)
        return self.encode(x_BxTxD, frames_of(self.config, lengths), keys=keys, chunk=chunk, taps=taps)

    def targets(
        self, x_BxTxF: Float[Array, "batch vectors features"], lengths: Lengths
    ) -> Float[Array, "batch time dim"]:
        """Returns the vectors that a contrastive task quantizes; `embed_targets` maps them to the layers' input."""
        return self.embed(x_BxTxF, lengths)

    def embed_targets(self, x: Float[Array, "batch time target_dim"]) -> Float[Array, "batch time dim"]:
        """Returns `embed`'s output from that of `targets`."""
        return x

    def encode(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        lengths: Lengths,
        *,
        keys: Key[Array, "*utterances"] | None = None,
        chunk: Chunk | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """Runs dropout and the layers on `embed`'s output or other vectors of width `dim`.

        `lengths` are in frames; other arguments and result as of the call.
        """
        config, num_frames, segments = self.config, x_BxTxD.shape[1], Segments.of(lengths)
        if not all(0 <= tap <= config.num_layers for tap in taps):
            raise ValueError(f"taps must be between 0 and num_layers ({config.num_layers}); got {taps}")
        context = self._context(chunk, sequence.padded_time(num_frames))
        x_BxTxD = shard_batch_and_time(sequence.pad_time(x_BxTxD))
        mask_BxT = segments.mask(x_BxTxD.shape[1])

        def frame_keys(keys: Key[Array, "*utterances"] | None) -> FrameKeys | None:
            return None if keys is None else FrameKeys(keys.reshape(segments.length.shape), segments)

        *keys_L, key_in = split_keys(keys, config.num_layers + 1)
        x = jnp.where(mask_BxT[..., None], dropout(x_BxTxD, config.dropout, frame_keys(key_in)), 0)
        inner = any(tap > 0 for tap in taps)

        def run(layer: nnx.Module, x: Array, keys: Key[Array, "*utterances"] | None) -> tuple[Array, Array | None]:
            x = layer(x, segments, context, frame_keys(keys))
            return x, x if inner else None

        x, every_x = scan_layers(self.layers, run, x, None if keys is None else jnp.stack(keys_L), config.remat)

        def finish(x: Array) -> Array:
            return jnp.where(mask_BxT[..., None], x.astype(jnp.float32), 0)[:, :num_frames]

        return finish(x), {tap: finish(every_x[tap - 1] if tap else x_BxTxD) for tap in taps}

    def _context(self, chunk: Chunk | None, num_frames: int) -> Chunk | PositionalContext | None:
        """Returns the context of each layer's attention, for rows of `num_frames`."""
        return chunk

    def init_state(self, batch: int, chunk_length: int) -> EncoderState:
        """Returns the state before the first frame, for chunks of `chunk_length` frames."""
        config = self.config
        left = config.left_context // chunk_length * chunk_length
        graphdef, params_L = nnx.split(self.layers)
        layer = bind(graphdef, jax.tree.map(lambda x: x[0], params_L))
        layers = layer.init_state(batch, left, jnp.dtype(config.dtype))
        layers = jax.tree.map(lambda x: jnp.repeat(x[:, None], config.num_layers, axis=1), layers)
        return EncoderState(jnp.zeros(batch, jnp.int32), self._init_embedding(batch), layers)

    def step(
        self, state: EncoderState, x_BxVxF: Float[Array, "batch vectors features"], num_vectors_B: Int[Array, " batch"]
    ) -> tuple[EncoderState, Float[Array, "batch chunk dim"], Int[Array, " batch"]]:
        """Encodes the next chunk of a stream: what the full pass gives with the chunk's mask.

        Args:
          x_BxVxF: feature vectors of a whole chunk, `subsampling` times its length.
          num_vectors_B: valid ones: all, but for the last chunk of a stream; 0 leaves the state of a stream as it is.

        Returns:
          The state, float32 hidden states, arbitrary where there are no frames, and the number of frames.
        """
        embedding, x, num_frames_B = self._embed_step(state, x_BxVxF, num_vectors_B)
        chunk, left = x.shape[1], state.layers.attention.key_BxSxHxK.shape[2]  # [batch, layers, left, ...]
        past = jnp.arange(left) >= left - state.num_frames[:, None]
        visible_BxS = jnp.concatenate([past, jnp.arange(chunk) < num_frames_B[:, None]], axis=1)
        context = self._step_context(left + chunk)

        def run(layer: nnx.Module, x: Array, state: LayerState) -> tuple[Array, LayerState]:
            state, x = layer.step(state, x, visible_BxS, context)
            return x, state

        layers_LxB = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), state.layers)
        x, layers_LxB = scan_layers(self.layers, run, x, layers_LxB, "none")
        layers = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), layers_LxB)
        new = EncoderState(state.num_frames + num_frames_B, embedding, layers)
        return select_streams(num_vectors_B > 0, new, state), x.astype(jnp.float32), num_frames_B

    def _init_embedding(self, batch: int) -> Float[Array, "..."] | None:
        """Returns the state of `_embed_step` before the first frame."""
        return None

    def _embed_step(
        self, state: EncoderState, x_BxVxF: Array, num_vectors_B: Array
    ) -> tuple[Array | None, Float[Array, "batch chunk dim"], Int[Array, " batch"]]:
        """Returns the state, the input of the layers, and the number of frames, of the next chunk."""
        return None, self.embed(x_BxVxF, num_vectors_B), num_vectors_B

    def _step_context(self, num_keys: int) -> PositionalContext | None:
        """Returns the context of each layer's attention, for a chunk and the keys of a state."""
        return None


class FeatureEncoder(Encoder):
    """Base of encoders with a frame for each feature vector.

    Args:
      make_layer: `(rngs=) -> layer`, which is `(x, segments, context, keys) -> x`.
    """

    def __init__(self, config: Config, make_layer: Make, *, rngs: nnx.Rngs):
        self.config = config
        self.input_norm = LayerNorm(config.input_dim, axis=None, rngs=rngs)
        # A frame that SpecAugment masks is 0 and becomes this bias. If the bias were 0 too, the first layer's norms
        # would divide by nearly 0 and their gradient would exceed all others.
        self.input = Linear((config.input_dim,), (config.dim,), (None, "embed"), bias_scale=0.5, rngs=rngs)
        self.layers = stack(lambda rngs: make_layer(rngs=rngs), config.num_layers, rngs)

    def embed(
        self, x_BxTxF: Float[Array, "batch time features"], lengths: Lengths | None = None
    ) -> Float[Array, "batch time dim"]:
        """Returns the input of the layers: features normalised and projected, in the compute type."""
        return shard_batch_and_time(self.input(self.input_norm(x_BxTxF).astype(self.config.dtype)))
