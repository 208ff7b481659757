"""Transformer over tokens: causal (Qwen3, Qwen2, Llama, GPT-2) or bidirectional (ModernBERT, BERT, RoBERTa and others).

A block is norm, attention with grouped keys and values, norm and feed-forward, both residual. With the same weights the
model computes the same numbers as Hugging Face's `Qwen3ForCausalLM`, `Qwen2ForCausalLM`, `LlamaForCausalLM`,
`GPT2LMHeadModel`, `ModernBertForMaskedLM`, `BertForMaskedLM`, `RobertaForMaskedLM` and `DistilBertForMaskedLM`, and
their encoders alone (`jax_speechlm.interop.hf.transformer` converts the weights).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.models import rope
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn.attention.dot import attend, masked_attention
from jax_speechlm.nn.functional import parameter, scan_layers, stack
from jax_speechlm.nn.layers import FrameKeys, Keys, LayerNorm, Linear, RMSNorm, dropout, split_keys
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import gather_residual, scatter_residual, shard_batch_and_time, shard_residual

Cache = dict[str, Array]
"""Keys and values of past tokens: {"key", "value"}, each [layers, batch, position, kv_heads, head_dim]."""

Rotation = tuple[Float[Array, "batch time 1 half"], Float[Array, "batch time 1 half"]]
"""Cosine and sine of each position's angles."""


class Attention(nnx.Module):
    """The linear maps of attention: queries, keys and values, with rotary positions, and the output."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dim, heads, groups, head_dim = config.dim, config.num_heads, config.num_kv_heads, config.head_dim
        into, out_of = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")
        linear = partial(Linear, bias=config.bias or config.qkv_bias, rngs=rngs)
        self.query = linear((dim,), (heads, head_dim), into)
        self.key = linear((dim,), (groups, head_dim), into)
        self.value = linear((dim,), (groups, head_dim), into)
        gain = _residual_gain(config)
        self.out = Linear((heads, head_dim), (dim,), out_of, bias=config.bias, gain=gain, rngs=rngs)
        norm = partial(RMSNorm, head_dim, axis="head_dim", epsilon=config.norm_epsilon, rngs=rngs)
        self.query_norm = norm() if config.query_key_norm else None
        self.key_norm = norm() if config.query_key_norm else None

    def project(
        self, x: Float[Array, "batch time dim"], rotation: Rotation | None
    ) -> tuple[Float[Array, "batch time heads head_dim"], ...]:
        """Returns queries, keys and values, the first two normalised and rotated as configured."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return (q, k, v) if rotation is None else (rotate(q, rotation), rotate(k, rotation), v)


class FeedForward(nnx.Module):
    """down(activation(gate(x)) * up(x)) with a gate (Shazeer 2020), or down(activation(up(x)))."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dim, inner = config.dim, config.ffn_dim
        self.activation = _ACTIVATIONS[config.feedforward]
        linear = partial(Linear, bias=config.bias, rngs=rngs)
        self.gate = linear((dim,), (inner,), ("embed", "mlp")) if config.gated else None
        self.up = linear((dim,), (inner,), ("embed", "mlp"))
        self.down = linear((inner,), (dim,), ("mlp", "embed"), gain=_residual_gain(config))

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        inner = self.up(x)
        return self.down(self.activation(inner) if self.gate is None else self.activation(self.gate(x)) * inner)


class Block(nnx.Module):
    """Attention and feed-forward, each applied to the normalised residual stream and added to it."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.rate, self.norm_placement = config.dropout, config.norm_placement
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs=rngs)
        self.ffn_norm = _norm(config, rngs)
        self.ffn = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        rotation: Rotation | None,
        mix: Callable[..., tuple[Array, Any]],
        is_first: Bool[Array, ""],
        keys: Keys | FrameKeys | None,
    ) -> tuple[Float[Array, "batch time dim"], Any]:
        """Runs the block.

        Args:
          mix: `(q, k, v) -> (mixed values, state)`, the attention.

        Returns:
          The residual stream after the block, and the state that `mix` returned.
        """
        mixed_key, ffn_key = split_keys(keys, 2)
        normed = self.attention_norm(x)
        if self.norm_placement == "post":
            x = normed
        elif self.norm_placement == "pre_embedding":  # the first attention norm belongs to the embeddings
            x = jnp.where(is_first, normed, x)
        mixed, state = mix(*self.attention.project(gather_residual(normed), rotation))
        x = shard_residual(x + dropout(scatter_residual(self.attention.out(mixed)), self.rate, mixed_key))
        normed = self.ffn_norm(x)
        x = normed if self.norm_placement == "post" else x
        out = scatter_residual(self.ffn(gather_residual(normed)))
        return shard_residual(x + dropout(out, self.rate, ffn_key)), state


class PredictionHead(nnx.Module):
    """linear -> GELU -> norm before the vocabulary map, and the bias of that map."""

    def __init__(self, config: TransformerConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.activation = _ACTIVATIONS[config.feedforward] if config.feedforward in ("gelu_tanh", "relu") else _gelu
        self.linear = Linear((config.dim,), (config.dim,), ("embed", None), bias=config.bias, rngs=rngs)
        self.norm = _norm(config, rngs)
        self.bias = parameter(rngs.params(), (vocab_size,), ("vocab",), jax.nn.initializers.zeros, decays=False)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.norm(self.activation(self.linear(x)))


class Transformer(nnx.Module):
    """Encodes tokens to hidden states, and hidden states to logits.

    The output of a token depends only on its segment, not on padding, batch size, row order or the other segments of a
    packed row.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        table = partial(parameter, initializer=jax.nn.initializers.normal(0.02))
        vocab_table = {"shape": (vocab_size, config.dim), "axes": ("vocab", "embed")}
        self.embedding = table(rngs.params(), **vocab_table)
        self.layers = stack(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm = _norm(config, rngs)
        self.prediction = PredictionHead(config, vocab_size, rngs=rngs) if config.head == "transform" else None
        self.untied = None if config.tied else table(rngs.params(), **vocab_table)
        learnt = config.positions
        size, types = (learnt.size, learnt.token_types) if learnt is not None else (0, 0)
        self.position = table(rngs.params(), (size, config.dim), (None, "embed")) if size else None
        self.token_type = table(rngs.params(), (types, config.dim), (None, "embed")) if types else None

    def __call__(
        self,
        tokens_BxT: Int[Array, "batch time"],
        segment_BxT: Int[Array, "batch time"],
        position_BxT: Int[Array, "batch time"],
        keys: Keys | None = None,
        type_BxT: Int[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time dim"]:
        """Encodes packed rows.

        Args:
          segment_BxT: 1, 2, ... for the documents of a row, each contiguous; 0 for padding.
          position_BxT: index of a token in its segment.
          keys: one key a row for dropout, or None for evaluation.
          type_BxT: token types, which tell pairs of texts apart; ignored by a model without them. None is all 0.

        Returns:
          float32 hidden states after the final norm, 0 at padding.
        """
        return self.hidden_states(tokens_BxT, segment_BxT, position_BxT, keys, type_BxT=type_BxT)[0]

    def encode(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        segment_BxT: Int[Array, "batch time"],
        position_BxT: Int[Array, "batch time"],
        keys: Keys | FrameKeys | None = None,
        probe: Callable[[Array, Array], Array] | None = None,
    ) -> tuple[Float[Array, "batch time dim"], Float[Array, "layers ..."] | None]:
        """Encodes vectors in place of token embeddings (`embed`); other arguments as of `__call__`.

        Args:
          keys: for dropout: one key a row, or one for each segment, whose draws then depend on nothing else in its row.
          probe: `(queries [B, T, heads, head_dim], keys [B, T, kv_heads, head_dim]) -> array`, applied in each layer;
            None for no probe.

        Returns:
          The hidden states, and the probe's results, stacked over layers.
        """
        hidden, (probed, _) = self._encode(x_BxTxD, segment_BxT, position_BxT, keys, probe)
        return hidden, probed

    def hidden_states(
        self,
        tokens_BxT: Int[Array, "batch time"],
        segment_BxT: Int[Array, "batch time"],
        position_BxT: Int[Array, "batch time"],
        keys: Keys | None = None,
        taps: tuple[int, ...] = (),
        type_BxT: Int[Array, "batch time"] | None = None,
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """Encodes packed rows and returns inner states too; other arguments as of `__call__`.

        Args:
          taps: layers whose output is returned, counted from 1.

        Returns:
          The hidden states, and the residual stream after each tap: float32, 0 at padding.
        """
        if not all(1 <= tap <= self.config.num_layers for tap in taps):
            raise ValueError(f"taps must be between 1 and num_layers ({self.config.num_layers}); got {taps}")
        num_tokens = tokens_BxT.shape[1]
        vectors = self.embed(sequence.pad_time(tokens_BxT))
        if type_BxT is not None and self.token_type is not None:  # the first type is added to every token
            types = self.token_type[...].astype(vectors.dtype)
            vectors += types[jnp.minimum(sequence.pad_time(type_BxT), len(types) - 1)] - types[0]
        segment_BxT, position_BxT = map(sequence.pad_time, (segment_BxT, position_BxT))
        hidden, (_, every_x) = self._encode(vectors, segment_BxT, position_BxT, keys, keep_every=bool(taps))
        real = (segment_BxT > 0)[..., None]

        def finish(x: Array) -> Array:
            return jnp.where(real, x.astype(jnp.float32), 0)[:, :num_tokens]

        return hidden[:, :num_tokens], {tap: finish(every_x[tap - 1]) for tap in taps}

    def _encode(
        self,
        x_BxTxD: Array,
        segment_BxT: Array,
        position_BxT: Array,
        keys: Keys | FrameKeys | None,
        probe: Callable[[Array, Array], Array] | None = None,
        keep_every: bool = False,
    ) -> tuple[Array, tuple[Array | None, Array | None]]:
        """Returns hidden states, and of every layer the probe's result and the residual stream, or None."""
        config, num_vectors = self.config, x_BxTxD.shape[1]
        x_BxTxD = self._add_positions(x_BxTxD, position_BxT)
        x_BxTxD, segment_BxT, position_BxT = map(sequence.pad_time, (x_BxTxD, segment_BxT, position_BxT))
        segments, keys = (keys.segments, keys.keys) if isinstance(keys, FrameKeys) else (None, keys)

        def keys_of(keys: Array | None) -> Keys | FrameKeys | None:
            return keys if segments is None else FrameKeys(keys, segments)

        *keys_L, key_in = split_keys(keys, config.num_layers + 1)
        x = shard_residual(dropout(x_BxTxD, config.dropout, keys_of(key_in)))
        rotations = self._rotations(position_BxT)

        def mix(is_global: Bool[Array, ""], q: Array, k: Array, v: Array) -> tuple[Array, Array | None]:
            operands = q, k, v, segment_BxT
            probed = None if probe is None else probe(q, k)
            windowed = partial(attend, causal=config.causal, window=config.window, kernel=config.attention)
            whole = partial(windowed, window=None)
            if (
                len(set(config.sees_all)) == 1
            ):  # a condition on the layer would be compiled, and computed on some devices
                return (whole if config.sees_all[0] else windowed)(*operands), probed
            return jax.lax.cond(is_global, whole, windowed, *operands), probed

        def run(block: Block, x: Array, inputs: tuple[Array, Array, Array | None]) -> tuple[Array, tuple]:
            index, is_global, keys = inputs
            x, probed = block(x, _choose(is_global, rotations), partial(mix, is_global), index == 0, keys_of(keys))
            return x, (probed, x if keep_every else None)

        inputs = *self._layers(), None if keys is None else jnp.stack(keys_L)
        x, outputs = scan_layers(self.layers, run, x, inputs, config.remat)
        return self._finish(x, segment_BxT > 0)[:, :num_vectors], outputs

    def decode(
        self, tokens_BxT: Int[Array, "batch time"], position_BxT: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        """Encodes the next tokens per row, given the cached ones, to the same numbers as `__call__`.

        A call takes any number of tokens, such as a whole prompt and then one token at a time. Rows of different length
        are padded, at either end, with tokens of position -1, which do not enter the cache. A repeated position
        replaces its entry, so a row is rewound by passing earlier positions.

        Args:
          position_BxT: below the cache's length, or -1 at padding. All earlier positions are in the cache or in this
            call. Positions beyond the cache are dropped silently; the caller has to avoid them.

        Returns:
          float32 hidden states after the final norm, 0 at padding; the cache with these tokens added.

        Raises:
          ValueError: the model is not causal.
        """
        return self.decode_embedded(self.embed(tokens_BxT), position_BxT, cache)

    def decode_embedded(
        self, x_BxTxD: Float[Array, "batch time dim"], position_BxT: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        """Like `decode`, for vectors in place of token embeddings (`embed`)."""
        config = self.config
        if not config.causal:
            raise ValueError("only a causal model can continue a text: this one has model.causal=False")
        length = cache["key"].shape[2]
        row = jnp.arange(x_BxTxD.shape[0])[:, None]
        slot = jnp.where(position_BxT < 0, length, position_BxT)  # out of bounds: the write is dropped
        distance = position_BxT[:, :, None] - jnp.arange(length)
        far = distance >= 0
        near = far if config.window is None else far & (distance <= config.window)
        rotations = self._rotations(position_BxT)
        x_BxTxD = self._add_positions(x_BxTxD, position_BxT)

        def run(
            block: Block, x_and_cache: tuple[Array, Cache], inputs: tuple[Array, Array]
        ) -> tuple[tuple[Array, Cache], None]:
            x, cache = x_and_cache
            index, is_global = inputs

            def mix(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
                new = {"key": k, "value": v}
                new = {
                    name: cache[name].at[index, row, slot].set(new[name].astype(cache[name].dtype), mode="drop")
                    for name in cache
                }
                k, v = (new[name][index].astype(q.dtype) for name in ("key", "value"))
                return masked_attention(q, k, v, jnp.where(is_global, far, near)), new

            return block(x, _choose(is_global, rotations), mix, index == 0, None), None

        (x, cache), _ = scan_layers(self.layers, run, (x_BxTxD, cache), self._layers(), "none")
        return self._finish(x, position_BxT >= 0), cache

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Returns `init_cache` of this model."""
        return init_cache(self.config, batch_size, length)

    @property
    def head_kernel(self) -> Float[Array, "vocab dim"]:
        """Kernel of the vocabulary map: logits are `head(hidden) @ head_kernel.T + head_bias`."""
        return (self.embedding if self.untied is None else self.untied)[...]

    @property
    def head_bias(self) -> Float[Array, " vocab"] | None:
        """Bias of the vocabulary map, or None."""
        return None if self.prediction is None else self.prediction.bias[...]

    def head(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Applies the part of the head before the vocabulary map; the identity without one."""
        if self.prediction is None:
            return hidden
        return self.prediction(hidden.astype(self.config.dtype)).astype(jnp.float32)

    def logits(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """Returns float32 logits of hidden states."""
        x, kernel = self.head(hidden).astype(self.config.dtype), self.head_kernel.astype(self.config.dtype)
        logits = jnp.einsum("...d,vd->...v", x, kernel, preferred_element_type=jnp.float32)
        return logits if self.head_bias is None else logits + self.head_bias

    def embed(self, tokens_BxT: Int[Array, "batch time"]) -> Float[Array, "batch time dim"]:
        """Returns the embeddings of tokens, in the compute type."""
        return shard_batch_and_time(self.embedding[...][tokens_BxT].astype(self.config.dtype))

    def _add_positions(self, x_BxTxD: Array, position_BxT: Array) -> Array:
        """Adds learnt position and token type embeddings, if the model has them."""
        learnt, dtype = self.config.positions, x_BxTxD.dtype
        if learnt is None:
            return x_BxTxD
        if x_BxTxD.shape[1] > learnt.longest:
            raise ValueError(
                f"a row of {x_BxTxD.shape[1]} tokens is longer than the {learnt.longest} positions of this model: "
                f"set data.context to at most {learnt.longest}"
            )
        if self.token_type is not None:
            x_BxTxD = x_BxTxD + self.token_type[...][0].astype(dtype)
        return x_BxTxD + self.position[...][learnt.first + jnp.maximum(position_BxT, 0)].astype(dtype)

    def _rotations(self, position_BxT: Array) -> tuple[Rotation | None, Rotation | None]:
        """Returns the rotations of the layers with a window, and of the layers without; None with learnt positions."""
        config = self.config
        if config.positions is not None:
            return None, None
        thetas = config.local_rope_theta or config.rope_theta, config.rope_theta
        return tuple(
            rotation(position_BxT, *rope.frequencies(config.rope_scaling, theta, config.head_dim)) for theta in thetas
        )

    def _layers(self) -> tuple[Int[Array, " layers"], Bool[Array, " layers"]]:
        """Returns each layer's index, and whether its attention has no window."""
        return jnp.arange(self.config.num_layers), jnp.asarray(self.config.sees_all)

    def _finish(self, x: Array, real_BxT: Array) -> Array:
        return jnp.where(real_BxT[..., None], self.norm(x.astype(jnp.float32)), 0)


def init_cache(config: TransformerConfig, batch_size: int, length: int, dtype: str | None = None) -> Cache:
    """Returns an empty cache for `Transformer.decode`.

    Args:
      length: greatest number of tokens a row.
    """
    shape = config.num_layers, batch_size, length, config.num_kv_heads, config.head_dim
    return {name: jnp.zeros(shape, dtype or config.dtype) for name in ("key", "value")}


def rotation(position_BxT: Int[Array, "batch time"], frequency: rope.Frequencies, scale: float = 1.0) -> Rotation:
    """Returns cosine and sine of position * frequency, times `scale`."""
    angle = position_BxT[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if scale == 1 else (cos * scale, sin * scale)


def rotate(
    x: Float[Array, "batch time heads head_dim"], rotation: Rotation
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates the pairs (x[i], x[i + head_dim / 2]) by the angles of their position, in float32."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _choose(is_global: Array, rotations: tuple[Rotation | None, Rotation | None]) -> Rotation | None:
    return jax.tree.map(lambda local, full: jnp.where(is_global, full, local), *rotations)


_gelu = partial(jax.nn.gelu, approximate=False)
_ACTIVATIONS = {"swiglu": jax.nn.silu, "silu": jax.nn.silu, "geglu": _gelu, "gelu": _gelu, "relu": jax.nn.relu}
_ACTIVATIONS["gelu_tanh"] = partial(jax.nn.gelu, approximate=True)


def _norm(config: TransformerConfig, rngs: nnx.Rngs) -> RMSNorm | LayerNorm:
    if config.norm == "rms":
        return RMSNorm(config.dim, epsilon=config.norm_epsilon, rngs=rngs)
    return LayerNorm(config.dim, epsilon=config.norm_epsilon, bias=config.bias, rngs=rngs)


def _residual_gain(config: TransformerConfig) -> float:
    """Returns the factor that keeps the initial variance of the residual stream constant over depth (as in GPT-2)."""
    return (2 * config.num_layers) ** -0.5
