"""HuBERT on all speech of `debian/best_rq`, first iteration: 100 units of MFCCs, conformer XS at 40 ms a frame.

jax-speechlm units fit --sets $SETS --out data/units/mfcc-100 --mel.stack 4  # SETS: those of debian/best_rq
jax-speechlm units label data/units/mfcc-100 --sets $SETS
jax-speechlm pretrain --config debian/hubert --run-dir runs/hubert

One CPU core, machine shared: 36 minutes, 24 hours of audio seen (2.8 passes), seed 0. Dev: loss 3.606, masked accuracy
14.1 % (unmasked 17.0 %), 40 % of the units predicted. A second iteration takes its units from hidden states of the
first: `units fit --checkpoint runs/hubert --layer 4 --out data/units/hubert-l4-100`, label, and `--data.units`.

Result: digits of held-out speakers 67.6 % [65.9, 69.3] after full finetuning
"""

from jax_speechlm.objectives.ssl.hubert import HuBERT
from jax_speechlm.recipes.debian import best_rq
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    experiment = best_rq.config()
    return experiment.replace(
        data=experiment.data.replace(units="data/units/mfcc-100"),
        objective=HuBERT(num_units=100, mask_span=0.16, mask_ratio=0.4),
    )
