"""The teachers of a distillation: their shapes, read before the model is built; their parameters, at every start."""

import jax
import numpy as np

from data_pipelines.tokenizers.base import Tokenizer
from jax_speechlm.core.tree import paths
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.distillation import GROUP, Distillation, Teacher
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer


def resolve_teachers(experiment: Experiment) -> Experiment:
    """The experiment with each teacher's shape, and with the very checkpoint in place of a run's directory.

    So a checkpoint of the student is complete without its teachers' folders, and a restart meets the same teachers.
    Another objective than distillation is left as it is. A teacher whose shape is given need not be there: a run can be
    planned without it.

    Raises:
      CheckpointError: a teacher's checkpoint cannot be read, or was not trained as the student is.
    """
    objective = experiment.objective
    if not isinstance(objective, Distillation):
        return experiment
    teachers = tuple(_introduced(teacher, objective.student.kind) for teacher in objective.teachers)
    return experiment.replace(objective=objective.replace(teachers=teachers))


def _introduced(teacher: Teacher, kind: str) -> Teacher:
    try:
        checkpoint = ckpt.find(teacher.checkpoint)
    except ckpt.CheckpointError:
        if teacher.model is None or teacher.frontend is None:
            raise
        return teacher
    theirs = Experiment.model_validate(ckpt.read_meta(checkpoint)["experiment"])
    if theirs.objective.model_kind != kind:
        raise ckpt.CheckpointError(
            f"{checkpoint}: was trained by {theirs.objective.model_kind}, its student is by {kind}: "
            "name a teacher of the same kind"
        )
    shape = {"model": teacher.model or theirs.model, "frontend": teacher.frontend or theirs.frontend}
    return teacher.replace(checkpoint=str(checkpoint), **shape)


def load_teacher_params(experiment: Experiment, shapes: Params, tokenizer: Tokenizer | None) -> Params:
    """The teachers' parameters, laid out as `shapes` says: a part of the model's; nothing for other objectives.

    Raises:
      CheckpointError: a checkpoint cannot be read, or has another tokenizer or other parameters than it was
        introduced with.
    """
    if not isinstance(experiment.objective, Distillation):
        return {}
    wanted = shapes[GROUP]["teachers"]
    found = {
        str(number): _read(teacher, wanted[str(number)], tokenizer)
        for number, teacher in enumerate(experiment.objective.teachers)
    }
    return {GROUP: {"teachers": found}}


def _read(teacher: Teacher, shapes: Params, tokenizer: Tokenizer | None) -> Params:
    checkpoint = ckpt.find(teacher.checkpoint)
    params, meta = ckpt.read_params(checkpoint)
    theirs = saved_tokenizer(meta)
    if theirs is None or tokenizer is None or theirs.fingerprint != tokenizer.fingerprint:
        raise ckpt.CheckpointError(
            f"{checkpoint}: this teacher has another tokenizer than its student: set --data.tokenizer "
            f"{teacher.checkpoint}"
        )
    there = {name: leaf.shape for name, leaf in zip(paths(params), jax.tree.leaves(params), strict=True)}
    here = {name: leaf.shape for name, leaf in zip(paths(shapes), jax.tree.leaves(shapes), strict=True)}
    for name in there | here:
        if there.get(name) != here.get(name):
            raise ckpt.CheckpointError(
                f"{checkpoint}: {name} is {there.get(name, 'not there')}, objective.teachers says "
                f"{here.get(name, 'it is not there')}: leave model and frontend out, and they are read from it"
            )
    return jax.tree.map(
        lambda leaf, shape: jax.device_put(np.asarray(leaf, shape.dtype), shape.sharding), params, shapes
    )
