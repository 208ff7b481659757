"""CTC of streams on asterisk-en alone, from the model that `debian/en_streaming` trained.

jax-speechlm finetune --config debian/en_streaming_ctc --from runs/streaming --init-from.0.groups encoder head

Two CPU cores beside other work: 5.0 minutes, 10.5 hours of audio seen, seed 0. With full context 50.3 % [33.5, 66.6].
docs/results.md has all chunk lengths, the latency, another seed and the transducers.

Result: asterisk-en test, chunks of 320 ms: WER 53.4 % [38.7, 68.1], CER 20.7 % [13.2, 28.2]
"""

from jax_speechlm.recipes.common import on_cpu
from jax_speechlm.recipes.debian import en_streaming
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    base = en_streaming.config()
    data = base.data.replace(sets=("asterisk-en",), seconds_per_batch=48, shortest_first_epochs=0)
    return base.replace(data=data, **on_cpu(800, peak=1e-3, warmup_steps=50, eval_every=200))
