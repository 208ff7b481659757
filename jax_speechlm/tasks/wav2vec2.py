"""wav2vec 2.0 pretraining of a speech encoder."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO

TASK = Task(
    name="wav2vec2",
    objective=Wav2Vec2,
    models=(ConformerConfig, Wav2Vec2EncoderConfig),
    inputs={"speech": (AUDIO,)},
    predictor="jax_speechlm.inference.embed:SpeechEncoder",
    abilities=("embed",),
    hugging_face="jax_speechlm.interop.hf.registry:PRETRAINING",
)
