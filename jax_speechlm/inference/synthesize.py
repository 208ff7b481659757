"""Speech synthesis: texts to samples, by an acoustic model and a vocoder."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, Integer

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import AnyPath
from data_pipelines.text.spoken_form import text_for
from jax_speechlm.core.segments import Segments
from jax_speechlm.inference.predictor import RunPredictor
from jax_speechlm.inference.vocode import GRIFFIN_LIM, Vocoder
from jax_speechlm.models.tts.fastspeech2 import (
    one_hot_tokens,
    repeat_by_frame,
    token_of_frame,
)
from jax_speechlm.models.tts.text import boundary_id
from jax_speechlm.models.tts.voice import GROUPS, Voice
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.acoustic import TTS
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.tasks import resolve
from jax_speechlm.training.runs import LoadedRun, task_of_run

PADDED_TOKENS = (32, 64, 96, 128, 192, 256, 384)
"""Padded lengths of texts, each a compiled program."""
LONGEST_PART = PADDED_TOKENS[-1] - 2
"""Most tokens of a sentence, without the boundaries; longer ones are cut at pauses or between words."""
_LEAST_FRAMES = 128
SPEEDS = 0.25, 4.0
_SECONDS_PER_TOKEN = 0.07  # of English text in characters, to choose programs that are compiled beforehand
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_PAUSE = re.compile(r"(?<=[,;:])\s+")


class SynthesisError(DataError):
    """A text, speaker or speed that cannot be synthesised; the message has the remedy."""


class Speech(NamedTuple):
    """Synthesised speech.

    Attributes:
      samples: in [-1, 1].
      sample_rate: in Hz.
      durations: frames of each token, with a boundary at both ends of every sentence.
      mel: log-mel spectrogram.
    """

    samples: Float32[np.ndarray, " samples"]
    sample_rate: int
    durations: Int[np.ndarray, " tokens"]
    mel: Float32[np.ndarray, "frames bins"]


@dataclasses.dataclass(frozen=True)
class Synthesizer(RunPredictor):
    """Synthesises speech with a model trained by `tts`, a sentence at a time.

    A sentence's samples do not depend on the other sentences. Lengths are padded to a few sizes, so a new text seldom
    compiles a program.

    Attributes:
      vocoder: computes the samples.
    """

    objective = TTS
    purpose = "synthesise speech"
    abilities = ("synthesize",)

    vocoder: Vocoder

    @classmethod
    def load(cls, path: str | os.PathLike, vocoder: str | os.PathLike | None = None) -> "Synthesizer":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, and a vocoder.

        The result is a synthesizer of the class for the run's task.

        Args:
          vocoder: a vocoder's run, or "griffin-lim", which is the default.

        Raises:
          CheckpointError: a checkpoint cannot be read, or was trained by another objective.
          ValueError: the vocoder takes another mel spectrogram than the model computes.
        """
        task = task_of_run(path)
        cls = resolve(task.predictor) if "synthesize" in task.abilities else cls
        run = LoadedRun.load(path, cls.objective, cls.purpose)
        return cls(run, Vocoder.load(vocoder or GRIFFIN_LIM, run.experiment.frontend.mel))

    def with_vocoder(self, vocoder: str | os.PathLike) -> "Synthesizer":
        """Returns this synthesizer with another vocoder; arguments and errors as of `load`."""
        return dataclasses.replace(self, vocoder=Vocoder.load(vocoder, self.experiment.frontend.mel))

    @property
    def experiment(self) -> Experiment:
        """The run's settings."""
        return self.run.experiment

    @property
    def params(self) -> functional.Params:
        """The run's parameters."""
        return self.run.params

    @property
    def checkpoint(self) -> AnyPath:
        """The checkpoint that was read."""
        return self.run.checkpoint

    @property
    def sample_rate(self) -> int:
        """Of the samples, in Hz."""
        return self.experiment.sample_rate

    @property
    def units(self) -> str | None:
        """Fingerprint of the k-means whose units the texts are; None for a voice of texts in a language."""
        return self.run.units

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers; empty for a model with one voice."""
        classes = self.experiment.objective.classes
        return classes if len(classes) > 1 else ()

    def synthesize(
        self, texts: str | Sequence[str], speaker: str | None = None, speed: float = 1.0, language: str = "en"
    ) -> list[Speech]:
        """Synthesises texts of any length, one result for each.

        A voice of units takes their numbers, "12 5 9"; a line of them is spoken as a sentence is.

        Args:
          speaker: one of `speakers`; None takes the first.
          speed: above 1 is faster.
          language: two-letter code, of the words for numbers and signs.

        Raises:
          SynthesisError: a text has no words, or the speaker or the speed is not possible.
          UnspokenError: a text has characters without words, or letters that the model was not trained on. Both are
            `DataError`s, and all arguments are checked before anything is computed.
        """
        texts = [texts] if isinstance(texts, str) else texts
        sentences = [self._sentences(text, language) for text in texts]
        speaker_id, speed = self._speaker_id(speaker), self._checked_speed(speed)
        return [self._speech([self.spectrogram(ids, speaker_id, speed) for ids in text]) for text in sentences]

    def speak_units(self, units: Integer[np.ndarray, " _"]) -> Float32[np.ndarray, " _"]:
        """Returns the samples of a sequence of units, by a voice of units."""
        return self.synthesize(" ".join(map(str, units.tolist())))[0].samples

    def stream(
        self, text: str, speaker: str | None = None, speed: float = 1.0, language: str = "en"
    ) -> Generator[Float32[np.ndarray, " samples"], None, None]:
        """Yields the samples of `synthesize` as they are ready; arguments and errors as there.

        The spectrogram of a sentence is computed at once, its samples in the chunks of the vocoder's `stream`. They are
        those of `synthesize` to 1e-5; bit for bit with a vocoder that gives a sentence whole, such as Griffin-Lim.
        """
        speed, speaker_id = self._checked_speed(speed), self._speaker_id(speaker)
        sentences = self._sentences(text, language)
        for ids in sentences:
            mel, _ = self.spectrogram(ids, speaker_id, speed)
            yield from self.vocoder.stream([mel])

    def programs(self) -> Sequence[Callable[[], Any]]:
        """Returns calls that compile what `stream` runs for sentences of the most common lengths."""

        def compile_for(tokens: int) -> None:
            frames = int(tokens * _SECONDS_PER_TOKEN * self.sample_rate / self.experiment.frame_samples)
            x, counts = self._encode(self._voice, *padded(np.zeros(tokens, np.int32)), np.int32(0), np.float32(1))
            mel = self._decode(self._voice, x, counts, _padded_frames(frames))
            list(self.vocoder.stream([np.asarray(mel)[0, :frames]]))

        return [functools.partial(compile_for, tokens) for tokens in PADDED_TOKENS[:5]]

    def _sentences(self, text: str, language: str) -> list[list[int]]:
        """Returns the tokens of a text's sentences, of which none is longer than `LONGEST_PART`."""
        if not text.strip():
            raise SynthesisError("the text is empty: write what is to be said")
        tokenizer = self.run.tokenizer
        if self.experiment.objective.reads_units:
            lines = [ids for line in text.splitlines() if (ids := tokenizer.encode(line))]
            return [part.tolist() for ids in lines for part in np.array_split(ids, -(-len(ids) // LONGEST_PART))]
        known = text_for(tokenizer, text, language)
        parts = _cut(known, lambda part: len(tokenizer.encode(part)) <= LONGEST_PART)
        encoded = [tokenizer.encode(part) for part in parts if any(map(str.isalpha, part))]
        if not any(encoded):
            raise SynthesisError(f"{text[:80]!r} has no words: write what is to be said in words")
        return [ids for ids in encoded if ids]

    def _speaker_id(self, speaker: str | None) -> int:
        if speaker is None:
            return 0
        if speaker in self.speakers:
            return self.speakers.index(speaker)
        known = ", ".join(map(repr, self.speakers))
        remedy = f"choose one of {known}" if known else "it has one voice, so leave the speaker out"
        raise SynthesisError(f"{self.checkpoint} has no speaker {speaker!r}: {remedy}")

    def _checked_speed(self, speed: float) -> float:
        slowest, fastest = SPEEDS
        if not slowest <= speed <= fastest:
            raise SynthesisError(f"a speed of {speed:g} is not possible: choose one from {slowest:g} to {fastest:g}")
        return float(speed)

    def spectrogram(
        self, ids: Sequence[int], speaker: int = 0, speed: float = 1.0
    ) -> tuple[Float32[np.ndarray, "frames bins"], Int[np.ndarray, " tokens"]]:
        """Returns the log-mel spectrogram and the durations, with boundaries, of the token ids of one sentence."""
        boundary = boundary_id(self.run.tokenizer)
        rows = padded(np.array([boundary, *ids, boundary], np.int32))
        x, counts = self._encode(self._voice, *rows, np.int32(speaker), np.float32(speed))
        counts = np.asarray(counts)
        frames = int(counts.sum())
        mel = self._decode(self._voice, x, counts, _padded_frames(frames))
        return np.asarray(mel)[0, :frames], counts[0, : len(ids) + 2]

    def _speech(self, spectrograms: Sequence[tuple[np.ndarray, np.ndarray]]) -> Speech:
        mels, counts = zip(*spectrograms, strict=True)
        samples = np.concatenate(self.vocoder.vocode(mels))
        return Speech(samples, self.sample_rate, np.concatenate(counts), np.concatenate(mels))

    @property
    def _voice(self) -> functional.Params:
        """The parameters without those of training alone."""
        return {name: group for name, group in self.run.params.items() if name in GROUPS}

    @functools.cached_property
    def _graphdef(self):
        model, tokenizer = self.experiment.model, self.run.tokenizer
        num_speakers = self.experiment.objective.num_speakers
        return functional.declare(lambda rngs: Voice(model, tokenizer, num_speakers, rngs=rngs)).graphdef

    @functools.cached_property
    def _encode(self):
        @jax.jit
        def encode(params, tokens_1xS, length_1, speaker, speed):
            module, segments = functional.bind(self._graphdef, params).with_lora(), Segments.of(length_1)
            return module.with_durations(tokens_1xS, segments, speaker[None, None], speed)

        return encode

    @functools.cached_property
    def _decode(self):
        @functools.partial(jax.jit, static_argnums=3)
        def decode(params, x_1xSxD, frames_1xS, num_frames):
            matrix = one_hot_tokens(token_of_frame(frames_1xS, num_frames), x_1xSxD.shape[1])
            segments = Segments.of(frames_1xS.sum(1))
            acoustic = functional.bind(self._graphdef, params).acoustic
            return acoustic.decode(repeat_by_frame(x_1xSxD, matrix), segments)[1]

        return decode


def _cut(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Returns a text's sentences; those that do not fit are cut at pauses, else between words, else anywhere."""
    parts = _SENTENCE.split(text)
    for split, glue in ((_PAUSE.split, " "), (str.split, " "), (list, "")):
        parts = [part for whole in parts for part in ([whole] if fits(whole) else _joined_up(split(whole), glue, fits))]
    return [part for part in parts if part]


def _joined_up(pieces: Sequence[str], glue: str, fits: Callable[[str], bool]) -> list[str]:
    """Joins neighbouring pieces as long as the result fits."""
    joined = [pieces[0]]
    for piece in pieces[1:]:
        together = f"{joined[-1]}{glue}{piece}"
        if fits(together):
            joined[-1] = together
        else:
            joined.append(piece)
    return joined


def padded(tokens: Int[np.ndarray, " tokens"]) -> tuple[Int[np.ndarray, "1 padded"], Int[np.ndarray, "1"]]:
    """Returns a row of tokens of one of the lengths in `PADDED_TOKENS`, and the number of tokens."""
    size = next(size for size in PADDED_TOKENS if len(tokens) <= size)
    return np.pad(tokens, (0, size - len(tokens)))[None], np.array([len(tokens)], np.int32)


def _padded_frames(count: int) -> int:
    """Returns a number of frames that is not below: 128, 192, 256, 384, 512, ..."""
    size = _LEAST_FRAMES
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
