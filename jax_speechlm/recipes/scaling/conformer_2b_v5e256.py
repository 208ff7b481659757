"""BEST-RQ on a conformer of 2 B parameters for a v5e-256 slice.

jax-speechlm prepare --manifest unlabelled.jsonl
jax-speechlm pretrain --config scaling/conformer_2b_v5e256 --data.sets unlabelled --run-dir runs/conformer_2b

Width and the 16 codebooks are those of Zhang et al. 2023, "Google USM" (arXiv:2303.01037); with 36 layers this
conformer has 2 B parameters.

Result: planned only, never run: sized with `jax-speechlm plan`
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
            sets=("unlabelled",),
            seconds_per_batch=256 * 120,
            packed=False,
            num_buckets=4,
            batch_multiple=256,
            min_seconds=2.0,
            max_seconds=30.0,
            max_crop=0.15,
        ),
        objective=BestRQ(books=16),
        frontend=FrontEnd(mel=MEL),
        model=SIZES["2B"].replace(input_dim=MEL.input_dim, dtype="bfloat16", remat="dots"),
        optimizer=Optimizer(schedule=Noam(peak=4e-4, warmup_steps=25_000), weight_decay=1e-3),
        num_steps=500_000,
        mesh=MeshShape(data=16, fsdp=16),
        topology="v5e-256",
        loop=LoopConfig(log_every=100, eval_every=5000, checkpoint_every=1000),
    )
