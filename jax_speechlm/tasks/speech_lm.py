"""Text responses to speech by a continuous speech-language model: transcripts, translations, continuations."""

from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, TRANSCRIPT

TASK = Task(
    name="speech_lm",
    objective=SpeechLM,
    models=(SpeechLMConfig,),
    inputs={"speech": (AUDIO, TRANSCRIPT)},
    predictor="jax_speechlm.inference.asr.speech_lm:SpeechLanguageModel",
    abilities=("transcribe", "generate"),
    evaluator="jax_speechlm.evaluation.recognition:evaluate_run",
    commands={"generate": "jax_speechlm.inference.asr.speech_lm:answer_files"},
    hugging_face="jax_speechlm.interop.hf.registry:SPEECH_LM",
)
