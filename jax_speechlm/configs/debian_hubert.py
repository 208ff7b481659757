"""HuBERT on all speech of `debian_best_rq`, first iteration: 100 units of MFCCs, conformer XS at 40 ms a frame.

jax-speechlm units fit --sets $SETS --out data/units/mfcc-100 --mel.stack 4  # SETS: those of debian_best_rq
jax-speechlm units label data/units/mfcc-100 --sets $SETS
jax-speechlm pretrain --config debian_hubert --run-dir runs/hubert

One CPU core beside other work: 36 minutes, 24 hours heard (2.8 passes), seed 0. Dev: loss 3.606, masked accuracy 14.1 %
(unmasked 17.0 %), 40 % of the units predicted. Digits of speakers left out: 67.6 % [65.9, 69.3] after full finetuning.
A second iteration takes its units from the first one's hidden states:
`units fit --checkpoint runs/hubert --layer 4 --out data/units/hubert-l4-100`, label, and `--data.units` with them.
"""

from jax_speechlm.configs import debian_best_rq
from jax_speechlm.objectives.ssl.hubert import HuBERT
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    best_rq = debian_best_rq.config()
    return best_rq.replace(
        data=best_rq.data.replace(units="data/units/mfcc-100"),
        objective=HuBERT(num_units=100, mask_span=0.16, mask_ratio=0.4),
    )
