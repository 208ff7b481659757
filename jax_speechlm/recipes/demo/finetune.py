"""CTC on the transcripts of asterisk-en, characters, conformer XS at 40 ms a frame: the second half of `make demo`.

jax-speechlm finetune --config demo/finetune --from runs/pretrain --run-dir runs/finetune

2 CPU cores: 5.3 minutes beside other work, 5.6 hours of audio seen (19 passes), seed 0. Test: 60 clips, 352 words,
greedy, normalizer basic. Without --from: WER 91.8 % [82.9, 98.9], CER 46.2 % [40.5, 51.3]. With 800 steps in 6 buckets
(--data.packed false), after 900 steps of pretraining: 85.2 % and 39.9 %; without pretraining 82.4 %.

Result: asterisk-en test WER 94.0 % [89.5, 98.7], CER 47.3 % [42.0, 52.3]
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
