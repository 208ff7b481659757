"""Voice activity detection: speech or silence per frame."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, SPEECH_OR_SILENCE

TASK = Task(
    name="frame_classification",
    objective=FrameClassification,
    models=(ConformerConfig, Wav2Vec2EncoderConfig),
    inputs={"speech": (AUDIO, SPEECH_OR_SILENCE)},
    predictor="jax_speechlm.inference.segment:VoiceActivity",
    abilities=("speech_times", "embed"),
    evaluator="jax_speechlm.evaluation.frame_classification:evaluate_run",
    hugging_face="jax_speechlm.interop.hf.registry:FRAMES",
)
