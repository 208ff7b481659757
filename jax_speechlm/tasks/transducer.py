"""Speech recognition by transducers: RNN-T and TDT."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, TRANSCRIPT

TASK = Task(
    name="transducer",
    objective=Transducer,
    models=(ConformerConfig, FastConformerConfig),
    inputs={"speech": (AUDIO, TRANSCRIPT)},
    predictor="jax_speechlm.inference.asr.transducer:TransducerRecognizer",
    abilities=("transcribe", "embed", "stream"),
    evaluator="jax_speechlm.evaluation.recognition:evaluate_run",
    commands={"align": "jax_speechlm.apps.align:align_run"},  # by the CTC head
    hugging_face="jax_speechlm.interop.hf.registry:TRANSDUCER",
)
