"""Whisper's encoder: two convolutions, sinusoidal positions and a pre-norm transformer (Radford et al. 2022).

With the same weights it computes the same numbers as Hugging Face's `WhisperEncoder`, and with an attention decoder
(`encoder_decoder`) as `WhisperForConditionalGeneration` (`jax_speechlm.interop.hf.whisper` converts the weights).

| size     | layers | dim  | heads | mel bins | parameters of the encoder |
|----------|-------:|-----:|------:|---------:|--------------------------:|
| tiny     |      4 |  384 |     6 |       80 |                 8,208,384 |
| base     |      6 |  512 |     8 |       80 |                20,590,592 |
| small    |     12 |  768 |    12 |       80 |                88,154,112 |
| medium   |     24 | 1024 |    16 |       80 |               307,217,408 |
| large    |     32 | 1280 |    20 |       80 |               636,784,640 |
| large-v3 |     32 | 1280 |    20 |      128 |               636,968,960 |
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Key

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.models.encoder_base import Encoder, frames_of
from jax_speechlm.nn.attention.dot import Kernel, attend
from jax_speechlm.nn.attention.multi_head import MultiHeadMaps
from jax_speechlm.nn.attention.relative import Chunk
from jax_speechlm.nn.convolution import Convolution
from jax_speechlm.nn.functional import Remat, parameter, stack
from jax_speechlm.nn.layers import Count, FrameKeys, Keys, LayerNorm, Linear, dropout, split_keys
from jax_speechlm.parallel.mesh import gather_residual, scatter_residual, shard_batch_and_time, shard_residual

_gelu = partial(jax.nn.gelu, approximate=False)


class WhisperEncoderConfig(Config):
    """The shape of Whisper's encoder.

    Attributes:
      input_dim: mel bins; a feature vector is one frame of 10 ms, and a frame of the encoder two of them.
      dim: width of the residual stream; even, and a multiple of `num_heads`.
      num_layers: transformer layers.
      num_heads: attention heads.
      ffn_dim: inner width of the feed-forwards.
      max_frames: positions: frames of the longest utterance, 1500 (30 s) in published models.
      dropout: rate on the input of the layers, inside and after each feed-forward, and after attention.
      attention: implementation of attention (see `nn.attention.dot.Kernel`).
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, norms, softmax and the output are float32.
    """

    kind: Literal["whisper_encoder"] = "whisper_encoder"
    input_dim: pydantic.PositiveInt = 80
    dim: pydantic.PositiveInt = 384
    num_layers: pydantic.PositiveInt = 4
    num_heads: pydantic.PositiveInt = 6
    ffn_dim: pydantic.PositiveInt = 1536
    max_frames: pydantic.PositiveInt = 1500
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    attention: Kernel = "auto"
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _sizes_divide(self):
        if self.dim % self.num_heads or self.dim % 2:
            raise ValueError(f"dim ({self.dim}) must be even and a multiple of num_heads ({self.num_heads})")
        return self

    @property
    def subsampling(self) -> int:
        """Feature vectors of one frame."""
        return 2

    def num_frames(self, num_vectors: Count) -> Count:
        """Returns the number of frames of `num_vectors` feature vectors, rounded up."""
        return -(-num_vectors // 2)


class FeedForward(nnx.Module):
    """linear (to `inner`) -> GELU -> linear."""

    def __init__(self, dim: int, inner: int, rate: float, *, gain: float = 1.0, rngs: nnx.Rngs):
        self.rate = rate
        self.expand = Linear((dim,), (inner,), ("embed", "mlp"), rngs=rngs)
        self.contract = Linear((inner,), (dim,), ("mlp", "embed"), gain=gain, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], keys: Keys | FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        return self.contract(dropout(_gelu(self.expand(x)), self.rate, keys))


class WhisperLayer(nnx.Module):
    """Self-attention and feed-forward, each applied to the normalised residual stream and added to it."""

    def __init__(self, config: WhisperEncoderConfig, *, rngs: nnx.Rngs):
        dim, gain = config.dim, (2 * config.num_layers) ** -0.5
        self.rate, self.kernel = config.dropout, config.attention
        self.attention_norm = LayerNorm(dim, rngs=rngs)
        self.attention = MultiHeadMaps(dim, config.num_heads, gain=gain, rngs=rngs)
        self.ffn_norm = LayerNorm(dim, rngs=rngs)
        self.ffn = FeedForward(dim, config.ffn_dim, config.dropout, gain=gain, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], segments: Segments, context: None, keys: FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        """Returns the residual stream after the layer."""
        del context
        mixed_key, inner_key, out_key = split_keys(keys, 3)
        maps, normed = self.attention, gather_residual(self.attention_norm(x))
        operands = maps.query(normed), maps.key(normed), maps.value(normed), segments.segment(x.shape[1])
        mixed = maps.out(attend(*operands, causal=False, window=None, kernel=self.kernel))
        x = shard_residual(x + dropout(scatter_residual(mixed), self.rate, mixed_key))
        out = self.ffn(gather_residual(self.ffn_norm(x)), inner_key)
        return shard_residual(x + dropout(scatter_residual(out), self.rate, out_key))


class WhisperEncoder(Encoder):
    """Encodes log-mel frames to one hidden state for every two of them, rounded up.

    Published models were trained on features of whole windows (`WhisperMel.window_seconds`), whose silence they attend
    to; with other features the frames beyond an utterance are masked.
    """

    def __init__(self, config: WhisperEncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        # Biases are nonzero for the sake of frames that SpecAugment masks (see `Conformer`).
        settings = {"bias_scale": 0.5, "gain": 2**0.5, "rngs": rngs}
        self.first = Convolution(config.input_dim, config.dim, 3, (None, "embed"), **settings)
        self.second = Convolution(config.dim, config.dim, 3, (None, "embed"), stride=2, **settings)

        def initial(key, shape, dtype):
            del key
            return jnp.asarray(sinusoids(*shape), dtype)

        shape = config.max_frames, config.dim
        self.position = parameter(rngs.params(), shape, (None, "embed"), initial, decays=False)
        self.layers = stack(lambda rngs: WhisperLayer(config, rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(config.dim, rngs=rngs)

    def embed(self, x_BxTxF: Float[Array, "batch time features"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        """Returns the input of the layers, in the compute type; values at padding are arbitrary."""
        config = self.config
        frames = Segments.of(frames_of(config, lengths))
        x = shard_batch_and_time(x_BxTxF.astype(config.dtype))
        x = _gelu(self.first(x, Segments.of(lengths)))
        x = _gelu(self.second(x, Segments.of(lengths)))
        num_frames = x.shape[1]
        if frames.num == 1 and isinstance(num_frames, int) and num_frames > config.max_frames:
            raise ValueError(
                f"a row of {num_frames} frames is longer than the {config.max_frames} positions of this encoder: set "
                f"data.max_seconds so that no row has more than {2 * config.max_frames} feature vectors"
            )
        position = jax.lax.stop_gradient(self.position[...]).astype(x.dtype)  # as in the original, not trained
        if frames.num == 1:
            return shard_batch_and_time(x + position[:num_frames])
        return shard_batch_and_time(x + jnp.take(position, frames.position(num_frames), axis=0, mode="clip"))

    def encode(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        lengths: Lengths,
        *,
        keys: Key[Array, "*utterances"] | None = None,
        chunk: Chunk | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[int, Float[Array, "batch time dim"]]]:
        """As of `Encoder`; the hidden states have a final norm, those of taps have not."""
        x, tapped = super().encode(x_BxTxD, lengths, keys=keys, taps=taps)
        inside = Segments.of(lengths).mask(x.shape[1])[..., None]
        return jnp.where(inside, self.norm(x), 0), tapped


SIZES = {
    "tiny": WhisperEncoderConfig(),
    "base": WhisperEncoderConfig(dim=512, num_layers=6, num_heads=8, ffn_dim=2048),
    "small": WhisperEncoderConfig(dim=768, num_layers=12, num_heads=12, ffn_dim=3072),
    "medium": WhisperEncoderConfig(dim=1024, num_layers=24, num_heads=16, ffn_dim=4096),
    "large": WhisperEncoderConfig(dim=1280, num_layers=32, num_heads=20, ffn_dim=5120),
    "large-v3": WhisperEncoderConfig(input_dim=128, dim=1280, num_layers=32, num_heads=20, ffn_dim=5120),
}


def sinusoids(num: int, dim: int) -> np.ndarray:
    """Returns the sines, then the cosines, of positions at frequencies from 1 to 1/10,000; float64 [num, dim]."""
    frequency = np.exp(-np.log(10_000) * np.arange(dim // 2) / max(dim // 2 - 1, 1))
    angle = np.arange(num)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def forward_flops(config: WhisperEncoderConfig, num_vectors: int, batch_size: int) -> float:
    """Returns the FLOPs of the products of one forward pass, padding included; a multiply-add is two."""
    dim, frames = config.dim, config.num_frames(num_vectors)
    convolutions = 3 * (2 * config.input_dim + dim) * dim  # the first has two outputs a frame
    layer = (4 * dim + 2 * config.ffn_dim) * dim + 2 * frames * dim
    return 2.0 * (convolutions + config.num_layers * layer) * frames * batch_size
