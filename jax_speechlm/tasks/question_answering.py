"""Answers to questions, found in a text by an imported model."""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.heads.text_tokens import QuestionAnswering
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import PACKED_TEXT

TASK = Task(
    name="question_answering",
    objective=QuestionAnswering,
    models=(TransformerConfig,),
    inputs={"text": (PACKED_TEXT,)},
    predictor="jax_speechlm.inference.text_tokens:Reader",
    abilities=("answer",),
    commands={"answer": "jax_speechlm.inference.text_tokens:answer_question"},
    hugging_face="jax_speechlm.interop.hf.registry:READER_OF_SPANS",
)
