"""An imported text encoder, to embed texts and to initialise other runs from."""

from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.text_encoder import TextEncoding
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import PACKED_TEXT

TASK = Task(
    name="text_encoder",
    objective=TextEncoding,
    models=(TransformerConfig,),
    inputs={"text": (PACKED_TEXT,)},
    predictor="jax_speechlm.inference.text_embed:TextEmbedder",
    abilities=("embed",),
    commands={"embed": "jax_speechlm.inference.text_embed:embed_texts"},
    hugging_face="jax_speechlm.interop.hf.registry:TEXT_ENCODER",
)
