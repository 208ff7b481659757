"""Base of predictors of recordings: cuts recordings into parts, batches them by shape, runs a function."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np

from data_pipelines.batching.speech import Batch
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.inference.segmentation import Recording, Samples, in_batches, in_groups
from jax_speechlm.objectives.base import ObjectiveConfig

Row = tuple[np.ndarray, ...]
"""Outputs of a compiled function for one row of a batch, one element per output array."""

Self = TypeVar("Self", bound="RunPredictor")


def rows_by_id(compute: Callable[[Batch], tuple[Any, ...]], batches: Iterable[Batch]) -> dict[int, Row]:
    """Runs a function over batches.

    Args:
      compute: `batch -> arrays` with a row for each row of the batch.

    Returns:
      The rows' outputs by `example_id`, without filler rows; copies, not views of a whole batch.
    """
    rows = {}
    for batch in batches:
        arrays = jax.device_get(compute(batch))
        for place, example_id in enumerate(np.asarray(batch["example_id"]).tolist()):
            if example_id >= 0:
                rows[example_id] = tuple(np.copy(array[place]) for array in arrays)
    return rows


def rows_of_parts(
    compute: Callable[[Batch], tuple[Any, ...]], parts: Sequence[Samples], seconds_per_batch: float = 60.0
) -> list[Row]:
    """Runs a function over parts of recordings, batched in few shapes; returns their rows in order."""
    rows = rows_by_id(compute, in_batches(parts, seconds_per_batch))
    return [rows[place] for place in range(len(parts))]


def rows_of_recordings(
    compute: Callable[[Batch], tuple[Any, ...]],
    recordings: Iterable[Recording],
    sample_rate: int,
    max_seconds: float = 30.0,
    seconds_per_batch: float = 60.0,
) -> Iterator[tuple[Recording, list[Row]]]:
    """Runs a function over recordings of any length.

    Args:
      sample_rate: of the front end, in Hz.
      max_seconds: longer recordings are cut at pauses into parts of at most this length.
      seconds_per_batch: padded audio per batch; affects memory and speed, not the result.

    Yields:
      Each recording in order, with the rows of its parts.

    Raises:
      AudioError: a recording cannot be read.
    """
    for group in in_groups(recordings, sample_rate, max_seconds, seconds_per_batch):
        rows = iter(rows_of_parts(compute, [part for _, parts in group for part in parts], seconds_per_batch))
        for recording, parts in group:
            yield recording, [next(rows) for _ in parts]


@dataclasses.dataclass(frozen=True)
class RunPredictor:
    """A predictor whose only state is a run's checkpoint.

    Attributes:
      run: the checkpoint.
      objective: objective that the run must be trained by.
      purpose: use of the predictor; completes the error "was trained by ..., which cannot ...".
      abilities: methods of `jax_speechlm.load` that it has.
    """

    objective: ClassVar[type[ObjectiveConfig]]
    purpose: ClassVar[str]
    abilities: ClassVar[tuple[str, ...]]

    run: LoadedRun

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike) -> Self:
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Raises:
          CheckpointError: no checkpoint can be read, or it was trained by another objective.
        """
        return cls(LoadedRun.load(path, cls.objective, cls.purpose))
