"""CTC on asterisk-en alone, from the model that `debian_en_joint` trained on asterisk-en and queen-en.

jax-speechlm finetune --config debian_en_asterisk --from runs/debian_en_joint --run-dir runs/debian_en_asterisk

The second half of the few-hours experiment. Not yet measured by us.
"""

from jax_speechlm.configs.debian_en_joint import FRONT_END, MODEL
from jax_speechlm.experiment import Cadence, Experiment, Speech
from jax_speechlm.objectives.ctc import CTC
from jax_speechlm.training.optimizers import Optimizer, WarmupCosine


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=("asterisk-en",),
            seconds_per_batch=48,
            num_buckets=6,
            batch_multiple=1,
            max_seconds=24.0,
            speeds=(0.9, 1.0, 1.1),
        ),
        objective=CTC(intermediate=(3,)),
        frontend=FRONT_END,
        model=MODEL,
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=50)),
        num_steps=800,
        cadence=Cadence(log_every=50, eval_every=200, checkpoint_every=200),
    )
