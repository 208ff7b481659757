"""Entities in texts, by an imported model."""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.heads.text_tokens import TokenClassification
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import PACKED_TEXT

TASK = Task(
    name="token_classification",
    objective=TokenClassification,
    models=(TransformerConfig,),
    inputs={"text": (PACKED_TEXT,)},
    predictor="jax_speechlm.inference.text_tokens:Tagger",
    abilities=("tag",),
    commands={"classify": "jax_speechlm.inference.text_tokens:tag_texts"},
    hugging_face="jax_speechlm.interop.hf.registry:TAGGER",
)
