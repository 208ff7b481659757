"""Attention decoder: a causal transformer that reads an encoder's frames, in the form of Whisper's.

A layer is self-attention, attention to the frames and feed-forward, each applied to the normalised residual stream and
added to it. Positions are learnt and the output is tied to the embedding. With the same weights it computes the same
numbers as Hugging Face's `WhisperDecoder`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_speechlm.core.config import Config
from jax_speechlm.models.whisper import FeedForward
from jax_speechlm.nn.attention.dot import Kernel, attend, masked_attention
from jax_speechlm.nn.attention.multi_head import MultiHeadMaps, source_attention, source_weights, weighted_values
from jax_speechlm.nn.functional import Remat, parameter, scan_layers, stack
from jax_speechlm.nn.layers import FrameKeys, Keys, LayerNorm, dropout, split_keys
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import shard_batch_dim

Cache = dict[str, Array]
"""Keys and values of past tokens: {"key", "value"}, each [layers, batch, position, heads, head_dim]."""


class AttentionDecoderConfig(Config):
    """The shape of an attention decoder.

    Attributes:
      dim: width of the residual stream; a multiple of `num_heads`.
      num_layers: transformer layers.
      num_heads: attention heads.
      ffn_dim: inner width of the feed-forwards.
      max_tokens: positions: tokens of the longest text with its prompt, 448 in Whisper.
      alignment_heads: (layer, head) pairs whose attention to the frames follows the speech, from which the times of
        words are computed; with none, all heads of the upper half of the layers.
      dropout: rate on the embeddings, inside and after each feed-forward, and after attention.
      attention: implementation of self-attention (see `nn.attention.dot.Kernel`).
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, norms, softmax and the output are float32.
    """

    dim: pydantic.PositiveInt = 384
    num_layers: pydantic.PositiveInt = 4
    num_heads: pydantic.PositiveInt = 6
    ffn_dim: pydantic.PositiveInt = 1536
    max_tokens: pydantic.PositiveInt = 448
    alignment_heads: tuple[tuple[pydantic.NonNegativeInt, pydantic.NonNegativeInt], ...] = ()
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    attention: Kernel = "auto"
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _heads_divide_dim(self):
        if self.dim % self.num_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})")
        if any(layer >= self.num_layers or head >= self.num_heads for layer, head in self.alignment_heads):
            raise ValueError(
                f"alignment_heads {self.alignment_heads} are (layer, head) pairs, and there are {self.num_layers} "
                f"layers of {self.num_heads} heads"
            )
        return self


class Source(NamedTuple):
    """The frames of an encoder as the layers of a decoder read them.

    Attributes:
      key, value: of each layer.
      segment: utterance of each frame, from 1; 0 at padding.
    """

    key: Float[Array, "layers batch heads time head_dim"]
    value: Float[Array, "layers batch heads time head_dim"]
    segment: Int[Array, "batch time"]


class DecoderLayer(nnx.Module):
    """Self-attention, attention to the source and feed-forward, each residual."""

    def __init__(self, config: AttentionDecoderConfig, source_dim: int, *, rngs: nnx.Rngs):
        dim, gain = config.dim, (3 * config.num_layers) ** -0.5
        self.rate = config.dropout
        self.attention_norm = LayerNorm(dim, rngs=rngs)
        self.attention = MultiHeadMaps(dim, config.num_heads, gain=gain, rngs=rngs)
        self.source_norm = LayerNorm(dim, rngs=rngs)
        self.source = MultiHeadMaps(dim, config.num_heads, source_dim=source_dim, gain=gain, rngs=rngs)
        self.ffn_norm = LayerNorm(dim, rngs=rngs)
        self.ffn = FeedForward(dim, config.ffn_dim, config.dropout, gain=gain, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        mix: Callable[..., tuple[Array, Any]],
        read: Callable[[Array], tuple[Array, Any]],
        keys: Keys | FrameKeys | None,
    ) -> tuple[Float[Array, "batch time dim"], Any, Any]:
        """Runs the layer.

        Args:
          mix: `(q, k, v) -> (mixed values, state)`, the self-attention.
          read: `q -> (mixed values, output)`, the attention to the source.

        Returns:
          The residual stream after the layer, the state that `mix` returned, and the output that `read` returned.
        """
        self_key, source_key, inner_key, out_key = split_keys(keys, 4)
        maps, normed = self.attention, self.attention_norm(x)
        mixed, state = mix(maps.query(normed), maps.key(normed), maps.value(normed))
        x = x + dropout(maps.out(mixed), self.rate, self_key)
        mixed, output = read(self.source.query(self.source_norm(x)))
        x = x + dropout(self.source.out(mixed), self.rate, source_key)
        out = self.ffn(self.ffn_norm(x), inner_key)
        return shard_batch_dim(x + dropout(out, self.rate, out_key)), state, output


class AttentionDecoder(nnx.Module):
    """Decodes tokens to hidden states and logits, given an encoder's frames.

    The output of a token depends only on the tokens before it in its segment and on the frames of the utterance of the
    same number, not on padding, batch size, row order or the rest of a packed row.
    """

    head_bias = None
    """The vocabulary map has no bias."""

    def __init__(self, config: AttentionDecoderConfig, source_dim: int, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        table = partial(parameter, initializer=jax.nn.initializers.normal(0.02))
        self.embedding = table(rngs.params(), (vocab_size, config.dim), ("vocab", "embed"))
        self.position = table(rngs.params(), (config.max_tokens, config.dim), (None, "embed"))
        self.layers = stack(lambda rngs: DecoderLayer(config, source_dim, rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(config.dim, rngs=rngs)

    def __call__(
        self,
        tokens_BxT: Int[Array, "batch tokens"],
        segment_BxT: Int[Array, "batch tokens"],
        position_BxT: Int[Array, "batch tokens"],
        source: Source,
        keys: Keys | FrameKeys | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        """Encodes packed rows of tokens.

        Args:
          segment_BxT: utterance of each token, from 1; 0 for padding.
          position_BxT: index of a token in its segment.
          keys: for dropout, of each row or of each segment; None for evaluation.

        Returns:
          float32 hidden states after the final norm, 0 at padding.
        """

        def read(q: Array, key: Array, value: Array, visible: Array) -> tuple[Array, None]:
            return source_attention(q, key, value, visible), None

        tokens = tokens_BxT, segment_BxT, position_BxT
        return self._encode(*tokens, source, keys, read, self.config.remat)[0]

    def aligned(
        self,
        tokens_BxT: Int[Array, "batch tokens"],
        segment_BxT: Int[Array, "batch tokens"],
        position_BxT: Int[Array, "batch tokens"],
        source: Source,
    ) -> tuple[Float[Array, "batch tokens dim"], Float[Array, "batch heads tokens time"]]:
        """Encodes rows as the call; returns the weights of attention to the source in `alignment_heads` too."""
        layers, heads = self.config.num_layers, self.config.num_heads
        chosen = self.config.alignment_heads or [(i, j) for i in range(layers // 2, layers) for j in range(heads)]
        by_layer = [[head for layer, head in chosen if layer == i] for i in range(layers)]
        most = max(map(len, by_layer))
        index_LxA = jnp.array([row + [0] * (most - len(row)) for row in by_layer])

        def read(q: Array, key: Array, value: Array, visible: Array, own: Array) -> tuple[Array, Array]:
            weights_BxHxTxS = source_weights(q, key, visible)
            return weighted_values(weights_BxHxTxS, value), weights_BxHxTxS[:, own].astype(jnp.float32)

        tokens = tokens_BxT, segment_BxT, position_BxT
        hidden_BxTxD, weights_LxBxAxTxS = self._encode(*tokens, source, None, read, "none", index_LxA)
        places = [(i, j) for i, row in enumerate(by_layer) for j in range(len(row))]
        return hidden_BxTxD, jnp.stack([weights_LxBxAxTxS[i, :, j] for i, j in places], axis=1)

    def _encode(
        self,
        tokens_BxT: Array,
        segment_BxT: Array,
        position_BxT: Array,
        source: Source,
        keys: Keys | FrameKeys | None,
        read: Callable[..., tuple[Array, Any]],
        remat: Remat,
        *inputs_L: Array,
    ) -> tuple[Float[Array, "batch tokens dim"], Any]:
        """Runs all layers on packed rows.

        Args:
          read: `(q, keys, values, visible, *inputs) -> (mixed values, output)`, the attention to the source.
          inputs_L: further inputs of `read`, by layer.

        Returns:
          The hidden states, and the outputs of `read` by layer.
        """
        config = self.config
        segments, keys = (keys.segments, keys.keys) if isinstance(keys, FrameKeys) else (None, keys)
        num_tokens = tokens_BxT.shape[1]
        tokens_BxT, segment_BxT, position_BxT = map(sequence.pad_time, (tokens_BxT, segment_BxT, position_BxT))
        visible = (segment_BxT[..., None] == source.segment[:, None]) & (segment_BxT > 0)[..., None]
        mix = partial(attend, segment_BxT=segment_BxT, causal=True, window=None, kernel=config.attention)

        def of(keys: Array | None) -> Keys | FrameKeys | None:
            return keys if segments is None else FrameKeys(keys, segments)

        *keys_L, key_in = split_keys(keys, config.num_layers + 1)
        x = dropout(self._embed(tokens_BxT, position_BxT), config.dropout, of(key_in))

        def run(layer: DecoderLayer, x: Array, inputs: tuple[Any, ...]) -> tuple[Array, Any]:
            key, value, layer_keys, *own = inputs
            attentions = lambda *qkv: (mix(*qkv), None), lambda q: read(q, key, value, visible, *own)
            x, _, output = layer(x, *attentions, of(layer_keys))
            return x, output

        inputs = source.key, source.value, None if keys is None else jnp.stack(keys_L), *inputs_L
        x, outputs = scan_layers(self.layers, run, x, inputs, remat)
        return self._finish(x, segment_BxT > 0)[:, :num_tokens], outputs

    def read(self, frames_BxTxD: Float[Array, "batch time dim"], segment_BxT: Int[Array, "batch time"]) -> Source:
        """Computes the keys and values of every layer for an encoder's frames.

        Args:
          segment_BxT: utterance of each frame, from 1; 0 at padding.
        """
        x = shard_batch_dim(frames_BxTxD.astype(self.config.dtype))

        def run(layer: DecoderLayer, x: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            return x, (layer.source.key(x).swapaxes(1, 2), layer.source.value(x).swapaxes(1, 2))

        _, (key, value) = scan_layers(self.layers, run, x, None, "none")
        return Source(key, value, segment_BxT)

    def decode(
        self,
        tokens_BxT: Int[Array, "batch tokens"],
        position_BxT: Int[Array, "batch tokens"],
        cache: Cache,
        source: Source,
    ) -> tuple[Float[Array, "batch tokens dim"], Cache]:
        """Encodes the next tokens per row, of one utterance each, to the same numbers as the call.

        Several texts of an utterance may share its frames: with `source` of fewer rows, each of these is read by as
        many rows of tokens, one after the other.

        Args:
          position_BxT: below the cache's length, or -1 at padding. All earlier positions are in the cache or in this
            call.

        Returns:
          float32 hidden states after the final norm, 0 at padding; the cache with these tokens added.
        """
        length, row = cache["key"].shape[2], jnp.arange(len(tokens_BxT))[:, None]
        slot = jnp.where(position_BxT < 0, length, position_BxT)  # out of bounds: the write is dropped
        earlier = position_BxT[:, :, None] >= jnp.arange(length)
        utterances, num_frames = source.segment.shape
        own = utterances, tokens_BxT.size // utterances  # the tokens of an utterance, as one row of queries
        visible = jnp.broadcast_to((source.segment > 0)[:, None], (*own, num_frames))

        def run(
            layer: DecoderLayer, x_and_cache: tuple[Array, Cache], inputs: tuple[Array, Array, Array]
        ) -> tuple[tuple[Array, Cache], None]:
            x, cache = x_and_cache
            index, *key_and_value = inputs

            def mix(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
                q, k, v = (x.reshape(*tokens_BxT.shape, *x.shape[2:]) for x in (q, k, v))
                new = {"key": k, "value": v}
                new = {
                    name: cache[name].at[index, row, slot].set(new[name].astype(cache[name].dtype), mode="drop")
                    for name in cache
                }
                mixed = masked_attention(q, new["key"][index], new["value"][index], earlier)
                return mixed.reshape(*own, *mixed.shape[2:]), new

            *after, _ = layer(x, mix, lambda q: (source_attention(q, *key_and_value, visible), None), None)
            return tuple(after), None

        x = self._embed(tokens_BxT, position_BxT)
        shape = x.shape
        inputs = jnp.arange(self.config.num_layers), source.key, source.value
        (x, cache), _ = scan_layers(self.layers, run, (x.reshape(*own, -1), cache), inputs, "none")
        return self._finish(x.reshape(shape), position_BxT >= 0), cache

    @property
    def head_kernel(self) -> Float[Array, "vocab dim"]:
        """Kernel of the vocabulary map: logits are `hidden @ head_kernel.T`."""
        return self.embedding[...]

    def head(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Returns its input: nothing precedes the vocabulary map."""
        return hidden

    def logits(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """Returns float32 logits of hidden states."""
        x, kernel = hidden.astype(self.config.dtype), self.head_kernel.astype(self.config.dtype)
        return jnp.einsum("...d,vd->...v", x, kernel, preferred_element_type=jnp.float32)

    def _embed(self, tokens_BxT: Array, position_BxT: Array) -> Float[Array, "batch tokens dim"]:
        positions = self.position[...][jnp.clip(position_BxT, 0, self.config.max_tokens - 1)]
        return shard_batch_dim((self.embedding[...][tokens_BxT] + positions).astype(self.config.dtype))

    def _finish(self, x: Array, real_BxT: Array) -> Array:
        return jnp.where(real_BxT[..., None], self.norm(x.astype(jnp.float32)), 0)


class Reader(NamedTuple):
    """A decoder with the source that it reads, as a causal model."""

    decoder: AttentionDecoder
    source: Source

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Returns `init_cache` of the decoder."""
        return init_cache(self.decoder.config, batch_size, length)

    def decode(
        self, tokens_BxT: Int[Array, "batch tokens"], position_BxT: Int[Array, "batch tokens"], cache: Cache
    ) -> tuple[Float[Array, "batch tokens dim"], Cache]:
        """Encodes the next tokens per row (`AttentionDecoder.decode`)."""
        return self.decoder.decode(tokens_BxT, position_BxT, cache, self.source)

    def logits(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """Returns float32 logits of hidden states."""
        return self.decoder.logits(hidden)


def init_cache(config: AttentionDecoderConfig, batch_size: int, length: int) -> Cache:
    """Returns an empty cache for `AttentionDecoder.decode`, of at most `length` tokens a row."""
    shape = config.num_layers, batch_size, length, config.num_heads, config.dim // config.num_heads
    return {name: jnp.zeros(shape, config.dtype) for name in ("key", "value")}


def forward_flops(
    config: AttentionDecoderConfig, source_dim: int, vocab_size: int, num_tokens: int, num_frames: int, batch_size: int
) -> float:
    """Returns the FLOPs of the products of one forward pass, padding included; a multiply-add is two."""
    dim = config.dim
    token = (6 * dim + 2 * config.ffn_dim) * dim + (num_tokens + 2 * num_frames) * dim
    frame = 2 * source_dim * dim
    whole = config.num_layers * (token * num_tokens + frame * num_frames) + vocab_size * dim * num_tokens
    return 2.0 * whole * batch_size
