"""Language modelling of text and speech units in one vocabulary."""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import DURATION, PACKED_TEXT

TASK = Task(
    name="unit_lm",
    objective=UnitLM,
    models=(TransformerConfig,),
    inputs={"unit_text": (PACKED_TEXT, DURATION)},
    predictor="jax_speechlm.inference.lm.units:UnitModel",
    abilities=("generate", "score"),
    evaluator="jax_speechlm.evaluation.unit_language:evaluate_run",
    commands={
        "few-shot": "jax_speechlm.evaluation.few_shot:few_shot",
        "generate": "jax_speechlm.inference.lm.units:generate_units",
        "score-pairs": "jax_speechlm.evaluation.spoken_pairs:score_spoken_pairs",
    },
    hugging_face="jax_speechlm.interop.hf.registry:TEXT",
)
