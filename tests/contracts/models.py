"""The properties that every model has, checked on a toy of each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.segments import Segments
from jax_speechlm.models.adapter import Convolutional, QFormer, Stacking
from jax_speechlm.models.codec.codebook import Codebook, straight_through
from jax_speechlm.models.codec.decoder import Decoder as CodecDecoder
from jax_speechlm.models.codec.encoder import Encoder as SeanetEncoder
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizer, WavTokenizerConfig
from jax_speechlm.models.encoder_base import frames_of
from jax_speechlm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from jax_speechlm.models.encoders import EncoderConfig, make_encoder
from jax_speechlm.models.speech_lm import SpeechLMConfig, SpeechTransformer
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.tts.aligner import Aligner, AlignerConfig
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2, FastSpeech2Config, Layers, Postnet, Predictor
from jax_speechlm.models.tts.tacotron import Tacotron, TacotronConfig
from jax_speechlm.models.tts.text import pack_text
from jax_speechlm.models.vocoders.base import VocoderConfig, masked
from jax_speechlm.models.vocoders.hifigan import HifiGan, HifiGanConfig
from jax_speechlm.models.vocoders.sample_distributions import MuLaw
from jax_speechlm.models.vocoders.vocos import Vocos, VocosConfig
from jax_speechlm.models.vocoders.wavenet import WaveNet, WaveNetConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.models.xvector import XVector, XVectorConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import FrameKeys
from jax_speechlm.nn.lora import LoRA
from tests.contracts import objectives

WIDTH, VOCAB = 8, 24


@dataclasses.dataclass(frozen=True)
class Toy:
    """A small model.

    Attributes:
      make: declares its parameters.
      call: `(module, x [B, T, ...], length [B], keys [B]) -> outputs [B, N, ...]`, 0 behind a row's last output.
      num_outputs: number of outputs of a row of that length.
      width: values of an input, or 0 for tokens.
      longest: inputs of the longest row.
      pack: `(module, x [B, T, ...], segments, keys [B, N]) -> outputs, where each utterance's lie`, or None if it takes
        one utterance a row.
      multiple: divisor of the input at which an utterance of a packed row starts.
      gap: inputs between the utterances of a packed row.
      unreached: parts of the names of parameters that may have no gradient.
    """

    make: Callable[[Any], Any]
    call: Callable[..., Any]
    num_outputs: Callable[[int], int]
    width: int = WIDTH
    longest: int = 24
    pack: Callable[..., Any] | None = None
    multiple: int = 1
    gap: int = 0
    unreached: tuple[str, ...] = ()

    def inputs(self, seed: int, rows: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if self.width:
            return rng.standard_normal((rows, self.longest, self.width)).astype(np.float32)
        return rng.integers(0, VOCAB, (rows, self.longest)).astype(np.int32)

    @functools.cached_property
    def params(self):
        """Parameters that are nowhere 0 or 1."""
        rng = np.random.default_rng(0)
        params = jax.device_get(functional.init(self.make, jax.random.key(0)))
        return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)

    @functools.cached_property
    def _programs(self):
        graphdef = functional.declare(self.make).graphdef

        def run(params, *inputs):
            return self.call(functional.bind(graphdef, params), *inputs)

        def total(params, *inputs):
            y = run(params, *inputs)
            return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(y[0].size)).reshape(y.shape[1:]))

        return jax.jit(run), jax.jit(jax.grad(total, argnums=(0, 1) if self.width else (0,)))

    @functools.cached_property
    def _packed_program(self):
        graphdef = functional.declare(self.make).graphdef
        return jax.jit(lambda params, *inputs: self.pack(functional.bind(graphdef, params), *inputs))

    def forward_packed(self, x, lengths, keys, rows: list[list[int]]) -> dict[int, np.ndarray]:
        """Returns the outputs of each utterance, several of which share a row; junk fills the gaps."""
        slot = [-(-(length + self.gap) // self.multiple) * self.multiple for length in (*lengths, self.longest)]
        rows, most = [*rows, *[[]] * (3 - len(rows))], 3  # the same shape, so one program, whatever is packed
        packed = np.full((len(rows), most * slot[-1] + 2 * self.multiple, *x.shape[2:]), 1e4, x.dtype)
        start, length = np.zeros((2, len(rows), most), np.int32)
        ids = np.zeros((len(rows), most), np.int32)
        for place, row in enumerate(rows):
            at = 0
            for number, i in enumerate(row):
                packed[place, at : at + lengths[i]] = x[i, : lengths[i]]
                start[place, number], length[place, number], ids[place, number] = at, lengths[i], i
                at += slot[i]
        y, lie = jax.device_get(
            self._packed_program(self.params, packed, Segments(jnp.array(start), jnp.array(length)), keys[ids])
        )
        return {
            i: y[place, lie.start[place, number] :][: lie.length[place, number]]
            for place, row in enumerate(rows)
            for number, i in enumerate(row)
        }

    def forward(self, x, lengths, keys) -> np.ndarray:
        return np.asarray(self._programs[0](self.params, x, np.array(lengths, np.int32), keys))

    def gradients(self, x, lengths, keys):
        """Returns gradients of a sum over the outputs to parameters and, but for tokens, to the inputs."""
        return jax.device_get(self._programs[1](self.params, x, np.array(lengths, np.int32), keys))


def _encoder(config: EncoderConfig, longest: int) -> Toy:
    def make(rngs):
        return make_encoder(config, rngs=rngs)

    def call(module, x, length, keys):
        return module(x, length, keys=keys)[0]

    def pack(module, x, segments, keys):
        return call(module, x, segments, keys), frames_of(config, segments)

    fixed = ("['position']",) if isinstance(config, WhisperEncoderConfig) else ()  # not trained
    lead = getattr(config, "lead_vectors", 0)
    settings = {"multiple": config.subsampling, "gap": lead, "unreached": fixed}
    return Toy(make, call, config.num_frames, config.input_dim, longest, pack, **settings)


def _encoder_decoder(config: EncoderDecoderConfig) -> Toy:
    """Features to the logits of a text of five tokens, the same for every utterance."""

    def call(module, x, length, keys):
        return pack(module, x, Segments.of(length), keys[:, None])[0]

    def pack(module, x, segments, keys):
        texts = Segments.one_after_another(5 * (segments.length > 0))
        num = 5 * segments.num
        source = module.read(*module.encode_speech(x, segments, keys=keys))
        position = texts.position(num)
        tokens = (1 + position, texts.segment(num), position)
        logits = module.decoder.logits(module.decoder(*tokens, source, FrameKeys(keys, texts)))
        return jnp.where(texts.mask(num)[..., None], logits, 0), texts

    settings = {"longest": 30, "pack": pack, "multiple": config.subsampling, "unreached": ("['position']",)}
    make = functools.partial(EncoderDecoder, config, VOCAB)
    return Toy(lambda rngs: make(rngs=rngs), call, lambda length: 5 * (length > 0), config.input_dim, **settings)


def _transformer(config: TransformerConfig) -> Toy:
    def call(module, tokens, length, keys):
        inside = frame_mask(length, tokens.shape[1])
        position = jnp.where(inside, jnp.arange(tokens.shape[1]), 0)
        hidden = module(tokens, inside.astype(jnp.int32), position, keys)
        return jnp.where(inside[..., None], module.logits(hidden), 0)

    return Toy(lambda rngs: Transformer(config, VOCAB, rngs=rngs), call, lambda length: length, width=0)


def _adapter(config: Stacking | Convolutional | QFormer) -> Toy:
    def call(module, x, length, keys):
        return module(x, length)[0]

    # A softmax over keys does not depend on their bias.
    unreached = ("key']['bias", "self_key']['bias") if config.kind == "qformer" else ()

    def pack(module, x, segments, keys):
        return module(x, segments)

    settings = {"longest": 13, "unreached": unreached, "pack": pack, "multiple": config.alignment}
    return Toy(lambda rngs: config.build(WIDTH, 10, rngs), call, config.num_outputs, **settings)


def _speech_lm(config: SpeechLMConfig) -> Toy:
    def call(module, x, length, keys):
        return module.with_lora().encode_speech(x, length, keys=keys)[0]

    def num_outputs(length):
        return config.adapter.num_outputs(config.encoder.num_frames(length))

    def make(rngs):
        return SpeechTransformer(config, VOCAB, rngs=rngs)

    def pack(module, x, segments, keys):
        return module.with_lora().encode_speech(x, segments, keys=keys)

    multiple = config.encoder.subsampling * config.adapter.alignment
    settings = {"unreached": ("transformer",), "pack": pack, "multiple": multiple}
    return Toy(make, call, num_outputs, config.encoder.input_dim, **settings)


def _xvector(config: XVectorConfig) -> Toy:
    def call(module, x, length, keys):
        return pack(module, x, Segments.of(length), keys)[0]

    def pack(module, x, segments, keys):
        long_enough = segments.length >= config.shortest
        index = jnp.broadcast_to(jnp.arange(segments.num), long_enough.shape)
        return module.cosines(module(x, segments)) * long_enough[..., None], Segments(index, long_enough.astype(int))

    def num_outputs(length):
        return int(length >= config.shortest)

    return Toy(lambda rngs: XVector(config, WIDTH, 3, rngs=rngs), call, num_outputs, pack=pack)


def _vocoder(config: VocoderConfig, make: Callable[..., Any]) -> Toy:
    def call(module, x, length, keys):
        return module(x, length)

    settings = {"unreached": ("['mean']", "['scale']")}  # not trained
    return Toy(
        lambda rngs: make(config, rngs=rngs), call, lambda frames: frames * config.hop, config.input_dim, **settings
    )


def _codec(make: Callable[..., Any], call: Callable[..., Any], num_outputs: Callable[[int], int], **settings) -> Toy:
    """The codec or a part of it; inputs are samples, or vectors of `width` values."""

    def run(module, x, length, keys):
        y, length = call(module, x[..., 0] if settings.get("width") == 1 else x, length, keys)
        return jnp.where(frame_mask(length, y.shape[1]).reshape(*y.shape[:2], *[1] * (y.ndim - 2)), y, 0)

    return Toy(lambda rngs: make(rngs=rngs), run, num_outputs, **settings)


def _code_vectors(module: Codebook, x, length, keys):
    return straight_through(x, module.lookup(module.nearest(x))), length


def _reconstruction(module: WavTokenizer, x, length, keys):
    both = module.reconstruct(x, length, keys)
    return both.audio, both.length * CODEC.hop


CODEC = WavTokenizerConfig(
    num_filters=4, strides=(2, 3), num_residual_layers=2, latent_dim=WIDTH, codebook_size=5, dim=8, ffn_dim=12,
    num_layers=2, num_groups=4, dropout=0.2, kernel_size=5, last_kernel_size=3,
)  # fmt: skip
NO_GRADIENT = ("vectors", "count", "total", "['key']['bias']")
"""Moving averages, and a bias that a softmax does not depend on."""
CODECS = {
    "codec, encoder": _codec(
        functools.partial(SeanetEncoder, CODEC), lambda module, x, length, keys: module(x, length), CODEC.num_codes,
        width=1, longest=40,
    ),
    "codec, codebook": _codec(
        functools.partial(Codebook, 5, WIDTH), _code_vectors, lambda length: length, unreached=NO_GRADIENT
    ),
    "codec, decoder": _codec(
        functools.partial(CodecDecoder, CODEC),
        lambda module, x, length, keys: (module(x, length, keys), length * CODEC.hop),
        lambda length: length * CODEC.hop, unreached=NO_GRADIENT,
    ),
    "codec": _codec(
        functools.partial(WavTokenizer, CODEC), _reconstruction, lambda length: CODEC.num_codes(length) * CODEC.hop,
        width=1, longest=40, unreached=NO_GRADIENT,
    ),
}  # fmt: skip

FAST_SPEECH = FastSpeech2Config(
    num_mel_bins=WIDTH,
    dim=WIDTH,
    encoder=Layers(num_layers=2, ffn_dim=12, kernel_size=5, dropout=0.2),
    decoder=Layers(num_layers=2, ffn_dim=12, kernel_size=7, dropout=0.2),
    duration=Predictor(channels=12),
    pitch=Predictor(channels=12),
    energy=Predictor(channels=12),
    postnet=Postnet(num_layers=3, channels=6),
)


def _fast_speech_encoder(config: FastSpeech2Config) -> Toy:
    """Tokens to hidden states and predicted variances."""

    def call(module, tokens, length, keys):
        return pack(module, tokens, Segments.of(length), keys[:, None])[0]

    def pack(module, tokens, segments, keys):
        hidden = module.encode(tokens, segments, keys=keys)
        predicted = module.predict(hidden, segments, keys)
        return jnp.concatenate([hidden, jnp.stack(predicted, axis=-1)], axis=-1), segments

    unreached = ("decoder", "head", "postnet", "_embedding")
    make = functools.partial(FastSpeech2, config, VOCAB)
    return Toy(lambda rngs: make(rngs=rngs), call, lambda length: length, 0, pack=pack, unreached=unreached)


def _fast_speech_decoder(config: FastSpeech2Config) -> Toy:
    """Frames of hidden states to log-mel before and after the postnet."""

    def call(module, x, length, keys):
        return pack(module, x, Segments.of(length), keys[:, None])[0]

    def pack(module, x, segments, keys):
        return jnp.concatenate(module.decode(x, segments, keys), axis=-1), segments

    unreached = ("tokens", "encoder", "duration", "pitch", "energy")
    make = functools.partial(FastSpeech2, config, VOCAB)
    return Toy(lambda rngs: make(rngs=rngs), call, lambda length: length, pack=pack, unreached=unreached)


def _aligner(config: AlignerConfig) -> Toy:
    """Frames to log-probabilities of five tokens, the same for every utterance."""

    def call(module, x, length, keys):
        return pack(module, x, Segments.of(length), keys)[0]

    def pack(module, x, segments, keys):
        count = jnp.full_like(segments.length, 5)
        text = pack_text(jnp.broadcast_to(jnp.arange(1, 6), (*count.shape, 5)), count, 5 * segments.num)
        log_p = module(text, x, segments, 5)
        return jnp.where(segments.mask(x.shape[1])[..., None], log_p, 0), segments

    return Toy(lambda rngs: Aligner(config, VOCAB, WIDTH, rngs=rngs), call, lambda length: length, pack=pack)


TACOTRON = TacotronConfig(
    num_mel_bins=WIDTH,
    dim=WIDTH,
    num_layers=2,
    kernel_size=3,
    prenet_dim=6,
    attention_dim=5,
    location_kernel_size=3,
    decoder_dim=7,
    postnet=Postnet(num_layers=3, channels=6),
)


def _tacotron_encoder(config: TacotronConfig) -> Toy:
    """Tokens to what attention reads."""

    def call(module, tokens, length, keys):
        return pack(module, tokens, Segments.of(length), keys[:, None])[0]

    def pack(module, tokens, segments, keys):
        memory = module.encode(tokens, segments, keys=keys)
        return jnp.concatenate([memory.hidden, memory.keys], axis=-1), segments

    unreached = ("prenet", "_lstm", "attention'", "head", "stop", "postnet")
    make = functools.partial(Tacotron, config, VOCAB)
    return Toy(lambda rngs: make(rngs=rngs), call, lambda length: length, 0, pack=pack, unreached=unreached)


def _tacotron_decoder(config: TacotronConfig) -> Toy:
    """Frames to the errors of their predictions before and after the postnet, from a text of five tokens."""

    def call(module, x, length, keys):
        return pack(module, x, Segments.of(length), keys[:, None])[0]

    def pack(module, x, segments, keys):
        count = jnp.full_like(segments.length, 5)
        text = pack_text(jnp.broadcast_to(jnp.arange(1, 6), (*count.shape, 5)), count, 5 * segments.num)
        frames = module.decode(module.encode(*text, keys=keys), x, segments, keys, keys)
        is_frame = segments.mask(x.shape[1])[..., None]
        return jnp.where(is_frame, jnp.concatenate([frames.before - x, frames.after - x], axis=-1), 0), segments

    make = functools.partial(Tacotron, config, VOCAB)
    options = {"pack": pack, "multiple": config.reduction, "unreached": ("stop",)}
    return Toy(lambda rngs: make(rngs=rngs), call, lambda length: length, **options)


def _wavenet(config: WaveNetConfig) -> Toy:
    """Distributions of samples that are bins of the spectrogram."""

    def call(module, x, length, keys):
        audio = jnp.tanh(x[..., : config.hop]).reshape(len(x), -1)
        return masked(module.outputs(x, length, audio), Segments.of(length), config.hop)

    def make(rngs):
        return WaveNet(config, rngs=rngs)

    unreached = ("['mean']", "['scale']")  # not trained
    return Toy(make, call, lambda frames: frames * config.hop, config.input_dim, unreached=unreached)


CONFORMER, FAST_CONFORMER, WHISPER, WAV2VEC2, CNN, RNN, *_ = objectives.MODELS.values()
SAMPLES = WAV2VEC2.replace(kernels=(10, 3), strides=(5, 2), dropout=0.2)
TOYS = CODECS | {
    "conformer": _encoder(CONFORMER.replace(left_max=6, right_max=3, dropout=0.2), 24),
    "fast_conformer": _encoder(FAST_CONFORMER.replace(dropout=0.2), 72),
    "fast_conformer, causal": _encoder(FAST_CONFORMER.replace(dropout=0.2, causal=True), 72),
    "whisper": _encoder(WHISPER.replace(dropout=0.2), 30),
    "wav2vec2": _encoder(SAMPLES.replace(relative=None), 200),
    "wavlm": _encoder(SAMPLES.replace(convolution_norm="layer", convolution_bias=True, pre_norm=True), 200),
    "data2vec": _encoder(SAMPLES.replace(convolution_norm="layer", position_layers=2, relative=None), 200),
    "cnn": _encoder(CNN.replace(dropout=0.2), 24),
    "rnn, lstm": _encoder(RNN.replace(cell="lstm", dropout=0.2), 24),
    "rnn, gru in one direction": _encoder(RNN.replace(bidirectional=False, dropout=0.2), 24),
    "encoder_decoder": _encoder_decoder(objectives.AED_MODEL.replace(lora=LoRA())),
    "transformer, causal": _transformer(objectives.CAUSAL),
    "transformer, both ways": _transformer(objectives.BOTH_WAYS),
    "transformer, learnt positions": _transformer(objectives.BERT),
    "transformer, as GPT-2": _transformer(objectives.GPT2),
    "adapter, stacking": _adapter(Stacking(frames=3, hidden_dim=8)),
    "adapter, convolution": _adapter(Convolutional(num_layers=2, stride=2, kernel_size=3, hidden_dim=8)),
    "adapter, qformer": _adapter(QFormer(window=4, queries=2, num_layers=2, num_heads=2, dim=8)),
    "speech_lm": _speech_lm(objectives.SPEECH_LM),
    "vocos": _vocoder(VocosConfig(input_dim=6, dim=8, num_layers=2, kernel_size=3, hop=4, window=16), Vocos),
    "aligner": _aligner(AlignerConfig(dim=6, text_dim=8, temperature=0.1)),
    "fastspeech2, encoder": _fast_speech_encoder(FAST_SPEECH),
    "fastspeech2, decoder": _fast_speech_decoder(FAST_SPEECH),
    "tacotron, encoder": _tacotron_encoder(TACOTRON),
    "tacotron, decoder": _tacotron_decoder(TACOTRON),
    "hifigan": _vocoder(
        HifiGanConfig(
            input_dim=6,
            dim=8,
            upsample_rates=(3, 2),
            upsample_kernels=(5, 4),
            block_kernels=(3,),
            block_dilations=((1, 2),),
        ),
        HifiGan,
    ),
    "wavenet": _wavenet(
        WaveNetConfig(input_dim=6, dim=4, skip_dim=6, num_layers=3, cycle=2, mel_dim=5, hop=4, output=MuLaw(classes=8))
    ),
    "xvector": _xvector(XVectorConfig(channels=(6, 5, 9), kernels=(3, 2, 1), dilations=(2, 3, 1), dim=4)),
}


def verify_model(name: str) -> None:
    """Checks that outputs depend on an utterance's own inputs and key only, and that gradients are finite."""
    toy, rows, order = TOYS[name], 5, [3, 0, 4, 2, 1]
    keys = jax.random.split(jax.random.key(1), rows)
    for first in (2, toy.longest // 2 + 1, toy.longest - 1):
        lengths = np.array([first, toy.longest, 1, 0, toy.longest // 3])
        x = toy.inputs(first, rows)
        together = toy.forward(x, lengths, keys)
        for row, length in enumerate(lengths):
            count = toy.num_outputs(int(length))
            assert not together[row, count:].any()
            assert count == 0 or together[row, count - 1].any()

        with_junk = _with_junk(x, lengths)[order]
        np.testing.assert_allclose(
            toy.forward(with_junk, lengths[order], keys[np.array(order)]), together[order], atol=1e-5
        )

        padding = [(0, 0), (0, 9), (0, 0)][: x.ndim]
        longer = np.pad(_with_junk(x, lengths), padding, constant_values=3)
        for row in range(rows):
            alone = toy.forward(longer[row : row + 1], lengths[row : row + 1], keys[row : row + 1])[0]
            count = toy.num_outputs(int(lengths[row]))
            np.testing.assert_allclose(alone[:count], together[row, :count], atol=1e-5)

        for packed_rows in ([[0, 2, 3], [4, 1]], [[1, 4, 0], [3], [2]]) if toy.pack else ():
            for row, outputs in toy.forward_packed(x, lengths, keys, packed_rows).items():
                assert len(outputs) == toy.num_outputs(int(lengths[row]))
                np.testing.assert_allclose(outputs, together[row, : len(outputs)], atol=1e-5)

    for first in (*range(0, 26, rows), toy.longest - rows + 1):
        lengths = np.minimum(np.arange(first, first + rows), toy.longest)
        to_params, *to_x = toy.gradients(_with_junk(toy.inputs(first, rows), lengths), lengths, keys)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((to_params, to_x)))
        for row, length in enumerate(lengths if to_x else ()):
            assert to_x[0][row, :length].any() == (toy.num_outputs(int(length)) > 0)
            assert not to_x[0][row, length:].any()
    unreached = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(to_params) if not leaf.any()]
    assert all(any(part in path for part in toy.unreached) for path in unreached), unreached


def _with_junk(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns inputs whose padding holds junk."""
    inside = np.arange(x.shape[1]) < lengths[:, None]
    return np.where(inside.reshape(*inside.shape, *[1] * (x.ndim - 2)), x, 1e4 if x.ndim == 3 else 3).astype(x.dtype)
