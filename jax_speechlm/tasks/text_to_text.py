"""Text to text by an encoder-decoder: translation, classification and question answering by prefixes."""

from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoderConfig
from jax_speechlm.objectives.lm.text_to_text import TextToText
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import PACKED_TEXT

TASK = Task(
    name="text_to_text",
    objective=TextToText,
    models=(TextEncoderDecoderConfig,),
    inputs={"text": (PACKED_TEXT,)},
    predictor="jax_speechlm.inference.lm.text_to_text:TextToTextModel",
    abilities=("generate",),
    evaluator="jax_speechlm.evaluation.text_to_text:evaluate_run",
    commands={"generate": "jax_speechlm.inference.lm.text_to_text:generate_texts"},
)
