"""Causal language modelling of text."""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import PACKED_TEXT

TASK = Task(
    name="causal_lm",
    objective=CausalLM,
    models=(TransformerConfig,),
    inputs={"text": (PACKED_TEXT,)},
    predictor="jax_speechlm.inference.lm.causal:LanguageModel",
    abilities=("generate", "score"),
    evaluator="jax_speechlm.evaluation.language:evaluate_run",
    commands={
        "few-shot": "jax_speechlm.evaluation.few_shot:few_shot",
        "generate": "jax_speechlm.inference.lm.causal:generate_texts",
        "score-pairs": "jax_speechlm.evaluation.minimal_pairs:score_pairs",
    },
    hugging_face="jax_speechlm.interop.hf.registry:TEXT",
)
