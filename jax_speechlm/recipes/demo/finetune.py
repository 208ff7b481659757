"""CTC on the transcripts of asterisk-en, characters, conformer XS at 40 ms a frame: the second half of `make demo`.

jax-speechlm finetune --config demo/finetune --from runs/pretrain --run-dir runs/finetune

2 CPU cores: 3.6 minutes, 5.4 hours of audio seen (18 passes), seed 0. Test: 60 clips, 352 words, greedy, normalizer
basic. Without --from: WER 96.3 % [89.7, 103.5], CER 46.2 % [40.2, 51.8]. With 800 steps in 6 shapes, after 900 steps of
pretraining: 85.2 % and 39.9 %; without pretraining 82.4 %.

Result: asterisk-en test WER 93.8 % [89.0, 99.3], CER 46.6 % [41.6, 51.3]
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import CONFORMER_XS, MASKED_MEL, on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=small_batches(sets=("asterisk-en",), num_buckets=4, max_seconds=24.0, shortest_first_epochs=4),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL,
        model=CONFORMER_XS,
        **on_cpu(650, peak=4e-3, warmup_steps=100, eval_every=325),
    )
