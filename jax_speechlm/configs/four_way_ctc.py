"""CTC on the transcripts of asterisk-en and queen-en, for the four-way table: conformer XS at 40 ms a frame.

jax-speechlm finetune --config four_way_ctc

`scripts/four_way.py` runs it from scratch and from each pretraining of `four_way_pretrain`, with three seeds. Seen so
far, seed 0, greedy: from scratch, asterisk-en WER 97.7 % [93.8, 102.7], CER 50.7 % [48.8, 53.7], queen-en 99.6 %
[98.0, 101.3] and 53.4 % [52.6, 54.3]; after BEST-RQ, 104.5 % [98.3, 112.4], 55.2 % [52.7, 58.8], 99.9 % [98.4, 101.5]
and 55.0 % [54.2, 55.8].
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
