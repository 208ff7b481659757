"""TDT of streams on asterisk-en alone: `debian/en_streaming_rnnt` that also predicts durations, of up to 160 ms.

jax-speechlm finetune --config debian/en_streaming_tdt --from runs/streaming --init-from.0.groups encoder head

Two CPU cores beside other work: 7.4 minutes, 5.2 hours of audio seen, seed 0. With full context 51.1 % [37.1, 64.3].

Result: asterisk-en test, chunks of 320 ms: WER 55.1 % [43.0, 66.9], CER 24.2 % [17.4, 31.3]
"""

from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.recipes.debian import en_streaming_ctc
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    objective = Transducer(durations=(0, 1, 2, 3, 4), network=TransducerConfig(dim=144))
    return en_streaming_ctc.config().replace(objective=objective, num_steps=400)
