"""`jax_speechlm.load`: opens any trained run by its path."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from data_pipelines.core.paths import AnyPath
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.lm.generate import Beam, Sampling
from jax_speechlm.inference.asr.aed import AttentionRecognizer
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.asr.speech_lm import SpeechLanguageModel
from jax_speechlm.inference.asr.stream import Stream, StreamBatch
from jax_speechlm.inference.asr.transducer import TransducerRecognizer
from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.inference.intent import Command
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.generation import Continuation, UnitContinuation
from jax_speechlm.inference.lm.units import Part
from jax_speechlm.inference.segmentation import Recording
from jax_speechlm.inference.synthesize import Speech, Synthesizer
from jax_speechlm.inference.text_embed import TextEmbedder
from jax_speechlm.inference.text_tokens import Answer, Entity
from jax_speechlm.inference.transcript import Transcript
from jax_speechlm.inference.word_vectors import WordTable
from jax_speechlm.objectives.heads.pooling import Pooling
from jax_speechlm.tasks import TASKS, resolve, with_ability
from jax_speechlm.tasks.base import Task
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.runs import task_of_run

_HINTS = {
    "transcribe": "; an encoder learns to transcribe by jax-speechlm finetune --from {path}",
    "embed": ", with a conformer of its own",
    "score": "; the confidence of a recognizer is that of its transcripts' segments and words",
}


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A checkpoint with the methods that it was trained for, listed by `abilities`; others raise `CheckpointError`.

    The result of an input does not depend on the others; inputs of similar length share compiled programs across calls.

    Attributes:
      kind: the objective that it was trained by.
      model: the predictor, for its further methods.
      adapter: folder of the adapter that it has, or None.
    """

    checkpoint: AnyPath
    kind: str
    model: Any
    adapter: str | os.PathLike | None = None

    @property
    def abilities(self) -> tuple[str, ...]:
        """Names of the methods that this checkpoint has."""
        return self.model.abilities

    def transcribe(
        self,
        recordings: Recording | Sequence[Recording],
        *,
        max_seconds: float = 30.0,
        seconds_per_batch: float = 60.0,
    ) -> list[Transcript]:
        """Transcribes recordings, with word times if the model has them.

        Args:
          recordings: one or several: paths, bytes of audio files, or int16 [samples] at the run's rate; of any length.
          max_seconds: longer recordings are cut at quiet places into windows of at most this length.
          seconds_per_batch: padded audio per batch; affects memory and speed, not the result.

        Returns:
          A transcript for each recording; its `error` is set if the recording cannot be read.
        """
        self._check("transcribe")
        options = {"max_seconds": max_seconds, "seconds_per_batch": seconds_per_batch}
        return list(self.model.transcribe(_listed(recordings), **options))

    def stream(
        self,
        *,
        chunk_ms: int | None = None,
        endpointing: Endpointing = Endpointing(),  # noqa: B008  frozen
    ) -> Stream:
        """Opens a stream: `accept(samples)` returns the transcript so far, `finalize()` the whole one.

        Args:
          chunk_ms: how often the transcript is extended; one that the run was trained on, None for the longest.
          endpointing: when segments end.

        Raises:
          CheckpointError: the run was not trained to stream.
          ValueError: it was not trained on such chunks, or it was loaded with a decoding other than greedy search.
        """
        return self.streams(1, chunk_ms=chunk_ms, endpointing=endpointing).join()

    def streams(
        self,
        num_streams: int,
        *,
        chunk_ms: int | None = None,
        endpointing: Endpointing = Endpointing(),  # noqa: B008  frozen
    ) -> StreamBatch:
        """Opens a batch of streams that are computed together; arguments and errors as of `stream`."""
        self._check("stream")
        return self.model.streams(num_streams, chunk_ms, endpointing)

    def embed(
        self,
        inputs: Recording | Sequence[Recording] | Sequence[str],
        *,
        layer: int | None = None,
        max_seconds: float = 30.0,
        pooling: Pooling | None = None,
    ) -> list[Float[np.ndarray, "_ dim"]] | Float[np.ndarray, "texts dim"]:
        """Embeds recordings or texts.

        Args:
          layer, max_seconds: of recordings, as in `SpeechEncoder.embed`.
          pooling: of texts, how hidden states become a vector; None for the run's own way. It is the mean of word
            vectors.

        Returns:
          Of recordings the hidden states [time, dim] of each; of texts an array with a vector of each.
        """
        self._check("embed")
        if isinstance(self.model, TextEmbedder):
            return self.model.vectors(_listed(inputs), pooling)
        if isinstance(self.model, WordTable):
            return self.model.embed(_listed(inputs))
        return list(self._encoder.embed(_listed(inputs), layer=layer, max_seconds=max_seconds))

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[Part]] | Sequence[Recording],
        method: Sampling | Beam = Sampling(),  # noqa: B008  frozen
        *,
        max_tokens: int = 128,
        samples: int = 1,
        seed: int = 0,
    ) -> list[list[Continuation]] | list[list[UnitContinuation]]:
        """Generates continuations of prompts.

        Args:
          prompts: texts for a language model, documents of text and units for a unit model, recordings for a
            speech-language model.
          max_tokens: most tokens added; for a speech-language model the limit is the length of the audio instead.
          samples: continuations drawn per prompt; a beam search returns its hypotheses instead, best first.
        """
        self._check("generate")
        prompts = [prompts] if isinstance(prompts, str | bytes | os.PathLike) else prompts
        options = {"samples": samples, "seed": seed}
        if isinstance(self.model, SpeechLanguageModel):
            return self.model.generate(prompts, method, **options)
        return self.model.generate(prompts, method, max_tokens=max_tokens, **options)

    def score(self, texts: Sequence[str] | Sequence[Integer[np.ndarray, "..."]]) -> Float[np.ndarray, " texts"]:
        """Returns the log-probability of texts including their ends, or of speech units without the end, in nats."""
        self._check("score")
        if isinstance(self.model, LanguageModel):
            return self.model.score(texts)
        if all(isinstance(text, str) for text in texts):
            return self.model.lm.score(texts)
        return np.array([-nats.sum(dtype=np.float64) for nats in self.model.unit_nats(texts)])

    def classify(
        self, inputs: Recording | Sequence[Recording] | Sequence[str], *, max_seconds: float = 30.0
    ) -> list[dict[str, float]]:
        """Classifies recordings or texts; returns class probabilities by class name."""
        self._check("classify")
        rows = self.model.probabilities(_listed(inputs), max_seconds=max_seconds)
        return [dict(zip(self.model.classes, row, strict=True)) for row in rows.tolist()]

    def understand(self, recordings: Recording | Sequence[Recording]) -> list[Command]:
        """Returns the spoken command of each recording (`CommandClassifier.understand`)."""
        self._check("understand")
        return self.model.understand(_listed(recordings))

    def tag(self, texts: str | Sequence[str]) -> list[list[Entity]]:
        """Finds the entities in texts, such as names of persons (`Tagger.tag`)."""
        self._check("tag")
        return self.model.tag(_listed(texts))

    def answer(self, question: str, texts: str | Sequence[str]) -> list[Answer | None]:
        """Finds the answer to a question in each text (`Reader.answer`)."""
        self._check("answer")
        return self.model.answer(question, _listed(texts))

    def speech_times(
        self, recordings: Recording | Sequence[Recording], *, threshold: float = 0.5, max_seconds: float = 30.0
    ) -> list[list[tuple[float, float]]]:
        """Returns the spans of speech in each recording, (start, end) in seconds (`VoiceActivity.speech_times`)."""
        self._check("speech_times")
        return [self.model.speech_times(each, threshold, max_seconds) for each in _listed(recordings)]

    def speaker_vectors(
        self, recordings: Recording | Sequence[Recording], *, max_seconds: float = 30.0
    ) -> Float[np.ndarray, "recordings dim"]:
        """Computes a vector of unit length per recording; the dot product of two is their cosine similarity."""
        self._check("speaker_vectors")
        return self.model.vectors(_listed(recordings), max_seconds)

    def vocode(
        self, mels: Float[np.ndarray, "_ bins"] | Sequence[Float[np.ndarray, "_ bins"]]
    ) -> list[Float[np.ndarray, " _"]]:
        """Computes the waveforms of log-mel spectrograms: float32 samples in [-1, 1] (`Vocoder.vocode`)."""
        self._check("vocode")
        return self.model.vocode(_listed(mels))

    def synthesize(
        self,
        texts: str | Sequence[str],
        *,
        speaker: str | None = None,
        speed: float = 1.0,
        language: str = "en",
        vocoder: str | os.PathLike | None = None,
    ) -> list[Speech]:
        """Synthesises texts of any length: samples, sample rate, durations and log-mel of each (`Synthesizer`).

        Args:
          speaker: name of a speaker, of a model with several; None takes the first.
          speed: above 1 is faster.
          language: two-letter code, of the words for numbers and signs.
          vocoder: a vocoder's run; None is "griffin-lim". The last one stays open.
        """
        self._check("synthesize")
        if vocoder is None:
            return self.model.synthesize(texts, speaker, speed, language)
        if str(vocoder) not in self._voices:
            voice = self.model.with_vocoder(vocoder)
            self._voices.clear()
            self._voices[str(vocoder)] = voice
        return self._voices[str(vocoder)].synthesize(texts, speaker, speed, language)

    @functools.cached_property
    def _voices(self) -> dict[str, Synthesizer]:
        """The synthesizer with the vocoder of the last call that named one, by its name."""
        return {}

    def encode_codes(
        self, recordings: Recording | Sequence[Recording], *, max_seconds: float = 30.0
    ) -> list[Integer[np.ndarray, "..."]]:
        """Encodes recordings as code ids of a codec (`CodecModel.encode_codes`)."""
        self._check("encode_codes")
        return self.model.encode_codes(_listed(recordings), max_seconds=max_seconds)

    def decode_codes(self, code_ids: Sequence[Integer[np.ndarray, "..."]]) -> list[Float[np.ndarray, "..."]]:
        """Decodes sequences of code ids to samples in [-1, 1] (`CodecModel.decode_codes`)."""
        self._check("decode_codes")
        return self.model.decode_codes(code_ids)

    @functools.cached_property
    def _encoder(self) -> SpeechEncoder:
        if isinstance(self.model, SpeechEncoder):
            return self.model
        return SpeechEncoder.load(self.checkpoint, self.adapter)

    def _check(self, ability: str) -> None:
        if ability not in self.abilities:
            task = getattr(self.model, "task", "transcribe")
            trained = self.kind if task == "transcribe" else f"{self.kind} to {task}"
            *others, last = with_ability(ability)
            names = f"{', '.join(others)} or {last}" if others else last
            raise CheckpointError(
                f"{self.checkpoint}: was trained by {trained}, which has {' and '.join(self.abilities)} but no "
                f"{ability}: load a run that was trained by {names}"
                f"{_HINTS.get(ability, '').format(path=self.checkpoint)}"
            )


def open_transcriber(
    path: str | Path,
    decoding: Decoding = Decoding(),  # noqa: B008  frozen
    ensemble: Sequence[str | Path] = (),
    adapter: str | os.PathLike | None = None,
) -> Transcriber:
    """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, of any objective that transcribes.

    Args:
      ensemble: further CTC runs whose probabilities are averaged with it.
      adapter: folder of an adapter of the run (`inference.adapters`), trained by ctc, transducer or aed.

    Raises:
      CheckpointError: no checkpoint can be read, its model does not transcribe, or an ensemble's members differ in
        tokenizer or frame rate.
      DataError, ValueError: `decoding` does not fit the checkpoint, or it takes no adapter.
    """
    task = task_of_run(path)
    predictor = resolve(task.predictor) if "transcribe" in task.abilities else Recognizer
    _check_decoding(task, decoding)
    return predictor.load(path, decoding, ensemble, **_adapter_option(task, predictor, adapter))


def _adapter_option(task: Task, predictor: type, adapter: str | os.PathLike | None) -> dict[str, str | os.PathLike]:
    """Returns the argument of a predictor's `load` for an adapter; ValueError if it takes none."""
    if adapter is None:
        return {}
    if predictor not in (Recognizer, TransducerRecognizer, AttentionRecognizer, LanguageModel, SpeechEncoder):
        raise ValueError(
            f"adapters are for runs that were trained by ctc, transducer, aed or causal_lm, or to encode speech, and "
            f"this one was by {task.name}: finetune it with --lora.rank, and name that run"
        )
    return {"adapter": adapter}


def _check_decoding(task: Task, decoding: Decoding) -> None:
    predictor = None if task.predictor is None else resolve(task.predictor)
    if decoding.warps and predictor is not Recognizer:
        raise ValueError(
            f"warps are for runs that were trained by ctc, and this one was by {task.name}: leave them out"
        )
    names = "ctc_weight", "timestamps", "prompt", "condition_on_previous"
    of_decoders = {name: getattr(decoding, name) for name in names}
    given = [name for name, value in of_decoders.items() if value not in (None, False)]
    if given and predictor is not AttentionRecognizer:
        raise ValueError(
            f"{given[0]} is for runs that were trained by aed, and this one was by {task.name}: leave it out"
        )


def load(
    path: str | os.PathLike,
    decoding: Decoding = Decoding(),  # noqa: B008  frozen
    adapter: str | os.PathLike | None = None,
) -> TrainedModel:
    """Opens a run by its folder or URL (its newest checkpoint), or a `checkpoints/<step>` folder.

        model = jax_speechlm.load("runs/finetune")
        model.transcribe(["interview.mp3"])[0].text

    Args:
      decoding: decoding of a model that transcribes; ignored for others.
      adapter: folder of LoRA in peft's format that was trained on the run: of recognizers by CTC, transducers and
        attention decoders, language models and speech encoders.

    Raises:
      CheckpointError: no checkpoint can be read, or its objective has no predictor.
      DataError, ValueError: `decoding` does not fit the checkpoint, or it takes no adapter.
      ExportError: the adapter cannot be read, or is of another model.
    """
    checkpoint, task = ckpt.find(path), task_of_run(path)
    if task.predictor is None:
        able = ", ".join(name for name, each in TASKS.items() if each.predictor)
        raise CheckpointError(
            f"{checkpoint}: was trained by {task.name}, for which there is no predictor; there is one for {able}"
        )
    _check_decoding(task, decoding)
    options = [decoding] if "transcribe" in task.abilities else []
    predictor = resolve(task.predictor)
    model = predictor.load(checkpoint, *options, **_adapter_option(task, predictor, adapter))
    return TrainedModel(checkpoint, task.name, model, adapter)


def _listed(recordings: Recording | Sequence[Recording]) -> Sequence[Recording]:
    return [recordings] if isinstance(recordings, str | bytes | os.PathLike | np.ndarray) else recordings
