"""Transcription by a trained attention encoder-decoder, such as Whisper."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.batching.speech import Batch as HostBatch
from data_pipelines.text.scripts import join
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.attention.generate import Generated, Rules, generate
from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.asr.base import Transcriber, Transcription
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.lm.generation import prompt_keys
from jax_speechlm.inference.segmentation import AudioWindow, Samples
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.models.attention_decoder import Source, init_cache
from jax_speechlm.models.encoder_decoder import EncoderDecoder
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import LoRA, merge
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.objectives.asr.whisper_tokens import TIMES_PER_SECOND, TIMESTAMPS
from jax_speechlm.training.runs import LoadedRun

TOKENS_PER_SECOND = 25
"""Limit on generated tokens per second of audio: the fastest speech in characters."""

SPARE_TOKENS = 16
"""Tokens allowed in addition, for short clips."""

_ROWS = (16, 4, 1)  # rows that are decoded together, so that few programs are compiled


class Fallback(Config):
    """When a text is drawn again at a higher temperature, and when it is left out (Radford et al. 2022, section 4.5).

    Attributes:
      temperatures: tried in order, 0 being greedy; the last text stays in any case.
      compression_ratio: a text that gzip shrinks by more repeats itself.
      log_prob: least mean log-probability of a token, in nats.
      no_speech: a text below `log_prob` is left out where the probability of no speech is above this.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    log_prob: float = -1.0
    no_speech: float = 0.6


class Phrase(NamedTuple):
    """A stretch of a window's text, from `start` to `end` in seconds; without an end it reaches that of the window."""

    start: float
    end: float | None
    text: str


class Answer(NamedTuple):
    """The text of one window.

    Attributes:
      phrases: the text by the times in it; a single one without.
      avg_logprob: mean log-probability of its tokens and the end, in nats.
      num_tokens: number of tokens, with the end if it ended.
      no_speech: probability of no speech; 0 if the model does not predict it.
      resume: second of the window from which speech follows that the text leaves out: it ends with two times, the first
        of which ends a phrase and the second begins one. None if nothing does.
    """

    phrases: tuple[Phrase, ...]
    avg_logprob: float
    num_tokens: int
    no_speech: float
    temperature: float
    resume: float | None = None

    def followed_by(self, other: "Answer", offset: float) -> "Answer":
        """Returns both texts as one, the second of audio that begins at `offset` seconds."""
        if not other.num_tokens:
            return self
        ends = (None if phrase.end is None else phrase.end + offset for phrase in other.phrases)
        moved = (
            phrase._replace(start=phrase.start + offset, end=end)
            for phrase, end in zip(other.phrases, ends, strict=True)
        )
        count = self.num_tokens + other.num_tokens
        total = self.avg_logprob * self.num_tokens + other.avg_logprob * other.num_tokens
        return self._replace(phrases=(*self.phrases, *moved), avg_logprob=total / count, num_tokens=count)

    @property
    def text(self) -> str:
        """The whole text."""
        return join((phrase.text for phrase in self.phrases), " ")

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text over its bytes in gzip."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data))


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionRecognizer(Transcriber):
    """A checkpoint's encoder and decoder, with LoRA merged, and the `fallback` of its greedy search.

    With `timestamps`, a Whisper predicts times in its texts, and segments begin and end at them.
    """

    run: LoadedRun
    fallback: Fallback = Fallback()  # noqa: RUF009  frozen
    timestamps: bool = False

    abilities: ClassVar[tuple[str, ...]] = ("transcribe", "embed")

    @classmethod
    def load(
        cls,
        path: str | Path,
        decoding: Decoding = Decoding(),  # noqa: B008  frozen
        ensemble: Sequence[str | Path] = (),
    ) -> "AttentionRecognizer":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Args:
          decoding: with decoder "greedy", texts are not drawn again at higher temperatures.

        Raises:
          CheckpointError: no checkpoint can be read, or it is not of an attention encoder-decoder.
          ValueError: `decoding` has a beam, a language model or phrases, or `ensemble` members.
        """
        if not decoding.is_greedy or ensemble:
            raise ValueError(
                f"{path}: was trained by aed, which is decoded greedily: --decoder beam, --lm, --boost, --rescore and "
                "--ensemble are for runs that were trained by ctc"
            )
        run = LoadedRun.load(path, AED, "transcribe")
        if decoding.timestamps and run.experiment.objective.whisper is None:
            raise ValueError(f"{path}: --timestamps is for a Whisper; this model has no ids of times")
        params, _ = merge(run.params, run.experiment.model.lora)
        once = Fallback(temperatures=(0.0,))
        return cls(
            dataclasses.replace(run, params=params),
            once if decoding.decoder == "greedy" else cls.fallback,
            decoding.timestamps,
        )

    @property
    def task(self) -> str:
        return self.experiment.objective.task

    @property
    def decoding_description(self) -> str:
        again = self.fallback.temperatures[1:]
        return f"greedy, at temperatures up to {again[-1]:g} where it fails" if again else "greedy"

    def transcribe_batches(self, batches: Iterable[HostBatch]) -> dict[int, Transcription]:
        """Generates the text of each row; returns it with its log-probability per token.

        Recordings that are longer than the encoder's window are cut at quiet places (`transcribe`).
        """
        results = {}
        for batch in batches:
            ids, lengths = batch["example_id"], batch["audio_length"]
            is_long = (ids >= 0) & (lengths > (self._longest or math.inf))
            answers = self.encode([batch | {"example_id": np.where(is_long, -1, ids)}])
            results |= {row: Transcription(each.text, each.avg_logprob) for row, each in answers.items()}
            for row in np.flatnonzero(is_long).tolist():
                whole = next(self.transcribe([np.array(batch["audio"][row, : lengths[row]])]))
                parts = [segment.avg_logprob for segment in whole.segments]
                results[int(ids[row])] = Transcription(whole.text, sum(parts) / max(len(parts), 1))
        return results

    @property
    def _longest(self) -> int | None:
        """Samples of a window, or None where the front end takes recordings as long as they are."""
        seconds = getattr(self.experiment.frontend.mel, "window_seconds", None)
        return None if seconds is None else seconds * self.experiment.sample_rate

    def _windows(self, blocks: Iterable[Samples], max_seconds: float) -> Iterator[AudioWindow]:
        longest = max_seconds if self._longest is None else self._longest / self.experiment.sample_rate
        return super()._windows(blocks, min(max_seconds, longest))

    def encode(self, batches: Iterable[HostBatch]) -> dict[int, Answer]:
        """Generates the texts of all rows; returns them by `example_id`."""
        answers = {}
        for batch in batches:
            ids = np.asarray(batch["example_id"])
            rows = np.flatnonzero(ids >= 0)
            for part in _parts(rows):
                held = {name: np.asarray(array)[part] for name, array in batch.items()}
                answers |= dict(zip(ids[part].tolist(), self.answers(held), strict=True))
        return answers

    def utterances(self, windows: Iterable[tuple[AudioWindow, Answer | None]]) -> Iterator[tuple[AudioWindow, Answer]]:
        """Returns the windows that are not silent, each one utterance."""
        return ((window, answer) for window, answer in windows if answer is not None)

    def decode(self, utterances: Sequence[tuple[AudioWindow, Answer]]) -> list[Segment]:
        """Returns the phrases of each window as segments, without word times."""
        rate, segments = self.experiment.sample_rate, []
        for window, answer in utterances:
            start, end = window.start / rate, window.end / rate
            for phrase in answer.phrases:
                until = end if phrase.end is None else min(start + phrase.end, end)
                segments.append(Segment(min(start + phrase.start, until), until, phrase.text, answer.avg_logprob))
        return segments

    def answers(self, batch: HostBatch) -> list[Answer]:
        """Generates the text of every row of a batch, independent of the other rows and of padding."""
        batch = {name: batch[name] for name in ("audio", "audio_length")}
        if (longest := self._longest) is not None:
            # All rows become windows of this length anyway, so one program serves them all.
            audio = batch["audio"][:, :longest]
            audio = np.pad(audio, ((0, 0), (0, longest - audio.shape[1])))
            batch = {"audio": audio, "audio_length": np.minimum(batch["audio_length"], longest)}
        audio = [row[:length] for row, length in zip(batch["audio"], batch["audio_length"].tolist(), strict=True)]
        keys = jnp.stack([prompt_keys(0, samples.tobytes(), 1)[0] for samples in audio])
        source = self._read(self.params, batch)
        limit = batch["audio_length"] * TOKENS_PER_SECOND // self.experiment.sample_rate + SPARE_TOKENS
        answers: list[Answer | None] = [None] * len(audio)
        for temperature in self.fallback.temperatures:
            open_rows = np.array([answer is None or self._fails(answer) for answer in answers])
            if not open_rows.any():
                break
            temperatures = np.full(len(audio), temperature, np.float32)
            limits = np.where(open_rows, limit, 0).astype(np.int32)
            generated = jax.device_get(self._generate(self.params, source, temperatures, keys, limits))
            for row in np.flatnonzero(open_rows).tolist():
                answers[row] = self._answer(generated, row, temperature)
        answers = [self._without_noise(answer) for answer in answers]
        return self._continued(batch, answers) if self.timestamps else answers

    def _continued(self, batch: HostBatch, answers: list[Answer]) -> list[Answer]:
        """Decodes the rest of windows whose text ends before their speech does, as OpenAI's `transcribe` seeks on."""
        rate, lengths = self.experiment.sample_rate, batch["audio_length"]
        starts = np.array([round((answer.resume or 0) * rate) for answer in answers])
        rows = np.flatnonzero((starts > 0) & (lengths - starts >= rate))  # with a second of audio or more
        for part in _parts(rows):
            rest = np.zeros((len(part), batch["audio"].shape[1]), np.int16)
            for place, row in enumerate(part.tolist()):
                rest[place, : lengths[row] - starts[row]] = batch["audio"][row, starts[row] : lengths[row]]
            following = self.answers({"audio": rest, "audio_length": (lengths - starts)[part].astype(np.int32)})
            for row, answer in zip(part.tolist(), following, strict=True):
                answers[row] = answers[row].followed_by(answer, float(starts[row]) / rate)
        return answers

    def _answer(self, generated: Generated, row: int, temperature: float) -> Answer:
        length = int(generated.length[row])
        ids = generated.tokens[row, :length].tolist()
        if not np.isfinite(generated.log_prob[row]):
            return Answer((), -math.inf, 0, 0.0, temperature)
        count = length + int(generated.ended[row])
        mean = float(generated.log_prob[row]) / max(count, 1)
        return Answer(self._phrases(ids), mean, count, float(generated.no_speech[row]), temperature, self._resume(ids))

    def _resume(self, ids: Sequence[int]) -> float | None:
        if not self.timestamps or len(ids) < 3:
            return None
        first = self.experiment.objective.whisper.first_timestamp
        before, last = (id_ - first for id_ in ids[-2:])
        return last / TIMES_PER_SECOND if min(before, last) >= 0 and max(before, last) < TIMESTAMPS else None

    def _phrases(self, ids: Sequence[int]) -> tuple[Phrase, ...]:
        """Cuts ids at the times among them."""
        whisper, phrases, start, held = self.experiment.objective.whisper, [], 0.0, []
        for id_ in ids:
            time = -1 if whisper is None else id_ - whisper.first_timestamp
            if not 0 <= time < TIMESTAMPS:
                held.append(id_)
                continue
            if held and self.timestamps:
                phrases.append(Phrase(start, time / TIMES_PER_SECOND, self.tokenizer.decode(held).strip()))
                held = []
            start = time / TIMES_PER_SECOND if self.timestamps else 0.0
        if held:
            phrases.append(Phrase(start, None, self.tokenizer.decode(held).strip()))
        return tuple(phrase for phrase in phrases if phrase.text)

    def _fails(self, answer: Answer) -> bool:
        """Whether a text should be drawn again."""
        if self._is_silence(answer):
            return False
        fallback = self.fallback
        return answer.compression_ratio > fallback.compression_ratio or answer.avg_logprob < fallback.log_prob

    def _is_silence(self, answer: Answer) -> bool:
        return answer.no_speech > self.fallback.no_speech and answer.avg_logprob < self.fallback.log_prob

    def _without_noise(self, answer: Answer) -> Answer:
        return (
            answer._replace(phrases=()) if len(self.fallback.temperatures) > 1 and self._is_silence(answer) else answer
        )

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @functools.cached_property
    def _graphdef(self):
        config = self.experiment.model.replace(lora=LoRA())
        return functional.declare(lambda rngs: EncoderDecoder(config, self.vocabulary.size, rngs=rngs)).graphdef

    @functools.cached_property
    def rules(self) -> Rules:
        """What may be generated."""
        vocabulary, whisper = self.vocabulary, self.experiment.objective.whisper
        allowed, first = vocabulary.may_follow(), np.ones(vocabulary.size, bool)
        if whisper is None:
            return Rules(vocabulary.boundary, allowed, first)
        allowed[list(whisper.suppressed)] = False
        first[list(whisper.suppressed_first)] = False
        rules = Rules(vocabulary.boundary, allowed, first, no_speech=whisper.no_speech)
        if not self.timestamps:
            return rules
        allowed[whisper.no_timestamps] = False
        return rules._replace(first_timestamp=whisper.first_timestamp)

    @functools.cached_property
    def _read(self):
        frontend = self.experiment.frontend

        def run(params: Params, batch: Batch) -> Source:
            return functional.bind(self._graphdef, params).read_speech(*features(batch, frontend, None))

        return jax.jit(run)

    @functools.cached_property
    def _generate(self):
        objective, most = self.experiment.objective, self.experiment.model.decoder.max_tokens
        whisper, finds_language = objective.whisper, False
        if whisper is not None and whisper.languages and objective.language is None:
            finds_language = True
            objective = objective.replace(language=whisper.languages[0][0])
        prompt = objective.prompt_ids(self.tokenizer, self.timestamps)

        def run(params: Params, source: Source, temperature_B: Array, keys_B: Array, limit_B: Array) -> Generated:
            decoder, rows = functional.bind(self._graphdef, params).decoder, len(temperature_B)
            prompts = jnp.broadcast_to(jnp.asarray(prompt), (rows, len(prompt)))
            if finds_language:
                prompts = prompts.at[:, 1].set(
                    _languages(decoder, source, prompts[:, :1], [id_ for _, id_ in whisper.languages])
                )
            lengths, start = jnp.full(rows, len(prompt)), jnp.zeros(rows, jnp.int32)
            settings = {"max_new": most - len(prompt), "limit_B": limit_B}
            return generate(decoder, source, prompts, lengths, start, temperature_B, keys_B, self.rules, **settings)

        return jax.jit(run)


def _languages(
    decoder: Any, source: Source, start_Bx1: Int[Array, "batch 1"], languages: Sequence[int]
) -> Int[Array, " batch"]:
    """Returns the id of the most probable language of each row."""
    cache = init_cache(decoder.config, len(start_Bx1), 1)
    hidden, _ = decoder.decode(start_Bx1, jnp.zeros_like(start_Bx1), cache, source)
    logits: Float[Array, "batch vocab"] = decoder.logits(hidden[:, 0])
    ids = jnp.asarray(languages, jnp.int32)
    return ids[jnp.argmax(logits[:, ids], axis=-1)]


def _parts(rows: Int[np.ndarray, " rows"]) -> Iterator[Int[np.ndarray, " part"]]:
    """Cuts rows into parts of the sizes of `_ROWS`."""
    while len(rows):
        size = next(size for size in _ROWS if size <= len(rows))
        yield rows[:size]
        rows = rows[size:]
