"""Decoder of the Vocos kind: codes' vectors to spectra, to samples (Siuzdak 2023; Ji et al. 2024, WavTokenizer).

Group norms and attention see all of an utterance and nothing of its padding, so the decoder does not stream.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.segments import Segments
from jax_speechlm.models.codec.config import WavTokenizerConfig
from jax_speechlm.models.codec.encoder import in_order, numbered
from jax_speechlm.nn.convolution import Convolution
from jax_speechlm.nn.functional import parameter, scan_layers, stack
from jax_speechlm.nn.layers import Keys, LayerNorm, Linear, depthwise, dropout, split_keys
from jax_speechlm.nn.stft import istft
from jax_speechlm.parallel.mesh import shard_batch_dim

Mask = Bool[Array, "batch time 1"]

_LARGEST = 100.0  # magnitude, as in the reference
_TAPS = 7  # of the first convolution and of the ConvNeXt blocks


class GroupNorm(nnx.Module):
    """Normalises groups of channels over all of an utterance's frames (Wu and He 2018)."""

    def __init__(self, config: WavTokenizerConfig, *, rngs: nnx.Rngs):
        self.groups, self.epsilon = config.num_groups, config.norm_eps
        ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros
        self.scale = parameter(rngs.params(), (config.dim,), ("embed",), ones, decays=False)
        self.bias = parameter(rngs.params(), (config.dim,), ("embed",), zeros, decays=False)

    def __call__(self, x: Float[Array, "batch time dim"], mask: Mask) -> Float[Array, "batch time dim"]:
        batch, num_frames, dim = x.shape
        y = x.astype(jnp.float32).reshape(batch, num_frames, self.groups, dim // self.groups)
        inside = mask[..., None]
        size = jnp.maximum(jnp.sum(inside, axis=(1, 3), keepdims=True), 1) * (dim // self.groups)
        mean = jnp.sum(jnp.where(inside, y, 0), axis=(1, 3), keepdims=True) / size
        y = jnp.where(inside, y - mean, 0)
        variance = jnp.sum(jnp.square(y), axis=(1, 3), keepdims=True) / size
        y = (y * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class AdaptiveNorm(nnx.Module):
    """Layer norm whose scale and shift are rows of tables; the first row is in use."""

    def __init__(self, config: WavTokenizerConfig, *, rngs: nnx.Rngs):
        shape, axes = (config.num_conditions, config.dim), (None, "embed")
        self.epsilon = config.norm_eps
        self.scale = parameter(rngs.params(), shape, axes, jax.nn.initializers.ones, decays=False)
        self.shift = parameter(rngs.params(), shape, axes, jax.nn.initializers.zeros, decays=False)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...][0] + self.shift[...][0]).astype(x.dtype)


class PositionBlock(nnx.Module):
    """Group norm -> swish -> convolution, twice, with a residual."""

    def __init__(self, config: WavTokenizerConfig, *, rngs: nnx.Rngs):
        def convolution() -> Convolution:
            return Convolution(config.dim, config.dim, 3, ("embed", None), rngs=rngs)

        self.rate = config.dropout
        self.norm1 = GroupNorm(config, rngs=rngs)
        self.conv1 = convolution()
        self.norm2 = GroupNorm(config, rngs=rngs)
        self.conv2 = convolution()

    def __call__(self, x: Float[Array, "batch time dim"], segments: Segments, keys: Keys | None) -> Float[Array, "..."]:
        mask = segments.mask(x.shape[1])[..., None]
        y = self.conv1(jax.nn.silu(self.norm1(x, mask)), segments)
        y = dropout(jax.nn.silu(self.norm2(y, mask)), self.rate, keys)
        return x + self.conv2(y, segments)


class Attention(nnx.Module):
    """Attention of one head over all frames of an utterance, after a group norm, with a residual."""

    def __init__(self, config: WavTokenizerConfig, *, rngs: nnx.Rngs):
        def square() -> Linear:
            return Linear((config.dim,), (config.dim,), ("embed", None), rngs=rngs)

        self.norm = GroupNorm(config, rngs=rngs)
        self.query, self.key, self.value, self.out = square(), square(), square(), square()

    def __call__(self, x: Float[Array, "batch time dim"], mask: Mask) -> Float[Array, "batch time dim"]:
        y = self.norm(x, mask)
        scores = jnp.einsum("btd,bsd->bts", self.query(y), self.key(y)).astype(jnp.float32) * x.shape[-1] ** -0.5
        # A finite value, so that a row without frames has finite weights.
        weights = jax.nn.softmax(jnp.where(mask[:, None, :, 0], scores, -1e30)).astype(x.dtype)
        return x + self.out(jnp.einsum("bts,bsd->btd", weights, jnp.where(mask, self.value(y), 0)))


class ConvNeXtBlock(nnx.Module):
    """Depthwise convolution -> adaptive norm -> linear -> GELU -> linear -> scale, with a residual."""

    def __init__(self, config: WavTokenizerConfig, *, rngs: nnx.Rngs):
        dim, inner = config.dim, config.ffn_dim
        taps, zeros = jax.nn.initializers.normal(_TAPS**-0.5), jax.nn.initializers.zeros
        scale = jax.nn.initializers.constant(1 / config.num_layers)
        self.depthwise = parameter(rngs.params(), (_TAPS, dim), (None, "embed"), taps)
        self.bias = parameter(rngs.params(), (dim,), ("embed",), zeros, decays=False)
        self.norm = AdaptiveNorm(config, rngs=rngs)
        self.expand = Linear((dim,), (inner,), ("embed", "mlp"), rngs=rngs)
        self.contract = Linear((inner,), (dim,), ("mlp", "embed"), rngs=rngs)
        self.scale = parameter(rngs.params(), (dim,), ("embed",), scale, decays=False)

    def __call__(self, x: Float[Array, "batch time dim"], mask: Mask) -> Float[Array, "batch time dim"]:
        taps = self.depthwise[...].astype(x.dtype)
        y = depthwise(jnp.where(mask, x, 0), taps, None, _TAPS // 2) + self.bias[...].astype(x.dtype)
        y = self.contract(jax.nn.gelu(self.expand(self.norm(y)), approximate=False))
        return x + self.scale[...].astype(x.dtype) * y


class Decoder(nnx.Module):
    """Vectors of codes to waveforms."""

    def __init__(self, config: WavTokenizerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Convolution(config.latent_dim, config.dim, _TAPS, ("embed", None), rngs=rngs)
        self.before = numbered(PositionBlock(config, rngs=rngs) for _ in range(2))
        self.attention = Attention(config, rngs=rngs)
        self.after = numbered(PositionBlock(config, rngs=rngs) for _ in range(2))
        self.position_norm = GroupNorm(config, rngs=rngs)
        self.embed_norm = AdaptiveNorm(config, rngs=rngs)
        self.layers = stack(lambda rngs: ConvNeXtBlock(config, rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(config.dim, epsilon=config.norm_eps, rngs=rngs)
        self.head = Linear((config.dim,), (config.n_fft + 2,), ("embed", None), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time latent"], length: Array, keys: Keys | None = None
    ) -> Float32[Array, "batch samples"]:
        """Returns `hop` samples for each frame, 0 at padding.

        Args:
          length: codes in each row.
          keys: of dropout, a key a row; None for none.
        """
        config, segments = self.config, Segments.of(length)
        mask = segments.mask(x.shape[1])[..., None]
        x = self.embed(shard_batch_dim(x.astype(config.dtype)), segments)
        blocks = [*in_order(self.before), *in_order(self.after)]
        for index, (block, block_keys) in enumerate(zip(blocks, split_keys(keys, len(blocks)), strict=True)):
            x = self.attention(x, mask) if index == len(self.before) else x
            x = block(x, segments, block_keys)
        x = self.embed_norm(self.position_norm(x, mask))
        x, _ = scan_layers(self.layers, lambda layer, x, _: (layer(x, mask), None), x, None, config.remat)
        log_magnitude, phase = jnp.split(self.head(self.norm(x)).astype(jnp.float32), 2, axis=-1)
        magnitude = jnp.minimum(jnp.exp(jnp.minimum(log_magnitude, 10)), _LARGEST)  # no overflow in the gradient
        audio = istft(
            magnitude * jnp.cos(phase), magnitude * jnp.sin(phase), config.hop, padding="same", lengths=length
        )
        inside = frame_mask(length * config.hop, audio.shape[1])
        return jnp.where(inside, audio, 0)
