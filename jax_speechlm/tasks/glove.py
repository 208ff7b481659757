"""Word vectors by GloVe."""

from jax_speechlm.models.word_vectors import WordVectorsConfig
from jax_speechlm.objectives.word_vectors.glove import GloVe
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import WORD_PAIRS

TASK = Task(
    name="glove",
    objective=GloVe,
    models=(WordVectorsConfig,),
    inputs={"word_pairs": (WORD_PAIRS,)},
    predictor="jax_speechlm.inference.word_vectors:WordTable",
    abilities=("embed",),
    commands={"embed": "jax_speechlm.inference.word_vectors:embed_texts"},
    evaluator="jax_speechlm.evaluation.word_vectors:evaluate_run",
)
