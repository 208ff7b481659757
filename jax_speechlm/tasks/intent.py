"""Intent and slots of spoken commands."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.objectives.heads.intent import Intent
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, ROW_COMMAND

TASK = Task(
    name="intent",
    objective=Intent,
    models=(ConformerConfig, FastConformerConfig, WhisperEncoderConfig, Wav2Vec2EncoderConfig),
    inputs={"speech": (AUDIO, ROW_COMMAND)},
    predictor="jax_speechlm.inference.intent:CommandClassifier",
    abilities=("understand", "embed"),
    evaluator="jax_speechlm.evaluation.intent:evaluate_run",
)
