"""Speech recognition and translation by an attention encoder-decoder, such as Whisper."""

from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, TRANSCRIPT

TASK = Task(
    name="aed",
    objective=AED,
    models=(EncoderDecoderConfig,),
    inputs={"speech": (AUDIO, TRANSCRIPT)},
    predictor="jax_speechlm.inference.asr.aed:AttentionRecognizer",
    abilities=("transcribe", "embed"),
    evaluator="jax_speechlm.evaluation.recognition:evaluate_run",
    hugging_face="jax_speechlm.interop.hf.registry:WHISPER",
)
