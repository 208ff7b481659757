"""Joint pretraining on speech, text and speech-text pairs, as in mSLAM."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.tasks.base import Task

TASK = Task(
    name="joint",
    objective=Joint,
    models=(ConformerConfig,),
    inputs={"mixture": ()},
    predictor="jax_speechlm.inference.asr.ctc:Recognizer",
    abilities=("transcribe", "embed", "stream"),
    evaluator="jax_speechlm.evaluation.recognition:evaluate_run",
    commands={"align": "jax_speechlm.apps.align:align_run"},
    hugging_face="jax_speechlm.interop.hf.registry:RECOGNIZER",
    runtimes=True,
)
