"""An imported speech encoder, to initialise other runs from."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.objectives.encoder_only import EncoderOnly
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO

TASK = Task(
    name="encoder",
    objective=EncoderOnly,
    models=(ConformerConfig, Wav2Vec2EncoderConfig),
    inputs={"speech": (AUDIO,)},
    predictor="jax_speechlm.inference.embed:SpeechEncoder",
    abilities=("embed",),
    hugging_face="jax_speechlm.interop.hf.registry:ENCODER",
)
