"""Acoustic models of speech synthesis."""

from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config
from jax_speechlm.objectives.tts.acoustic import TTS
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, FRAME_PITCH, ROW_SPEAKER, TRANSCRIPT

TASK = Task(
    name="tts",
    objective=TTS,
    models=(FastSpeech2Config,),
    inputs={"speech": (AUDIO, TRANSCRIPT, ROW_SPEAKER, FRAME_PITCH)},
    predictor="jax_speechlm.inference.synthesize:Synthesizer",
    evaluator="jax_speechlm.evaluation.synthesizers:evaluate_run",
    abilities=("synthesize",),
    commands={"align": "jax_speechlm.apps.align_voice:align_voice"},
    hugging_face="jax_speechlm.interop.hf.registry:VOICE",
)
