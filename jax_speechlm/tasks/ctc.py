"""Speech recognition by CTC."""

from jax_speechlm.models.cnn import CNNConfig
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.rnn import RNNConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, TRANSCRIPT

TASK = Task(
    name="ctc",
    objective=CTC,
    models=(ConformerConfig, FastConformerConfig, WhisperEncoderConfig, Wav2Vec2EncoderConfig, CNNConfig, RNNConfig),
    inputs={"speech": (AUDIO, TRANSCRIPT)},
    predictor="jax_speechlm.inference.asr.ctc:Recognizer",
    abilities=("transcribe", "embed", "stream"),
    evaluator="jax_speechlm.evaluation.recognition:evaluate_run",
    commands={"align": "jax_speechlm.apps.align:align_run"},
    hugging_face="jax_speechlm.interop.hf.registry:RECOGNIZER",
    runtimes=True,
)
