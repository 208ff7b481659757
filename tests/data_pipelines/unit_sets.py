"""Speech units and codes of our own making for tests."""

from pathlib import Path

import numpy as np

from data_pipelines.storage.index import Index
from data_pipelines.storage.units import UnitIdWriter, Units, write_units


def make_units(
    folder: Path,
    num_units: int = 5,
    seed: int = 0,
    frame_samples: int = 320,
    context: int = 240,
    merges_repeats: bool = True,
) -> Units:
    """A k-means of random centroids, written."""
    centroids = np.random.default_rng(seed).normal(size=(num_units, 3)).astype(np.float32)
    units = Units(folder, centroids, frame_samples, context, {"features": "noise"}, merges_repeats=merges_repeats)
    write_units(units)
    return units


def label(index: Index, units: Units, seed: int = 0) -> list[np.ndarray]:
    """Random codes for every row of an index, written; returns them."""
    rng, codes = np.random.default_rng(seed), []
    for part in index.parts:
        writer = UnitIdWriter(part, units)
        for row, num_samples in enumerate(part.lengths("num_samples")):
            codes.append(rng.integers(units.num_units, size=int(units.num_frames(int(num_samples)))))
            if len(codes[-1]):
                writer.write(row, codes[-1])
        writer.finish()
    return codes
