"""w2v-BERT on all speech of `debian/best_rq`, conformer XS at 40 ms a frame.

jax-speechlm pretrain --config debian/w2v_bert --run-dir runs/debian_w2v_bert

One CPU core, machine shared: 15 minutes, 24 hours of audio seen (2.8 passes), seed 0. Dev: loss 6.476 (contrastive
3.554, prediction 2.834). Probe of the middle layer: 50.2 % of the digits.

Result: digits of held-out speakers 62.4 % [60.7, 64.1] after full finetuning
"""

from jax_speechlm.objectives.ssl.w2v_bert import W2vBert
from jax_speechlm.recipes.debian import best_rq
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return best_rq.config().replace(objective=W2vBert(codes=256, code_dim=128, gumbel_decay=0.9995, mask_span=0.16))
