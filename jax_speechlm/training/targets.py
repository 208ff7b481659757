"""What prepared utterances or documents are to be taken for: the classes of rows, and units or classes of frames."""

import numpy as np
from jaxtyping import Int

from data_pipelines.core.errors import DataError
from data_pipelines.storage import index as indexes
from data_pipelines.storage.frame_labels import FrameLabels
from data_pipelines.storage.units import CodeStore, open_codes, read_units
from jax_speechlm.recipes.experiment import Experiment

Labels = Int[np.ndarray, " rows"] | None
"""The class of each row of an index, for classification."""

FrameCodes = CodeStore | FrameLabels | None
"""The unit or the class of each frame of each row."""


def labels_of(experiment: Experiment, *parts: indexes.Index | None) -> tuple[Labels, ...]:
    """The classes of the rows of the training index and of others; None where none are read or there is no index."""
    if not experiment.objective.reads_labels:
        return (None,) * len(parts)
    objective = experiment.objective
    column = objective.label_column(experiment.data)
    return tuple(
        None if part is None else objective.numbers(part.column(column).to_pylist(), training=number == 0)
        for number, part in enumerate(parts)
    )


def codes_of(experiment: Experiment, *parts: indexes.Index | None) -> tuple[FrameCodes, ...]:
    """What each frame of each index's rows is, or None where the objective does not read it or there is no index."""
    data, objective, mel = experiment.data, experiment.objective, experiment.frontend.mel
    if objective.reads_word_times:
        return tuple(None if part is None else objective.labels(part, mel) for part in parts)
    if not objective.reads_codes:
        return (None,) * len(parts)
    if data.units is None:
        raise ValueError(
            f"{objective.kind} predicts speech units: set data.units to a folder that `jax-speechlm units fit` wrote"
        )
    if data.speeds != (1.0,):
        raise ValueError("units are of audio at its own speed: set data.speeds to 1.0")
    units = read_units(data.units)
    if units.num_units != objective.num_units:
        raise ValueError(
            f"{data.units} has {units.num_units} units, the model {objective.num_units}: set --objective.num_units "
            f"{units.num_units}"
        )
    if (mel.frame_samples, mel.context_samples) != (units.frame_samples, units.context_samples):
        raise DataError(
            f"{data.units} has a unit each {units.frame_samples} samples, with {units.context_samples} more at the "
            f"end; the front end has a frame each {mel.frame_samples}, with {mel.context_samples}. Set "
            "frontend.mel.stack and variant as they were when the units were fitted, or fit others: jax-speechlm units "
            "fit"
        )
    return tuple(None if part is None else open_codes(part, data.units) for part in parts)
