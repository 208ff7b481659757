"""Masked language modelling of text."""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import PACKED_TEXT

TASK = Task(
    name="masked_lm",
    objective=MaskedLM,
    models=(TransformerConfig,),
    inputs={"text": (PACKED_TEXT,)},
    evaluator="jax_speechlm.evaluation.masked_text:evaluate_run",
    hugging_face="jax_speechlm.interop.hf.registry:TEXT",
)
