"""w2v-BERT pretraining of a speech encoder."""

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.objectives.ssl.w2v_bert import W2vBert
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO

TASK = Task(
    name="w2v_bert",
    objective=W2vBert,
    models=(ConformerConfig,),
    inputs={"speech": (AUDIO,)},
    predictor="jax_speechlm.inference.embed:SpeechEncoder",
    abilities=("embed",),
    hugging_face="jax_speechlm.interop.hf.registry:ENCODER",
)
