"""Recordings of any kind as speech units: what a model of units is prompted and measured with."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Int16, Integer

from data_pipelines.audio.decode import decode
from data_pipelines.storage.units import Units, read_units
from jax_speechlm.core.batch import Batch
from jax_speechlm.inference.predictor import rows_of_parts
from jax_speechlm.units.features import read_features
from jax_speechlm.units.kmeans import nearest


@dataclasses.dataclass(frozen=True, eq=False)
class UnitEncoder:
    """A k-means and the features that it clusters, ready for audio.

    Attributes:
      units: the k-means.
    """

    units: Units
    _codes: Callable[[Batch], tuple[Array, Array]]

    @classmethod
    def load(cls, folder: str | Path) -> "UnitEncoder":
        """Reads a folder that `jax-speechlm units fit` wrote, and the checkpoint that its features come from, if any.

        Raises:
          DataError: there is none, or its files do not belong together.
          CheckpointError: the checkpoint of its features cannot be read, or has changed.
        """
        units = read_units(folder)
        extractor = read_features(units.about["features"]).open()

        @jax.jit
        def codes(params, centroids: Array, batch: Batch) -> tuple[Array, Array]:
            x_BxTxF, length_B = extractor.extract(params, batch)
            return nearest(x_BxTxF.reshape(-1, x_BxTxF.shape[-1]), centroids)[0].reshape(x_BxTxF.shape[:2]), length_B

        return cls(units, lambda batch: codes(extractor.params, units.centroids, batch))

    def encode(self, recordings: Sequence[Int16[np.ndarray, "..."]]) -> list[Integer[np.ndarray, "..."]]:
        """The unit of each frame of each recording, at 16 kHz; none of one that is shorter than a frame."""
        return [codes[:frames].astype(np.uint16) for codes, frames in rows_of_parts(self._codes, recordings)]

    def encode_files(self, files: Sequence[str | Path]) -> list[Integer[np.ndarray, "..."]]:
        """The same of audio files of any format, rate and number of channels.

        Raises:
          DataError: a file cannot be read.
        """
        return self.encode([decode(file) for file in files])
