"""HuBERT pretraining of a speech encoder."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.objectives.ssl.hubert import HuBERT
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, FRAME_UNITS

TASK = Task(
    name="hubert",
    objective=HuBERT,
    models=(ConformerConfig, Wav2Vec2EncoderConfig),
    inputs={"speech": (AUDIO, FRAME_UNITS)},
    predictor="jax_speechlm.inference.embed:SpeechEncoder",
    abilities=("embed",),
    hugging_face="jax_speechlm.interop.hf.registry:ENCODER",
)
