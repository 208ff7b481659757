"""CTC of streams on asterisk-en, characters, conformer XS at 40 ms a frame: chunks of 160, 320, 640 and 1,280 ms.

jax-speechlm finetune --config debian/en_streaming --run-dir runs/streaming
jax-speechlm eval runs/streaming --sets asterisk-en
jax-speechlm transcribe runs/streaming prompt.wav --stream --chunk-ms 320

`demo/finetune` without pretraining, with features that need no later audio. Half of the steps draw one of these chunk
lengths, with up to 2.56 s of left context; the others have full context, as `eval` without --stream.

Seed 0, on 2 CPU cores beside other work. With full context WER is 98.3 % [92.5, 104.4]: so short a training without
pretraining does not make a useful recognizer, but streams lose nothing of it. docs/results.md has the latency.

Result: asterisk-en test, chunks of 320 ms: WER 96.6 % [91.9, 101.8], CER 49.8 % [44.0, 54.9]
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import CONFORMER_XS, MASKED_MEL, MEL, on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=small_batches(
            sets=("asterisk-en",), row_seconds=(8.0, 24.0), num_buckets=4, max_seconds=24.0, shortest_first_epochs=4
        ),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL.replace(mel=MEL.replace(normalize="running")),
        model=CONFORMER_XS.replace(chunk_lengths=(4, 8, 16, 32), left_context=64),
        **on_cpu(450, peak=4e-3, warmup_steps=70, eval_every=225),
    )
