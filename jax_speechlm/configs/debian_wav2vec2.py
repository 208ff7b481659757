"""wav2vec 2.0 on all speech of `debian_best_rq`, conformer XS at 40 ms a frame.

jax-speechlm pretrain --config debian_wav2vec2 --run-dir runs/debian_wav2vec2

Sized for 2 CPU cores; not yet measured.
"""

from jax_speechlm.configs import debian_best_rq
from jax_speechlm.experiment import Experiment
from jax_speechlm.objectives.wav2vec2 import Wav2Vec2


def config() -> Experiment:
    return debian_best_rq.config().replace(
        objective=Wav2Vec2(codes=64, code_dim=128, gumbel_decay=0.9995, mask_span=0.16)
    )
