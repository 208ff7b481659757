"""Inputs of tasks: the arrays of a batch, and how they are read from an index."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from data_pipelines.batching import fields
from data_pipelines.core.commands import read_slots
from data_pipelines.core.errors import DataError
from data_pipelines.storage.frame_labels import FrameGrid, FrameLabels, speech_frames
from data_pipelines.storage.index import Index
from data_pipelines.storage.pitch import FramePitch, open_pitch
from data_pipelines.storage.units import UnitIdStore, open_unit_ids, read_units
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import AnyMel
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.objectives.domain import DomainAdversary
from jax_speechlm.objectives.heads.frame_classification import KNOWN
from jax_speechlm.tasks.base import Input

UNKNOWN = -1


def class_ids(
    labels: Iterable[str], classes: Sequence[str], *, strict: bool = True, setting: str = "objective.classes"
) -> Int[np.ndarray, " rows"]:
    """Returns the index of each label in `classes`.

    Args:
      strict: whether an unknown label is an error; otherwise its id is UNKNOWN.
      setting: dotted name of the setting that the classes are, for the error.

    Raises:
      DataError: a label is not among the classes.
    """
    known = {label: place for place, label in enumerate(classes)}
    labels = list(labels)
    if strict and (unknown := next((label for label in labels if label not in known), None)) is not None:
        raise DataError(
            f"the label {unknown!r} is none of the classes {', '.join(map(repr, classes))}: add it to "
            f"{setting}, or leave such rows out of the data set"
        )
    return np.array([known.get(label, UNKNOWN) for label in labels], np.int32)


def _row_classes(
    objective: ObjectiveConfig, data: Config, mel: AnyMel, grid: FrameGrid, index: Index, training: bool
) -> Int[np.ndarray, " rows"]:
    del mel, grid, training
    return class_ids(index.column(data.label).to_pylist(), objective.classes)


def _row_commands(
    objective: ObjectiveConfig, data: Config, mel: AnyMel, grid: FrameGrid, index: Index, training: bool
) -> Int[np.ndarray, "rows labels"]:
    """Returns the id of the intent and of each slot's value, 0 if the slot has none.

    Unknown ones are allowed in validation only, where they are not scored.
    """
    del data, mel, grid
    return command_ids(objective, index, strict=training)


def command_ids(objective: ObjectiveConfig, index: Index, *, strict: bool) -> Int[np.ndarray, "rows labels"]:
    """Returns the ids of the intent and of each slot's value of rows; arguments and errors as of `class_ids`."""
    columns = [
        class_ids(index.column("intent").to_pylist(), objective.intents, strict=strict, setting="objective.intents")
    ]
    slots = [read_slots(text) for text in index.column("slots").to_pylist()]
    names = {slot.name for slot in objective.slots}
    if strict and (unknown := next((name for row in slots for name in row if name not in names), None)) is not None:
        raise DataError(f"objective.slots has no slot {unknown!r}: add it, or leave objective.slots empty")
    for number, slot in enumerate(objective.slots):
        said = [row.get(slot.name, "") for row in slots]
        columns.append(class_ids(said, ("", *slot.values), strict=strict, setting=f"objective.slots.{number}.values"))
    return np.stack(columns, axis=1)


def _row_speakers(
    objective: ObjectiveConfig, data: Config, mel: AnyMel, grid: FrameGrid, index: Index, training: bool
) -> Int[np.ndarray, " rows"]:
    """Returns speaker ids, all 0 for a model of one voice, which names no speakers.

    Unknown speakers are allowed in validation only, where they are not scored.
    """
    del data, mel, grid
    if not objective.classes:
        return np.zeros(len(index), np.int32)
    return class_ids(index.column("speaker").to_pylist(), objective.classes, strict=training)


def row_domains(adversary: DomainAdversary) -> Input:
    """Returns the input with the domain of each row. Unknown domains are allowed in validation only."""

    def read(
        objective: ObjectiveConfig, data: Config, mel: AnyMel, grid: FrameGrid, index: Index, training: bool
    ) -> Int[np.ndarray, " rows"]:
        del objective, data, mel, grid
        setting = "adversary.classes"
        return class_ids(
            index.column(adversary.column).to_pylist(), adversary.classes, strict=training, setting=setting
        )

    return Input((fields.DOMAIN,), read)


def _frame_units(
    objective: ObjectiveConfig, data: Config, mel: AnyMel, grid: FrameGrid, index: Index, training: bool
) -> UnitIdStore:
    del mel, training
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
    if grid != units.grid:
        raise DataError(
            f"{data.units} has a unit each {units.frame_samples} samples, with {units.context_samples} more at the "
            f"end; the model has a frame each {grid.frame_samples}, with {grid.context_samples}. Set "
            "frontend.mel.stack and variant as they were when the units were fitted, or fit others: jax-speechlm units "
            "fit"
        )
    return open_unit_ids(index, data.units)


def speech_or_silence(objective: ObjectiveConfig, grid: FrameGrid, index: Index) -> FrameLabels:
    """Returns the class of every frame of prepared utterances, from word times.

    Raises:
      DataError: word times are missing, or the objective's classes differ from silence and speech.
    """
    if objective.classes != KNOWN:
        raise DataError(
            f"the model's classes are {', '.join(objective.classes)}, and the times of words tell "
            f"{' and '.join(KNOWN)} apart, in this order: start a run of frame_classification from it (--from), which "
            "takes the encoder over (--init-from.0.groups encoder)"
        )
    return speech_frames(index, grid, objective.min_pause, objective.empty_is_silence)


def _frame_classes(
    objective: ObjectiveConfig, data: Config, mel: AnyMel, grid: FrameGrid, index: Index, training: bool
) -> FrameLabels:
    del data, mel, training
    return speech_or_silence(objective, grid, index)


def _frame_pitch(
    objective: ObjectiveConfig, data: Config, mel: AnyMel, grid: FrameGrid, index: Index, training: bool
) -> FramePitch:
    del grid, training
    if data.speeds != (1.0,):
        raise ValueError("pitch is of audio at its own speed: set data.speeds to 1.0")
    if mel.context_samples != -mel.frame_samples:
        raise ValueError(
            f"{objective.kind} takes pitch at centred windows, and those of frontend.mel ({mel.variant}) are not: "
            "choose a recipe whose frontend.mel is a SynthesisMel"
        )
    return open_pitch(index, mel.sample_rate, mel.frame_samples)


AUDIO = Input(fields.AUDIO)
TRANSCRIPT = Input(fields.TRANSCRIPT)
"""Tokens of the column `objective.text_column`."""
ROW_CLASS = Input((fields.ROW_LABEL,), _row_classes)
"""Class id of the index's column `data.label`."""
ROW_SPEAKER = Input((fields.ROW_LABEL,), _row_speakers)
ROW_COMMAND = Input((fields.ROW_LABELS,), _row_commands)
"""Ids of the intent and of the value of each slot."""
FRAME_UNITS = Input((fields.FRAME_LABELS,), _frame_units)
"""K-means unit of each frame, from `data.units`."""
SPEECH_OR_SILENCE = Input((fields.FRAME_LABELS,), _frame_classes)
FRAME_PITCH = Input((fields.PITCH,), _frame_pitch)
"""Fundamental frequency of each frame, which `jax-speechlm pitch` measured."""
PACKED_TEXT = Input(fields.PACKED_TEXT)
WORD_PAIRS = Input(fields.WORD_PAIRS)
"""Pairs of words and their co-occurrence counts."""
DURATION = Input((fields.DURATION,))
