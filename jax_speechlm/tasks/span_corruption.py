"""Span corruption of text, with a decoder-only model or an encoder-decoder."""

from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoderConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.span_corruption import SpanCorruption
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import PACKED_TEXT

TASK = Task(
    name="span_corruption",
    objective=SpanCorruption,
    models=(TransformerConfig, TextEncoderDecoderConfig),
    inputs={"text": (PACKED_TEXT,)},
    hugging_face="jax_speechlm.interop.hf.registry:TEXT",
)
