"""TDT on the transcripts of asterisk-en, characters: `demo/rnnt` that also predicts durations, of up to 160 ms.

jax-speechlm finetune --config demo/tdt --from runs/pretrain

Result: not yet measured
"""

from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.recipes.demo import finetune
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    objective = Transducer(durations=(0, 1, 2, 3, 4), network=TransducerConfig(dim=96))
    return finetune.config().replace(objective=objective)
