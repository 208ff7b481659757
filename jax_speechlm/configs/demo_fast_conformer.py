"""CTC on the transcripts of asterisk-en, characters: `demo_finetune` with a FastConformer XS at 40 ms a frame.

jax-speechlm finetune --config demo_fast_conformer

Not yet measured. Frames of 80 ms (model.subsampling 8), in which the encoder is published, are too few for characters:
38 % of the training clips have fewer than CTC needs. They want pieces (`jax-speechlm train-tokenizer`; its folder is
--data.tokenizer).
"""

from jax_speechlm.configs import demo_finetune
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.fast_conformer import SIZES
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    demo = demo_finetune.config()
    mel = LogMel(variant="nemo", stack=1)
    return demo.replace(
        frontend=demo.frontend.replace(mel=mel),
        model=SIZES["XS"].replace(input_dim=mel.input_dim, subsampling=4, attention_dropout=0.0),
    )
