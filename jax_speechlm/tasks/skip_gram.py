"""Word vectors by skip-gram with negative sampling."""

from jax_speechlm.models.word_vectors import WordVectorsConfig
from jax_speechlm.objectives.word_vectors.skip_gram import SkipGram
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import PACKED_TEXT

TASK = Task(
    name="skip_gram",
    objective=SkipGram,
    models=(WordVectorsConfig,),
    inputs={"text": (PACKED_TEXT,)},
    predictor="jax_speechlm.inference.word_vectors:WordTable",
    abilities=("embed",),
    commands={"embed": "jax_speechlm.inference.word_vectors:embed_texts"},
    evaluator="jax_speechlm.evaluation.word_vectors:evaluate_run",
)
