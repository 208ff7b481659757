"""Who speaks in recordings, as vectors to compare, by a model that was trained by `speaker_verification`."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from data_pipelines.audio import AudioError
from jax_speechlm.trained import Trained
from jax_speechlm.windows import Recording, cut_at_pauses, in_batches


@dataclasses.dataclass(frozen=True)
class SpeakerVectors:
    """A model that makes x-vectors.

    Attributes:
      run: the checkpoint that it was read from.
    """

    run: Trained

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SpeakerVectors":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Raises:
          CheckpointError: there is no readable checkpoint, or it was not trained by speaker_verification.
        """
        return cls(Trained.load(path, "speaker_verification", "compare speakers"))

    def vectors(
        self, recordings: Sequence[Recording], max_seconds: float = 30.0, seconds_per_batch: float = 60.0
    ) -> Float[np.ndarray, "recordings dim"]:
        """One vector of unit length for each recording: the product of two is their cosine.

        Args:
          max_seconds: a longer recording is cut at pauses, and its vector is the mean of its parts'.
          seconds_per_batch: padded audio at a time: memory and speed, never the result.

        Raises:
          AudioError: a recording cannot be read, or is too short.
        """
        cut = [cut_at_pauses(each, max_seconds) for each in recordings]
        of_part = np.repeat(np.arange(len(cut)), [len(parts) for parts in cut])
        total = np.zeros((len(cut), self.run.experiment.objective.head.dim), np.float32)
        for batch in in_batches([part for parts in cut for part in parts], seconds_per_batch):
            vectors, frames = jax.device_get(self._compute(self.run.params, batch))
            has_vector = (batch["example_id"] >= 0) & (frames >= self.run.experiment.objective.head.shortest)
            unit = vectors[has_vector] / np.linalg.norm(vectors[has_vector], axis=1, keepdims=True)
            np.add.at(total, of_part[batch["example_id"][has_vector]], unit)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        if (short := np.flatnonzero(length == 0)).size:
            first = recordings[short[0]]
            name = str(first) if isinstance(first, str | os.PathLike) else "audio"
            raise AudioError(name, "too short to say who speaks", "leave it out")
        return total / length

    @functools.cached_property
    def _compute(self):
        return jax.jit(self.run.experiment.objective.vectors(self.run.experiment.model, self.run.experiment.frontend))
