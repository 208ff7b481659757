"""CTC on the transcripts of asterisk-en, characters, conformer XS at 40 ms a frame: the second half of `make demo`.

jax-speechlm finetune --config demo/finetune --from runs/pretrain --run-dir runs/finetune

2 CPU cores: 12 minutes beside other work, 25.3 hours of audio seen (29 passes at three speeds), seed 0. Test: 60 clips,
352 words, normalizer basic, greedy. With a character 6-gram of the transcripts of asterisk-en and queen-en, weights
tuned on dev: WER 42.3 % [26.6, 58.2], CER 22.3 % [13.4, 31.4]. Without --from: 60.5 % [42.5, 77.7] and 40.6 %
[24.8, 56.7]; docs/results.md has two seeds of each.

Result: asterisk-en test WER 58.2 % [39.7, 74.7], CER 23.8 % [15.2, 32.5]
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import CONFORMER_XS, MASKED_MEL, SPEEDS, on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=small_batches(
            sets=("asterisk-en",),
            row_seconds=(8.0, 24.0),
            num_buckets=4,
            max_seconds=24.0,
            shortest_first_epochs=4,
            speeds=SPEEDS,
        ),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL,
        model=CONFORMER_XS,
        **on_cpu(2000, peak=4e-3, warmup_steps=150, eval_every=500),
    )
