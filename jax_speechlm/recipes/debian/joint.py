"""Joint pretraining on the transcribed English and the prose of Debian packages, 6 blocks of width 144, characters.

jax-speechlm prepare asterisk-en queen-en
jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm pretrain --config debian/joint --run-dir runs/debian_joint
jax-speechlm eval runs/debian_joint --sets asterisk-en queen-en

Encoder, CTC head and batches of pairs are those of `debian/en_joint`, which trains on the transcripts alone: the
difference is the effect of the other two streams and of TLM.

Result: not yet measured
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.common import CONFORMER_144, MASKED_MEL
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Mixture, Speech, Stream, Text

AUDIO = Speech(
    sets=("asterisk-en", "queen-en"), seconds_per_batch=64, num_buckets=6, batch_multiple=1, max_seconds=16.0
)


def config() -> Experiment:
    return Experiment(
        data=Mixture(
            streams=(
                Stream(name="speech", data=AUDIO.replace(max_crop=0.15)),
                Stream(name="text", data=Text(sets=("spoken-en",), packed=False, context=160, tokens_per_batch=3200)),
                Stream(name="pairs", data=AUDIO.replace(shortest_first_epochs=1, speeds=(0.9, 1.0, 1.1)), weight=2),
            )
        ),
        objective=Joint(
            speech=BestRQ(codes=512, mask_span=0.24), text=MaskedLM(whole_words=True), ctc=CTC(intermediate=(3,))
        ),
        frontend=MASKED_MEL,
        model=CONFORMER_144,
        optimizer=Optimizer(schedule=WarmupCosine(peak=2.5e-3, warmup_steps=300)),
        num_steps=9000,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=1500, checkpoint_every=1500),
    )
