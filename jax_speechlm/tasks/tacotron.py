"""Autoregressive acoustic models of speech synthesis, with attention."""

from jax_speechlm.models.tts.tacotron import TacotronConfig
from jax_speechlm.objectives.tts.attention import AttentionTTS
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, ROW_SPEAKER, TRANSCRIPT

TASK = Task(
    name="tacotron",
    objective=AttentionTTS,
    models=(TacotronConfig,),
    inputs={"speech": (AUDIO, TRANSCRIPT, ROW_SPEAKER)},
    predictor="jax_speechlm.inference.synthesize_steps:StepSynthesizer",
    evaluator="jax_speechlm.evaluation.synthesizers:evaluate_run",
    abilities=("synthesize",),
)
