"""wav2vec 2.0 on all speech of `debian/best_rq`, conformer XS at 40 ms a frame.

jax-speechlm pretrain --config debian/wav2vec2 --run-dir runs/debian_wav2vec2

One CPU core: 15 minutes, 24 hours of audio seen (2.8 passes), seed 0. Dev: loss 3.648, right among distractors in
25.1 % (unmasked 38.5 %). Probe of the middle layer: 55.5 % of the digits.

Result: digits of held-out speakers 64.5 % [62.8, 66.2] after full finetuning
"""

from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2
from jax_speechlm.recipes.debian import best_rq
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return best_rq.config().replace(objective=Wav2Vec2(codes=64, code_dim=128, gumbel_decay=0.9995, mask_span=0.16))
