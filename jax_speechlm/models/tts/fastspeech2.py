"""FastSpeech 2 with conformers: text to log-mel with explicit durations, pitch and energy (Ren et al. 2021).

With the same weights it computes the same numbers as Hugging Face's `FastSpeech2ConformerModel`
(`jax_speechlm.interop.hf.fastspeech2` converts the weights). Batch norm is replaced by a scale and an offset a channel,
which it equals in evaluation, so that no output depends on the batch.

Both conformers run on packed rows: a row holds the tokens, or the frames, of several utterances one after the other.
With the default settings and 40 token ids it has 5.3 M parameters.
"""

import itertools
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.models.conformer import MacaronLayer
from jax_speechlm.models.encoder_base import Encoder
from jax_speechlm.models.fast_conformer import Convolution as ConvolutionModule
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.tts.text import speaker_table, spread_speakers
from jax_speechlm.nn.attention.relative import Chunk, PositionalAttention, PositionalContext, distance_sinusoids
from jax_speechlm.nn.convolution import Convolution
from jax_speechlm.nn.functional import Remat, parameter, stack
from jax_speechlm.nn.layers import Count, FrameKeys, LayerNorm, Linear, dropout, split_keys
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.parallel.mesh import shard_batch_and_time, shard_batch_dim

Rate = Annotated[float, pydantic.Field(ge=0, lt=1)]
Odd = Annotated[int, pydantic.Field(ge=1), pydantic.AfterValidator(lambda taps: _odd(taps))]


def _odd(taps: int) -> int:
    if taps % 2 == 0:
        raise ValueError(f"a kernel of {taps} taps has no middle: choose an odd number")
    return taps


class Layers(Config):
    """The shape of one of the two conformers.

    Attributes:
      num_layers: conformer layers.
      num_heads: attention heads; a divisor of the model's `dim`.
      ffn_dim: inner width of the feed-forwards.
      ffn_kernel_size: taps of both convolutions of a feed-forward.
      kernel_size: taps of the depthwise convolution.
      dropout: rate on the input, inside and after each feed-forward, after attention and convolution.
      attention_dropout: rate on the attention weights.
    """

    num_layers: pydantic.PositiveInt = 4
    num_heads: pydantic.PositiveInt = 2
    ffn_dim: pydantic.PositiveInt = 256
    ffn_kernel_size: Odd = 3
    kernel_size: Odd = 31
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.1


class Predictor(Config):
    """The shape of a predictor of one value a token.

    Attributes:
      num_layers: convolutions.
      channels: width of each.
      kernel_size: taps of each.
      dropout: rate after each.
    """

    num_layers: pydantic.PositiveInt = 2
    channels: pydantic.PositiveInt = 128
    kernel_size: Odd = 3
    dropout: Rate = 0.2


class Postnet(Config):
    """The shape of the convolutions that refine the log-mel frames.

    Attributes:
      num_layers: convolutions.
      channels: width of all but the last.
      kernel_size: taps of each.
      dropout: rate after each.
    """

    num_layers: Annotated[int, pydantic.Field(ge=2)] = 5
    channels: pydantic.PositiveInt = 256
    kernel_size: Odd = 5
    dropout: Rate = 0.2


class TextLM(Config):
    """The language model whose hidden states a model of synthesis reads (see `models.tts.voice`).

    Attributes:
      transformer: its shape, causal or not.
      lora: low-rank updates of its linear maps; none by default.
    """

    transformer: TransformerConfig = TransformerConfig()
    lora: LoRA = LoRA()


class FastSpeech2Config(Config):
    """The shape of a FastSpeech 2.

    Attributes:
      num_mel_bins: values of a frame.
      dim: width of both conformers; even.
      encoder: conformer over tokens.
      decoder: conformer over frames.
      duration, pitch, energy: predictors of the variances of a token.
      postnet: convolutions that refine the frames.
      text_lm: language model whose hidden states the encoder reads with the tokens; None for the tokens alone.
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, norms, softmax and the outputs are float32.
    """

    kind: Literal["fastspeech2"] = "fastspeech2"
    num_mel_bins: pydantic.PositiveInt = 80
    dim: pydantic.PositiveInt = 128
    encoder: Layers = Layers(num_layers=3, kernel_size=7)
    decoder: Layers = Layers(num_layers=4, kernel_size=31)
    duration: Predictor = Predictor()
    pitch: Predictor = Predictor(kernel_size=5, dropout=0.5)
    energy: Predictor = Predictor(dropout=0.5)
    postnet: Postnet = Postnet()
    text_lm: TextLM | None = None
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _sizes_divide(self):
        for layers in (self.encoder, self.decoder):
            if self.dim % layers.num_heads or self.dim % 2:
                raise ValueError(f"dim ({self.dim}) must be even and a multiple of num_heads ({layers.num_heads})")
        return self

    @property
    def subsampling(self) -> int:
        """Feature vectors of one frame."""
        return 1

    def conformer(self, layers: Layers) -> "ConformerShape":
        """Returns the settings of one of the conformers."""
        return ConformerShape(**layers.model_dump(), dim=self.dim, remat=self.remat, dtype=self.dtype)


class ConformerShape(Layers):
    """Settings of one conformer, with those of the whole model."""

    dim: int
    remat: Remat
    dtype: Literal["float32", "bfloat16"]
    bias: bool = True


class FeedForward(nnx.Module):
    """LayerNorm -> convolution (to `ffn_dim`) -> ReLU -> convolution."""

    def __init__(self, config: ConformerShape, *, bias: bool, rngs: nnx.Rngs):
        dim, inner, taps = config.dim, config.ffn_dim, config.ffn_kernel_size
        self.rate = config.dropout
        self.norm = LayerNorm(dim, rngs=rngs)
        self.expand = Convolution(dim, inner, taps, ("embed", "mlp"), bias=bias, rngs=rngs)
        self.contract = Convolution(inner, dim, taps, ("mlp", "embed"), bias=bias, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], segments: Segments, keys: FrameKeys | None
    ) -> Float[Array, "batch time dim"]:
        inner, outer = split_keys(keys, 2)
        x = dropout(jax.nn.relu(self.expand(self.norm(x), segments)), self.rate, inner)
        return dropout(self.contract(x, segments), self.rate, outer)


class ConformerLayer(MacaronLayer):
    """Layer of both conformers."""

    def __init__(self, config: ConformerShape, *, rngs: nnx.Rngs):
        attention = partial(PositionalAttention, config.dim, config.num_heads, config.attention_dropout, bias=True)
        convolution = partial(ConvolutionModule, config)
        super().__init__(config, attention, convolution, bias=True, feed_forward=FeedForward, rngs=rngs)


class Conformer(Encoder):
    """Conformer over tokens or frames of width `dim`; see `Encoder.encode`."""

    def __init__(self, config: ConformerShape, *, rngs: nnx.Rngs):
        self.config = config
        self.layers = stack(lambda rngs: ConformerLayer(config, rngs=rngs), config.num_layers, rngs)

    def run(
        self, x: Float[Array, "batch time dim"], segments: Segments, keys: Key[Array, "batch utterances"] | None
    ) -> Float[Array, "batch time dim"]:
        """Returns float32 outputs of the last layer, 0 at padding. The input is scaled as in the original."""
        x = x.astype(self.config.dtype) * self.config.dim**0.5
        return self.encode(x, segments, keys=keys)[0]

    def _context(self, chunk: Chunk | None, num_frames: int) -> PositionalContext:
        return PositionalContext(distance_sinusoids(num_frames, self.config.dim).astype(self.config.dtype))


class TokenPredictor(nnx.Module):
    """Predicts one value a token: (convolution -> ReLU -> LayerNorm -> dropout) per layer -> linear."""

    def __init__(self, config: Predictor, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        widths = [dim] + [config.channels] * config.num_layers
        self.convolutions, self.norms = nnx.Dict(), nnx.Dict()
        for number, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            axes = ("embed", "mlp") if number == 0 else (None, "mlp")
            settings = {"gain": 2**0.5, "rngs": rngs}
            self.convolutions[f"layer{number}"] = Convolution(width_in, width_out, config.kernel_size, axes, **settings)
            self.norms[f"layer{number}"] = LayerNorm(config.channels, axis=None, rngs=rngs)
        self.out = Linear((config.channels,), (1,), (None, None), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], segments: Segments, keys: FrameKeys | None
    ) -> Float[Array, "batch tokens"]:
        """Returns float32 values, 0 at padding."""
        layer_keys = split_keys(keys, self.config.num_layers)
        for number in range(self.config.num_layers):
            x = jax.nn.relu(self.convolutions[f"layer{number}"](x, segments))
            x = dropout(self.norms[f"layer{number}"](x), self.config.dropout, layer_keys[number])
        y = self.out(x)[..., 0].astype(jnp.float32)
        return jnp.where(segments.mask(x.shape[1]), y, 0)


class PostnetLayer(nnx.Module):
    """Convolution -> scale and offset a channel, which replace batch norm."""

    def __init__(self, width_in: int, width_out: int, taps: int, *, gain: float, rngs: nnx.Rngs):
        axes = (None, "mlp")
        self.convolution = Convolution(width_in, width_out, taps, axes, bias=False, gain=gain, rngs=rngs)
        self.scale = parameter(rngs.params(), (width_out,), ("mlp",), jax.nn.initializers.ones, decays=False)
        self.offset = parameter(rngs.params(), (width_out,), ("mlp",), jax.nn.initializers.zeros, decays=False)

    def __call__(self, x: Float[Array, "batch time in"], segments: Segments) -> Float[Array, "batch time out"]:
        x = self.convolution(x, segments)
        return x * self.scale[...].astype(x.dtype) + self.offset[...].astype(x.dtype)


class MelPostnet(nnx.Module):
    """Refines log-mel frames by a residual: convolutions with tanh between them."""

    def __init__(self, config: Postnet, num_mel_bins: int, *, rngs: nnx.Rngs):
        self.config = config
        widths = [num_mel_bins] + [config.channels] * (config.num_layers - 1) + [num_mel_bins]
        # Log-mel values of about -2 would saturate the first tanh; the last layer starts as a small correction.
        gains = [0.3] + [1.0] * (config.num_layers - 2) + [0.1]
        self.layers = nnx.Dict(
            {
                f"layer{number}": PostnetLayer(*widths[number : number + 2], config.kernel_size, gain=gain, rngs=rngs)
                for number, gain in enumerate(gains)
            }
        )

    def __call__(
        self, mel: Float[Array, "batch time bins"], segments: Segments, keys: FrameKeys | None
    ) -> Float[Array, "batch time bins"]:
        x, last = mel, self.config.num_layers - 1
        for number, layer_keys in enumerate(split_keys(keys, self.config.num_layers)):
            x = self.layers[f"layer{number}"](x, segments)
            x = dropout(jnp.tanh(x) if number < last else x, self.config.dropout, layer_keys)
        return mel + x


class Variances(NamedTuple):
    """Predictions of each token; 0 at padding."""

    log_duration: Float[Array, "batch tokens"]  # log(frames + 1)
    pitch: Float[Array, "batch tokens"]
    energy: Float[Array, "batch tokens"]


MEAN_LOG_MEL = -2.0
"""Initial bias of the mel head: about the mean of the base-10 logarithms of a mel spectrogram of speech."""


class FrameDecoder(nnx.Module):
    """The part of a FastSpeech 2 that maps vectors of frames to log-mel: `decoder`, `head` and `postnet`."""

    def __init__(self, config: FastSpeech2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.decoder = Conformer(config.conformer(config.decoder), rngs=rngs)
        self.head = Linear((config.dim,), (config.num_mel_bins,), ("embed", None), rngs=rngs)
        self.head.bias[...] = self.head.bias[...] + MEAN_LOG_MEL
        self.postnet = MelPostnet(config.postnet, config.num_mel_bins, rngs=rngs)

    def decode(
        self,
        x_BxTxD: Float[Array, "batch time dim"],
        segments: Segments,
        keys: Key[Array, "batch utterances"] | None = None,
    ) -> tuple[Float[Array, "batch time bins"], Float[Array, "batch time bins"]]:
        """Decodes frames, see `repeat_by_frame`, to log-mel.

        Args:
          segments: utterances of the rows, in frames.

        Returns:
          float32 log-mel before and after the postnet, 0 at padding.
        """
        decoder_keys, postnet_keys = split_keys(keys, 2)
        mask = segments.mask(x_BxTxD.shape[1])[..., None]
        hidden = shard_batch_and_time(self.decoder.run(x_BxTxD, segments, decoder_keys)).astype(self.config.dtype)
        before = self.head(hidden)
        frame_keys = None if postnet_keys is None else FrameKeys(postnet_keys, segments)
        after = self.postnet(before, segments, frame_keys)
        return tuple(jnp.where(mask, mel.astype(jnp.float32), 0) for mel in (before, after))


class FastSpeech2(FrameDecoder):
    """Maps tokens to log-mel frames.

    Args:
      vocab_size: token ids; 0 is the padding.
      num_speakers: of the speaker embedding; with one there is none.
    """

    def __init__(self, config: FastSpeech2Config, vocab_size: int, num_speakers: int = 1, *, rngs: nnx.Rngs):
        dim = config.dim
        table = jax.nn.initializers.normal(dim**-0.5)
        self.tokens = parameter(rngs.params(), (vocab_size, dim), (None, "embed"), table)
        self.speakers = speaker_table(num_speakers, dim, rngs)
        # Like the token embeddings, which the encoder multiplies by the root of its width.
        small = {"gain": dim**-0.5, "rngs": rngs}
        text_lm = config.text_lm
        self.states = Linear((text_lm.transformer.dim,), (dim,), (None, "embed"), **small) if text_lm else None
        self.encoder = Conformer(config.conformer(config.encoder), rngs=rngs)
        self.duration = TokenPredictor(config.duration, dim, rngs=rngs)
        self.pitch = TokenPredictor(config.pitch, dim, rngs=rngs)
        self.energy = TokenPredictor(config.energy, dim, rngs=rngs)
        self.pitch_embedding = Linear((1,), (dim,), (None, "embed"), rngs=rngs)
        self.energy_embedding = Linear((1,), (dim,), (None, "embed"), rngs=rngs)
        super().__init__(config, rngs=rngs)

    def encode(
        self,
        tokens_BxS: Int[Array, "batch tokens"],
        segments: Segments,
        speaker_BxN: Int[Array, "batch utterances"] | None = None,
        keys: Key[Array, "batch utterances"] | None = None,
        states_BxSxL: Float[Array, "batch tokens states"] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        """Encodes the tokens of each utterance.

        Args:
          segments: utterances of the rows, in tokens.
          speaker_BxN: speaker of each utterance, see `spread_speakers`.
          keys: one key an utterance for dropout; None for evaluation.
          states_BxSxL: hidden states of the language model `config.text_lm`.

        Returns:
          float32 hidden states, 0 at padding.
        """
        num_tokens = tokens_BxS.shape[1]
        x = jnp.take(self.tokens[...], tokens_BxS, axis=0, mode="clip")
        x = x if self.states is None else x + self.states(states_BxSxL)
        hidden = self.encoder.run(shard_batch_dim(x), segments, keys)
        return hidden + spread_speakers(self.speakers, speaker_BxN, segments, num_tokens)

    def predict(
        self,
        hidden_BxSxD: Float[Array, "batch tokens dim"],
        segments: Segments,
        keys: Key[Array, "batch utterances"] | None = None,
    ) -> Variances:
        """Predicts duration, pitch and energy of each token; no gradient flows from pitch into the encoder."""
        duration, pitch, energy = split_keys(None if keys is None else FrameKeys(keys, segments), 3)
        x = hidden_BxSxD.astype(self.config.dtype)
        return Variances(
            self.duration(x, segments, duration),
            self.pitch(jax.lax.stop_gradient(x), segments, pitch),
            self.energy(x, segments, energy),
        )

    def add_variances(
        self,
        hidden_BxSxD: Float[Array, "batch tokens dim"],
        pitch_BxS: Float[Array, "batch tokens"],
        energy_BxS: Float[Array, "batch tokens"],
    ) -> Float[Array, "batch tokens dim"]:
        """Returns hidden states with embeddings of pitch and energy."""
        pitch, energy = self.pitch_embedding(pitch_BxS[..., None]), self.energy_embedding(energy_BxS[..., None])
        return hidden_BxSxD + energy + pitch

    def with_durations(
        self,
        tokens_BxS: Int[Array, "batch tokens"],
        segments: Segments,
        speaker_Bx1: Int[Array, "batch 1"],
        speed: float | Float[Array, ""] = 1.0,
        states_BxSxL: Float[Array, "batch tokens states"] | None = None,
    ) -> tuple[Float[Array, "batch tokens dim"], Int[Array, "batch tokens"]]:
        """Encodes texts to be spoken, one a row; other arguments as of `encode`.

        Returns:
          Vectors with embeddings of the predicted pitch and energy, and frames, 0 at padding. As in transformers each
          token of a text has a frame if there would be none at all.
        """
        hidden = self.encode(tokens_BxS, segments, speaker_Bx1, states_BxSxL=states_BxSxL)
        predicted = self.predict(hidden, segments)
        is_token = segments.mask(tokens_BxS.shape[1])
        frames = is_token * durations(predicted.log_duration, speed)
        frames = frames + is_token * (frames.sum(1, keepdims=True) == 0)
        return self.add_variances(hidden, predicted.pitch, predicted.energy), frames


LONGEST_TOKEN = 250
"""Most frames of a token; an untrained model would predict any number."""


def durations(
    log_duration: Float[Array, "*rows tokens"], speed: float | Float[Array, ""] = 1.0
) -> Int[Array, "*rows tokens"]:
    """Returns whole frames per token from predicted log(frames + 1); `speed` above 1 shortens them.

    At speed 1 they are those of transformers. At another speed the ends of tokens are rounded, not their durations, so
    that the whole utterance has the speed.
    """
    frames = jnp.clip(jnp.round(jnp.exp(log_duration) - 1), 0, LONGEST_TOKEN)
    ends = jnp.round(jnp.cumsum(frames, axis=-1) / speed)
    return jnp.diff(ends, axis=-1, prepend=0).astype(jnp.int32)


def token_of_frame(duration_BxS: Int[Array, "batch tokens"], num_frames: int) -> Int[Array, "batch {num_frames}"]:
    """Returns the index of each frame's token in rows of one utterance; -1 from the end of the last token on."""
    ends_BxS = jnp.cumsum(duration_BxS, axis=1)
    index = jnp.sum(jnp.arange(num_frames)[None, :, None] >= ends_BxS[:, None], axis=-1)
    return jnp.where(index < duration_BxS.shape[1], index, -1)


def one_hot_tokens(token_BxT: Int[Array, "batch time"], num_tokens: int) -> Float[Array, "batch time {num_tokens}"]:
    """Returns the matrix that maps tokens to frames: 1 where the frame has the token; frames of token -1 are all 0."""
    return jax.nn.one_hot(token_BxT, num_tokens, dtype=jnp.float32)


def repeat_by_frame(
    x_BxSxD: Float[Array, "batch tokens dim"], matrix_BxTxS: Float[Array, "batch time tokens"]
) -> Float[Array, "batch time dim"]:
    """Repeats each token's vector for its frames, the length regulator.

    A product with `one_hot_tokens`, because the gradient of a gather is a scatter, which is slow in XLA.
    """
    return jnp.einsum("bts,bsd->btd", matrix_BxTxS.astype(x_BxSxD.dtype), x_BxSxD)


def conformer_flops(config: ConformerShape, num_frames: Count, batch_size: Count) -> float:
    """Returns the FLOPs of one pass of a conformer over rows of `num_frames`; a multiply-add is two."""
    dim = config.dim
    frame = 4 * config.ffn_kernel_size * config.ffn_dim * dim + (4 + 3) * dim * dim + config.kernel_size * dim
    attention = (2 * num_frames + 2 * num_frames - 1) * dim
    return 2.0 * config.num_layers * batch_size * num_frames * (frame + attention)


def decoder_flops(config: FastSpeech2Config, num_frames: int, batch_size: int) -> float:
    """Returns the share of `forward_flops` of the decoder over frames, the head and the postnet."""
    net = config.postnet
    inner = (net.num_layers - 2) * net.channels**2 + 2 * net.channels * config.num_mel_bins
    frame = config.dim * config.num_mel_bins + net.kernel_size * inner
    conformer = conformer_flops(config.conformer(config.decoder), num_frames, batch_size)
    return conformer + 2.0 * batch_size * num_frames * frame


def forward_flops(config: FastSpeech2Config, num_tokens: int, num_frames: int, batch_size: int) -> float:
    """Returns the FLOPs of the products of one forward pass, padding included; a multiply-add is two."""
    token = float(num_frames * config.dim)  # to repeat its vector for its frames
    for predictor in (config.duration, config.pitch, config.energy):
        widths = config.dim + (predictor.num_layers - 1) * predictor.channels
        token += predictor.kernel_size * widths * predictor.channels
    encoder = conformer_flops(config.conformer(config.encoder), num_tokens, batch_size)
    return encoder + 2.0 * batch_size * num_tokens * token + decoder_flops(config, num_frames, batch_size)
