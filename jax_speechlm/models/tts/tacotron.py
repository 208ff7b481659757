"""Tacotron 2: text to log-mel, step by step, with location-sensitive attention (Shen et al. 2018).

An encoder of convolutions and a bidirectional LSTM reads the tokens. Each step of the decoder reads the last frame
through a prenet, attends to the tokens (Chorowski et al. 2015: by their content, by the weights of the last step and by
their sum so far) and computes a few frames, which a postnet refines. A logit says whether the step is the last.

Batch norm is replaced by layer norm in the encoder and as in FastSpeech 2 in the postnet. The dropout of the prenet
acts in synthesis too, as published; its draws are then fixed. Training runs on packed rows: the decoder's states start
anew at each utterance. With the default settings and 40 token ids it has 5.6 M parameters.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.models.tts.fastspeech2 import MEAN_LOG_MEL, MelPostnet, Odd, Postnet, Rate
from jax_speechlm.models.tts.text import speaker_table, spread_speakers
from jax_speechlm.nn.convolution import Convolution
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import FrameKeys, LayerNorm, Linear, drop, dropout, split_keys
from jax_speechlm.nn.recurrence import LSTM, LSTMState, both_directions, restarted
from jax_speechlm.parallel.mesh import shard_batch_dim


class TacotronConfig(Config):
    """The shape of a Tacotron 2.

    Attributes:
      num_mel_bins: values of a frame.
      dim: width of the encoder; even.
      num_layers: convolutions of the encoder.
      kernel_size: taps of each.
      dropout: rate after each of them, and on the outputs of the decoder.
      prenet_dim: width of both layers of the prenet.
      prenet_dropout: rate after each of them, in synthesis too.
      attention_dim: width in which attention compares.
      location_kernel_size: taps of the convolution over the attention weights of earlier steps.
      decoder_dim: width of both LSTMs of the decoder.
      reduction: frames of a step.
      postnet: convolutions that refine the frames.
    """

    kind: Literal["tacotron"] = "tacotron"
    num_mel_bins: pydantic.PositiveInt = 80
    dim: Annotated[int, pydantic.Field(gt=0, multiple_of=2)] = 256
    num_layers: pydantic.PositiveInt = 3
    kernel_size: Odd = 5
    dropout: Rate = 0.2
    prenet_dim: pydantic.PositiveInt = 128
    prenet_dropout: Rate = 0.5
    attention_dim: pydantic.PositiveInt = 128
    location_kernel_size: Odd = 31
    decoder_dim: pydantic.PositiveInt = 384
    reduction: pydantic.PositiveInt = 2
    postnet: Postnet = Postnet()

    @property
    def subsampling(self) -> int:
        """Feature vectors of one step; utterances of packed rows start at whole steps."""
        return self.reduction


class Memory(NamedTuple):
    """Encoded tokens of rows, as attention reads them."""

    hidden: Float[Array, "batch tokens dim"]
    keys: Float[Array, "batch tokens attention"]
    segment: Int[Array, "batch tokens"]  # the utterance of each token, from 1; 0 at padding


class DecoderState(NamedTuple):
    """State of the decoder after a step."""

    attention: LSTMState
    decoder: LSTMState
    context: Float[Array, "batch dim"]
    weights: Float[Array, "batch tokens"]
    total: Float[Array, "batch tokens"]  # sum of the weights of all steps of the utterance


class Frames(NamedTuple):
    """Output of the decoder."""

    before: Float[Array, "batch time bins"]  # log-mel before the postnet, 0 at padding
    after: Float[Array, "batch time bins"]
    stop: Float[Array, "batch steps"]  # logit of the end after a step
    weights: Float[Array, "batch steps tokens"]  # of attention, 0 at padding


class Generated(NamedTuple):
    """Log-mel of texts."""

    mel: Float[Array, "batch time bins"]  # 0 at padding
    length: Int[Array, " batch"]  # frames
    token: Int[Array, "batch steps"]  # with the greatest attention weight of each step


class LocationAttention(nnx.Module):
    """Scores v . tanh(query + key + location), with weights of earlier steps in a window around each token."""

    def __init__(self, config: TacotronConfig, *, rngs: nnx.Rngs):
        dim, taps = config.attention_dim, config.location_kernel_size
        self.taps = taps
        self.query = Linear((config.decoder_dim,), (dim,), ("embed", None), rngs=rngs)
        self.key = Linear((config.dim,), (dim,), ("embed", None), bias=False, rngs=rngs)
        self.location = Linear((taps, 2), (dim,), (None, None, None), bias=False, rngs=rngs)
        self.score = Linear((dim,), (1,), (None, None), bias=False, rngs=rngs)

    def __call__(
        self,
        query_BxD: Float[Array, "batch decoder"],
        memory: Memory,
        visible_BxS: Bool[Array, "batch tokens"],
        weights_BxS: Float[Array, "batch tokens"],
        total_BxS: Float[Array, "batch tokens"],
    ) -> Float[Array, "batch tokens"]:
        """Returns attention weights, 0 at tokens that are not visible, where the earlier weights are 0 too."""
        num_tokens, reach = weights_BxS.shape[1], self.taps // 2
        earlier = jnp.pad(jnp.stack([weights_BxS, total_BxS], axis=-1), ((0, 0), (reach, reach), (0, 0)))
        windows_BxSxKx2 = jnp.stack([earlier[:, tap : tap + num_tokens] for tap in range(self.taps)], axis=2)
        x = self.query(query_BxD)[:, None] + memory.keys + self.location(windows_BxSxKx2)
        score_BxS = jnp.where(visible_BxS, self.score(jnp.tanh(x))[..., 0], -1e9)
        return jnp.where(visible_BxS, jax.nn.softmax(score_BxS), 0)


class Tacotron(nnx.Module):
    """Maps tokens to log-mel frames.

    Args:
      vocab_size: token ids; 0 is the padding.
      num_speakers: of the speaker embedding; with one there is none.
    """

    def __init__(self, config: TacotronConfig, vocab_size: int, num_speakers: int = 1, *, rngs: nnx.Rngs):
        self.config = config
        dim, width, bins = config.dim, config.decoder_dim, config.num_mel_bins
        relu, normal = {"gain": 2**0.5, "rngs": rngs}, jax.nn.initializers.normal
        self.tokens = parameter(rngs.params(), (vocab_size, dim), (None, "embed"), normal(1.0))
        self.speakers = speaker_table(num_speakers, dim, rngs)
        numbers = [str(number) for number in range(config.num_layers)]
        self.convolutions = nnx.Dict(
            {number: Convolution(dim, dim, config.kernel_size, ("embed", None), **relu) for number in numbers}
        )
        self.norms = nnx.Dict({number: LayerNorm(dim, rngs=rngs) for number in numbers})
        self.forward, self.backward = LSTM(dim // 2, dim, rngs=rngs), LSTM(dim // 2, dim, rngs=rngs)
        self.prenet_in = Linear((bins,), (config.prenet_dim,), (None, "embed"), **relu)
        self.prenet_out = Linear((config.prenet_dim,), (config.prenet_dim,), ("embed", None), **relu)
        self.attention_lstm = LSTM(width, config.prenet_dim + dim, rngs=rngs)
        self.attention = LocationAttention(config, rngs=rngs)
        self.decoder_lstm = LSTM(width, width + dim, rngs=rngs)
        self.head = Linear((width + dim,), (config.reduction, bins), ("embed", None, None), rngs=rngs)
        self.head.bias[...] = self.head.bias[...] + MEAN_LOG_MEL
        self.stop = Linear((width + dim,), (1,), ("embed", None), rngs=rngs)
        self.postnet = MelPostnet(config.postnet, bins, rngs=rngs)

    def encode(
        self,
        tokens_BxS: Int[Array, "batch tokens"],
        segments: Segments,
        speaker_BxN: Int[Array, "batch utterances"] | None = None,
        keys: Key[Array, "batch utterances"] | None = None,
    ) -> Memory:
        """Encodes the tokens of each utterance; arguments as of `FastSpeech2.encode`."""
        num_tokens = tokens_BxS.shape[1]
        frame_keys = None if keys is None else FrameKeys(keys, segments)
        x = shard_batch_dim(jnp.take(self.tokens[...], tokens_BxS, axis=0, mode="clip"))
        for number, layer_keys in enumerate(split_keys(frame_keys, self.config.num_layers)):
            x = jax.nn.relu(self.norms[str(number)](self.convolutions[str(number)](x, segments)))
            x = dropout(x, self.config.dropout, layer_keys)
        segment = segments.segment(num_tokens)
        hidden = both_directions(self.forward, self.backward, x, segments)
        hidden = hidden + spread_speakers(self.speakers, speaker_BxN, segments, num_tokens)
        hidden = jnp.where((segment > 0)[..., None], hidden, 0)
        return Memory(hidden, self.attention.key(hidden), segment)

    def decode(
        self,
        memory: Memory,
        mel_BxTxF: Float[Array, "batch time bins"],
        segments: Segments,
        prenet_keys: Key[Array, "batch utterances"],
        keys: Key[Array, "batch utterances"] | None = None,
    ) -> Frames:
        """Predicts the frames of each step from the frames before them, and when to stop.

        Args:
          mel_BxTxF: frames to predict.
          segments: utterances of the rows in frames, which start at whole steps.
          prenet_keys: one key an utterance for the dropout of the prenet.
          keys: others for the remaining dropout; None for evaluation.
        """
        config, num_frames = self.config, mel_BxTxF.shape[1]
        num_steps = -(-num_frames // config.reduction)
        steps = segments.at_rate(config.reduction, self.num_steps)
        is_first, segment = steps.position(num_steps) == 0, steps.segment(num_steps)
        padded = jnp.pad(mel_BxTxF, ((0, 0), (0, num_steps * config.reduction - num_frames), (0, 0)))
        last = padded[:, config.reduction - 1 :: config.reduction]
        before = jnp.pad(last[:, :-1], ((0, 0), (1, 0), (0, 0))) - MEAN_LOG_MEL
        before = jnp.where((is_first | (segment == 0))[..., None], 0, before)
        x_BxNxP = self._prenet(before, *(FrameKeys(part, steps) for part in split_keys(prenet_keys, 2)))

        def step(state: DecoderState, inputs: tuple[Array, Array, Array]) -> tuple[DecoderState, tuple[Array, Array]]:
            x, is_first, segment = inputs
            state = self.step(restarted(state, is_first), x, memory, memory.segment == segment[:, None])
            return state, (jnp.concatenate([state.decoder.hidden, state.context], axis=-1), state.weights)

        inputs = (jnp.moveaxis(array, 1, 0) for array in (x_BxNxP, is_first, segment))
        _, outputs = jax.lax.scan(step, self.init_state(memory), tuple(inputs))
        y_BxNxD, weights_BxNxS = (jnp.moveaxis(array, 0, 1) for array in outputs)
        dropout_keys, postnet_keys = split_keys(keys, 2)
        y_BxNxD = dropout(y_BxNxD, config.dropout, None if keys is None else FrameKeys(dropout_keys, steps))
        computed = self.head(y_BxNxD).reshape(len(mel_BxTxF), -1, config.num_mel_bins)[:, :num_frames]
        refined = self.postnet(computed, segments, None if keys is None else FrameKeys(postnet_keys, segments))
        mask = segments.mask(num_frames)[..., None]
        stop = jnp.where(segment > 0, self.stop(y_BxNxD)[..., 0], 0)
        weights = jnp.where((segment > 0)[..., None], weights_BxNxS, 0)
        return Frames(jnp.where(mask, computed, 0), jnp.where(mask, refined, 0), stop, weights)

    def generate(
        self,
        tokens_BxS: Int[Array, "batch tokens"],
        length_B: Int[Array, " batch"],
        max_steps: int,
        prenet_keys: Key[Array, " batch"],
        speaker_B: Int[Array, " batch"] | None = None,
    ) -> Generated:
        """Computes log-mel of texts, until all have stopped or `max_steps` are done."""
        config, batch = self.config, len(tokens_BxS)
        segments = Segments.of(length_B)
        memory = self.encode(tokens_BxS, segments, None if speaker_B is None else speaker_B[:, None])
        visible = memory.segment > 0
        seeds = [jax.vmap(jax.random.bits)(part)[:, None] for part in split_keys(prenet_keys, 2)]

        def unfinished(carry: tuple) -> Bool[Array, ""]:
            number, ended = carry[:2]
            return (number < max_steps) & ~jnp.all(ended)

        def advance(carry: tuple) -> tuple:
            number, ended, state, previous, mel, token, count = carry
            x = previous
            unit = jnp.arange(config.prenet_dim)[None]
            for layer, seed in zip((self.prenet_in, self.prenet_out), seeds, strict=True):
                x = drop(jax.nn.relu(layer(x)), config.prenet_dropout, seed, [number, unit])
            state = self.step(state, x, memory, visible)
            y = jnp.concatenate([state.decoder.hidden, state.context], axis=-1)
            frames = self.head(y)
            mel = jax.lax.dynamic_update_slice_in_dim(mel, frames[:, None], number, axis=1)
            most = jnp.argmax(state.weights, axis=-1).astype(jnp.int32)
            token = jax.lax.dynamic_update_slice_in_dim(token, most[:, None], number, axis=1)
            count = count + ~ended
            ended = ended | (self.stop(y)[:, 0] > 0)
            return number + 1, ended, state, frames[:, -1] - MEAN_LOG_MEL, mel, token, count

        start = (
            jnp.int32(0),
            length_B == 0,
            self.init_state(memory),
            jnp.zeros((batch, config.num_mel_bins)),
            jnp.zeros((batch, max_steps, config.reduction, config.num_mel_bins)),
            jnp.zeros((batch, max_steps), jnp.int32),
            jnp.zeros(batch, jnp.int32),
        )
        *_, mel, token, count = jax.lax.while_loop(unfinished, advance, start)
        mel, frames = mel.reshape(batch, -1, config.num_mel_bins), Segments.of(count * config.reduction)
        refined = self.postnet(mel, frames, None)
        mel = jnp.where(frames.mask(mel.shape[1])[..., None], refined, 0)
        return Generated(mel, count * config.reduction, token)

    def init_state(self, memory: Memory) -> DecoderState:
        """Returns the state before an utterance."""
        batch, num_tokens, dim = memory.hidden.shape
        weights, lstms = jnp.zeros((batch, num_tokens)), (self.attention_lstm, self.decoder_lstm)
        return DecoderState(*(lstm.init_state(batch) for lstm in lstms), jnp.zeros((batch, dim)), weights, weights)

    def step(
        self,
        state: DecoderState,
        x_BxP: Float[Array, "batch prenet"],
        memory: Memory,
        visible_BxS: Bool[Array, "batch tokens"],
    ) -> DecoderState:
        """Runs a step: attention LSTM -> attention -> decoder LSTM.

        Args:
          x_BxP: output of the prenet.
          visible_BxS: tokens of the step's utterance.
        """
        attention = self.attention_lstm.step(state.attention, jnp.concatenate([x_BxP, state.context], axis=-1))
        weights = self.attention(attention.hidden, memory, visible_BxS, state.weights, state.total)
        context = jnp.einsum("bs,bsd->bd", weights, memory.hidden)
        decoder = self.decoder_lstm.step(state.decoder, jnp.concatenate([attention.hidden, context], axis=-1))
        return DecoderState(attention, decoder, context, weights, state.total + weights)

    def num_steps(self, num_frames: Int[Array, "..."]) -> Int[Array, "..."]:
        """Returns the steps that compute a number of frames."""
        return -(-num_frames // self.config.reduction)

    def _prenet(self, x: Float[Array, "batch steps bins"], first: FrameKeys, second: FrameKeys) -> Array:
        x = dropout(jax.nn.relu(self.prenet_in(x)), self.config.prenet_dropout, first)
        return dropout(jax.nn.relu(self.prenet_out(x)), self.config.prenet_dropout, second)


def forward_flops(config: TacotronConfig, num_tokens: int, num_frames: int, batch_size: int) -> float:
    """Returns the FLOPs of the products of one pass with given frames, padding included; a multiply-add is two."""
    dim, width, bins, net = config.dim, config.decoder_dim, config.num_mel_bins, config.postnet
    token = config.num_layers * config.kernel_size * dim * dim + 4 * dim * 1.5 * dim + dim * config.attention_dim
    attention = (2 * config.location_kernel_size + 1) * config.attention_dim + dim  # of a step and a token
    lstms = 4 * width * (config.prenet_dim + dim + width) + 4 * width * (2 * width + dim)
    step = lstms + (bins + config.prenet_dim) * config.prenet_dim + width * config.attention_dim
    step += (width + dim) * (config.reduction * bins + 1) + num_tokens * attention
    inner = (net.num_layers - 2) * net.channels**2 + 2 * net.channels * bins
    steps = -(-num_frames // config.reduction)
    return 2.0 * batch_size * (num_tokens * token + steps * step + num_frames * net.kernel_size * inner)
