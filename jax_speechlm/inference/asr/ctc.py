"""Recognizers from CTC checkpoints, single or as an ensemble."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_speechlm.core.batch import Batch, frame_mask
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.automaton import NOT_FOUND, Accepted, TokenAutomaton
from jax_speechlm.decoding.ctc.alignment import Span, Word, force_align, words_of
from jax_speechlm.decoding.ctc.constrained import best_path_within
from jax_speechlm.decoding.ctc.greedy import StreamingBestPath, best_path, collapse
from jax_speechlm.decoding.ctc.posteriors import Frames, path_spans, utterances
from jax_speechlm.decoding.ensemble import mean_probability
from jax_speechlm.decoding.lm.ngram import SPACE
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.inference.adapters import adapted
from jax_speechlm.inference.asr.base import Transcriber, Transcription, separator_of
from jax_speechlm.inference.asr.decoder import Decoder, Decoding, Posteriors
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.asr.stream import StreamBatch, StreamingProgram
from jax_speechlm.inference.predictor import Row, rows_by_id
from jax_speechlm.inference.segmentation import AudioWindow, Recording, blocks_of, in_batches, is_silent
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import Objective, frame_grid
from jax_speechlm.training.runs import LoadedRun

_LONGEST_UTTERANCE = 30.0  # seconds that are decoded at once
_IMPOSSIBLE = -30.0  # log-probability of a token in silence


@dataclasses.dataclass(frozen=True, eq=False)
class Recognizer(Transcriber):
    """A CTC checkpoint's model, front end and tokenizer; `decoder` is None for greedy decoding.

    An ensemble's posteriors are the mean of its members' probabilities, frame by frame; `run` is the first member. In
    such a mixture no member can veto a token by a probability near zero.
    """

    abilities: ClassVar[tuple[str, ...]] = ("transcribe", "embed", "stream")
    joins_windows: ClassVar[bool] = True  # CTC frames of adjacent windows can be concatenated
    can_be_held: ClassVar[bool] = True

    members: tuple[LoadedRun, ...]
    decoder: Decoder | None = None
    warps: tuple[float, ...] = ()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        decoding: Decoding = Decoding(),  # noqa: B008  frozen
        ensemble: Sequence[str | os.PathLike] = (),
        adapter: str | os.PathLike | None = None,
    ) -> "Recognizer":
        """Reads checkpoints and the language models of `decoding`; an `ensemble` shares tokenizer and frame rate.

        Args:
          adapter: folder of an adapter (`inference.adapters`) of the run.

        Raises:
          CheckpointError: a checkpoint cannot be read, its model has no CTC output, or tokenizer or frame rate differ.
          DataError: a language model cannot be read, or does not fit the tokenizer.
          ExportError: the adapter cannot be read, or is of another model.
        """
        first, *others = members = adapted(_read(path), adapter), *(_read(member) for member in ensemble)
        for other in others:
            _check_fits(first, other)
        for member in members if decoding.warps else ():
            _check_warps(member)
        return cls(members, None if decoding.is_greedy else Decoder(decoding, first.tokenizer), decoding.warps)

    def with_adapter(self, adapter: str | os.PathLike) -> "Recognizer":
        """As of `Transcriber`; of an ensemble the first run has the adapter."""
        other = dataclasses.replace(self, members=(adapted(self.run, adapter), *self.members[1:]))
        # The programs take the parameters as arguments, and depend on the settings alone.
        vars(other).update(_posteriors=self._posteriors, _greedy=self._greedy)
        return other

    @property
    def run(self) -> LoadedRun:
        return self.members[0]

    @functools.cached_property
    def params(self) -> tuple[Params, ...]:
        """Parameters of the members."""
        return tuple(member.params for member in self.members)

    @functools.cached_property
    def _posteriors(self) -> Callable[[tuple[Params, ...], Batch], tuple[jax.Array, jax.Array]]:
        every = [[_objective(member, warp).logits for member in self.members] for warp in self.warps or (None,)]

        def of_warp(logits: list, params: tuple[Params, ...], batch: Batch) -> tuple[jax.Array, jax.Array]:
            outputs = [compute(own, batch) for compute, own in zip(logits, params, strict=True)]
            log_probs = [jax.nn.log_softmax(logits_BxTxV.astype(jnp.float32)) for logits_BxTxV, _ in outputs]
            return mean_probability(log_probs), outputs[0][1]

        def posteriors(params: tuple[Params, ...], batch: Batch) -> tuple[jax.Array, jax.Array]:
            best_BxTxV, length_B = of_warp(every[0], params, batch)
            for logits in every[1:]:
                log_probs_BxTxV, _ = of_warp(logits, params, batch)
                is_better_B = _path_score(log_probs_BxTxV, length_B) > _path_score(best_BxTxV, length_B)
                best_BxTxV = jnp.where(is_better_B[:, None, None], log_probs_BxTxV, best_BxTxV)
            return best_BxTxV, length_B

        return jax.jit(posteriors)

    @functools.cached_property
    def _greedy(self) -> Callable[[tuple[Params, ...], Batch], tuple[jax.Array, jax.Array, jax.Array]]:
        def greedy(params: tuple[Params, ...], batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            log_probs_BxTxV, length_B = self._posteriors(params, batch)
            return best_path(log_probs_BxTxV, length_B), log_probs_BxTxV.max(-1), length_B

        return jax.jit(greedy)

    @property
    def decoding_description(self) -> str:
        method = str(Decoding(warps=self.warps) if self.decoder is None else self.decoder.decoding)
        method += self._adapter_description
        names = ", ".join(str(member.checkpoint) for member in self.members)
        return method if len(self.members) == 1 else f"{method}, ensemble of {names}"

    def recognize(self, batches: Iterable[Batch]) -> dict[int, str]:
        """Transcribes batches with the decoder, greedily if there is none; returns texts by `example_id`."""
        if self.decoder is None:
            return {
                row: self.tokenizer.decode(collapse(ids[None])[0])
                for row, (ids, _, _) in self._rows(self._greedy, batches).items()
            }
        texts = {}
        for batch in batches:
            posteriors = self.posteriors(iter((batch,)))
            texts.update(zip(posteriors, self.decoder.decode(list(posteriors.values())), strict=True))
        return texts

    def transcribe_batches(self, batches: Iterable[Batch]) -> dict[int, Transcription]:
        """Decodes the best path of every row; its log-probability is divided by the number of tokens."""
        transcriptions = {}
        for row, log_probs in self.posteriors(batches).items():
            (ids,) = collapse(log_probs.argmax(-1)[None])
            log_prob = float(log_probs.max(-1).sum()) / max(1, len(ids))
            transcriptions[row] = Transcription(self.tokenizer.decode(ids), log_prob)
        return transcriptions

    def posteriors(self, batches: Iterable[Batch]) -> dict[int, Posteriors]:
        """Computes log-probabilities float32 [frames, ids] by `example_id`, without filler rows."""
        rows = self._rows(self._posteriors, batches)
        return {row: log_probs[:length] for row, (log_probs, length) in rows.items()}

    search_inputs = posteriors

    def frames_of(self, recording: Recording) -> Posteriors:
        """Computes log-probabilities float32 [frames, ids] of a recording of any length, window by window.

        Silence has blanks alone: its features are normalised noise, in which models recognise something.

        Raises:
          AudioError: the recording cannot be read.
        """
        rate = self.experiment.sample_rate

        def encoded(window: AudioWindow) -> Frames | None:
            if window.samples is None or is_silent(window.samples, rate):
                return None
            return Frames.of(*self.posteriors(in_batches([window.samples])).values())

        windows = ((window, encoded(window)) for window in self._windows(blocks_of(recording, rate), 30.0))
        stretches = self._stretches(windows, with_posteriors=True)
        return np.concatenate([frames.posteriors for frames in stretches])

    def within(self, batches: Iterable[Batch], automaton: TokenAutomaton) -> dict[int, Accepted]:
        """Finds the best path of every row whose tokens an automaton accepts; exact."""
        found = {}
        for row, log_probs in self.posteriors(batches).items():
            best = best_path_within(log_probs, automaton)
            free = float(log_probs.max(-1).sum(dtype=np.float64))
            found[row] = NOT_FOUND if best is None else Accepted.of(*best, free)
        return found

    def _rows(self, compute: Callable[..., tuple[jax.Array, ...]], batches: Iterable[Batch]) -> dict[int, Row]:
        return rows_by_id(functools.partial(compute, self.params), batches)

    @functools.cached_property
    def separator(self) -> str:
        return separator_of(self.tokenizer)

    def streams(self, num_streams: int, chunk_ms: int | None, endpointing: Endpointing) -> StreamBatch:
        """Opens a batch of streams (`jax_speechlm.load(path).streams`).

        Raises:
          CheckpointError: the run was not trained to stream.
          ValueError: it was not trained on such chunks, or the decoding is not greedy search with one model.
        """
        if self.decoder is not None or len(self.members) > 1 or self.warps:
            raise ValueError(
                f"streams are decoded by greedy search with one model, not by {self.decoding_description}: leave out "
                "the settings of decoding and --ensemble"
            )
        return StreamBatch(self._program(chunk_ms), num_streams, endpointing)

    @functools.cached_property
    def _program(self) -> Callable[[int | None], StreamingProgram]:
        """The compiled step for a length of chunks, kept for the next streams."""
        search = self.stream_search(self.run)
        return functools.cache(functools.partial(StreamingProgram, self.run, search, self.separator))

    @staticmethod
    def stream_search(run: LoadedRun) -> StreamingBestPath:
        """Returns the search for streams of a run."""
        return StreamingBestPath(run.experiment.model.dim, run.tokenizer.vocab_size)

    def encode(self, batches: Iterable[Batch]) -> dict[int, Frames]:
        """Computes the frames per row: the best path for greedy decoding, all posteriors for a beam search."""
        if self.decoder is not None:
            return {row: Frames.of(log_probs) for row, log_probs in self.posteriors(batches).items()}
        rows = self._rows(self._greedy, batches)
        return {row: Frames(ids, log_probs).part(0, int(length)) for row, (ids, log_probs, length) in rows.items()}

    def utterances(self, windows: Iterable[tuple[AudioWindow, Frames | None]]) -> Iterator[tuple[int, Frames]]:
        """Cuts frames into utterances (`decoding.ctc.posteriors.utterances`), as (first frame, frames)."""
        most = int(_LONGEST_UTTERANCE / self._frame_seconds)
        begins_word = np.array([piece.startswith(SPACE) for piece in self.tokenizer.pieces])
        return utterances(self._stretches(windows, self.decoder is not None), most, begins_word)

    def _stretches(
        self, windows: Iterable[tuple[AudioWindow, Frames | None]], with_posteriors: bool
    ) -> Iterator[Frames]:
        """Yields each window's frames without those of its overlaps; together they cover the recording once."""
        frame = self.experiment.frame_samples
        for window, frames in windows:
            first, last = (window.start - window.begin) // frame, (window.end - window.begin) // frame
            if frames is None:
                yield self._silence(last - first, with_posteriors)
            else:
                is_end = window.end == window.begin + len(window.samples)
                yield frames.part(first, None if is_end else last)

    def _silence(self, num_frames: int, with_posteriors: bool) -> Frames:
        ids, log_probs = np.zeros(num_frames, np.int32), np.zeros(num_frames, np.float32)
        if not with_posteriors:
            return Frames(ids, log_probs)
        posteriors = np.full((num_frames, self.tokenizer.vocab_size), _IMPOSSIBLE, np.float32)
        posteriors[:, 0] = 0.0
        return Frames(ids, log_probs, posteriors)

    def decode(self, utterances: Sequence[tuple[int, Frames]]) -> list[Segment]:
        """Decodes each utterance; words have the times of the most likely alignment."""
        if self.decoder is None:
            return [self._segment(start, frames, path_spans(frames)) for start, frames in utterances]
        segments = []
        ranked = self.decoder.rank(self.decoder.search([frames.posteriors for _, frames in utterances]))
        for (start, frames), candidates in zip(utterances, ranked, strict=True):
            (spans,) = force_align([frames.posteriors], [candidates[0].tokens])
            segment = self._segment(start, frames, spans or [])
            texts = dict.fromkeys(" ".join(each.text.split()) for each in candidates)
            segments.append(dataclasses.replace(segment, alternatives=tuple(texts)))
        return segments

    def _segment(self, start: int, frames: Frames, spans: Sequence[Span]) -> Segment:
        text = " ".join(self.tokenizer.decode([span.token for span in spans]).split())
        words = self._words(start, spans, text)
        avg_logprob = float(frames.log_probs.sum(dtype=np.float64)) / max(1, len(spans))
        first, end = (spans[0].start, spans[-1].end) if spans else (0, len(frames.ids))
        times = ((start + frame) * self._frame_seconds for frame in (first, end))
        return Segment(*times, text, avg_logprob, words)

    def _words(self, start: int, spans: Sequence[Span], text: str) -> tuple[Word, ...]:
        moved = [dataclasses.replace(span, start=span.start + start, end=span.end + start) for span in spans]
        return words_of(moved, self.tokenizer.pieces, self._frame_seconds, text)

    @property
    def _frame_seconds(self) -> float:
        return self.experiment.frame_samples / self.experiment.sample_rate


def _objective(run: LoadedRun, warp: float | None = None) -> Objective:
    frontend = run.experiment.frontend
    if warp is not None:
        frontend = frontend.replace(mel=frontend.mel.replace(warp=warp))
    return run.experiment.objective.build(run.experiment.model, frontend, run.tokenizer)


def _path_score(log_probs_BxTxV: jax.Array, length_B: jax.Array) -> jax.Array:
    """Returns the log-probability of each row's best path."""
    best_BxT = log_probs_BxTxV.max(-1)
    return jnp.sum(best_BxT, axis=1, where=frame_mask(length_B, best_BxT.shape[1]))


def _check_warps(run: LoadedRun) -> None:
    """Raises `CheckpointError` if a run's features have no warps of frequency."""
    mel = run.experiment.frontend.mel
    if not isinstance(mel, LogMel) or mel.variant != "kaldi":
        raise CheckpointError(
            f"{run.checkpoint}: its features ({mel.variant}) have no warps of frequency, which are of the variant "
            "kaldi: leave out --warps"
        )


def _read(path: str | os.PathLike) -> LoadedRun:
    run = LoadedRun.read(path, quantized=True)
    if _objective(run).logits is None:
        raise CheckpointError(
            f"{run.checkpoint}: was trained by {run.experiment.objective.kind}, which does not transcribe by CTC. Name "
            f"a run that was trained by ctc; from a pretrained encoder: jax-speechlm finetune --from {path}"
        )
    return run


def _check_fits(first: LoadedRun, other: LoadedRun) -> None:
    if first.tokenizer.fingerprint != other.tokenizer.fingerprint:
        raise CheckpointError(
            f"{other.checkpoint}: has another tokenizer ({other.tokenizer.kind}, {other.tokenizer.vocab_size} ids) "
            f"than {first.checkpoint} ({first.tokenizer.kind}, {first.tokenizer.vocab_size} ids): it needs one; "
            "reports of different tokenizers can be joined by jax-speechlm rover"
        )
    expected, actual = (frame_grid(run.experiment.model, run.experiment.frontend.mel) for run in (first, other))
    if expected != actual:
        raise CheckpointError(
            f"{other.checkpoint}: has {actual}; {first.checkpoint} has {expected}. An ensemble needs frames in common; "
            "reports can be joined by jax-speechlm rover"
        )
