"""Transcription by a trained attention encoder-decoder, such as Whisper."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.batching.speech import Batch as HostBatch
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.text.scripts import join
from jax_speechlm.core.vocabulary import pad
from jax_speechlm.decoding.attention.beam import AttentionHypothesis, Network, beam_search
from jax_speechlm.decoding.attention.word_times import first_frames
from jax_speechlm.decoding.ctc.alignment import Span, words_of
from jax_speechlm.inference.adapters import adapted
from jax_speechlm.inference.asr.aed_programs import Programs, Prompts
from jax_speechlm.inference.asr.answer import Answer, Fallback, Phrase
from jax_speechlm.inference.asr.base import Transcriber, Transcription
from jax_speechlm.inference.asr.decoder import Decoder, Decoding
from jax_speechlm.inference.lm.generation import prompt_keys
from jax_speechlm.inference.segmentation import AudioWindow, Samples
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.models.attention_decoder import Source
from jax_speechlm.nn.lora import merge
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.objectives.asr.whisper_tokens import TIMES_PER_SECOND, TIMESTAMPS
from jax_speechlm.training.runs import LoadedRun

TOKENS_PER_SECOND = 25
"""Limit on generated tokens per second of audio: the fastest speech in characters."""

SPARE_TOKENS = 16
"""Tokens allowed in addition, for short clips."""

_ROWS = (16, 4, 1)  # rows that are decoded together, so that few programs are compiled
_FRAMES_MULTIPLE = 100  # of the lengths that a beam search is compiled for
_PARTS = 1000  # of a frame, in which the times of tokens are counted
_RESET = 0.5  # temperature above which a text is not read by the next window's, as in OpenAI's `transcribe`

Output = Answer | Float[np.ndarray, "_ dim"]
"""What the model gives for a window: its text, or the encoder's frames where the text depends on those before."""


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionRecognizer(Transcriber):
    """A checkpoint's encoder and decoder, with LoRA merged, and the `fallback` of its search.

    Without a `decoder` that is greedy, else a beam search, in which a CTC head has the share `ctc_weight`. With
    `timestamps`, a Whisper predicts times in its texts, and segments begin and end at them. Each of its texts follows
    the ids `prompt` and, with `condition_on_previous`, the recording's texts before it, up to one that was drawn at a
    temperature above 0.5.
    """

    run: LoadedRun
    fallback: Fallback = Fallback()  # noqa: RUF009  frozen
    timestamps: bool = False
    ctc_weight: float = 0.0
    decoder: Decoder | None = None
    prompt: tuple[int, ...] = ()
    condition_on_previous: bool = False

    abilities: ClassVar[tuple[str, ...]] = ("transcribe", "embed")

    @classmethod
    def load(
        cls,
        path: str | Path,
        decoding: Decoding = Decoding(),  # noqa: B008  frozen
        ensemble: Sequence[str | Path] = (),
        adapter: str | os.PathLike | None = None,
    ) -> "AttentionRecognizer":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, and the language models of `decoding`.

        Args:
          decoding: with decoder "greedy" texts are not drawn again at higher temperatures, nor with a beam search in
            which CTC has a part.
          adapter: folder of an adapter (`inference.adapters`) of the run.

        Raises:
          CheckpointError: no checkpoint can be read, or it is not of an attention encoder-decoder.
          DataError: a language model cannot be read, or does not fit the tokenizer.
          ExportError: the adapter cannot be read, or is of another model.
          ValueError: `decoding` needs what the model does not have, or there is an `ensemble`.
        """
        if ensemble:
            raise ValueError(
                f"{path}: was trained by aed, whose probabilities depend on its transcript: only runs with CTC "
                "posteriors make an ensemble; reports can be joined by jax-speechlm rover"
            )
        run = LoadedRun.load(path, AED, "transcribe")
        objective = run.experiment.objective
        if decoding.timestamps and objective.whisper is None:
            raise ValueError(f"{path}: --timestamps is for a Whisper; this model has no ids of times")
        if decoding.ctc_weight and not objective.ctc_weight:
            raise ValueError(
                f"{path}: has no CTC head for --ctc-weight to weigh: train it with objective.ctc_weight above 0"
            )
        if decoding.timestamps and objective.ctc_weight and not decoding.is_greedy:
            raise ValueError(f"{path}: its CTC head has no times: leave out --timestamps, or the settings of the beam")
        if (decoding.prompt or decoding.condition_on_previous) and not _has_context(objective):
            raise ValueError(f"{path}: --prompt and --condition-on-previous are for a Whisper; leave them out")
        if decoding.condition_on_previous and not decoding.is_greedy:
            raise ValueError(
                f"{path}: --condition-on-previous is for greedy decoding: leave out the settings of a beam"
            )
        params, _ = merge(run.params, run.experiment.model.lora)
        ctc_weight = objective.ctc_weight if decoding.ctc_weight is None else decoding.ctc_weight
        once = decoding.decoder == "greedy" or (ctc_weight and not decoding.is_greedy)
        fallback = Fallback(temperatures=(0.0,)) if once else cls.fallback
        prompt = _prompt_ids(run.tokenizer, decoding.prompt or "")
        settings = {"prompt": prompt, "condition_on_previous": decoding.condition_on_previous}
        run = adapted(dataclasses.replace(run, params=params), adapter)
        recognizer = cls(run, fallback, decoding.timestamps, ctc_weight, **settings)
        if decoding.is_greedy:
            return recognizer
        return dataclasses.replace(recognizer, decoder=Decoder(decoding, recognizer.tokenizer, recognizer._search))

    def with_adapter(self, adapter: str | os.PathLike) -> "AttentionRecognizer":
        """As of `Transcriber`; the compiled programs are shared too."""
        return self._changed(self._programs, run=adapted(self.run, adapter))

    def with_prompt(self, text: str) -> "AttentionRecognizer":
        """As of `Transcriber`; of a long text the end is read. All prompts of one recognizer share their programs."""
        prompt = _prompt_ids(self.tokenizer, text) if _has_context(self.experiment.objective) else ()
        return self._changed(self._programs.with_context, prompt=prompt) if prompt else self

    def _changed(self, programs: Programs, **changes: Any) -> "AttentionRecognizer":
        """Returns a recognizer with changed fields, which computes by `programs`."""
        other = dataclasses.replace(self, decoder=None, **changes)
        vars(other).update(_programs=programs)
        if self.decoder is not None:
            other = dataclasses.replace(other, decoder=self.decoder.with_search(other._search))
            vars(other).update(_programs=programs)
        return other

    @property
    def task(self) -> str:
        return self.experiment.objective.task

    @property
    def decoding_description(self) -> str:
        method, again = "greedy", self.fallback.temperatures[1:]
        if self.decoder is not None:
            method = str(self.decoder.decoding).replace("prefix beam", "beam")
            method += f", {self.ctc_weight:g} of it CTC" * (self.ctc_weight > 0)
        method += f", at temperatures up to {again[-1]:g} where it fails" if again else ""
        method += f", after the prompt {self.tokenizer.decode(self.prompt).strip()!r}" if self.prompt else ""
        return method + ", after the text before it" * self.condition_on_previous + self._adapter_description

    def transcribe_batches(self, batches: Iterable[HostBatch]) -> dict[int, Transcription]:
        """Generates the text of each row; returns it with its log-probability per token.

        Recordings that are longer than the encoder's window are cut at quiet places (`transcribe`).
        """
        results = {}
        for batch in batches:
            ids, lengths = batch["example_id"], batch["audio_length"]
            is_long = (ids >= 0) & (lengths > (self._longest or math.inf))
            answers = self._encode([batch | {"example_id": np.where(is_long, -1, ids)}], timed=False)
            results |= {row: Transcription(each.text, each.avg_logprob) for row, each in answers.items()}
            for row in np.flatnonzero(is_long).tolist():
                whole = next(self.transcribe([np.array(batch["audio"][row, : lengths[row]])]))
                parts = [segment.avg_logprob for segment in whole.segments]
                results[int(ids[row])] = Transcription(whole.text, sum(parts) / max(len(parts), 1))
        return results

    def search_inputs(self, batches: Iterable[HostBatch]) -> dict[int, Float[np.ndarray, "_ dim"]]:
        """Computes the encoder's frames, [frames, dim], by `example_id`: the inputs of the decoder's beam search."""
        inputs = {}
        for batch in batches:
            frames, lengths = jax.device_get(self._frames(batch))
            rows = zip(np.asarray(batch["example_id"]).tolist(), frames, lengths.tolist(), strict=True)
            inputs |= {row: frames_TxD[:length] for row, frames_TxD, length in rows if row >= 0}
        return inputs

    def encode(self, batches: Iterable[HostBatch]) -> dict[int, Output]:
        """Generates the texts of all rows; returns them, or the encoder's frames if texts follow each other."""
        return self.search_inputs(batches) if self.condition_on_previous else self._encode(batches, timed=True)

    def _encode(self, batches: Iterable[HostBatch], timed: bool) -> dict[int, Answer]:
        answers = {}
        for batch in batches:
            ids = np.asarray(batch["example_id"])
            rows = np.flatnonzero(ids >= 0)
            for part in _parts(rows):
                held = {name: np.asarray(array)[part] for name, array in batch.items()}
                answers |= dict(zip(ids[part].tolist(), self.answers(held, timed), strict=True))
        return answers

    def utterances(self, windows: Iterable[tuple[AudioWindow, Output | None]]) -> Iterator[tuple[AudioWindow, Answer]]:
        """Returns the phrases of the windows of a recording, each one utterance; of a silent window there is none."""
        history: tuple[int, ...] = ()
        for window, output in windows:
            answer = output
            if self.condition_on_previous and output is not None:
                (answer,) = self._decoded(output[None], np.array([len(output)]), [window.samples], [history], True)
                history = () if answer.temperature > _RESET else history + answer.ids * bool(answer.phrases)
            for phrase in () if answer is None else answer.phrases:
                alternatives = answer.alternatives if len(answer.phrases) == 1 else ()
                yield window, answer._replace(phrases=(phrase,), alternatives=alternatives)

    def decode(self, utterances: Sequence[tuple[AudioWindow, Answer]]) -> list[Segment]:
        """Returns the phrases of each window as segments."""
        rate, segments = self.experiment.sample_rate, []
        for window, answer in utterances:
            start, end = window.start / rate, window.end / rate
            for phrase in (each.later(start) for each in answer.phrases):
                until = end if phrase.end is None else min(phrase.end, end)
                times = min(phrase.start, until), until
                segments.append(Segment(*times, phrase.text, answer.avg_logprob, phrase.words, answer.alternatives))
        return segments

    def answers(self, batch: HostBatch, timed: bool = True) -> list[Answer]:
        """Generates the text of every row of a batch, independent of the other rows and of padding.

        Args:
          timed: whether phrases have the times of their words.
        """
        rows = zip(batch["audio"], batch["audio_length"].tolist(), strict=True)
        audio = [np.asarray(row[: min(length, self._longest or length)]) for row, length in rows]
        return self._decoded(*self._frames(batch), audio, [()] * len(audio), timed)

    def _decoded(
        self,
        frames: Array | np.ndarray,
        lengths: Array | np.ndarray,
        audio: list[Samples],
        histories: Sequence[tuple[int, ...]],
        timed: bool,
    ) -> list[Answer]:
        """Generates the texts of rows from their frames.

        Args:
          audio: samples of the rows.
          histories: ids of the texts before each.
        """
        keys = jnp.stack([prompt_keys(0, samples.tobytes(), 1)[0] for samples in audio])
        prompts = self._programs.prompts([self._context(history) for history in histories])
        source = self._programs.read(self.params, frames, lengths)
        samples = np.array(list(map(len, audio)))
        limit = samples * TOKENS_PER_SECOND // self.experiment.sample_rate + SPARE_TOKENS
        answers: list[Answer | None] = [None] * len(audio)
        for temperature in self.fallback.temperatures:
            open_rows = np.array([answer is None or self._fails(answer) for answer in answers])
            if not open_rows.any():
                break
            if self.decoder is not None and not temperature:
                answers = self._searched(*jax.device_get((frames, lengths)))
                continue
            temperatures = np.full(len(audio), temperature, np.float32)
            limits = np.where(open_rows, limit, 0).astype(np.int32)
            generated = jax.device_get(
                self._programs.generate(self.params, source, prompts, temperatures, keys, limits)
            )
            for row in np.flatnonzero(open_rows).tolist():
                ids = generated.tokens[row, : int(generated.length[row])].tolist()
                parts = (float(generated.log_prob[row]), bool(generated.ended[row]), float(generated.no_speech[row]))
                answers[row] = self._answer(ids, *parts, temperature)
        answers = [self._without_noise(answer) for answer in answers]
        if timed:
            answers = self._timed(answers, source, prompts, samples)
        return self._continued(audio, histories, answers, timed) if self.timestamps else answers

    def _context(self, history: Sequence[int]) -> list[int]:
        """Returns the ids before a prompt."""
        prompt = self.prompt[-self._programs.most_context :]
        room = self._programs.most_context - len(prompt)
        return [*prompt, *history[max(len(history) - room, 0) :]] if self.condition_on_previous else list(prompt)

    def _windowed(self, batch: HostBatch) -> HostBatch:
        """Returns the audio; in windows of one length if features are of whole windows, so one program serves all."""
        batch = {name: batch[name] for name in ("audio", "audio_length")}
        if (longest := self._longest) is None:
            return batch
        audio = batch["audio"][:, :longest]
        audio = np.pad(audio, ((0, 0), (0, longest - audio.shape[1])))
        return {"audio": audio, "audio_length": np.minimum(batch["audio_length"], longest)}

    def _frames(self, batch: HostBatch) -> tuple[Array, Array]:
        return self._programs.frames(self.params, self._windowed(batch))

    def _search(self, frames: np.ndarray, lengths: np.ndarray, *arguments: Any) -> list[list[AttentionHypothesis]]:
        """Runs `beam_search` on shapes that are rounded up, so that few programs are compiled."""
        rows = (1 << (len(lengths) - 1).bit_length()) - len(lengths)
        more = -frames.shape[1] % _FRAMES_MULTIPLE or _FRAMES_MULTIPLE * (frames.shape[1] == 0)
        frames, padded = np.pad(frames, ((0, rows), (0, more), (0, 0))), np.pad(lengths, (0, rows))
        return beam_search(self._network, frames, padded.astype(np.int32), *arguments)[: len(lengths)]

    def _searched(self, frames: np.ndarray, lengths: np.ndarray) -> list[Answer]:
        """Decodes rows by beam search and rescoring."""
        found = self.decoder.search([row[:length] for row, length in zip(frames, lengths.tolist(), strict=True)])
        answers = []
        for hypotheses, candidates in zip(found, self.decoder.rank(found), strict=True):
            if not candidates:  # the model's probabilities are not numbers
                answers.append(self._answer((), -math.inf, False, 0.0, 0.0))
                continue
            best = {each.tokens: each for each in hypotheses}[candidates[0].tokens]
            texts = dict.fromkeys(join((p.text for p in self._phrases(each.tokens)), " ") for each in candidates)
            answer = self._answer(best.tokens, best.attention, best.ended, best.no_speech, 0.0)
            answers.append(answer._replace(alternatives=tuple(texts)))
        return answers

    def _timed(
        self, answers: list[Answer], source: Source, prompts: Prompts, lengths: Int[np.ndarray, " batch"]
    ) -> list[Answer]:
        """Adds the times of words to the answers of rows with `lengths` samples."""
        longest = max(len(answer.ids) for answer in answers)
        if not longest:
            return answers
        tokens = pad([answer.ids for answer in answers], 1 << max(longest - 1, 15).bit_length())
        counts = np.array([len(answer.ids) for answer in answers], np.int32)
        weights, log_probs = jax.device_get(self._programs.align(self.params, source, prompts, tokens, counts))
        samples = self.experiment.frame_samples
        timed = []
        for row, answer in enumerate(answers):
            if not answer.phrases:
                timed.append(answer)
                continue
            skipped = next(i for i, id_ in enumerate(answer.ids) if self._time(id_) is None)
            num_frames = max((int(lengths[row]) + samples // 2 - 1) // samples, 1)  # of which more than half is audio
            places = first_frames(weights[row][:, skipped : len(answer.ids) + 1, :num_frames])
            places = np.concatenate([np.zeros(skipped, np.int64), places]).tolist()
            columns = answer.ids, places, places[1:], log_probs[row, : len(answer.ids)].tolist()
            spans = list(map(_span, *columns))
            timed.append(answer._replace(phrases=self._phrases(answer.ids, spans)))
        return timed

    def _continued(
        self, audio: list[Samples], histories: Sequence[tuple[int, ...]], answers: list[Answer], timed: bool
    ) -> list[Answer]:
        """Decodes the rest of windows whose text ends before their speech does, as OpenAI's `transcribe` seeks on."""
        rate = self.experiment.sample_rate
        starts = [round((answer.resume or 0) * rate) for answer in answers]
        rests = [samples[start:] for samples, start in zip(audio, starts, strict=True)]
        rows = [row for row, rest in enumerate(rests) if starts[row] and len(rest) >= rate]  # a second or more
        for part in map(np.ndarray.tolist, _parts(np.array(rows, int))):
            rest = [rests[row] for row in part]
            batch = {"audio": np.zeros((len(part), max(map(len, rest))), np.int16)}
            for place, samples in enumerate(rest):
                batch["audio"][place, : len(samples)] = samples
            batch["audio_length"] = np.array(list(map(len, rest)), np.int32)
            before = [histories[row] + answers[row].ids for row in part]
            for row, answer in zip(part, self._decoded(*self._frames(batch), rest, before, timed), strict=True):
                answers[row] = answers[row].followed_by(answer, float(starts[row]) / rate)
        return answers

    def _answer(self, ids: Sequence[int], log_prob: float, ended: bool, no_speech: float, temperature: float) -> Answer:
        if not np.isfinite(log_prob):
            return Answer((), -math.inf, 0, 0.0, temperature)
        count = len(ids) + int(ended)
        mean, resume = log_prob / max(count, 1), self._resume(ids)
        return Answer(self._phrases(ids), mean, count, no_speech, temperature, resume, tuple(ids))

    def _resume(self, ids: Sequence[int]) -> float | None:
        if not self.timestamps or len(ids) < 3:
            return None
        first = self.experiment.objective.whisper.first_timestamp
        before, last = (id_ - first for id_ in ids[-2:])
        return last / TIMES_PER_SECOND if min(before, last) >= 0 and max(before, last) < TIMESTAMPS else None

    def _time(self, id_: int) -> int | None:
        """Returns the time that an id is, in steps, or None for one of text."""
        whisper = self.experiment.objective.whisper
        time = -1 if whisper is None else id_ - whisper.first_timestamp
        return time if 0 <= time < TIMESTAMPS else None

    def _phrases(self, ids: Sequence[int], spans: Sequence[Span] | None = None) -> tuple[Phrase, ...]:
        """Cuts ids at the times among them; with the spans of all ids, the phrases have the times of words."""
        phrases, start, held = [], 0.0, []

        def close(end: float | None) -> None:
            text = self.tokenizer.decode([ids[place] for place in held]).strip()
            words = ()
            if spans is not None:
                seconds = self.experiment.frame_samples / self.experiment.sample_rate
                words = words_of([spans[place] for place in held], self.tokenizer.pieces, seconds / _PARTS, text)
                words = tuple(dataclasses.replace(word, end=max(word.end, word.start + seconds)) for word in words)
            phrases.append(Phrase(start, end, text, words))
            held.clear()

        for place, id_ in enumerate(ids):
            if (time := self._time(id_)) is None:
                held.append(place)
                continue
            if held and self.timestamps:
                close(time / TIMES_PER_SECOND)
            start = time / TIMES_PER_SECOND if self.timestamps else 0.0
        if held:
            close(None)
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
    def _programs(self) -> Programs:
        reads_context = bool(self.prompt) or self.condition_on_previous
        return Programs(self.experiment, self.tokenizer, self.timestamps, reads_context)

    @functools.cached_property
    def _network(self) -> Network:
        return self._programs.network(self.params, self.ctc_weight, self._context(()))


def _has_context(objective: AED) -> bool:
    """Returns whether the model was trained to read text before a prompt."""
    return objective.whisper is not None and objective.whisper.previous is not None


def _prompt_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(f" {text.strip()}")) if text.strip() else ()


def _span(token: int, start: int, end: int, log_prob: float) -> Span:
    """Returns a token from one frame to another in parts of a frame, of which it has one if both are the same."""
    width = max(_PARTS * (end - start), 1)
    return Span(token, _PARTS * start, _PARTS * start + width, log_prob * width)


def _parts(rows: Int[np.ndarray, " rows"]) -> Iterator[Int[np.ndarray, " part"]]:
    """Cuts rows into parts of the sizes of `_ROWS`."""
    while len(rows):
        size = next(size for size in _ROWS if size <= len(rows))
        yield rows[:size]
        rows = rows[size:]
