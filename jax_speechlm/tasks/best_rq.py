"""BEST-RQ pretraining of a speech encoder."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO

TASK = Task(
    name="best_rq",
    objective=BestRQ,
    models=(ConformerConfig,),
    inputs={"speech": (AUDIO,)},
    predictor="jax_speechlm.inference.embed:SpeechEncoder",
    abilities=("embed",),
    hugging_face="jax_speechlm.interop.hf.registry:ENCODER",
)
