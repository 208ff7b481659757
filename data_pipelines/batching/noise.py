"""Noise to mix into utterances: a row's noise is a pure function of (seed, step, row of the batch)."""

import os
import threading

import numpy as np

from data_pipelines.audio.decode import decode_flac
from data_pipelines.core.errors import DataError
from data_pipelines.core.shuffle import derive_key, uniform
from data_pipelines.storage.index import Index
from data_pipelines.storage.records import RecordReader

_CLIP, _START = 0, 1  # streams of randomness


class NoiseReader:
    """Reads random stretches of a prepared set. Thread-safe.

    Noise is part of the batch instead of an array on every device, so a noise set may have any size and each host reads
    only the noise of its rows.
    """

    def __init__(self, index: Index, seed: int):
        """
        Raises:
          DataError: as `RecordReader`; or the set is empty.
        """
        if not len(index):
            raise DataError(f"the noise set {' + '.join(map(str, index.parts))} holds no clips")
        self._index, self._seed = index, seed
        self._reader = RecordReader(index)
        # Many threads may read clips at a time; decoded ones may be long, so few are in memory.
        self._decoding = threading.BoundedSemaphore(os.cpu_count() or 1)

    def stretch(self, step: int, place: int, num_samples: int) -> np.ndarray:
        """Returns int16 [num_samples] from a random position of a clip drawn uniformly; a shorter clip is looped.

        Args:
          place: row of the global batch.

        Raises:
          DataError: the record cannot be read.
        """

        def drawn(stream):
            return uniform(np.array([place]), derive_key(self._seed, step, stream)).item()

        row = int(drawn(_CLIP) * len(self._index))
        try:
            flac = self._reader.read(row)[0]
            with self._decoding:
                clip = decode_flac(flac)
                start = int(drawn(_START) * (max(len(clip) - num_samples, 0) + 1))
                return np.resize(clip[start : start + num_samples], num_samples)
        except Exception as error:  # checksum and decoder errors have no common type
            part, number = self._index.locate(row)
            raise DataError(f"noise: record {number} of {part} cannot be read ({error}); {part.remedy}") from error
