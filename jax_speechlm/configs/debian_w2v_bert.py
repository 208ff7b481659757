"""w2v-BERT on all speech of `debian_best_rq`, conformer XS at 40 ms a frame.

jax-speechlm pretrain --config debian_w2v_bert --run-dir runs/debian_w2v_bert

Sized for 2 CPU cores; not yet measured.
"""

from jax_speechlm.configs import debian_best_rq
from jax_speechlm.experiment import Experiment
from jax_speechlm.objectives.w2v_bert import W2vBert


def config() -> Experiment:
    return debian_best_rq.config().replace(
        objective=W2vBert(codes=256, code_dim=128, gumbel_decay=0.9995, mask_span=0.16)
    )
