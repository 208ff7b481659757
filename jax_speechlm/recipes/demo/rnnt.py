"""RNN-T on the transcripts of asterisk-en, characters: `demo/finetune` with a transducer and an auxiliary CTC loss.

jax-speechlm finetune --config demo/rnnt --from runs/pretrain

From a CTC run, `--from runs/finetune --init-from.0.groups encoder head` takes its output layer too.

Result: not yet measured
"""

from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.recipes.demo import finetune
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return finetune.config().replace(objective=Transducer(network=TransducerConfig(dim=96)))
