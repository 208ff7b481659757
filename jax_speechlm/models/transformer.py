"""The transformer over tokens: causal as Qwen3 and Llama are, or looking both ways as ModernBERT does.

One block: norm, attention with rotary positions and grouped keys and values, norm, gated feed-forward, both residual.
Given the same weights it gives the same numbers as Hugging Face's `Qwen3ForCausalLM`, `LlamaForCausalLM` and
`ModernBertForMaskedLM` (`jax_speechlm.interop.transformer` maps them both ways).

Parameters without the vocabulary's table, which has dim for each token (8B has a second one, for the head):

| size | layers | dim  | heads | kv heads | ffn    | parameters    |
|------|-------:|-----:|------:|---------:|-------:|--------------:|
| 1M   |      5 |  128 |     4 |        4 |    352 |     1,005,248 |
| 5M   |      6 |  256 |     4 |        4 |    704 |     4,820,992 |
| 25M  |      8 |  512 |     8 |        8 |  1,408 |    25,699,840 |
| 110M |     12 |  768 |    12 |       12 |  2,048 |    84,955,392 |
| 0.6B |     28 | 1024 |    16 |        8 |  3,072 |   440,467,456 |
| 1.7B |     28 | 2048 |    16 |        8 |  6,144 | 1,409,410,048 |
| 8B   |     36 | 4096 |    32 |        8 | 12,288 | 6,946,075,648 |

110M has its name with 32,768 tokens; the last three are Qwen3's shapes and have theirs with its 151,936.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.config import Config
from jax_speechlm.models.dot_attention import Kernel, attend, masked_attention
from jax_speechlm.models.functional import Remat, parameter, scan_layers, stack
from jax_speechlm.models.layers import Keys, LayerNorm, Linear, RMSNorm, dropout, split_keys
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import by_tokens

Cache = dict[str, Array]
"""Keys and values of the tokens so far: {"key", "value"}, each [layers, batch, position, kv_heads, head_dim]."""

Rotation = tuple[Float[Array, "batch time 1 half"], Float[Array, "batch time 1 half"]]
"""Cosine and sine of each position's angles."""


class TransformerConfig(Config):
    """The shape of a transformer. The defaults are a small causal model in Qwen3's form.

    Llama's form has `query_key_norm=False`. ModernBERT's has `causal=False, norm="layer", norm_epsilon=1e-5,
    activation="gelu", query_key_norm=False, embedding_norm=True, prediction_head=True` and a window.

    Attributes:
      dim: width of the residual stream.
      num_layers: blocks.
      num_heads: query heads; a multiple of `num_kv_heads`.
      num_kv_heads: heads of keys and values; fewer than `num_heads` is grouped-query attention.
      head_dim: width of a head; even.
      ffn_dim: inner width of the gated feed-forward.
      causal: whether a token sees only itself and those before it.
      norm: RMSNorm, or LayerNorm without offset.
      norm_epsilon: what the norms add to the variance.
      activation: of the feed-forward's gate: "silu" is SwiGLU, "gelu" (exact) GEGLU.
      query_key_norm: whether each head's queries and keys pass an RMSNorm (of their own scale) before rotation.
      embedding_norm: whether the residual stream starts from the normalised embeddings; they are then not normalised
        again before the first attention.
      prediction_head: whether a linear map, GELU and norm stand before the vocabulary map, which then has a bias.
      tied: whether the vocabulary map is the embedding.
      rope_theta: base of the rotary angles' wavelengths.
      window: the greatest distance in tokens at which attention sees; None for any.
      global_every: with a window: layers 0, n, 2n, ... see everything all the same; None for no such layers.
      local_rope_theta: `rope_theta` of the layers with a window; None for the same.
      dropout: rate on the embeddings and on what attention and feed-forward add.
      attention: what computes attention (see `dot_attention.Kernel`); no result depends on it.
      remat: what the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, norms, softmax and the output are float32.
    """

    kind: Literal["transformer"] = "transformer"
    dim: pydantic.PositiveInt = 256
    num_layers: pydantic.PositiveInt = 6
    num_heads: pydantic.PositiveInt = 4
    num_kv_heads: pydantic.PositiveInt = 4
    head_dim: pydantic.PositiveInt = 64
    ffn_dim: pydantic.PositiveInt = 704
    causal: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: pydantic.PositiveFloat = 1e-6
    activation: Literal["silu", "gelu"] = "silu"
    query_key_norm: bool = True
    embedding_norm: bool = False
    prediction_head: bool = False
    tied: bool = True
    rope_theta: pydantic.PositiveFloat = 10_000.0
    window: pydantic.PositiveInt | None = None
    global_every: pydantic.PositiveInt | None = None
    local_rope_theta: pydantic.PositiveFloat | None = None
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    attention: Kernel = "auto"
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _parts_fit(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        if self.window is None and (self.global_every or self.local_rope_theta):
            raise ValueError("global_every and local_rope_theta speak of layers with a window: set window")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError("attention='cudnn' computes in bfloat16 only: set dtype='bfloat16', or attention='auto'")
        return self

    @property
    def sees_all(self) -> tuple[bool, ...]:
        """For each layer, whether its attention has no window."""
        if self.window is None:
            return (True,) * self.num_layers
        return tuple(self.global_every is not None and i % self.global_every == 0 for i in range(self.num_layers))


SIZES = {
    "1M": TransformerConfig(dim=128, num_layers=5, num_heads=4, num_kv_heads=4, head_dim=32, ffn_dim=352),
    "5M": TransformerConfig(),
    "25M": TransformerConfig(dim=512, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=1408),
    "110M": TransformerConfig(dim=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64, ffn_dim=2048),
    "0.6B": TransformerConfig(
        dim=1024, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, ffn_dim=3072, rope_theta=1e6
    ),
    "1.7B": TransformerConfig(
        dim=2048, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, ffn_dim=6144, rope_theta=1e6
    ),
    "8B": TransformerConfig(
        dim=4096, num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128, ffn_dim=12288, rope_theta=1e6, tied=False
    ),
}


class Attention(nnx.Module):
    """The linear maps around attention: queries, keys and values, rotated to their positions, and the way back."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dim, heads, groups, head_dim = config.dim, config.num_heads, config.num_kv_heads, config.head_dim
        into, out_of = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")
        self.query = Linear((dim,), (heads, head_dim), into, bias=False, rngs=rngs)
        self.key = Linear((dim,), (groups, head_dim), into, bias=False, rngs=rngs)
        self.value = Linear((dim,), (groups, head_dim), into, bias=False, rngs=rngs)
        self.out = Linear((heads, head_dim), (dim,), out_of, bias=False, gain=_residual_gain(config), rngs=rngs)
        norm = partial(RMSNorm, head_dim, axis="head_dim", epsilon=config.norm_epsilon, rngs=rngs)
        self.query_norm = norm() if config.query_key_norm else None
        self.key_norm = norm() if config.query_key_norm else None

    def project(
        self, x: Float[Array, "batch time dim"], rotation: Rotation
    ) -> tuple[Float[Array, "batch time heads head_dim"], ...]:
        """Queries, keys and values."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return rotate(q, rotation), rotate(k, rotation), v


class FeedForward(nnx.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dim, inner = config.dim, config.ffn_dim
        self.activation = {"silu": jax.nn.silu, "gelu": partial(jax.nn.gelu, approximate=False)}[config.activation]
        self.gate = Linear((dim,), (inner,), ("embed", "mlp"), bias=False, rngs=rngs)
        self.up = Linear((dim,), (inner,), ("embed", "mlp"), bias=False, rngs=rngs)
        self.down = Linear((inner,), (dim,), ("mlp", "embed"), bias=False, gain=_residual_gain(config), rngs=rngs)

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and feed-forward, each on the normalised residual stream and added to it."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.rate, self.embedding_norm = config.dropout, config.embedding_norm
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs=rngs)
        self.ffn_norm = _norm(config, rngs)
        self.ffn = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        rotation: Rotation,
        mix: Callable[..., tuple[Array, Any]],
        is_first: Bool[Array, ""],
        keys: Keys | None,
    ) -> tuple[Float[Array, "batch time dim"], Any]:
        """Returns the residual stream after the block, and what `mix: (q, k, v) -> (mixed values, state)` gave."""
        mixed_key, ffn_key = split_keys(keys, 2)
        normed = self.attention_norm(x)
        if self.embedding_norm:  # it is the first block's norm, on the stream itself
            x = jnp.where(is_first, normed, x)
        mixed, state = mix(*self.attention.project(normed, rotation))
        x = by_tokens(x + dropout(self.attention.out(mixed), self.rate, mixed_key))
        return by_tokens(x + dropout(self.ffn(self.ffn_norm(x)), self.rate, ffn_key)), state


class PredictionHead(nnx.Module):
    """linear -> GELU -> norm, and the bias of the vocabulary map behind it."""

    def __init__(self, config: TransformerConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.linear = Linear((config.dim,), (config.dim,), ("embed", None), bias=False, rngs=rngs)
        self.norm = _norm(config, rngs)
        self.bias = parameter(rngs.params(), (vocab_size,), ("vocab",), jax.nn.initializers.zeros)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.norm(jax.nn.gelu(self.linear(x), approximate=False))


class Transformer(nnx.Module):
    """Tokens in, hidden states out, and the vocabulary map from there to logits.

    What a token gives depends on its own segment only: not on padding, batch size, row order or its neighbours in a
    packed row.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        table = partial(parameter, shape=(vocab_size, config.dim), axes=("vocab", "embed"))
        self.embedding = table(rngs.params(), initializer=jax.nn.initializers.normal(0.02))
        self.layers = stack(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm = _norm(config, rngs)
        self.prediction = PredictionHead(config, vocab_size, rngs=rngs) if config.prediction_head else None
        self.untied = None if config.tied else table(rngs.params(), initializer=jax.nn.initializers.normal(0.02))

    def __call__(
        self,
        tokens_BxT: Int[Array, "batch time"],
        segment_BxT: Int[Array, "batch time"],
        position_BxT: Int[Array, "batch time"],
        keys: Keys | None = None,
    ) -> Float[Array, "batch time dim"]:
        """Encodes packed rows.

        Args:
          tokens_BxT: ids below the vocabulary's size.
          segment_BxT: 1, 2, ... for each document of a row, each one stretch; 0 for padding.
          position_BxT: counts from 0 in each segment.
          keys: one key a row for dropout, or None for evaluation.

        Returns:
          float32 hidden states after the final norm, 0 at padding.
        """
        return self.hidden_states(tokens_BxT, segment_BxT, position_BxT, keys)[0]

    def encode(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        segment_BxT: Int[Array, "batch time"],
        position_BxT: Int[Array, "batch time"],
        keys: Keys | None = None,
        probe: Callable[[Array, Array], Array] | None = None,
    ) -> tuple[Float[Array, "batch time dim"], Float[Array, "layers ..."] | None]:
        """`__call__` on vectors that stand where tokens' embeddings do (`embed`).

        Args:
          probe: `(queries [B, T, heads, head_dim], keys [B, T, kv_heads, head_dim]) -> what to know of them`, of each
            layer; None for nothing.

        Returns:
          The hidden states, and what the probe found, stacked over layers.
        """
        hidden, (found, _) = self._encode(x_BxTxD, segment_BxT, position_BxT, keys, probe)
        return hidden, found

    def hidden_states(
        self,
        tokens_BxT: Int[Array, "batch time"],
        segment_BxT: Int[Array, "batch time"],
        position_BxT: Int[Array, "batch time"],
        keys: Keys | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """`__call__`, and the residual stream after each of `taps` layers, counted from 1: float32, 0 at padding."""
        if not all(1 <= tap <= self.config.num_layers for tap in taps):
            raise ValueError(f"taps must lie between 1 and num_layers ({self.config.num_layers}); got {taps}")
        num_tokens = tokens_BxT.shape[1]
        vectors = self.embed(sequence.pad_time(tokens_BxT))
        segment_BxT, position_BxT = map(sequence.pad_time, (segment_BxT, position_BxT))
        hidden, (_, every_x) = self._encode(vectors, segment_BxT, position_BxT, keys, keep_every=bool(taps))
        real = (segment_BxT > 0)[..., None]
        finish = lambda x: jnp.where(real, x.astype(jnp.float32), 0)[:, :num_tokens]  # noqa: E731
        return hidden[:, :num_tokens], {tap: finish(every_x[tap - 1]) for tap in taps}

    def _encode(
        self,
        x_BxTxD: Array,
        segment_BxT: Array,
        position_BxT: Array,
        keys: Keys | None,
        probe: Callable[[Array, Array], Array] | None = None,
        keep_every: bool = False,
    ) -> tuple[Array, tuple[Array | None, Array | None]]:
        """Hidden states; what the probe found, and the residual stream after every layer, or None for either."""
        config, num_vectors = self.config, x_BxTxD.shape[1]
        x_BxTxD, segment_BxT, position_BxT = map(sequence.pad_time, (x_BxTxD, segment_BxT, position_BxT))
        *keys_L, key_in = split_keys(keys, config.num_layers + 1)
        x = dropout(x_BxTxD, config.dropout, key_in)
        rotations = self._rotations(position_BxT)

        def mix(is_global: Bool[Array, ""], q: Array, k: Array, v: Array) -> tuple[Array, Array | None]:
            see = lambda window: partial(attend, causal=config.causal, window=window, kernel=config.attention)  # noqa: E731
            operands = q, k, v, segment_BxT
            found = None if probe is None else probe(q, k)
            if config.global_every is None:
                return see(config.window)(*operands), found
            return jax.lax.cond(is_global, see(None), see(config.window), *operands), found

        def run(block: Block, x: Array, each: tuple[Array, Array, Keys | None]) -> tuple[Array, tuple]:
            index, is_global, keys = each
            x, found = block(x, _choose(is_global, rotations), partial(mix, is_global), index == 0, keys)
            return x, (found, x if keep_every else None)

        each = *self._layers(), None if keys is None else jnp.stack(keys_L)
        x, kept = scan_layers(self.layers, run, x, each, config.remat)
        return self._finish(x, segment_BxT > 0)[:, :num_vectors], kept

    def decode(
        self, tokens_BxT: Int[Array, "batch time"], position_BxT: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        """The next tokens of each row, given those before them in the cache: the same numbers as `__call__`.

        A row's tokens may be any number of its next ones, so a prompt is one call and each token after it another. Rows
        of different length are filled up, at either end, with tokens of position -1, which leave no trace. A position
        decoded again replaces what stood there, so a row goes back by giving earlier positions.

        Args:
          tokens_BxT: ids below the vocabulary's size.
          position_BxT: below the cache's length, or -1 in padding. All positions below it are in the cache, or in this
            call. One at or beyond the cache's length would be lost: the caller has to see to it.
          cache: from `init_cache`, or from the call before.

        Returns:
          float32 hidden states after the final norm, 0 at padding; the cache with these tokens in it.

        Raises:
          ValueError: the model is not causal.
        """
        return self.decode_embedded(self.embed(tokens_BxT), position_BxT, cache)

    def decode_embedded(
        self, x_BxTxD: Float[Array, "batch time dim"], position_BxT: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        """`decode` of vectors that stand where tokens' embeddings do (`embed`)."""
        config = self.config
        if not config.causal:
            raise ValueError("only a causal model continues a text: this one has model.causal=False")
        length = cache["key"].shape[2]
        row = jnp.arange(x_BxTxD.shape[0])[:, None]
        place = jnp.where(position_BxT < 0, length, position_BxT)  # out of bounds: the write is dropped
        distance = position_BxT[:, :, None] - jnp.arange(length)
        far = distance >= 0
        near = far if config.window is None else far & (distance <= config.window)
        rotations = self._rotations(position_BxT)

        def run(
            block: Block, x_and_cache: tuple[Array, Cache], each: tuple[Array, Array]
        ) -> tuple[tuple[Array, Cache], None]:
            x, cache = x_and_cache
            index, is_global = each

            def mix(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
                new = {"key": k, "value": v}
                new = {
                    name: cache[name].at[index, row, place].set(new[name].astype(cache[name].dtype), mode="drop")
                    for name in cache
                }
                k, v = (new[name][index].astype(q.dtype) for name in ("key", "value"))
                return masked_attention(q, k, v, jnp.where(is_global, far, near)), new

            return block(x, _choose(is_global, rotations), mix, index == 0, None), None

        (x, cache), _ = scan_layers(self.layers, run, (x_BxTxD, cache), self._layers(), "none")
        return self._finish(x, position_BxT >= 0), cache

    @property
    def head_kernel(self) -> Float[Array, "vocab dim"]:
        """The vocabulary map: logits are `head(hidden) @ head_kernel.T + head_bias`."""
        return (self.embedding if self.untied is None else self.untied)[...]

    @property
    def head_bias(self) -> Float[Array, " vocab"] | None:
        """The vocabulary map's bias, or None."""
        return None if self.prediction is None else self.prediction.bias[...]

    def head(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """What stands before the vocabulary map: the prediction head, or nothing."""
        if self.prediction is None:
            return hidden
        return self.prediction(hidden.astype(self.config.dtype)).astype(jnp.float32)

    def logits(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """float32 logits of hidden states."""
        x, kernel = self.head(hidden).astype(self.config.dtype), self.head_kernel.astype(self.config.dtype)
        logits = jnp.einsum("...d,vd->...v", x, kernel, preferred_element_type=jnp.float32)
        return logits if self.head_bias is None else logits + self.head_bias

    def embed(self, tokens_BxT: Int[Array, "batch time"]) -> Float[Array, "batch time dim"]:
        """The tokens' embeddings, in the compute type."""
        return by_tokens(self.embedding[...][tokens_BxT].astype(self.config.dtype))

    def _rotations(self, position_BxT: Array) -> tuple[Rotation, Rotation]:
        """Those of the layers with a window and of the others."""
        config = self.config
        local_theta = config.local_rope_theta or config.rope_theta
        return tuple(rotation(position_BxT, theta, config.head_dim) for theta in (local_theta, config.rope_theta))

    def _layers(self) -> tuple[Int[Array, " layers"], Bool[Array, " layers"]]:
        """Each layer's number, and whether it sees everything."""
        return jnp.arange(self.config.num_layers), jnp.asarray(self.config.sees_all)

    def _finish(self, x: Array, real_BxT: Array) -> Array:
        return jnp.where(real_BxT[..., None], self.norm(x.astype(jnp.float32)), 0)


def init_cache(config: TransformerConfig, batch_size: int, length: int, dtype: str | None = None) -> Cache:
    """An empty cache for `Transformer.decode`: rows are its second axis.

    Args:
      length: the most tokens that a row may come to have.
      dtype: of what is kept; None for the model's compute type.
    """
    shape = config.num_layers, batch_size, length, config.num_kv_heads, config.head_dim
    return {name: jnp.zeros(shape, dtype or config.dtype) for name in ("key", "value")}


def rotation(position_BxT: Int[Array, "batch time"], theta: float, head_dim: int) -> Rotation:
    """Angles position * theta^(-2i / head_dim) for i = 0 ... head_dim / 2 - 1 (Su et al. 2021)."""
    frequency = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = position_BxT[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "batch time heads head_dim"], rotation: Rotation
) -> Float[Array, "batch time heads head_dim"]:
    """Turns the pairs (x[i], x[i + head_dim / 2]) by their position's angles, in float32."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def forward_flops(config: TransformerConfig, vocab_size: int, num_tokens: int, batch_size: int) -> float:
    """FLOPs of the matrix products of one forward pass over rows of `num_tokens`; a multiply-add is two.

    Attention counts the pairs that a token may see were the row one segment, the vocabulary map every token.
    """
    width = config.num_heads * config.head_dim
    layer = (2 * width + 2 * config.num_kv_heads * config.head_dim + 3 * config.ffn_dim) * config.dim
    head = (vocab_size + config.dim * config.prediction_head) * config.dim
    linear = 2.0 * batch_size * num_tokens * (config.num_layers * layer + head)
    return linear + attention_flops(config, num_tokens, batch_size)


def attention_flops(config: TransformerConfig, num_tokens: int, batch_size: int) -> float:
    """The share of `forward_flops` that no parameter has a part in: queries by keys, and weights by values."""
    windows = (None if sees_all else config.window for sees_all in config.sees_all)
    pairs = sum(_pairs(num_tokens, window, config.causal) for window in windows)
    return 4.0 * batch_size * config.num_heads * config.head_dim * pairs


def _pairs(num_tokens: int, window: int | None, causal: bool) -> int:
    """How many (query, key) pairs attention looks at in a row of one segment."""
    reach = num_tokens - 1 if window is None else min(window, num_tokens - 1)
    behind = reach * num_tokens - reach * (reach + 1) // 2
    return num_tokens + behind * (1 if causal else 2)


def _choose(is_global: Array, rotations: tuple[Rotation, Rotation]) -> Rotation:
    return jax.tree.map(lambda local, everywhere: jnp.where(is_global, everywhere, local), *rotations)


def _norm(config: TransformerConfig, rngs: nnx.Rngs) -> RMSNorm | LayerNorm:
    if config.norm == "rms":
        return RMSNorm(config.dim, epsilon=config.norm_epsilon, rngs=rngs)
    return LayerNorm(config.dim, epsilon=config.norm_epsilon, bias=False, rngs=rngs)


def _residual_gain(config: TransformerConfig) -> float:
    """Keeps the residual stream's variance at the start from growing with depth (GPT-2's initialisation)."""
    return (2 * config.num_layers) ** -0.5
