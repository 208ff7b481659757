"""Who speaks: x-vectors from four speakers of the Free Spoken Digit Dataset, compared on the two others, conformer XS.

jax-speechlm prepare --manifest fsdd.jsonl --name fsdd-speakers          # whose "split" is the speaker
jax-speechlm finetune --config fsdd_speakers --from runs/debian_best_rq --run-dir runs/speakers
jax-speechlm eval runs/speakers --sets fsdd-speakers:theo fsdd-speakers:yweweler

One CPU core: a minute, 0.8 hours heard, seed 0, without --from: an equal error rate of 44.5 % on the two others. Four
voices do not teach how voices differ: this shows the way. Where there are thousands, name them in
`objective.classes`, widen `objective.head` to its defaults, and give `eval` the corpus's own list with --trials.
"""

from jax_speechlm.configs.demo_pretrain import MEL, MODEL
from jax_speechlm.configs.fsdd_digits import SPEAKERS
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.xvector import XVectorConfig
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=tuple(f"fsdd-speakers:{speaker}" for speaker in SPEAKERS[:4]),
            seconds_per_batch=12,
            num_buckets=4,
            batch_multiple=1,
            min_seconds=0.1,
            max_seconds=3.0,
        ),
        objective=SpeakerVerification(
            classes=SPEAKERS[:4],
            # a digit has ten frames of 40 ms
            head=XVectorConfig(channels=(96, 96, 192), kernels=(1, 1, 1), dilations=(1, 1, 1), dim=64),
            margin=0.2,
        ),
        frontend=FrontEnd(mel=MEL, augment=Augment(freq_masks=2, freq_mask_bins=15)),
        model=MODEL,
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=50)),
        num_steps=300,
        topology="cpu-1",
        loop=LoopConfig(log_every=100, eval_every=300, checkpoint_every=300),
    )
