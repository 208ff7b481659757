"""Classification of digits: full finetuning on the Free Spoken Digit Dataset without one of its speakers, conformer XS.

jax-speechlm prepare --manifest fsdd.jsonl --name fsdd-speakers          # with "split" set to the speaker
jax-speechlm finetune --config fsdd/digits --from runs/debian_best_rq --run-dir runs/digits-theo
jax-speechlm eval runs/digits-theo --sets fsdd-speakers --split theo

`scripts/spoken_digits.py` does this for every speaker and every pretraining. One CPU core: 0.8 minutes a speaker, 1.3
hours of audio seen (4 passes), seed 0. Without --from: 63.2 % [61.5, 64.9].

Result: accuracy over the six speakers 68.9 % [67.2, 70.5]
"""

from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.recipes.common import CONFORMER_XS, MEL, SPEEDS, bucketed, on_cpu
from jax_speechlm.recipes.experiment import Experiment

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def config() -> Experiment:
    return Experiment(
        data=bucketed(
            sets=tuple(f"fsdd-speakers:{speaker}" for speaker in SPEAKERS if speaker != "theo"),
            seconds_per_batch=12,
            num_buckets=4,
            min_seconds=0.1,
            max_seconds=3.0,
            speeds=SPEEDS,
        ),
        objective=Classification(classes=DIGITS),
        frontend=FrontEnd(mel=MEL, augment=Augment(freq_masks=2, freq_mask_bins=15)),
        model=CONFORMER_XS,
        **on_cpu(500, peak=1e-3, warmup_steps=50, log_every=100, eval_every=500),
    )
