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
    predictor="jax_speechlm.inference.text_embed:TextEmbedder",
    abilities=("embed",),
    commands={"embed": "jax_speechlm.inference.text_embed:embed_texts"},
    evaluator="jax_speechlm.evaluation.masked_text:evaluate_run",
    hugging_face="jax_speechlm.interop.hf.registry:TEXT",
)
