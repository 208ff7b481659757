"""CTC on LibriSpeech's 960 hours from the encoder of `librispeech/best_rq_960_v5e16`, for a v5e-16 slice.

jax-speechlm train-tokenizer --sets librispeech:train_clean360 --vocab-size 1024 --out data/unigram1024
jax-speechlm finetune --config librispeech/ctc_960_v5e16 --from runs/librispeech_960

Encoder and head learn at different rates, as in Chiu et al. 2022 (arXiv:2202.01855), section 4.1; SpecAugment is the
conformer paper's. The docstring of `librispeech/best_rq_960_v5e16` has published figures to compare with.

Result: not yet measured
"""

from jax_speechlm.frontend.augment import SPEC_AUGMENT
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.optim.optimizers import Group, Noam, Optimizer
from jax_speechlm.recipes.common import SPEEDS
from jax_speechlm.recipes.experiment import Experiment, LoopConfig
from jax_speechlm.recipes.librispeech import best_rq_960_v5e16


def config() -> Experiment:
    pretraining = best_rq_960_v5e16.config()
    return pretraining.replace(
        data=pretraining.data.replace(
            tokenizer="data/unigram1024",
            seconds_per_batch=16 * 400,
            num_buckets=12,
            min_seconds=1.0,
            max_crop=0.0,
            speeds=SPEEDS,
        ),
        objective=CTC(intermediate=(9,)),
        frontend=pretraining.frontend.replace(augment=SPEC_AUGMENT),
        optimizer=Optimizer(
            schedule=Noam(peak=1e-3, warmup_steps=5000),
            groups=(Group(prefix="encoder", learning_rate_scale=0.3),),
            ema_decay=0.9999,
        ),
        num_steps=80_000,
        loop=LoopConfig(log_every=100, eval_every=2000, checkpoint_every=2000),
    )
