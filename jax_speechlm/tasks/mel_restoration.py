"""Pretraining of the decoder of acoustic models on speech without text."""

from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config
from jax_speechlm.objectives.tts.mel_restoration import MelRestoration
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO

TASK = Task(
    name="mel_restoration",
    objective=MelRestoration,
    models=(FastSpeech2Config,),
    inputs={"speech": (AUDIO,)},
)
