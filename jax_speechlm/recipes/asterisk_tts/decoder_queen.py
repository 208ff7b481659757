"""The decoder of `asterisk_tts/fastspeech2`, pretrained on the speech of queen-en without its text.

jax-speechlm prepare queen-en
jax-speechlm pretrain --config asterisk_tts/decoder_queen --run-dir runs/decoder_queen
jax-speechlm finetune --config asterisk_tts/fastspeech2 --from runs/decoder_queen \\
  --init-from.0.groups acoustic/decoder acoustic/head acoustic/postnet --run-dir runs/asterisk_fastspeech2_queen

Restores log-mel frames from one in five of them; the other voice needs no pitch.

Measured in the size of `demo/voice` by scripts/voice_pretraining.py, three seeds, which differ more than the decoder
does; no pretraining has 94.7 %.

Result: asterisk-en test by Griffin-Lim, 600 steps after 600 of the decoder: WER 84.7 %
"""

from jax_speechlm.objectives.tts.mel_restoration import MelRestoration
from jax_speechlm.recipes.asterisk_tts import fastspeech2
from jax_speechlm.recipes.common import on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return fastspeech2.config().replace(
        data=small_batches(sets=("queen-en",), max_seconds=20.0),
        objective=MelRestoration(),
        **on_cpu(3000, peak=1e-3, warmup_steps=300, eval_every=500),
    )
