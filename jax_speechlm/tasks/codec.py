"""Codecs: waveforms to one sequence of codes, and codes to waveforms."""

from jax_speechlm.models.codec.wav_tokenizer import WavTokenizerConfig
from jax_speechlm.objectives.tts.codec import Codec
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO

TASK = Task(
    name="codec",
    objective=Codec,
    models=(WavTokenizerConfig,),
    inputs={"speech": (AUDIO,)},
    predictor="jax_speechlm.inference.codec:CodecModel",
    evaluator="jax_speechlm.evaluation.codecs:evaluate_run",
    abilities=("encode_codes", "decode_codes"),
    hugging_face="jax_speechlm.interop.hf.registry:CODEC",
)
"""Training on audio alone."""
