"""BEST-RQ on the audio of asterisk-en and queen-en, conformer XS at 40 ms a frame: the first half of `make demo`.

jax-speechlm pretrain --config demo_pretrain --run-dir runs/pretrain

2 CPU cores: 3.1 minutes, 5.2 hours of audio seen (a pass and a half over 3.6 hours), seed 0. Dev loss 3.832, masked
accuracy 11.8 % over 128 codes. At a peak rate of 3e-3 the model only learns how frequent each code is, and finetuning
from it stays on the blank plateau.
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech

MEL = LogMel(stack=4)
MODEL = ConformerConfig(input_dim=MEL.input_dim, dim=96, num_layers=6, num_heads=4, kernel_size=15)


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=("asterisk-en", "queen-en"),
            seconds_per_batch=48,
            num_buckets=3,
            batch_multiple=1,
            max_seconds=8.0,
            max_crop=0.15,
        ),
        objective=BestRQ(codes=128, mask_span=0.16),
        frontend=FrontEnd(mel=MEL),
        model=MODEL.replace(dropout=0.0),  # two passes over the data do not overfit
        optimizer=Optimizer(schedule=WarmupCosine(peak=8e-4, warmup_steps=100)),
        num_steps=500,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=250, checkpoint_every=250),
    )
