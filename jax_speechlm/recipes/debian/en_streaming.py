"""CTC of streams on the transcribed English in Debian packages, characters, 6 blocks of width 144 at 40 ms a frame.

jax-speechlm finetune --config debian/en_streaming --run-dir runs/streaming
jax-speechlm eval runs/streaming --sets asterisk-en --stream
jax-speechlm transcribe runs/streaming prompt.wav --stream --chunk-ms 320

`debian/en_joint` with features that need no later audio. Half of the steps draw a chunk of 160, 320, 640 or 1,280 ms,
with up to 2.56 s of left context; the others have full context, as `eval` without --stream. `debian/en_streaming_ctc`,
`debian/en_streaming_rnnt` and `debian/en_streaming_tdt` continue from this run.

2.96 M parameters, seed 0. Two CPU cores beside other work: 29.6 minutes, 75 hours of audio seen (16 passes over 4.6
hours). With full context 88.6 % [86.9, 90.2] and 43.8 %.

Result: asterisk-en and queen-en test, chunks of 320 ms: WER 91.2 % [89.6, 92.7], CER 46.1 % [45.0, 47.2]
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import CONFORMER_144, MASKED_MEL, MEL, SPEEDS, on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=small_batches(
            sets=("asterisk-en", "queen-en"),
            seconds_per_batch=64,
            row_seconds=(8.0, 24.0),
            num_buckets=4,
            max_seconds=24.0,
            shortest_first_epochs=1,
            speeds=SPEEDS,
        ),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL.replace(mel=MEL.replace(normalize="running")),
        model=CONFORMER_144.replace(chunk_lengths=(4, 8, 16, 32), left_context=64),
        **on_cpu(4500, peak=2.5e-3, warmup_steps=300, eval_every=750),
    )
