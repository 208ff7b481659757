"""Waveforms from mel spectrograms, by a trained vocoder or by Griffin and Lim's algorithm."""

import abc
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float, Float32, Int16
from tyro.conf import Positional

from data_pipelines.audio.decode import decode
from data_pipelines.audio.wav import write_wav
from jax_speechlm.frontend.griffin_lim import mel_to_audio
from jax_speechlm.frontend.synthesis_mel import SynthesisMel, synthesis_mel
from jax_speechlm.models.vocoders.streaming import StreamingVocoder
from jax_speechlm.models.vocoders.vocoders import make_vocoder
from jax_speechlm.models.vocoders.wavenet import WaveNetConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.vocoder import Vocoding
from jax_speechlm.training.runs import LoadedRun

GRIFFIN_LIM = "griffin-lim"
"""Name of the vocoder that needs no run."""

_LONGEST = 2048  # frames of one pass; longer spectrograms are streamed
_CHUNK = 32  # frames of a step of a stream

Mel = Float[np.ndarray, "_ bins"]
Samples = Float32[np.ndarray, " _"]


class Vocoder(abc.ABC):
    """Computes waveforms of mel spectrograms [time, bins] of the form `mel`."""

    abilities: ClassVar[tuple[str, ...]] = ("vocode",)
    mel: SynthesisMel

    @classmethod
    def load(cls, path: str | os.PathLike, mel: SynthesisMel | None = None) -> "Vocoder":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder; or makes "griffin-lim", without a run.

        Args:
          mel: form of the spectrograms that it will be given; None for its own, which is SpeechT5's for Griffin-Lim.

        Raises:
          CheckpointError: no checkpoint can be read, or it is no vocoder's.
          ValueError: the vocoder takes spectrograms of another form than `mel`.
        """
        if str(path) == GRIFFIN_LIM:
            return GriffinLimVocoder(mel or SynthesisMel())
        run = LoadedRun.load(path, Vocoding, "compute waveforms")
        vocoder = (SampledVocoder if isinstance(run.experiment.model, WaveNetConfig) else StreamedVocoder)(run)
        if mel is not None and mel != vocoder.mel:
            own, given = vocoder.mel.model_dump(), mel.model_dump()
            differing = ", ".join(f"{name} {own[name]}, not {given[name]}" for name in own if own[name] != given[name])
            raise ValueError(
                f"{path}: this vocoder takes other mel spectrograms ({differing}): name one that was trained with the "
                f"front end of the model that computes them, or {GRIFFIN_LIM}"
            )
        return vocoder

    @property
    def sample_rate(self) -> int:
        """Rate of the samples in Hz."""
        return self.mel.sample_rate

    @abc.abstractmethod
    def vocode(self, mels: Iterable[Mel]) -> list[Samples]:
        """Computes waveforms.

        Args:
          mels: log-mel spectrograms, of any length.

        Returns:
          Samples in [-1, 1] of each, `mel.hop` for each frame.
        """

    def stream(self, chunks: Iterable[Mel]) -> Iterator[Samples]:
        """Computes the waveform of one spectrogram that comes in chunks of any length.

        Yields:
          Samples as soon as they are known. Together they are those of one pass.
        """
        chunks = list(chunks)
        yield from self.vocode([np.concatenate(chunks)] if chunks else [])

    def copy(self, samples: Int16[np.ndarray, " _"]) -> Samples:
        """Computes the spectrogram of speech and from that a waveform as long (copy synthesis)."""
        (audio,) = self.vocode([self.spectrogram(samples)])
        return audio[: len(samples)]

    def spectrogram(self, samples: Int16[np.ndarray, " _"]) -> Float32[np.ndarray, "_ bins"]:
        """Computes the log-mel spectrogram of speech of any length, in pieces."""
        mel, num_frames = self.mel, self.mel.num_frames(len(samples))
        around = -(-mel.window // mel.hop)  # frames that a piece has more on each side, against its reflected ends
        parts = [np.zeros((0, mel.num_mel_bins), np.float32)]
        for first in range(0, num_frames, _LONGEST):
            begin = max(first - around, 0)
            piece = samples[begin * mel.hop : (first + _LONGEST + around) * mel.hop]
            padded = np.zeros((1, _grid(-(-len(piece) // mel.hop)) * mel.hop), np.int16)
            padded[0, : len(piece)] = piece
            frames, _ = _spectrogram(padded, np.array([len(piece)], np.int32), mel)
            parts.append(np.asarray(frames[0])[first - begin :][: min(_LONGEST, num_frames - first)])
        return np.concatenate(parts)

    def _checked(self, mel: Mel) -> Float32[np.ndarray, "_ bins"]:
        mel = np.asarray(mel, np.float32)
        if mel.ndim != 2 or mel.shape[1] != self.mel.num_mel_bins:
            raise ValueError(f"a mel spectrogram is [time, {self.mel.num_mel_bins}] here, got {list(mel.shape)}")
        if not np.isfinite(mel).all():
            raise ValueError("a mel spectrogram holds values that are not finite: check the model that computed it")
        return mel


class TrainedVocoder(Vocoder):
    """A vocoder with the parameters of a run."""

    def __init__(self, run: LoadedRun):
        self.run = run
        self.mel = run.experiment.frontend.mel

    def vocode(self, mels: Iterable[Mel]) -> list[Samples]:
        return [self._one(self._checked(mel)) for mel in mels]

    def _one(self, mel: Float32[np.ndarray, "_ bins"]) -> Samples:
        num_frames = len(mel)
        padded = np.zeros((1, _grid(num_frames), mel.shape[1]), np.float32)
        padded[0, :num_frames] = mel
        audio = self._pass(self.run.params["generator"], padded, np.array([num_frames], np.int32))
        return np.asarray(audio)[0, : num_frames * self.mel.hop]

    def _make(self, rngs):
        return make_vocoder(self.run.experiment.model, rngs=rngs)

    @functools.cached_property
    def _pass(self):
        graphdef = functional.declare(self._make).graphdef
        return jax.jit(lambda params, *inputs: functional.bind(graphdef, params)(*inputs))


class SampledVocoder(TrainedVocoder):
    """A vocoder that generates one sample after the other; a stream is given at its end."""


class StreamedVocoder(TrainedVocoder):
    """A vocoder whose samples depend on few frames."""

    def __init__(self, run: LoadedRun):
        super().__init__(run)
        self._stream = StreamingVocoder(run.experiment.model, self._make)
        self._step, self._finish = jax.jit(self._stream.step), jax.jit(self._stream.finish)

    def stream(self, chunks: Iterable[Mel]) -> Iterator[Samples]:
        yield from self._in_steps(map(self._checked, chunks), _CHUNK)

    def _one(self, mel: Float32[np.ndarray, "_ bins"]) -> Samples:
        if len(mel) > _LONGEST:
            return np.concatenate(list(self._in_steps([mel], _LONGEST)))
        return super()._one(mel)

    def _in_steps(self, chunks: Iterable[Float32[np.ndarray, "_ bins"]], size: int) -> Iterator[Samples]:
        """Yields the samples of chunks, in steps of `size` frames, of which there are two programs."""
        params, hop, late = self.run.params["generator"], self.mel.hop, self._stream.delay
        state, waiting = self._stream.init_state(1), np.zeros((0, self.mel.num_mel_bins), np.float32)
        for chunk in chunks:
            waiting = np.concatenate([waiting, chunk])
            while len(waiting) >= size:
                state, audio = self._step(params, state, waiting[None, :size])
                waiting, audio = waiting[size:], np.asarray(audio)[0]
                if len(audio) > late:
                    yield audio[late:]
                late = max(late - len(audio), 0)
        last = np.zeros((1, size, waiting.shape[1]), np.float32)
        last[0, : len(waiting)] = waiting
        audio = np.asarray(self._finish(params, state, last, np.int32(len(waiting))))[0]
        if len(audio := audio[: len(waiting) * hop + self._stream.delay][late:]):
            yield audio


class GriffinLimVocoder(Vocoder):
    """Griffin and Lim's algorithm, which needs no training; a stream is given at its end."""

    def __init__(self, mel: SynthesisMel):
        self.mel = mel

    def vocode(self, mels: Iterable[Mel]) -> list[Samples]:
        return [self._one(self._checked(mel)) for mel in mels]

    def _one(self, mel: Float32[np.ndarray, "_ bins"]) -> Samples:
        padded = np.zeros((1, _grid(len(mel)), mel.shape[1]), np.float32)
        padded[0, : len(mel)] = mel
        audio = _griffin_lim(padded, np.array([len(mel)], np.int32), self.mel)
        return np.clip(np.asarray(audio)[0, : len(mel) * self.mel.hop], -1, 1)


@functools.partial(jax.jit, static_argnames="mel")
def _griffin_lim(spectrogram: jax.Array, lengths: jax.Array, mel: SynthesisMel):
    return mel_to_audio(spectrogram, lengths, mel)


@functools.partial(jax.jit, static_argnames="mel")
def _spectrogram(audio: jax.Array, lengths: jax.Array, mel: SynthesisMel):
    return synthesis_mel(audio, lengths, mel)


def _grid(num_frames: int) -> int:
    """Returns the padded length of a row: a power of two or one and a half times that, so that programs are few."""
    size = 1 << max(num_frames - 1, 31).bit_length()
    return size * 3 // 4 if num_frames <= size * 3 // 4 else size


def vocode_file(vocoder: Positional[str], file: Positional[Path], out: Path) -> None:
    """Computes the mel spectrogram of a recording and writes the waveform that a vocoder makes of it (copy synthesis).

    Args:
      vocoder: the directory of a run of a vocoder, one of its checkpoints/<step> folders, or griffin-lim.
      file: audio of any format, sample rate, length and number of channels.
      out: the WAV file to write.
    """
    opened = Vocoder.load(vocoder)
    samples = decode(file, rate=opened.sample_rate)
    write_wav(out, opened.copy(samples), opened.sample_rate)
    print(f"{out}: {len(samples) / opened.sample_rate:.2f} s at {opened.sample_rate} Hz, by {vocoder}")
