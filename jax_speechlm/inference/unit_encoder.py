"""Encodes recordings as speech units, for prompts and scoring of unit models."""

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
    """A k-means with the features that it clusters."""

    units: Units
    _codes: Callable[[Batch], tuple[Array, Array]]

    @classmethod
    def load(cls, folder: str | Path) -> "UnitEncoder":
        """Reads a folder of `jax-speechlm units fit`, and the checkpoint of its features, if any.

        Raises:
          DataError: the folder is missing, or its files do not belong together.
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
        """Encodes recordings at the units' rate; returns uint16 [frames] for each, empty if shorter than a frame."""
        return [codes[:frames].astype(np.uint16) for codes, frames in rows_of_parts(self._codes, recordings)]

    def encode_files(self, files: Sequence[str | Path]) -> list[Integer[np.ndarray, "..."]]:
        """Encodes audio files of any format, rate and number of channels; raises `DataError` if one cannot be read."""
        return self.encode([decode(file, rate=self.units.sample_rate) for file in files])

    def encode_sequences(self, files: Sequence[str | Path]) -> list[Integer[np.ndarray, "..."]]:
        """Encodes audio files as the units that language models get, by default without repeats; raises `DataError`."""
        return [self.units.sequence(ids)[0] for ids in self.encode_files(files)]
