"""A small WaveNet on the one voice of asterisk-en, by the likelihood of its samples; 0.20 M parameters.

jax-speechlm prepare asterisk-en
jax-speechlm pretrain --config asterisk_tts/wavenet --run-dir runs/wavenet

A quarter of a second of each utterance a step; mu-law of 256 classes. A WaveNet costs per sample what other vocoders
cost per frame, so this one is narrow.

Result: not yet measured
"""

from jax_speechlm.models.vocoders.wavenet import WaveNetConfig
from jax_speechlm.objectives.tts.vocoder import Vocoding
from jax_speechlm.recipes.asterisk_tts import vocos
from jax_speechlm.recipes.common import on_cpu
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return vocos.config().replace(
        objective=Vocoding(crop_frames=16),
        model=WaveNetConfig(dim=32, skip_dim=64, num_layers=18, cycle=9, mel_dim=32),
        **on_cpu(2000, peak=2e-3, warmup_steps=100, eval_every=500),
    )
