"""wav2vec 2.0 on the audio of asterisk-en and queen-en, conformer XS at 40 ms a frame.

jax-speechlm pretrain --config debian_wav2vec2 --run-dir runs/debian_wav2vec2

Sized for 2 CPU cores; not yet measured.
"""

from jax_speechlm.configs import demo_pretrain
from jax_speechlm.experiment import Cadence, Experiment
from jax_speechlm.objectives.wav2vec2 import Wav2Vec2
from jax_speechlm.training.optimizers import Optimizer, WarmupCosine


def config() -> Experiment:
    return demo_pretrain.config().replace(
        objective=Wav2Vec2(codes=64, code_dim=128, gumbel_decay=0.9995, mask_span=0.16),
        optimizer=Optimizer(schedule=WarmupCosine(peak=8e-4, warmup_steps=300)),
        num_steps=3000,
        cadence=Cadence(log_every=50, eval_every=500, checkpoint_every=500),
    )
