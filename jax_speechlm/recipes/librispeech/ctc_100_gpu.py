"""CTC on LibriSpeech train-clean-100 with a conformer M, for one GPU of 24 GB or more.

jax-speechlm prepare --tfds librispeech
jax-speechlm train-tokenizer --sets librispeech:train_clean100 --kind bpe --vocab-size 128 --out data/bpe128
jax-speechlm finetune --config librispeech/ctc_100_gpu --run-dir runs/librispeech_100

The recipe follows published ones: CR-CTC on a 25 M-parameter-class encoder with SpecAugment and speed perturbation
(Yao et al. 2024, "CR-CTC: Consistency regularization on CTC for improved speech recognition", arXiv:2410.05101), with
the conformer's augmentation (Gulati et al. 2020). For orientation only, from the literature and not from this code:
wav2vec 2.0 BASE without any language model, finetuned on these 100 hours, reports 6.1 / 13.3 % WER on test-clean /
test-other (Baevski et al. 2020, table 9).

Result: not yet measured
"""

from jax_speechlm.frontend.augment import SPEC_AUGMENT
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import SIZES
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.common import MEL, SPEEDS
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=("librispeech:train_clean100",),
            dev_sets=("librispeech:dev_clean",),
            tokenizer="data/bpe128",
            seconds_per_batch=800,
            packed=False,
            num_buckets=12,
            min_seconds=1.0,
            max_seconds=20.0,
            speeds=SPEEDS,
        ),
        objective=CTC(intermediate=(8,), consistency=0.2),
        frontend=FrontEnd(mel=MEL, augment=SPEC_AUGMENT),
        model=SIZES["M"].replace(input_dim=MEL.input_dim, dtype="bfloat16", remat="dots"),
        optimizer=Optimizer(schedule=WarmupCosine(peak=1.5e-3, warmup_steps=5000), weight_decay=1e-2, ema_decay=0.999),
        num_steps=60_000,
        topology="a100-1",
        loop=LoopConfig(log_every=100, eval_every=2000, checkpoint_every=2000),
    )
