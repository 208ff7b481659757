"""CTC on the twenty minutes of transcripts of asterisk-en, for the four-way table: conformer XS at 40 ms a frame.

jax-speechlm finetune --config four_way_ctc

`scripts/four_way.py` runs it from scratch and from each pretraining of `four_way_pretrain`. One CPU core: 6 to 13
minutes, 8.5 hours heard (26 passes). asterisk-en test, greedy, means of seeds 0 to 2: CER 42.9 % from scratch, 34.8 %
from audio and prose jointly; docs/results.md has the table.
"""

from jax_speechlm.configs import demo_finetune
from jax_speechlm.recipes.experiment import Experiment, LoopConfig


def config() -> Experiment:
    demo = demo_finetune.config()
    return demo.replace(
        data=demo.data.replace(speeds=(0.9, 1.0, 1.1)),
        num_steps=1000,
        loop=LoopConfig(log_every=100, eval_every=500, checkpoint_every=500),
    )
