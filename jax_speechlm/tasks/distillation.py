"""Distillation of trained models; the result is a model of the student's task."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.distillation import Distillation
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, PACKED_TEXT, TRANSCRIPT

TASK = Task(
    name="distillation",
    objective=Distillation,
    models=(ConformerConfig, FastConformerConfig, TransformerConfig),
    inputs={"speech": (AUDIO, TRANSCRIPT), "text": (PACKED_TEXT,)},
)
