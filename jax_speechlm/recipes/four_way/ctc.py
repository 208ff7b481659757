"""CTC on the twenty minutes of transcripts of asterisk-en, for the four-way table: conformer XS at 40 ms a frame.

jax-speechlm finetune --config four_way/ctc

`scripts/four_way.py` runs it from scratch and from each pretraining of `four_way/pretrain`. One CPU core: 6 to 13
minutes, 8.5 hours of audio seen (26 passes). Greedy; docs/results.md has the table.

Result: asterisk-en test CER, means of seeds 0 to 2: 42.9 % from scratch, 34.8 % from audio and prose jointly
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import CONFORMER_XS, MASKED_MEL, SPEEDS, bucketed, on_cpu
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=bucketed(sets=("asterisk-en",), num_buckets=4, max_seconds=24.0, shortest_first_epochs=4, speeds=SPEEDS),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL,
        model=CONFORMER_XS,
        **on_cpu(1000, peak=4e-3, warmup_steps=100, log_every=100, eval_every=500),
    )
