"""RNN-T of streams on asterisk-en alone, with an auxiliary CTC loss, from the model that `debian/en_streaming` trained.

jax-speechlm finetune --config debian/en_streaming_rnnt --from runs/streaming --init-from.0.groups encoder head

The encoder and the head of the auxiliary loss are those of the CTC run; predictor and joint network are new.

Half of the steps of `debian/en_streaming_ctc`, in about its time. Two CPU cores beside other work: 5.9 minutes, 5.2
hours of audio seen, seed 0. With full context 48.9 % [33.3, 63.5].

Result: asterisk-en test, chunks of 320 ms: WER 52.6 % [37.5, 67.0], CER 24.1 % [16.6, 31.7]
"""

from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.recipes.debian import en_streaming_ctc
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    objective = Transducer(network=TransducerConfig(dim=144))
    return en_streaming_ctc.config().replace(objective=objective, num_steps=400)
