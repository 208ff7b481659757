"""Common interface of the vocoders, for objectives that can train any of them."""

from flax import nnx

from jax_speechlm.models.vocoders.base import Vocoder
from jax_speechlm.models.vocoders.hifigan import HifiGan, HifiGanConfig
from jax_speechlm.models.vocoders.vocos import Vocos, VocosConfig
from jax_speechlm.models.vocoders.wavenet import WaveNet, WaveNetConfig

VocoderModel = VocosConfig | HifiGanConfig | WaveNetConfig

_CLASSES = {VocosConfig: Vocos, HifiGanConfig: HifiGan, WaveNetConfig: WaveNet}


def make_vocoder(config: VocoderModel, *, rngs: nnx.Rngs) -> Vocoder:
    """Declares the vocoder's parameters."""
    return _CLASSES[type(config)](config, rngs=rngs)
