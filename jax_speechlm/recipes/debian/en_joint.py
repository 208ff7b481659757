"""CTC on all transcribed English in Debian packages (asterisk-en and queen-en), characters, 6 blocks of width 144.

jax-speechlm prepare asterisk-en queen-en
jax-speechlm finetune --config debian/en_joint --run-dir runs/debian_en_joint

2.96 M parameters, from scratch, seed 0. One CPU core: 78 to 94 minutes, 83 hours of audio seen (18 passes over 4.6
hours). Test, normalizer basic, greedy: asterisk-en (60 clips, 352 words) WER 69.6 % [60.9, 78.1]; queen-en (726 clips,
4,358 words) CER 36.7 %. With a word 3-gram, weights tuned on dev: queen-en WER 61.8 % [59.6, 63.9].
`debian/en_asterisk` continues from this run.

Result: queen-en test WER 78.9 % [77.1, 80.7]; with a word 3-gram 61.8 % [59.6, 63.9]
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import CONFORMER_144, MASKED_MEL, SPEEDS, bucketed, on_cpu
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=bucketed(
            sets=("asterisk-en", "queen-en"),
            seconds_per_batch=64,
            num_buckets=6,
            max_seconds=16.0,
            shortest_first_epochs=1,
            speeds=SPEEDS,
        ),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL,
        model=CONFORMER_144,
        **on_cpu(6000, peak=2.5e-3, warmup_steps=300, eval_every=1000),
    )
