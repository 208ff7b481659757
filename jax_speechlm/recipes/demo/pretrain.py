"""BEST-RQ on the audio of asterisk-en and queen-en, conformer XS at 40 ms a frame: the first half of `make demo`.

jax-speechlm pretrain --config demo/pretrain --run-dir runs/pretrain

2 CPU cores: 6.9 minutes beside other work, 4.6 hours of audio seen (1.3 passes over 3.6 hours), seed 0. At a peak rate
of 3e-3 the model only learns the frequencies of the codes, and finetuning from it stays on the blank plateau.

Result: dev loss 3.849, masked accuracy 11.7 % over 128 codes
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.recipes.common import CLIPS, CONFORMER_XS, MEL, on_cpu
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=CLIPS.replace(packed=True, max_crop=0.0),
        objective=BestRQ(codes=128, mask_span=0.16),
        frontend=FrontEnd(mel=MEL),
        model=CONFORMER_XS.replace(dropout=0.0),  # two passes over the data do not overfit
        **on_cpu(350, peak=8e-4, warmup_steps=70, eval_every=175),
    )
