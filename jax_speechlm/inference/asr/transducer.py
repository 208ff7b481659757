"""Recognizers from transducer checkpoints, RNN-T and TDT."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_speechlm.core.batch import Batch
from jax_speechlm.decoding.automaton import NOT_FOUND, Accepted, AutomatonScorer, TokenAutomaton
from jax_speechlm.decoding.ctc.alignment import Span, Word, words_of
from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings
from jax_speechlm.decoding.transducer import greedy
from jax_speechlm.decoding.transducer.beam import Network, TimedHypothesis, beam_search
from jax_speechlm.decoding.transducer.stream import StreamingGreedy
from jax_speechlm.inference.adapters import adapted
from jax_speechlm.inference.asr.base import Transcriber, Transcription, separator_of
from jax_speechlm.inference.asr.decoder import Decoder, Decoding
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.asr.stream import StreamBatch, StreamingProgram
from jax_speechlm.inference.predictor import rows_by_id
from jax_speechlm.inference.segmentation import AudioWindow
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.models.transducer import PredictorState, TransducerModel
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.objectives.heads.base import encode
from jax_speechlm.training.runs import LoadedRun

_FREE_BEAM = 4
_WIDE = BeamSettings(size=64, token_floor=-np.inf, gap=np.inf)
"""Of a search held to an automaton, which may need tokens that are improbable."""

Output = TimedHypothesis | Float[np.ndarray, "_ dim"]
"""What the model gives for an utterance: a hypothesis by greedy search, or the encoder's frames for a beam search."""


@dataclasses.dataclass(frozen=True, eq=False)
class TransducerRecognizer(Transcriber):
    """A transducer checkpoint's model, front end and tokenizer; `decoder` is None for greedy decoding."""

    abilities: ClassVar[tuple[str, ...]] = ("transcribe", "embed", "stream")
    can_be_held: ClassVar[bool] = True

    run: LoadedRun
    decoder: Decoder | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        decoding: Decoding = Decoding(),  # noqa: B008  frozen
        ensemble: Sequence[str | os.PathLike] = (),
        adapter: str | os.PathLike | None = None,
    ) -> "TransducerRecognizer":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, and the language models of `decoding`.

        Args:
          adapter: folder of an adapter (`inference.adapters`) of the run.

        Raises:
          CheckpointError: no checkpoint can be read, or it is not of a transducer.
          DataError: a language model cannot be read, or does not fit the tokenizer.
          ExportError: the adapter cannot be read, or is of another model.
          ValueError: there is an `ensemble`.
        """
        if ensemble:
            raise ValueError(
                f"{path}: is a transducer, whose probabilities depend on its transcript: only runs with CTC posteriors "
                "make an ensemble; reports can be joined by jax-speechlm rover"
            )
        recognizer = cls(adapted(LoadedRun.load(path, Transducer, "transcribe with a transducer"), adapter))
        if decoding.is_greedy:
            return recognizer
        return dataclasses.replace(recognizer, decoder=Decoder(decoding, recognizer.tokenizer, recognizer._search))

    def with_adapter(self, adapter: str | os.PathLike) -> "TransducerRecognizer":
        """As of `Transcriber`; the programs of a greedy search are shared too."""
        other = TransducerRecognizer(adapted(self.run, adapter))
        if self.decoder is not None:
            other = dataclasses.replace(other, decoder=self.decoder.with_search(other._search))
        vars(other).update(_frames=self._frames, _greedy=self._greedy)  # which take the parameters as arguments
        return other

    @property
    def decoding_description(self) -> str:
        method = "greedy" if self.decoder is None else str(self.decoder.decoding).replace("prefix beam", "beam")
        return method + self._adapter_description

    @functools.cached_property
    def separator(self) -> str:
        return separator_of(self.tokenizer)

    def streams(self, num_streams: int, chunk_ms: int | None, endpointing: Endpointing) -> StreamBatch:
        """Opens a batch of streams (`jax_speechlm.load(path).streams`).

        Raises:
          CheckpointError: the run was not trained to stream.
          ValueError: it was not trained on such chunks, or the decoding is not greedy search.
        """
        if self.decoder is not None:
            raise ValueError(
                f"streams are decoded by greedy search, not by {self.decoding_description}: leave out the settings of "
                "decoding"
            )
        return StreamBatch(self._program(chunk_ms), num_streams, endpointing)

    @functools.cached_property
    def _program(self) -> Callable[[int | None], StreamingProgram]:
        """The compiled step for a length of chunks, kept for the next streams."""
        search = self.stream_search(self.run)
        return functools.cache(functools.partial(StreamingProgram, self.run, search, self.separator))

    @staticmethod
    def stream_search(run: LoadedRun) -> StreamingGreedy:
        """Returns the search for streams of a run."""
        objective = run.experiment.objective.of_model
        return StreamingGreedy(objective.make_model(run.experiment.model, run.tokenizer), objective.durations)

    def transcribe_batches(self, batches: Iterable[Batch]) -> dict[int, Transcription]:
        """Decodes every row; a transcript's log-probability is divided by the number of tokens."""
        outputs = self.encode(batches)
        best = zip(outputs, self._best(list(outputs.values())), strict=True)
        return {row: Transcription(text, _per_token(hypothesis)) for row, (text, hypothesis, _) in best}

    def encode(self, batches: Iterable[Batch]) -> dict[int, Output]:
        """Returns the hypothesis of each row for greedy decoding, the encoder's frames for a beam search."""
        if self.decoder is not None:
            return self.search_inputs(batches)
        rows = rows_by_id(functools.partial(self._greedy, self.params), batches)
        return {row: _hypothesis(greedy.Emissions(*arrays)) for row, arrays in rows.items()}

    def search_inputs(self, batches: Iterable[Batch]) -> dict[int, Float[np.ndarray, "_ dim"]]:
        """Computes the encoder's part of the joint network's input, [frames, dim], by `example_id`."""
        rows = rows_by_id(functools.partial(self._frames, self.params), batches)
        return {row: encoder_TxJ[:length] for row, (encoder_TxJ, length) in rows.items()}

    def within(self, batches: Iterable[Batch], automaton: TokenAutomaton) -> dict[int, Accepted]:
        """Finds the best transcript of every row that an automaton accepts, by a wide beam search.

        What the beam loses is not found: a row whose beam ends inside the automaton has no transcript.
        """
        scorer = AutomatonScorer(automaton, self.tokenizer.vocab_size)
        found = {}
        for row, encoder_TxJ in self.search_inputs(batches).items():
            inputs = encoder_TxJ[None], np.array([len(encoder_TxJ)])
            ((free, *_),) = self._search(*inputs, [], BeamSettings(_FREE_BEAM))
            (hypotheses,) = self._search(*inputs, [scorer], _WIDE)
            best = next((each for each in hypotheses if np.isfinite(each.score)), None)
            found[row] = NOT_FOUND if best is None else Accepted.of(best.tokens, best.acoustic, free.acoustic)
        return found

    def utterances(self, windows: Iterable[tuple[AudioWindow, Output | None]]) -> Iterator[tuple[AudioWindow, Output]]:
        """Returns the windows that are not silent, each one utterance."""
        return ((window, output) for window, output in windows if output is not None)

    def decode(self, utterances: Sequence[tuple[AudioWindow, Output]]) -> list[Segment]:
        """Decodes each utterance; a word lasts from the frame of its first token to the end of its last one's."""
        segments = []
        best = self._best([output for _, output in utterances])
        for (window, _), (text, hypothesis, alternatives) in zip(utterances, best, strict=True):
            words, rate = self._words(window, hypothesis, text), self.experiment.sample_rate
            times = (words[0].start, words[-1].end) if words else (window.start / rate, window.end / rate)
            segments.append(Segment(*times, text, _per_token(hypothesis), words, alternatives))
        return segments

    def _best(self, outputs: Sequence[Output]) -> list[tuple[str, TimedHypothesis, tuple[str, ...]]]:
        """Returns the text of each utterance, its hypothesis, and the texts of a beam search, best first."""
        if self.decoder is None:
            return [(self._text(hypothesis.tokens), hypothesis, ()) for hypothesis in outputs]
        found = self.decoder.search(outputs)
        results = []
        for hypotheses, candidates in zip(found, self.decoder.rank(found), strict=True):
            by_tokens = {hypothesis.tokens: hypothesis for hypothesis in hypotheses}
            texts = tuple(dict.fromkeys(" ".join(each.text.split()) for each in candidates))
            results.append((texts[0], by_tokens[candidates[0].tokens], texts))
        return results

    def _text(self, tokens: Sequence[int]) -> str:
        return " ".join(self.tokenizer.decode(tokens).split())

    def _words(self, window: AudioWindow, hypothesis: TimedHypothesis, text: str) -> tuple[Word, ...]:
        experiment = self.experiment
        offset = window.begin / experiment.sample_rate
        words = words_of(
            _spans(hypothesis), self.tokenizer.pieces, experiment.frame_samples / experiment.sample_rate, text
        )
        return tuple(dataclasses.replace(word, start=word.start + offset, end=word.end + offset) for word in words)

    @functools.cached_property
    def _graphdef(self) -> Any:
        experiment = self.experiment
        return functional.declare(experiment.objective.of_model.make_model(experiment.model, self.tokenizer)).graphdef

    def _encoded(self, model: TransducerModel, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden_BxTxD, length_B = encode(model.encoder, batch, self.experiment.frontend, None)
        return model.project(hidden_BxTxD), length_B

    @functools.cached_property
    def _frames(self) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array]]:
        def frames(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
            encoder_BxTxJ, length_B = self._encoded(functional.bind(self._graphdef, params), batch)
            return encoder_BxTxJ.astype(jnp.float32), length_B

        return jax.jit(frames)

    @functools.cached_property
    def _greedy(self) -> Callable[[Params, Batch], greedy.Emissions]:
        durations = self.experiment.objective.of_model.durations

        def decode(params: Params, batch: Batch) -> greedy.Emissions:
            model = functional.bind(self._graphdef, params)
            encoder_BxTxJ, length_B = self._encoded(model, batch)
            state = greedy.init_state(model, len(length_B))
            return greedy.step(model, state, encoder_BxTxJ, length_B, durations)[1]

        return jax.jit(decode)

    @functools.cached_property
    def _network(self) -> Network:
        @functools.partial(jax.jit, static_argnums=1)
        def start(params: Params, prefixes: int) -> PredictorState:
            return functional.bind(self._graphdef, params).init_state(prefixes)

        @jax.jit
        def advance(params: Params, state: PredictorState, origin: Any, tokens: Any, frames: Any) -> tuple[Any, ...]:
            model = functional.bind(self._graphdef, params)
            state = model.step(jax.tree.map(lambda x: x[origin], state), tokens)
            return state, *model.log_probs(frames, state.output)

        bound = (functools.partial(function, self.params) for function in (start, advance))
        return Network(*bound, self.experiment.objective.of_model.durations)

    def _search(self, encoder_BxTxJ: np.ndarray, length_B: np.ndarray, *arguments: Any) -> list[list[TimedHypothesis]]:
        """Runs `beam_search` on rows filled up to a power of two, so that few programs are compiled."""
        more = (1 << (len(length_B) - 1).bit_length()) - len(length_B)
        encoder_BxTxJ = np.pad(encoder_BxTxJ, ((0, more), (0, 0), (0, 0)))
        found = beam_search(self._network, encoder_BxTxJ, np.pad(length_B, (0, more)), *arguments)
        return found[: len(length_B)]


def _hypothesis(emissions: greedy.Emissions) -> TimedHypothesis:
    """Returns the hypothesis of a row's greedy search, with the log-probability of its path."""
    places = np.nonzero(emissions.tokens)
    parts = (emissions.tokens[places], places[0], emissions.durations[places], emissions.log_probs[places])
    tokens, frames, durations, log_probs = (tuple(part.tolist()) for part in parts)
    total = float(sum(log_probs) + emissions.blank.sum(dtype=np.float64))
    return TimedHypothesis(tokens, total, 0.0, frames, durations, log_probs)


def _per_token(hypothesis: TimedHypothesis) -> float:
    return hypothesis.acoustic / max(1, len(hypothesis.tokens))


def _spans(hypothesis: TimedHypothesis) -> list[Span]:
    """Returns the frames of each token; one frame if its duration is 0, with its log-probability at each."""
    columns = hypothesis.tokens, hypothesis.frames, hypothesis.durations, hypothesis.log_probs
    spans = []
    for token, frame, duration, log_prob in zip(*columns, strict=True):
        width = max(1, duration)
        spans.append(Span(token, frame, frame + width, log_prob * width))
    return spans
