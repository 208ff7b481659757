"""A small HiFi-GAN on the one voice of asterisk-en, by the distances of spectra; 0.50 M parameters.

jax-speechlm prepare asterisk-en
jax-speechlm pretrain --config asterisk_tts/hifigan --run-dir runs/hifigan
jax-speechlm eval runs/hifigan --sets asterisk-en

A second of each utterance a step. Discriminators are added as in `asterisk_tts/vocos_gan`.

Result: not yet measured
"""

from jax_speechlm.models.vocoders.hifigan import HifiGanConfig
from jax_speechlm.recipes.asterisk_tts import vocos
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return vocos.config().replace(model=HifiGanConfig())
