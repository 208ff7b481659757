"""HuBERT on the audio of asterisk-en and queen-en, first iteration: 100 units of MFCCs, conformer XS at 40 ms a frame.

jax-speechlm units fit --sets asterisk-en queen-en --out data/units/mfcc-100 --mel.stack 4
jax-speechlm units label data/units/mfcc-100 --sets asterisk-en queen-en
jax-speechlm pretrain --config debian_hubert --run-dir runs/hubert

Made for 2 CPU cores; not yet measured. A second iteration takes its units from the first one's hidden states:
`units fit --checkpoint runs/hubert --layer 4 --out data/units/hubert-l4-100`, label, and `--data.units` with them.
"""

from jax_speechlm.configs.demo_pretrain import MEL, MODEL
from jax_speechlm.experiment import Cadence, Experiment, Speech
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.objectives.hubert import HuBERT
from jax_speechlm.training.optimizers import Optimizer, WarmupCosine


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=("asterisk-en", "queen-en"),
            units="data/units/mfcc-100",
            seconds_per_batch=48,
            num_buckets=5,
            batch_multiple=1,
            max_seconds=8.0,
            max_crop=0.15,
        ),
        objective=HuBERT(num_units=100, mask_span=0.16, mask_ratio=0.4),
        frontend=FrontEnd(mel=MEL),
        model=MODEL.replace(dropout=0.0),
        optimizer=Optimizer(schedule=WarmupCosine(peak=8e-4, warmup_steps=100)),
        num_steps=900,
        topology="cpu-1",
        cadence=Cadence(log_every=100, eval_every=450, checkpoint_every=450),
    )
