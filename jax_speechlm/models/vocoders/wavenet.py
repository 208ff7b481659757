"""WaveNet: an autoregressive vocoder, a stack of dilated causal convolutions conditioned on the mel spectrogram.

In training all samples are computed at once from recorded ones. Generation computes one sample after the other; each
layer then keeps its last inputs in a ring, so that a sample costs one column of the stack (Le Paine et al. 2016, "Fast
WaveNet generation algorithm"). Both give the same distributions. Reference: van den Oord et al. 2016, "WaveNet: a
generative model for raw audio".
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key

from jax_speechlm.core.segments import Lengths
from jax_speechlm.models.vocoders.base import Vocoder, VocoderConfig, masked, one_a_row
from jax_speechlm.models.vocoders.sample_distributions import MuLaw, SampleDistribution
from jax_speechlm.nn.convolution import RowConvolution
from jax_speechlm.nn.layers import Linear, fold_in
from jax_speechlm.parallel.mesh import shard_batch_dim


class WaveNetConfig(VocoderConfig):
    """Shape of the vocoder.

    Attributes:
      dim: channels of the residual stream.
      skip_dim: channels of the sum over layers.
      num_layers: dilated convolutions of two taps.
      cycle: layers after which the dilations 1, 2, 4, ... start again.
      mel_dim: channels of the conditioning.
      mel_kernel: taps of the convolution over frames that computes it; odd.
      hop: samples of a frame.
      output: distribution of a sample.
    """

    kind: Literal["wavenet"] = "wavenet"
    dim: pydantic.PositiveInt = 64
    skip_dim: pydantic.PositiveInt = 128
    num_layers: pydantic.PositiveInt = 20
    cycle: pydantic.PositiveInt = 10
    mel_dim: pydantic.PositiveInt = 64
    mel_kernel: Annotated[int, pydantic.Field(ge=1)] = 3
    hop: pydantic.PositiveInt = 256
    output: SampleDistribution = MuLaw()

    @pydantic.field_validator("mel_kernel")
    @classmethod
    def _has_a_middle(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"mel_kernel ({value}) must be odd, so that it has a middle tap")
        return value

    @property
    def dilations(self) -> list[int]:
        """Samples between the two taps, by layer."""
        return [2 ** (layer % self.cycle) for layer in range(self.num_layers)]

    @property
    def receptive_field(self) -> int:
        """Earlier samples that the distribution of a sample depends on."""
        return sum(self.dilations) + 1

    def forward_flops(self, num_frames: int, batch_size: int) -> float:
        """Returns the FLOPs of the matrix products of one pass over recorded samples."""
        layer = 2 * self.dim * 2 * self.dim + self.dim * (self.dim + self.skip_dim)
        sample = self.dim + self.num_layers * layer + self.skip_dim * (self.skip_dim + self.output.size)
        frame = self.mel_kernel * self.input_dim * self.mel_dim + self.num_layers * self.mel_dim * 2 * self.dim
        return 2.0 * (self.hop * sample + frame) * num_frames * batch_size


class WaveNetState(NamedTuple):
    """State of the generation of several waveforms.

    Attributes:
      rings: last inputs of each layer, [dilation, batch, dim]; the oldest is at `count` modulo the dilation.
      previous: last sample of each.
      count: samples so far.
    """

    rings: tuple[Float[Array, "_ batch dim"], ...]
    previous: Float[Array, " batch"]
    count: Int[Array, ""]


class WaveNetLayer(nnx.Module):
    """Two taps of a dilated convolution and the conditioning -> tanh x sigmoid -> residual and skip connections.

    The last layer has no residual connection, as no layer follows.
    """

    def __init__(self, config: WaveNetConfig, *, last: bool, rngs: nnx.Rngs):
        dim = config.dim
        self.past = Linear((dim,), (2 * dim,), ("embed", "mlp"), bias=False, gain=0.5**0.5, rngs=rngs)
        self.present = Linear((dim,), (2 * dim,), ("embed", "mlp"), gain=0.5**0.5, rngs=rngs)
        self.condition = Linear((config.mel_dim,), (2 * dim,), ("embed", "mlp"), bias=False, rngs=rngs)
        self.residual = None if last else Linear((dim,), (dim,), ("mlp", "embed"), rngs=rngs)
        self.skip = Linear((dim,), (config.skip_dim,), ("mlp", "embed"), rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*places dim"],
        past: Float[Array, "*places dim"],
        condition: Float[Array, "*places twice_dim"],
    ) -> tuple[Float[Array, "*places dim"], Float[Array, "*places skip_dim"]]:
        """Returns the next layer's input and the skip connection of samples.

        Args:
          x: the layer's input.
          past: its input `dilation` samples earlier.
          condition: of the layer, `self.condition` of the frame's conditioning.
        """
        filtered, gate = jnp.split(self.present(x) + self.past(past) + condition, 2, axis=-1)
        y = jnp.tanh(filtered) * jax.nn.sigmoid(gate)
        return x if self.residual is None else (x + self.residual(y)) * 0.5**0.5, self.skip(y)


class WaveNet(Vocoder):
    """The vocoder; frame t conditions the samples from t * hop on."""

    def __init__(self, config: WaveNetConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.mel = RowConvolution(config.input_dim, config.mel_dim, config.mel_kernel, rngs=rngs)
        self.embed = Linear((1,), (config.dim,), (None, "embed"), bias_scale=0.1, rngs=rngs)
        last = config.num_layers - 1
        self.layers = nnx.Dict({f"layer{i}": WaveNetLayer(config, last=i == last, rngs=rngs) for i in range(last + 1)})
        self.hidden = Linear((config.skip_dim,), (config.skip_dim,), ("embed", "mlp"), rngs=rngs)
        self.out = Linear((config.skip_dim,), (config.output.size,), ("mlp", None), rngs=rngs)

    def __call__(
        self, mel_BxTxF: Float[Array, "batch time bins"], lengths: Lengths, key: Key[Array, ""] | None = None
    ) -> Float32[Array, "batch samples"]:
        """Generates waveforms, sample by sample.

        Args:
          mel_BxTxF: log-mel spectrograms.
          lengths: frames per row, or segments with one utterance a row.
          key: of the draws, the same for all rows, whose results then do not depend on the batch; None for key 0.

        Returns:
          Samples in [-1, 1], `hop` for each frame; 0 beyond the utterances.
        """
        segments, batch = one_a_row(lengths), len(mel_BxTxF)
        keys = jnp.broadcast_to(jax.random.key(0) if key is None else key, (batch,))
        starts = segments.start[:, 0] * self.config.hop

        def frame(state: WaveNetState, vectors_BxM: Array) -> tuple[WaveNetState, Array]:
            conditions = self._conditions(vectors_BxM)

            def sample(state: WaveNetState, _: None) -> tuple[WaveNetState, Array]:
                # The draws and the state of an utterance are those of one that starts the row.
                before = state.count - starts < 0
                after, outputs = self.advance(state, conditions, before)
                drawn = self.config.output.draw(outputs, fold_in(keys, jnp.maximum(state.count - starts, 0)))
                drawn = jnp.where(before, 0, drawn)
                return after._replace(previous=drawn), drawn

            return jax.lax.scan(sample, state, None, length=self.config.hop)

        vectors = self.conditioning(mel_BxTxF, segments)
        _, audio_TxHxB = jax.lax.scan(frame, self.init_state(batch), jnp.swapaxes(vectors, 0, 1))
        audio = audio_TxHxB.reshape(-1, batch).T
        return masked(audio, segments, self.config.hop).astype(jnp.float32)

    def outputs(
        self,
        mel_BxTxF: Float[Array, "batch time bins"],
        lengths: Lengths,
        audio_BxS: Float[Array, "batch samples"],
    ) -> Float[Array, "batch samples size"]:
        """Computes the distribution of every sample from the samples before it, in one pass.

        Args:
          audio_BxS: recorded samples in [-1, 1], `hop` for each frame.

        Returns:
          Values that describe `config.output`.
        """
        config, segments = self.config, one_a_row(lengths)
        audio = masked(shard_batch_dim(audio_BxS), segments, config.hop)
        previous = jnp.pad(audio, ((0, 0), (1, 0)))[:, :-1]
        vectors = self.conditioning(mel_BxTxF, segments)
        x = masked(self.embed(previous[..., None].astype(config.dtype)), segments, config.hop)
        total = jnp.zeros((*audio.shape, config.skip_dim), x.dtype)
        for i, dilation in enumerate(config.dilations):
            layer = self.layers[f"layer{i}"]
            past = jnp.pad(x, ((0, 0), (dilation, 0), (0, 0)))[:, : x.shape[1]]
            x, skip = layer(x, past, jnp.repeat(layer.condition(vectors), config.hop, axis=1))
            x, total = masked(x, segments, config.hop), total + skip
        return self._distribution(total)

    def conditioning(
        self, mel_BxTxF: Float[Array, "batch time bins"], lengths: Lengths
    ) -> Float[Array, "batch time dim"]:
        """Computes the conditioning of each frame, which depends on `mel_kernel` frames."""
        segments = one_a_row(lengths)
        return jnp.tanh(self.mel(self.normalized(shard_batch_dim(mel_BxTxF), segments)))

    def init_state(self, batch: int) -> WaveNetState:
        """Returns the state before the first sample."""
        config = self.config
        rings = tuple(jnp.zeros((dilation, batch, config.dim), config.dtype) for dilation in config.dilations)
        return WaveNetState(rings, jnp.zeros(batch), jnp.zeros((), jnp.int32))

    def step(
        self,
        state: WaveNetState,
        vectors_BxTxM: Float[Array, "batch time dim"],
        audio_BxS: Float[Array, "batch samples"],
    ) -> tuple[WaveNetState, Float[Array, "batch samples size"]]:
        """Computes the distributions of recorded samples one after the other, as generation does.

        Args:
          vectors_BxTxM: conditioning of the next frames.
          audio_BxS: their samples.
        """
        hop, (batch, num_frames) = self.config.hop, vectors_BxTxM.shape[:2]
        frames_TxHxB = jnp.moveaxis(audio_BxS.reshape(batch, num_frames, hop), 0, -1)

        def frame(state: WaveNetState, inputs: tuple[Array, Array]) -> tuple[WaveNetState, Array]:
            conditions = self._conditions(inputs[0])

            def sample(state: WaveNetState, sample_B: Array) -> tuple[WaveNetState, Array]:
                state, outputs = self.advance(state, conditions)
                return state._replace(previous=sample_B), outputs

            return jax.lax.scan(sample, state, inputs[1])

        state, outputs_TxHxBxO = jax.lax.scan(frame, state, (jnp.swapaxes(vectors_BxTxM, 0, 1), frames_TxHxB))
        return state, jnp.moveaxis(outputs_TxHxBxO, 2, 0).reshape(batch, num_frames * hop, self.config.output.size)

    def advance(
        self, state: WaveNetState, conditions: list[Float[Array, "batch twice_dim"]], outside: Array | None = None
    ) -> tuple[WaveNetState, Float[Array, "batch size"]]:
        """Computes the distribution of the next sample; `outside` marks rows whose utterance has not started."""

        def inside(x: Array) -> Array:
            return x if outside is None else jnp.where(outside[:, None], 0, x)

        x, total, rings = inside(self.embed(state.previous[:, None].astype(self.config.dtype))), 0, []
        for i, (ring, condition) in enumerate(zip(state.rings, conditions, strict=True)):
            place = state.count % ring.shape[0]
            past = jax.lax.dynamic_index_in_dim(ring, place, keepdims=False)
            rings.append(jax.lax.dynamic_update_index_in_dim(ring, x, place, 0))
            x, skip = self.layers[f"layer{i}"](x, past, condition)
            x, total = inside(x), total + skip
        return WaveNetState(tuple(rings), state.previous, state.count + 1), self._distribution(total)

    def _conditions(self, vectors_BxM: Float[Array, "batch dim"]) -> list[Float[Array, "batch twice_dim"]]:
        return [self.layers[f"layer{i}"].condition(vectors_BxM) for i in range(self.config.num_layers)]

    def _distribution(self, total: Float[Array, "*places skip_dim"]) -> Float[Array, "*places size"]:
        total = total * self.config.num_layers**-0.5
        return self.out(jax.nn.relu(self.hidden(jax.nn.relu(total)))).astype(jnp.float32)
