"""Durations of the tokens of known transcripts, by the aligner that a voice was trained with."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.durations import DurationSettings
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import fingerprint
from jax_speechlm.decoding.lm.ngram import SPACE
from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.predictor import rows_by_id
from jax_speechlm.models.tts.aligner import Aligner
from jax_speechlm.models.tts.text import BOUNDARIES, boundary_id, num_ids
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.tts.acoustic import TTS
from jax_speechlm.training.runs import LoadedRun


@dataclasses.dataclass(frozen=True)
class DurationAligner:
    """Aligns transcripts with their recordings as the training of a voice does."""

    run: LoadedRun

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DurationAligner":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, with the aligner.

        Raises:
          CheckpointError: no checkpoint can be read, or it was trained by another objective, or on units instead of
            transcripts, or has no aligner.
        """
        run = LoadedRun.load(path, TTS, "align transcripts with recordings", training_only=True)
        if run.experiment.objective.reads_units:
            raise CheckpointError(
                f"{run.checkpoint} was trained on speech units, so it aligns no transcripts: name a voice that was "
                "trained with --objective.text transcript"
            )
        if "aligner" not in run.params:
            raise CheckpointError(
                f"{run.checkpoint} has no aligner, as voices that were imported, averaged or quantised have none: name "
                "the run that was trained"
            )
        return cls(run)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the transcripts."""
        return self.run.tokenizer

    @functools.cached_property
    def settings(self) -> DurationSettings:
        """What the durations are computed by."""
        mel = self.run.experiment.frontend.mel
        aligner = fingerprint(self.run.params["aligner"], mel.model_dump_json())
        return DurationSettings(mel.sample_rate, mel.hop, self.tokenizer.fingerprint, aligner)

    def durations(self, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[int, Int[np.ndarray, " tokens"]]:
        """Computes the frames of each token, a boundary at both ends, by `example_id`.

        Args:
          batches: of audio and transcripts, one utterance a row. Utterances are left out that have no transcript, no
            audio, or fewer frames than tokens.
        """
        rows = rows_by_id(functools.partial(self._compute, self.run.params["aligner"]), batches)
        return {row: frames[:count] for row, (frames, count) in rows.items() if count > BOUNDARIES}

    @functools.cached_property
    def _compute(self) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array]]:
        experiment, boundary, ids = self.run.experiment, boundary_id(self.tokenizer), num_ids(self.tokenizer)
        objective, frontend = experiment.objective, experiment.frontend
        shape = objective.aligner, ids, experiment.model.num_mel_bins
        graphdef = functional.declare(lambda rngs: Aligner(*shape, rngs=rngs)).graphdef

        @jax.jit
        def durations(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
            mel, segments = features(by_utterance(batch), frontend, None)
            aligner = functional.bind(graphdef, params)
            aligned = objective.align(aligner, by_utterance(batch), mel, segments, boundary)
            tokens = jnp.arange(aligned.log_p.shape[-1])
            return jnp.sum(aligned.path[..., None] == tokens, axis=1), aligned.text.segments.length[:, 0]

        return durations


def word_times(
    tokenizer: Tokenizer, text: str, frames: Int[np.ndarray, " tokens"], settings: DurationSettings
) -> Float[np.ndarray, "words 2"] | None:
    """Returns start and end of each word of a text in seconds, from the durations of its tokens.

    Words are separated by white space. Punctuation at their ends, where a voice pauses, is no part of them; a word
    without a letter or digit has no times (NaN).

    Args:
      frames: of each token, a boundary at both ends.

    Returns:
      Times, or None if the tokenizer has other words, as one of phones has of "twenty-one".
    """
    words: list[list[tuple[int, str]]] = [[]]
    for index, token in enumerate(tokenizer.encode(text), start=1):
        first, *others = tokenizer.pieces[token].split(SPACE)
        words[-1] += [(index, first)] * bool(first)
        words += [[(index, part)] if part else [] for part in others]
    words = [word for word in words if word]
    if len(words) != len(text.split()):
        return None
    # A frame is the middle of its window: it lasts from half a hop before to half a hop behind.
    edges = np.maximum(np.cumsum([0, *frames]) - 0.5, 0) * settings.hop / settings.sample_rate
    times = np.full((len(words), 2), np.nan)
    for row, word in enumerate(words):
        if spoken := [index for index, part in word if any(map(str.isalnum, part))]:
            times[row] = edges[spoken[0]], edges[spoken[-1] + 1]
    return times
