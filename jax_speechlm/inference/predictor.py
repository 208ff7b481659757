"""Base of predictors of recordings: cuts recordings into parts, batches them by shape, runs a function."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np

from data_pipelines.audio.decode import AudioError
from data_pipelines.batching.speech import Batch
from data_pipelines.core.errors import DataError
from jax_speechlm.inference.segmentation import Recording, Samples, in_batches, in_groups
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.training.runs import LoadedRun

Row = tuple[np.ndarray, ...]
"""Outputs of a compiled function for one row of a batch, one element per output array."""

Self = TypeVar("Self", bound="RunPredictor")


def rows_by_id(compute: Callable[[Batch], tuple[Any, ...]], batches: Iterable[Batch]) -> dict[int, Row]:
    """Runs `batch -> arrays` over batches.

    Returns:
      The rows' outputs by `example_id`, without filler rows; copies, not views of a whole batch.
    """
    rows = {}
    for batch in batches:
        arrays = jax.device_get(compute(batch))
        for row, example_id in enumerate(np.asarray(batch["example_id"]).tolist()):
            if example_id >= 0:
                rows[example_id] = tuple(np.copy(array[row]) for array in arrays)
    return rows


def rows_of_parts(
    compute: Callable[[Batch], tuple[Any, ...]], parts: Sequence[Samples], seconds_per_batch: float = 60.0
) -> list[Row]:
    """Runs a function over parts of recordings, batched in few shapes; returns their rows in order."""
    rows = rows_by_id(compute, in_batches(parts, seconds_per_batch))
    return [rows[part] for part in range(len(parts))]


def rows_of_recordings(
    compute: Callable[[Batch], tuple[Any, ...]],
    recordings: Iterable[Recording],
    sample_rate: int,
    max_seconds: float = 30.0,
    seconds_per_batch: float = 60.0,
) -> Iterator[tuple[Recording, list[Row]]]:
    """Runs a function over recordings, cut at pauses into parts of at most `max_seconds`.

    Args:
      sample_rate: of the front end, in Hz.

    Yields:
      Each recording in order, with the rows of its parts. Raises `AudioError` if one cannot be read.
    """
    for group in in_groups(recordings, sample_rate, max_seconds, seconds_per_batch):
        rows = iter(rows_of_parts(compute, [part for _, parts in group for part in parts], seconds_per_batch))
        for recording, parts in group:
            yield recording, [next(rows) for _ in parts]


@dataclasses.dataclass(frozen=True)
class RunPredictor:
    """A predictor whose only state is a run's checkpoint.

    Attributes:
      objective: objective that the run must be trained by.
      purpose: completes the error "was trained by ..., which cannot ...".
      abilities: methods of `jax_speechlm.load` that it has.
    """

    objective: ClassVar[type[ObjectiveConfig]]
    purpose: ClassVar[str]
    abilities: ClassVar[tuple[str, ...]]

    run: LoadedRun

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike) -> Self:
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder; raises as `LoadedRun.load` does."""
        return cls(LoadedRun.load(path, cls.objective, cls.purpose))


def print_lines(inputs: Sequence[Any], describe: Callable[[Any], dict[str, Any]]) -> None:
    """Prints a line of JSON for each file of a command; those that cannot be read are named on stderr.

    Raises:
      DataError: some could not be read.
    """
    failed = 0
    for each in inputs:
        try:
            line = describe(each)
        except AudioError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
        else:
            print(json.dumps(line, ensure_ascii=False), flush=True)
    if failed:
        raise DataError(f"{failed} of {len(inputs)} files could not be read")
