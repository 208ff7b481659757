"""BEST-RQ on the audio of LibriSpeech's 960 hours, conformer L, for a v5e-16 slice.

jax-speechlm prepare --tfds librispeech
jax-speechlm pretrain --config librispeech/best_rq_960_v5e16 --run-dir runs/librispeech_960

The recipe is that of Chiu et al. 2022, "Self-supervised learning with random-projection quantizer for speech
recognition" (arXiv:2202.01855): 8,192 codes of 16 dimensions, spans of 400 ms that start at 1 % of the 10 ms frames,
Adam with a transformer schedule, peak 0.004 after 25,000 steps. For orientation only, from that paper and not from
this code: its 0.6 B-parameter model, pretrained on Libri-Light and finetuned on these 960 hours, reports 1.6 / 2.9 %
WER on test-clean / test-other without a language model (table 1). Finetune with `librispeech/ctc_960_v5e16`.

Result: not yet measured
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import SIZES
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.optim.optimizers import Noam, Optimizer
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.common import MEL
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=tuple(f"librispeech:train_{part}" for part in ("clean100", "clean360", "other500")),
            dev_sets=("librispeech:dev_clean",),
            seconds_per_batch=16 * 800,
            packed=False,  # by the plan, see docs/scaling.md
            num_buckets=8,
            batch_multiple=16,
            min_seconds=2.0,
            max_seconds=24.0,
            max_crop=0.15,
        ),
        objective=BestRQ(codes=8192),
        frontend=FrontEnd(mel=MEL),
        model=SIZES["L"].replace(input_dim=MEL.input_dim, dtype="bfloat16", remat="dots"),
        optimizer=Optimizer(schedule=Noam(peak=4e-3, warmup_steps=25_000), weight_decay=1e-3),
        num_steps=200_000,
        mesh=MeshShape(data=4, fsdp=4),
        topology="v5e-16",
        loop=LoopConfig(log_every=100, eval_every=5000, checkpoint_every=2000),
    )
