"""CTC on the transcripts of asterisk-en, characters, conformer XS at 40 ms a frame: the second half of `make demo`.

jax-speechlm finetune --config demo/finetune --from runs/pretrain --run-dir runs/finetune

2 CPU cores: 3.6 minutes, 5.4 hours of audio seen (18 passes), seed 0. Test: 60 clips, 352 words, greedy, normalizer
basic. Without --from: WER 95.2 % [89.6, 100.6], CER 45.9 % [40.1, 51.5]. With 800 steps in 6 shapes, after 900 steps of
pretraining: 85.2 % and 39.9 %; without pretraining 82.4 %.

Result: asterisk-en test WER 97.7 % [92.7, 103.5], CER 46.9 % [41.4, 52.2]
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import CONFORMER_XS, MASKED_MEL, on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=small_batches(
            sets=("asterisk-en",), row_seconds=(8.0, 24.0), num_buckets=4, max_seconds=24.0, shortest_first_epochs=4
        ),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL,
        model=CONFORMER_XS,
        **on_cpu(450, peak=4e-3, warmup_steps=70, eval_every=225),
    )
