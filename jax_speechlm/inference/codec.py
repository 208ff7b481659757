"""Predictor of a codec: recordings to code ids, code ids to waveforms."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float32, Int32, Integer

from jax_speechlm.inference.predictor import RunPredictor, rows_of_parts
from jax_speechlm.inference.segmentation import Recording, blocks_of, samples_in, windows
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizer, WavTokenizerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.objectives.tts.codec import Codec

_FULL_SCALE = 2.0**15
_ROW_SECONDS = 30.0  # of the parts of long sequences of codes


@dataclasses.dataclass(frozen=True)
class CodecModel(RunPredictor):
    """A trained codec.

    A result depends on its input alone. Recordings of more than `max_seconds`, and codes of more than 30 s, are
    processed in parts, which do not see each other.
    """

    objective: ClassVar[type[ObjectiveConfig]] = Codec
    purpose: ClassVar[str] = "turn speech into codes and back"
    abilities: ClassVar[tuple[str, ...]] = ("encode_codes", "decode_codes")

    @property
    def config(self) -> WavTokenizerConfig:
        """The shape of the codec."""
        return self.run.experiment.model

    @property
    def sample_rate(self) -> int:
        """Rate of the waveforms, in Hz."""
        return self.run.experiment.sample_rate

    def encode_codes(
        self, recordings: Sequence[Recording], *, max_seconds: float = 30.0, seconds_per_batch: float = 60.0
    ) -> list[Int32[np.ndarray, "..."]]:
        """Encodes recordings.

        Args:
          recordings: paths, bytes of audio files, or int16 [samples] at `sample_rate`; of any length.
          max_seconds: longer recordings are cut at quiet places, at whole codes.
          seconds_per_batch: padded audio per batch; affects memory and speed, not the result.

        Returns:
          Code ids of each recording, one for each whole or partial hop of `config.hop` samples.

        Raises:
          AudioError: a recording cannot be read.
        """
        rate, longest = self.sample_rate, samples_in(max_seconds, self.sample_rate)
        cut = functools.partial(windows, max_samples=longest, sample_rate=rate, multiple=self.config.hop)
        parts = [[window.samples for window in cut(blocks_of(each, rate))] for each in recordings]
        rows = iter(rows_of_parts(self._encode, list(itertools.chain(*parts)), seconds_per_batch))
        return [_joined([codes[:count] for codes, count in itertools.islice(rows, len(own))]) for own in parts]

    def decode_codes(self, code_ids: Sequence[Integer[np.ndarray, "..."]]) -> list[Float32[np.ndarray, "..."]]:
        """Decodes sequences of code ids; returns `config.hop` samples for each code, in [-1, 1].

        Raises:
          ValueError: an id is not a code.
        """
        most = max(1, int(_ROW_SECONDS * self.sample_rate / self.config.hop))
        parts = [np.split(_checked(ids, self.config), range(most, len(ids), most)) for ids in code_ids]
        return [_joined([self._decode_row(part) for part in own if len(part)], np.float32) for own in parts]

    def _decode_row(self, ids: Int32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        row = np.zeros((1, _edge(len(ids))), np.int32)
        row[0, : len(ids)] = ids
        audio, (count,) = jax.device_get(self._decode(row, np.array([len(ids)], np.int32)))
        return np.clip(audio[0, :count], -1, 1)

    @functools.cached_property
    def _graphdef(self):
        return functional.declare(lambda rngs: WavTokenizer(self.config, rngs=rngs)).graphdef

    @functools.cached_property
    def _encode(self) -> Callable[..., Any]:
        @jax.jit
        def encode(params: functional.Params, audio, lengths):
            return functional.bind(self._graphdef, params["autoencoder"]).encode(audio / _FULL_SCALE, lengths)

        return lambda batch: encode(self.run.params, batch["audio"], batch["audio_length"])

    @functools.cached_property
    def _decode(self) -> Callable[..., Any]:
        @jax.jit
        def decode(params: functional.Params, ids, lengths):
            return functional.bind(self._graphdef, params["autoencoder"]).decode(ids, lengths)

        return functools.partial(decode, self.run.params)


def _checked(ids: Integer[np.ndarray, "..."], config: WavTokenizerConfig) -> Int32[np.ndarray, "..."]:
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and not (ids.min() >= 0 and ids.max() < config.codebook_size)):
        raise ValueError(
            f"codes are rows of ids from 0 to {config.codebook_size - 1}, got shape {ids.shape}"
            + (f" from {ids.min()} to {ids.max()}" if ids.size else "")
        )
    return ids.astype(np.int32)


def _edge(length: int) -> int:
    """Returns the length of a row for so many codes: one of few, so that programs are shared."""
    edges = (step << doublings for doublings in range(32) for step in (32, 48))
    return next(edge for edge in edges if edge >= length)


def _joined(parts: Sequence[np.ndarray], dtype: type = np.int32) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
