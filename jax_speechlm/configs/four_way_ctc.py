"""CTC on the transcripts of asterisk-en and queen-en, for the four-way table: conformer XS at 40 ms a frame.

jax-speechlm finetune --config four_way_ctc

`scripts/four_way.py` runs it from scratch and from each pretraining of `four_way_pretrain`, with three seeds. Seen so
far, from scratch, seed 0, greedy: asterisk-en WER 99.7 % [95.5, 105.8], CER 50.5 % [48.2, 53.7]; queen-en 98.7 % [97.2,
100.3] and 53.0 % [52.1, 53.9].
"""

from jax_speechlm.configs import demo_finetune
from jax_speechlm.experiment import Cadence, Experiment, Speech
from jax_speechlm.training.optimizers import Optimizer, WarmupCosine


def config() -> Experiment:
    return demo_finetune.config().replace(
        data=Speech(
            sets=("asterisk-en", "queen-en"),
            seconds_per_batch=48,
            num_buckets=6,
            batch_multiple=1,
            max_seconds=12.0,
            shortest_first_epochs=1,
        ),
        optimizer=Optimizer(schedule=WarmupCosine(peak=4e-3, warmup_steps=300)),
        num_steps=2500,
        cadence=Cadence(log_every=100, eval_every=1250, checkpoint_every=500),
    )
