"""CTC on the twenty minutes of transcripts of asterisk-en, for the four-way table: conformer XS at 40 ms a frame.

jax-speechlm finetune --config four_way_ctc

`scripts/four_way.py` runs it from scratch and from each pretraining of `four_way_pretrain`, with three seeds. Not yet
measured.
"""

from jax_speechlm.configs import demo_finetune
from jax_speechlm.experiment import Cadence, Experiment


def config() -> Experiment:
    demo = demo_finetune.config()
    return demo.replace(
        data=demo.data.replace(speeds=(0.9, 1.0, 1.1)),
        num_steps=1000,
        cadence=Cadence(log_every=100, eval_every=500, checkpoint_every=500),
    )
