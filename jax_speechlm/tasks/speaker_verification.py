"""Speaker verification with x-vectors."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, ROW_SPEAKER

TASK = Task(
    name="speaker_verification",
    objective=SpeakerVerification,
    models=(ConformerConfig, FastConformerConfig, Wav2Vec2EncoderConfig),
    inputs={"speech": (AUDIO, ROW_SPEAKER)},
    predictor="jax_speechlm.inference.speaker:SpeakerVectors",
    abilities=("speaker_vectors", "embed"),
    evaluator="jax_speechlm.evaluation.speakers:evaluate_run",
    hugging_face="jax_speechlm.interop.hf.registry:SPEAKERS",
)
