"""Intent and slots of any prepared set whose rows have them, all values from the training data: conformer XS.

jax-speechlm prepare --manifest mine.jsonl --name mine
jax-speechlm finetune --config demo/intent --data.sets mine --from runs/pretrain --run-dir runs/intent

Result: not yet measured
"""

from jax_speechlm.objectives.heads.intent import Intent
from jax_speechlm.recipes.common import CONFORMER_XS, MASKED_MEL, SPEEDS, on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=small_batches(sets=("coffee",), max_seconds=16.0, speeds=SPEEDS),
        objective=Intent(),
        frontend=MASKED_MEL,
        model=CONFORMER_XS,
        **on_cpu(450, peak=2e-3, warmup_steps=50, eval_every=225),
    )
