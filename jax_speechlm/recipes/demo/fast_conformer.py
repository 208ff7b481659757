"""CTC on the transcripts of asterisk-en, characters: `demo/finetune` with a FastConformer XS at 40 ms a frame.

jax-speechlm finetune --config demo/fast_conformer

The published encoder has frames of 80 ms (model.subsampling 8), too few for characters: 38 % of the training clips have
fewer frames than CTC needs. They need pieces instead (`jax-speechlm train-tokenizer`; its folder is --data.tokenizer).

Result: not yet measured
"""

from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.fast_conformer import SIZES
from jax_speechlm.recipes.demo import finetune
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    demo = finetune.config()
    mel = LogMel(variant="nemo", stack=1)
    return demo.replace(
        frontend=demo.frontend.replace(mel=mel),
        model=SIZES["XS"].replace(input_dim=mel.input_dim, subsampling=4, attention_dropout=0.0),
    )
