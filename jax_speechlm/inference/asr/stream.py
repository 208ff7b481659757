"""Recognition of streams: partial transcripts while the audio arrives, of many streams in one batch.

    stream = jax_speechlm.load("runs/streaming").stream(chunk_ms=320)
    for samples in microphone:
        print(stream.accept(samples).text)
    transcript = stream.finalize()

Front end, encoder and search run as one compiled step of fixed shapes over chunks of the model's frames. What they
compute is what one pass over the whole recording computes under the chunk's mask, however the samples are cut.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.audio.decode import AudioError
from data_pipelines.text.scripts import join
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.stream import Emissions, StreamSearch
from jax_speechlm.frontend.streaming import LogMelState, SampleChunk, SampleChunks, StreamingLogMel
from jax_speechlm.inference.asr.hypothesis import Endpointing, Hypothesis, Partial
from jax_speechlm.inference.transcript import Segment, Transcript
from jax_speechlm.models.encoder_base import EncoderState
from jax_speechlm.models.streaming import StreamingEncoder, check_streams
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.streaming import select_streams
from jax_speechlm.training.runs import LoadedRun

_FULL_SCALE = 32_768


class StreamState(NamedTuple):
    """State of a batch of streams: of front end, encoder and search; every array begins with the streams."""

    features: LogMelState
    encoder: EncoderState
    search: Any


@dataclasses.dataclass(frozen=True, eq=False)
class StreamingProgram:
    """A recognizer's step over a chunk of a batch of streams, compiled once for each batch size.

    Attributes:
      run: a run that was trained to stream; its encoder has the parameters "encoder".
      search: finds the tokens.
      separator: string between the texts of segments.
      chunk_ms: length of a chunk, one that the run was trained on; None for the longest.

    Raises:
      CheckpointError: the run was not trained to stream.
      ValueError: it was not trained on such chunks.
    """

    run: LoadedRun
    search: StreamSearch
    separator: str = " "
    chunk_ms: int | None = None

    def __post_init__(self):
        try:
            check_streams(self.run.experiment.model)
            StreamingLogMel(self.run.experiment.frontend.mel, 1)
            if self.run.experiment.model.lead_vectors and self.run.experiment.frontend.mel.normalize:
                raise ValueError(
                    "model.causal reads vectors before the first, which would shift a running mean: train with "
                    "--frontend.mel.normalize False"
                )
        except ValueError as error:
            raise CheckpointError(f"{self.run.checkpoint}: was not trained to stream: {error}") from error
        _ = self.encoder

    @property
    def frame_seconds(self) -> float:
        """Hop of the encoder's frames."""
        return self.run.experiment.frame_samples / self.run.experiment.sample_rate

    @property
    def latency_seconds(self) -> float:
        """Longest time from a sample to the chunk that it completes: a chunk, and what the front end reads after it."""
        return (self.features.lead_samples + self.features.chunk_samples) / self.run.experiment.sample_rate

    @functools.cached_property
    def encoder(self) -> StreamingEncoder:
        """The encoder, with its chunk length in frames."""
        config = self.run.experiment.model
        milliseconds = {length: round(1000 * length * self.frame_seconds) for length in config.chunk_lengths}
        if self.chunk_ms is None:
            return StreamingEncoder(config, max(milliseconds))
        for length, duration in milliseconds.items():
            if duration == self.chunk_ms:
                return StreamingEncoder(config, length)
        trained = ", ".join(map(str, sorted(milliseconds.values())))
        raise ValueError(
            f"{self.run.checkpoint}: was not trained on chunks of {self.chunk_ms} ms: choose one of {trained} ms "
            "(model.chunk_lengths), or train with it"
        )

    @functools.cached_property
    def features(self) -> StreamingLogMel:
        """The front end."""
        return StreamingLogMel(self.run.experiment.frontend.mel, self.encoder.num_vectors)

    def init_state(self, params: Params, batch: int) -> StreamState:
        """Returns the state before the first chunk of `batch` streams."""
        search = self.search.init_state(params, batch)
        return StreamState(self.features.init_state(batch), self.encoder.init_state(batch), search)

    @functools.cached_property
    def step(self) -> Any:
        """The compiled step; arguments and result as of `_step`. It takes the state over."""
        return jax.jit(self._step, donate_argnums=1)

    def _step(
        self,
        params: Params,
        state: StreamState,
        samples_BxS: Float[Array, "batch samples"],
        num_vectors_B: Int[Array, " batch"],
        lead_BxL: Float[Array, "batch lead"],
        starts_B: Bool[Array, " batch"],
    ) -> tuple[StreamState, Emissions, Int[Array, " batch"]]:
        """Processes a chunk of each stream.

        Args:
          samples_BxS, num_vectors_B: as of `SampleChunk`; streams without a chunk have 0 vectors and stay as they are.
          lead_BxL: samples before the first chunk, of streams that start with it.
          starts_B: whether a stream starts; its row is that of a new stream, whatever it was before.

        Returns:
          The state, what the search found, and the number of frames.
        """
        fresh = self.init_state(params, len(starts_B))._replace(features=self.features.start(lead_BxL))
        state = select_streams(starts_B, fresh, state)
        features, vectors_BxVxF = self.features.step(state.features, samples_BxS)
        features = select_streams(num_vectors_B > 0, features, state.features)
        encoder, hidden_BxCxD, num_frames_B = self.encoder.step(
            params["encoder"], state.encoder, vectors_BxVxF, num_vectors_B
        )
        search, emissions = self.search.step(params, state.search, hidden_BxCxD, num_frames_B)
        return StreamState(features, encoder, search), emissions, num_frames_B


class StreamBatch:
    """Streams that share a compiled step; they join and leave at any time and do not affect each other.

    It is for one thread.
    """

    def __init__(self, program: StreamingProgram, num_streams: int, endpointing: Endpointing):
        """Makes room for `num_streams` streams at a time."""
        self.program, self.endpointing = program, endpointing
        self._state = program.init_state(program.run.params, num_streams)
        self._rows: list[Stream | None] = [None] * num_streams

    @property
    def sample_rate(self) -> int:
        """Rate of the samples, in Hz."""
        return self.program.run.experiment.sample_rate

    @property
    def num_streams(self) -> int:
        """Streams that have room."""
        return len(self._rows)

    def join(self, endpointing: Endpointing | None = None) -> "Stream":
        """Opens a stream, with an endpointing of its own if given.

        Raises:
          ValueError: there is no room for another.
        """
        if None not in self._rows:
            raise ValueError(f"all {len(self._rows)} streams are open: finalize one first, or make room for more")
        row = self._rows.index(None)
        self._rows[row] = stream = Stream(self, row, endpointing or self.endpointing)
        return stream

    def accept(self, samples: Mapping["Stream", np.ndarray]) -> dict["Stream", Partial]:
        """Appends samples to streams and processes the chunks that are complete (`Stream.accept`)."""
        checked = {stream: stream._checked(array) for stream, array in samples.items()}
        for stream, array in checked.items():
            stream._chunks.add(array)
        while chunks := {stream: chunk for stream in checked if (chunk := stream._chunks.take()) is not None}:
            self._run(chunks)
        return {stream: stream.partial for stream in checked}

    def finalize(self, streams: Iterable["Stream"]) -> dict["Stream", Transcript]:
        """Ends streams (`Stream.finalize`)."""
        streams = tuple(streams)
        for stream in streams:
            stream._check_open()
        left = {stream: stream._chunks.finish() for stream in streams}
        while chunks := {stream: rest.pop(0) for stream, rest in left.items() if rest}:
            self._run(chunks)
        return {stream: stream._end() for stream in streams}

    def _run(self, chunks: Mapping["Stream", SampleChunk]) -> None:
        """Processes a chunk of some streams."""
        features, num_rows = self.program.features, len(self._rows)
        samples = np.zeros((num_rows, features.chunk_samples), np.float32)
        lead = np.zeros((num_rows, features.lead_samples), np.float32)
        num_vectors, starts = np.zeros(num_rows, np.int32), np.zeros(num_rows, bool)
        for stream, chunk in chunks.items():
            samples[stream._row], num_vectors[stream._row] = chunk.samples, chunk.num_vectors
            if chunk.lead is not None:
                lead[stream._row], starts[stream._row] = chunk.lead, True
        inputs = (jnp.asarray(each) for each in (samples, num_vectors, lead, starts))
        self._state, *outputs = self.program.step(self.program.run.params, self._state, *inputs)
        emissions, num_frames = jax.device_get(outputs)
        for stream in chunks:
            places = np.flatnonzero(emissions.token[stream._row])  # of others than the blank
            found = zip(*(array[stream._row][places].tolist() for array in emissions), strict=True)
            stream._hypothesis.extend(found, int(num_frames[stream._row]))


class Stream:
    """One stream of audio; `StreamBatch.join` opens it."""

    def __init__(self, batch: StreamBatch, row: int, endpointing: Endpointing):
        program = batch.program
        self._batch, self._row = batch, row
        self._chunks = SampleChunks(program.features, program.run.experiment.model.lead_vectors)
        self._hypothesis = Hypothesis(program.run.tokenizer, program.frame_seconds, endpointing)

    @property
    def partial(self) -> Partial:
        """The transcript so far of the segment that has not ended."""
        return self._hypothesis.partial

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments that have ended, by `Endpointing` or `finalize`."""
        return self._hypothesis.segments

    def accept(self, samples: np.ndarray) -> Partial:
        """Appends samples, any number of them, and processes the chunks that are complete.

        Args:
          samples: int16, or float in [-1, 1], at the run's sample rate.

        Raises:
          AudioError: they are something else; the stream stays as it is.
          ValueError: the stream has ended.
        """
        return self._batch.accept({self: samples})[self]

    @property
    def sample_rate(self) -> int:
        """Rate of the samples, in Hz."""
        return self._batch.sample_rate

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Cuts the samples of a recording into pieces of a chunk, as they would arrive."""
        size = self._batch.program.features.chunk_samples
        for block in blocks:
            yield from np.split(block, range(size, len(block), size))

    def finalize(self) -> Transcript:
        """Ends the stream: processes the rest of its samples, adds to them only what the full pass reads there, and
        makes room for another."""
        return self._batch.finalize([self])[self]

    def leave(self) -> None:
        """Ends the stream without a transcript."""
        self._check_open()
        self._batch._rows[self._row] = None

    def _end(self) -> Transcript:
        self.leave()
        self._hypothesis.close()
        program = self._batch.program
        seconds = self._chunks.num_samples / program.run.experiment.sample_rate
        text = join((segment.text for segment in self.segments), program.separator)
        return Transcript("stream", text, seconds, None, self.segments)

    def _check_open(self) -> None:
        if self._batch._rows[self._row] is not self:
            raise ValueError("this stream has ended: open another")

    def _checked(self, samples: np.ndarray) -> np.ndarray:
        self._check_open()
        samples = np.asarray(samples)
        if samples.ndim != 1 or not (samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)):
            raise AudioError(
                "stream",
                f"samples are {samples.dtype} {list(samples.shape)}",
                f"give int16, or float in [-1, 1], of one channel: [samples] at {self.sample_rate} Hz",
            )
        if samples.dtype == np.int16:
            return samples
        if not np.isfinite(samples).all():
            first = int(np.flatnonzero(~np.isfinite(samples))[0])
            raise AudioError("stream", f"sample {first} is {samples[first]}", "check what records or decodes the audio")
        if len(samples) and np.abs(samples).max() > 1:
            raise AudioError(
                "stream", f"float samples reach {np.abs(samples).max():g}", "scale them to [-1, 1], or give int16"
            )
        return samples.astype(np.float32) * _FULL_SCALE
