"""Vocoders: waveforms from mel spectrograms."""

from jax_speechlm.models.vocoders.hifigan import HifiGanConfig
from jax_speechlm.models.vocoders.vocos import VocosConfig
from jax_speechlm.models.vocoders.wavenet import WaveNetConfig
from jax_speechlm.objectives.tts.vocoder import Vocoding
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO

TASK = Task(
    name="vocoder",
    objective=Vocoding,
    models=(VocosConfig, HifiGanConfig, WaveNetConfig),
    inputs={"speech": (AUDIO,)},
    predictor="jax_speechlm.inference.vocode:Vocoder",
    abilities=("vocode",),
    evaluator="jax_speechlm.evaluation.vocoders:evaluate_run",
    hugging_face="jax_speechlm.interop.hf.registry:VOCODER",
)
