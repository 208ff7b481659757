"""w2v-BERT on all speech of `debian_best_rq`, conformer XS at 40 ms a frame.

jax-speechlm pretrain --config debian_w2v_bert --run-dir runs/debian_w2v_bert

One CPU core beside other work: 15 minutes, 24 hours heard (2.8 passes), seed 0. Dev: loss 6.476 (contrastive 3.554,
prediction 2.834). Digits of speakers left out: 62.4 % [60.7, 64.1] after full finetuning; probe 50.2 %.
"""

from jax_speechlm.configs import debian_best_rq
from jax_speechlm.objectives.ssl.w2v_bert import W2vBert
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return debian_best_rq.config().replace(
        objective=W2vBert(codes=256, code_dim=128, gumbel_decay=0.9995, mask_span=0.16)
    )
