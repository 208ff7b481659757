"""CTC of letters on the digits of four speakers, the base of the adapters and of the privacy measured in the docs.

jax-speechlm prepare --manifest base.jsonl --name fsdd-base    # without george and jackson; split dev for 130 clips
jax-speechlm finetune --config fsdd/letters --run-dir runs/base
python scripts/personalise.py runs/base own.jsonl              # the clips of george and jackson

Lines of the manifests are {"audio": "0_lucas_0.wav", "text": "zero", "speaker": "lucas", "split": "train"}. Machine
shared with other work, seed 0.

Result: dev WER 7.7 % on 130 other clips of the same speakers
"""

from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import bucketed, on_cpu
from jax_speechlm.recipes.experiment import Experiment

MEL = LogMel(stack=2)


def config() -> Experiment:
    return Experiment(
        data=bucketed(sets=("fsdd-base",), seconds_per_batch=12, num_buckets=2, min_seconds=0.1, max_seconds=2.0),
        objective=CTC(),
        frontend=FrontEnd(mel=MEL, augment=Augment(freq_masks=1, freq_mask_bins=15)),
        model=ConformerConfig(input_dim=MEL.input_dim, dim=96, num_layers=3, num_heads=4, kernel_size=15),
        **on_cpu(700, peak=3e-3, warmup_steps=70, log_every=50, eval_every=350),
    )
