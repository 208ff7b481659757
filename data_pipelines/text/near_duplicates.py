"""Near-duplicate texts by MinHash (Broder 1997) with banded locality-sensitive hashing (Leskovec et al., chapter 3).

The similarity of two texts is the Jaccard index of their sets of five-word shingles. Its estimate is the share of 128
hash functions with equal minima; candidates are texts that agree in all 8 minima of one of 16 bands, which finds 95 %
of pairs of similarity 0.8 and all except 0.5 % of pairs of similarity 0.85.
"""

import zlib

import numpy as np

from data_pipelines.core.errors import DataError
from data_pipelines.core.shuffle import mix
from data_pipelines.text.normalize import split_key

_SHINGLE_WORDS = 5
_BANDS, _ROWS = 16, 8
_CHUNK = 2048  # shingles hashed at a time: 2 MB
_MULTIPLIERS = mix(np.arange(1, _BANDS * _ROWS + 1, dtype=np.uint64)) | np.uint64(1)


def signature(text: str, language: str = "") -> np.ndarray:
    """Computes the MinHash of a text in any language, without case and punctuation.

    Returns:
      uint32 [128].
    """
    words = np.array([zlib.crc32(word.encode()) for word in split_key(text).split()] or [0], np.uint64)
    size = min(_SHINGLE_WORDS, len(words))
    shingles = np.zeros(len(words) - size + 1, np.uint64)
    for offset in range(size):
        shingles = mix(shingles ^ words[offset : len(words) - size + 1 + offset])
    minima = np.full(_BANDS * _ROWS, 2**32 - 1, np.uint32)
    for start in range(0, len(shingles), _CHUNK):
        # multiply-shift hashing (Dietzfelbinger et al. 1997): the high half of an odd multiple
        hashes = (shingles[start : start + _CHUNK, None] * _MULTIPLIERS) >> np.uint64(32)
        np.minimum(minima, hashes.min(axis=0).astype(np.uint32), out=minima)
    return minima


class NearDuplicates:
    """The texts so far, which use about 2.5 kB of memory each."""

    def __init__(self, similarity: float):
        """
        Args:
          similarity: least similarity of a copy of an earlier text.

        Raises:
          DataError: it is not within 0.7 to 1; below, the bands would miss most of the pairs.
        """
        if not 0.7 <= similarity <= 1:
            raise DataError(f"--similarity {similarity:g} is not within 0.7 to 1; 0.8 is usual")
        self._similarity = similarity
        self._signatures: list[np.ndarray] = []
        self._buckets: dict[int, int] = {}  # the first text in each bucket represents the later ones

    def is_new(self, minima: np.ndarray) -> bool:
        """Returns whether no earlier text has nearly this `signature`; if so, the text is added."""
        bands = minima.reshape(_BANDS, _ROWS)
        keys = [hash((band, row.tobytes())) for band, row in enumerate(bands)]
        for candidate in {self._buckets[key] for key in keys if key in self._buckets}:
            if np.mean(self._signatures[candidate] == minima) >= self._similarity:
                return False
        for key in keys:
            self._buckets.setdefault(key, len(self._signatures))
        self._signatures.append(minima)
        return True
