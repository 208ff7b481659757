"""Recognizers from CTC checkpoints, single or as an ensemble."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipelines.batching.speech import Batch as HostBatch
from data_pipelines.core.paths import AnyPath
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.ctc.alignment import Span, Word, force_align, words_of
from jax_speechlm.decoding.ctc.greedy import best_path, collapse
from jax_speechlm.decoding.ctc.posteriors import Frames, path_spans, utterances
from jax_speechlm.decoding.lm.ngram import SPACE
from jax_speechlm.inference.asr.base import Transcriber, Transcription
from jax_speechlm.inference.asr.decoder import Decoder, Decoding, Posteriors
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.inference.segmentation import AudioWindow
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import Objective, frame_grid
from jax_speechlm.recipes.experiment import Experiment

_LONGEST_UTTERANCE = 30.0  # seconds that are decoded at once
_IMPOSSIBLE = -30.0  # log-probability of a token in silence


class _Member(NamedTuple):
    """One checkpoint of an ensemble."""

    checkpoint: AnyPath
    step: int
    experiment: Experiment
    tokenizer: Tokenizer
    params: Params
    objective: Objective


@dataclasses.dataclass(frozen=True)
class Recognizer(Transcriber):
    """A CTC checkpoint's model, front end and tokenizer.

    An ensemble's posteriors are the mean of its members' probabilities, frame by frame; checkpoint, step and experiment
    are the first member's. In such a mixture no member can veto a token by a probability near zero.

    Attributes:
      params: parameters of the members.
      members: checkpoints of the members.
    """

    abilities: ClassVar[tuple[str, ...]] = ("transcribe", "embed")

    checkpoint: AnyPath
    step: int
    experiment: Experiment = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    params: tuple[Params, ...] = dataclasses.field(repr=False)
    decoder: Decoder | None = dataclasses.field(repr=False)
    members: tuple[AnyPath, ...]
    _greedy: Callable[[tuple[Params, ...], Batch], tuple[jax.Array, jax.Array, jax.Array]] = dataclasses.field(
        repr=False
    )
    _posteriors: Callable[[tuple[Params, ...], Batch], tuple[jax.Array, jax.Array]] = dataclasses.field(repr=False)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        decoding: Decoding = Decoding(),  # noqa: B008  frozen
        ensemble: Sequence[str | os.PathLike] = (),
    ) -> "Recognizer":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, and the language models of `decoding`.

        Args:
          ensemble: further runs, of any size, with the same tokenizer and frame rate.

        Raises:
          CheckpointError: no checkpoint can be read, its model has no CTC output, or an ensemble's members differ in
            tokenizer or frame rate.
          DataError: a language model cannot be read, or does not fit the checkpoint's tokenizer.
        """
        members = [_read(each) for each in (path, *ensemble)]
        first = members[0]
        for other in members[1:]:
            _check_fits(first, other)
        decoder = None if decoding.is_greedy else Decoder(decoding, first.tokenizer)

        def posteriors(params: tuple[Params, ...], batch: Batch) -> tuple[jax.Array, jax.Array]:
            heard = [member.objective.logits(own, batch) for member, own in zip(members, params, strict=True)]
            log_probs = [jax.nn.log_softmax(logits_BxTxV.astype(jnp.float32)) for logits_BxTxV, _ in heard]
            return mean_probability(log_probs), heard[0][1]

        def greedy(params: tuple[Params, ...], batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            log_probs_BxTxV, length_B = posteriors(params, batch)
            return best_path(log_probs_BxTxV, length_B), log_probs_BxTxV.max(-1), length_B

        return cls(
            first.checkpoint,
            first.step,
            first.experiment,
            first.tokenizer,
            tuple(member.params for member in members),
            decoder,
            tuple(member.checkpoint for member in members),
            jax.jit(greedy),
            jax.jit(posteriors),
        )

    @property
    def decoding_description(self) -> str:
        how = "greedy" if self.decoder is None else str(self.decoder.decoding)
        return how if len(self.members) == 1 else f"{how}, ensemble of {', '.join(map(str, self.members))}"

    def recognize(self, batches: Iterable[Batch]) -> dict[int, str]:
        """Transcribes batches with the decoder, greedily if there is none; returns texts by `example_id`."""
        texts = {}
        for batch in batches:
            if self.decoder is not None:
                heard = self._posteriors_by_row(batch)
                texts.update(zip(heard, self.decoder.decode(list(heard.values())), strict=True))
                continue
            spelled = collapse(jax.device_get(self._greedy(self.params, batch)[0]))
            for row, example in enumerate(batch["example_id"]):
                if example >= 0:
                    texts[int(example)] = self.tokenizer.decode(spelled[row])
        return texts

    def transcribe_batches(self, batches: Iterable[Batch]) -> dict[int, Transcription]:
        """Decodes the best path of every row; its log-probability is divided by the number of tokens."""
        found = {}
        for row, log_probs in self.posteriors(batches).items():
            (ids,) = collapse(log_probs.argmax(-1)[None])
            found[row] = Transcription(self.tokenizer.decode(ids), float(log_probs.max(-1).sum()) / max(1, len(ids)))
        return found

    def posteriors(self, batches: Iterable[Batch]) -> dict[int, Posteriors]:
        """Computes log-probabilities float32 [frames, ids] by `example_id`, without filler rows."""
        return {row: log_probs for batch in batches for row, log_probs in self._posteriors_by_row(batch).items()}

    def _posteriors_by_row(self, batch: HostBatch) -> dict[int, Posteriors]:
        log_probs, lengths = jax.device_get(self._posteriors(self.params, batch))
        return {
            int(example): log_probs[row, : lengths[row]].copy()  # not a view of the whole batch
            for row, example in enumerate(batch["example_id"])
            if example >= 0
        }

    @property
    def joins_windows(self) -> bool:
        return True  # CTC frames of adjacent windows can be concatenated

    @functools.cached_property
    def separator(self) -> str:
        return " " if any(SPACE in piece for piece in self.tokenizer.pieces) else ""

    def encode(self, batches: Iterable[Batch]) -> dict[int, Frames]:
        """Computes the frames per row: the best path for greedy decoding, all posteriors for a beam search."""
        if self.decoder is not None:
            return {row: Frames.of(log_probs) for row, log_probs in self.posteriors(batches).items()}
        found = {}
        for batch in batches:
            ids, log_probs, lengths = jax.device_get(self._greedy(self.params, batch))
            for row, example in enumerate(batch["example_id"]):
                if example >= 0:
                    found[int(example)] = Frames(ids[row], log_probs[row]).part(0, int(lengths[row]))
        return found

    def utterances(self, heard: Iterable[tuple[AudioWindow, Frames | None]]) -> Iterator[tuple[int, Frames]]:
        """Cuts frames into utterances (`decoding.ctc.posteriors.utterances`), as (first frame, frames)."""
        most = int(_LONGEST_UTTERANCE / self._frame_seconds)
        begins_word = np.array([piece.startswith(SPACE) for piece in self.tokenizer.pieces])
        return utterances(self._stretches(heard), most, begins_word)

    def _stretches(self, heard: Iterable[tuple[AudioWindow, Frames | None]]) -> Iterator[Frames]:
        """Yields each window's frames without those of its overlaps; together they cover the recording once."""
        frame = self.experiment.frame_samples
        for window, frames in heard:
            first, last = (window.start - window.begin) // frame, (window.end - window.begin) // frame
            if frames is None:
                yield self._silence(last - first)
            else:
                is_end = window.end == window.begin + len(window.samples)
                yield frames.part(first, None if is_end else last)

    def _silence(self, num_frames: int) -> Frames:
        ids, log_probs = np.zeros(num_frames, np.int32), np.zeros(num_frames, np.float32)
        if self.decoder is None:
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
            (spans,) = force_align(frames.posteriors[None], np.array([len(frames.ids)]), [candidates[0].tokens])
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


def mean_probability(log_probs: Sequence[Float[Array, "*each"]]) -> Float[Array, "*each"]:
    """Returns the logarithm of the mean probability; a single array is returned unchanged."""
    if len(log_probs) == 1:
        return log_probs[0]
    return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - jnp.log(len(log_probs))


def _read(path: str | os.PathLike) -> _Member:
    run = LoadedRun.read(path, quantized=True)
    objective = run.experiment.objective.build(run.experiment.model, run.experiment.frontend, run.tokenizer)
    if objective.logits is None:
        raise CheckpointError(
            f"{run.checkpoint}: was trained by {run.experiment.objective.kind}, which does not transcribe. Name a "
            f"run that was trained by ctc; from a pretrained encoder: jax-speechlm finetune --from {path}"
        )
    return _Member(run.checkpoint, run.step, run.experiment, run.tokenizer, run.params, objective)


def _check_fits(first: _Member, other: _Member) -> None:
    if first.tokenizer.fingerprint != other.tokenizer.fingerprint:
        raise CheckpointError(
            f"{other.checkpoint}: has another tokenizer ({other.tokenizer.kind}, {other.tokenizer.vocab_size} ids) "
            f"than {first.checkpoint} ({first.tokenizer.kind}, {first.tokenizer.vocab_size} ids): it needs one; "
            "reports of different tokenizers can be joined by jax-speechlm rover"
        )
    ours, theirs = (frame_grid(each.experiment.model, each.experiment.frontend.mel) for each in (first, other))
    if ours != theirs:
        raise CheckpointError(
            f"{other.checkpoint}: has {theirs}; {first.checkpoint} has {ours}. An ensemble needs frames in common; "
            "reports can be joined by jax-speechlm rover"
        )
