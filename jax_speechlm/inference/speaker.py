"""Who speaks in recordings, as vectors to compare, by a model that was trained by `speaker_verification`."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float

from data_pipelines.audio.decode import AudioError
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.inference.segmentation import Recording, Samples, in_batches, in_groups, name_of
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification


@dataclasses.dataclass(frozen=True)
class SpeakerVectors:
    """A model that makes x-vectors.

    Attributes:
      run: the checkpoint that it was read from.
    """

    abilities: ClassVar[tuple[str, ...]] = ("speaker_vectors", "embed")

    run: LoadedRun

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SpeakerVectors":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Raises:
          CheckpointError: there is no readable checkpoint, or it was not trained by speaker_verification.
        """
        return cls(LoadedRun.load(path, SpeakerVerification, "compare speakers"))

    def vectors(
        self, recordings: Iterable[Recording], max_seconds: float = 30.0, seconds_per_batch: float = 60.0
    ) -> Float[np.ndarray, "recordings dim"]:
        """One vector of unit length for each recording: the product of two is their cosine.

        Args:
          max_seconds: a longer recording is cut at pauses, and its vector is the mean of its parts'.
          seconds_per_batch: padded audio at a time: memory and speed, never the result.

        Raises:
          AudioError: a recording cannot be read, or is too short.
        """
        groups = in_groups(recordings, max_seconds, seconds_per_batch)
        found = [vector for group in groups for vector in self._of_group(group, seconds_per_batch)]
        return np.array(found, np.float32).reshape(-1, self.run.experiment.objective.head.dim)

    def _of_group(
        self, group: Sequence[tuple[Recording, list[Samples]]], seconds_per_batch: float
    ) -> Iterator[Float[np.ndarray, " dim"]]:
        head = self.run.experiment.objective.head
        of_part = np.repeat(np.arange(len(group)), [len(parts) for _, parts in group])
        total = np.zeros((len(group), head.dim), np.float32)
        for batch in in_batches([part for _, parts in group for part in parts], seconds_per_batch):
            vectors, frames = jax.device_get(self._compute(self.run.params, batch))
            has_vector = (batch["example_id"] >= 0) & (frames >= head.shortest)
            unit = vectors[has_vector] / np.linalg.norm(vectors[has_vector], axis=1, keepdims=True)
            np.add.at(total, of_part[batch["example_id"][has_vector]], unit)
        for (recording, _), vector in zip(group, total, strict=True):
            if not vector.any():
                raise AudioError(name_of(recording), "too short to say who speaks", "leave it out")
            yield vector / np.linalg.norm(vector)

    @functools.cached_property
    def _compute(self):
        return jax.jit(self.run.experiment.objective.vectors(self.run.experiment.model, self.run.experiment.frontend))
