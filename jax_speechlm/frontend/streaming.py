"""Log-mel features of a stream: the features of one pass, from fixed-size chunks of samples.

    stream = StreamingLogMel(config, num_vectors=8)
    chunks = SampleChunks(stream)                       # on the host; takes any number of samples
    chunks.add(samples)
    while (chunk := chunks.take()) is not None:         # then chunks.finish() for the rest
        state = stream.start(chunk.lead[None]) if chunk.lead is not None else state
        state, vectors = stream.step(state, chunk.samples[None])

Chunks have a fixed shape, so that a step compiles once, however the samples arrive.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16

from jax_speechlm.core.config import Config
from jax_speechlm.frontend.logmel import PRE_EMPHASIS, START, LogMel, log_power, samples_before, span, without_level


class LogMelState(NamedTuple):
    """State of the features of `batch` streams.

    Attributes:
      tail: newest samples, which the next vectors read.
      mean: running mean of each bin; unused without normalisation.
    """

    tail: Float[Array, "batch tail"]
    mean: Float[Array, "batch bins"]


@dataclasses.dataclass(frozen=True)
class StreamingLogMel:
    """Log-mel features as a streaming function; `log_mel` is the full pass.

    Attributes:
      config: settings without normalisation over the utterance.
      num_vectors: feature vectors of a step.

    Raises:
      ValueError: features need the whole utterance.
    """

    config: LogMel
    num_vectors: int

    def __post_init__(self):
        check_streams(self.config)

    @property
    def chunk_samples(self) -> int:
        """Samples of a step."""
        return self.num_vectors * self.config.frame_samples

    @property
    def lead_samples(self) -> int:
        """Samples before the first chunk: what a vector reads beyond its hop length, at most 15 ms."""
        return self._tail_samples - samples_before(self.config)

    @property
    def _tail_samples(self) -> int:
        return span(self.config) - self.config.hop

    def init_state(self, batch: int) -> LogMelState:
        """Returns the state of `batch` streams that begin with silence."""
        return self.start(jnp.zeros((batch, self.lead_samples)))

    def start(self, lead: Float[Array, "batch lead"] | Int16[Array, "batch lead"]) -> LogMelState:
        """Returns the state after the first `lead_samples` samples, which complete no vector."""
        tail = jnp.pad(lead.astype(jnp.float32), ((0, 0), (samples_before(self.config), 0)))
        shape, start = (len(lead), self.config.num_mel_bins), START[self.config.variant]
        return LogMelState(tail, jnp.full(shape, start, jnp.float32))

    def step(
        self, state: LogMelState, samples: Float[Array, "batch samples"]
    ) -> tuple[LogMelState, Float[Array, "batch vectors features"]]:
        """Computes the next feature vectors; pure.

        Args:
          samples: `chunk_samples` of them, int16 or float32 on the int16 scale.
        """
        config = self.config
        samples = jnp.concatenate([state.tail, samples.astype(jnp.float32)], axis=1)
        # Windows are computed from whole hops; the last reads less than that.
        padded = jnp.pad(samples, ((0, 0), (0, config.hop)))
        windows = log_power(padded, self.num_vectors * config.stack, config)
        windows, mean = without_level(windows, config, state.mean)
        vectors = windows.reshape(len(samples), self.num_vectors, config.input_dim)
        return LogMelState(samples[:, self.chunk_samples :], mean), vectors


def check_streams(mel: Config) -> None:
    """Raises ValueError if features cannot be computed while the samples arrive."""
    if not isinstance(mel, LogMel):
        raise ValueError(f"frontend.mel.variant {mel.variant} cannot stream: train with kaldi, librosa or nemo")
    if mel.normalize is True:
        raise ValueError(
            "frontend.mel.normalize is True, over the whole utterance, which a stream does not have yet: train with "
            "--frontend.mel.normalize running, or False"
        )


class SampleChunk(NamedTuple):
    """Samples of a step.

    Attributes:
      lead: samples for `StreamingLogMel.start`, of the first chunk of a stream; else None.
      samples: `chunk_samples` of them; after the end of the stream, what the full pass reads there.
      num_vectors: valid feature vectors of the step; fewer than it computes only in the last chunks.
    """

    lead: Float[np.ndarray, " lead"] | None
    samples: Float[np.ndarray, " samples"]
    num_vectors: int


class SampleChunks:
    """Cuts the samples of a stream, which arrive in pieces of any size, into the fixed-size chunks of steps."""

    def __init__(self, stream: StreamingLogMel, lead_vectors: int = 0):
        """`lead_vectors` is the number of vectors, of zeros, before the first one of the stream."""
        self._stream, self._lead_vectors = stream, lead_vectors
        self._held = lead_vectors * stream.config.frame_samples
        self._pieces: list[np.ndarray] = [np.zeros(self._held, np.float32)]
        self._vectors = 0
        self._started = False
        self.num_samples = 0
        """Samples of the stream so far."""

    def add(self, samples: Float[np.ndarray, "..."] | Int16[np.ndarray, "..."]) -> None:
        """Appends samples, int16 or float32 on the int16 scale."""
        self.num_samples += len(samples)
        self._append(samples)

    def take(self) -> SampleChunk | None:
        """Returns the next chunk, or None until more samples arrive."""
        stream = self._stream
        lead = 0 if self._started else stream.lead_samples
        if self._held < lead + stream.chunk_samples:
            return None
        # A view of what is there, not a copy for each chunk of a long piece.
        samples = self._pieces[0] if len(self._pieces) == 1 else np.concatenate(self._pieces)
        taken, rest = np.split(samples, [lead + stream.chunk_samples])
        self._pieces, self._held, started, self._started = [rest], len(rest), self._started, True
        self._vectors += stream.num_vectors
        return SampleChunk(None if started else taken[:lead], taken[lead:], stream.num_vectors)

    def finish(self) -> list[SampleChunk]:
        """Returns the chunks that complete the stream: those of its last samples and of what the full pass reads
        after them. They have no vector more than the full pass.
        """
        config, stream = self._stream.config, self._stream
        num_vectors = config.num_frames(self.num_samples)
        left = num_vectors + self._lead_vectors - self._vectors if num_vectors else 0
        if left > 0 and config.variant == "nemo":
            # Samples of which pre-emphasis leaves zeros, as `log_mel` continues an utterance.
            decay = PRE_EMPHASIS ** np.arange(1, config.window // 2 - config.hop + 2, dtype=np.float32)
            self._append(np.concatenate(self._pieces)[-1] * decay)
        chunks = []
        while left > 0:
            need = stream.chunk_samples + (0 if self._started else stream.lead_samples)
            self._append(np.zeros(max(need - self._held, 0), np.float32))
            chunks.append(self.take()._replace(num_vectors=min(left, stream.num_vectors)))
            left -= stream.num_vectors
        return chunks

    def _append(self, samples: np.ndarray) -> None:
        self._pieces.append(samples.astype(np.float32))
        self._held += len(samples)
