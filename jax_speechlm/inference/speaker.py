"""Speaker embeddings of recordings by a model trained by `speaker_verification`."""

import functools
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Float

from data_pipelines.audio.decode import AudioError
from jax_speechlm.inference.predictor import Row, RunPredictor, rows_of_recordings
from jax_speechlm.inference.segmentation import Recording, name_of
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification


class SpeakerVectors(RunPredictor):
    """Computes x-vectors of recordings with a model trained by `speaker_verification`."""

    objective = SpeakerVerification
    purpose = "compare speakers"
    abilities = ("speaker_vectors", "embed")

    def vectors(
        self, recordings: Iterable[Recording], max_seconds: float = 30.0, seconds_per_batch: float = 60.0
    ) -> Float[np.ndarray, "recordings dim"]:
        """Computes one vector of unit length per recording; the dot product of two is their cosine similarity.

        The vector of a recording longer than `max_seconds`, cut at pauses, is the normalised mean over the parts.

        Raises:
          AudioError: a recording cannot be read, or is too short.
        """
        compute = functools.partial(self._compute, self.run.params)
        rate = self.run.experiment.sample_rate
        parts = rows_of_recordings(compute, recordings, rate, max_seconds, seconds_per_batch)
        vectors = [self._mean(recording, rows) for recording, rows in parts]
        return np.array(vectors, np.float32).reshape(-1, self.run.experiment.objective.head.dim)

    def _mean(self, recording: Recording, rows: Sequence[Row]) -> Float[np.ndarray, " dim"]:
        """Returns the direction of the mean of the parts' unit vectors."""
        shortest = self.run.experiment.objective.head.shortest
        units = [vector / np.linalg.norm(vector) for vector, frames in rows if frames >= shortest]
        total = np.sum(units, axis=0) if units else np.zeros(1)
        if not total.any():
            raise AudioError(name_of(recording), "too short to say who speaks", "leave it out")
        return total / np.linalg.norm(total)

    @functools.cached_property
    def _compute(self):
        return jax.jit(self.run.experiment.objective.vectors(self.run.experiment.model, self.run.experiment.frontend))
