"""Joint pretraining on all transcribed English that Debian carries and on its prose, 6 blocks of width 144, characters.

jax-speechlm prepare asterisk-en queen-en
jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm pretrain --config debian_joint --run-dir runs/debian_joint
jax-speechlm eval runs/debian_joint --sets asterisk-en queen-en

The encoder and the CTC head are those of `debian_en_joint`, which trains on the transcripts alone, and its pairs come
as its batches do: what the other two streams and TLM add can be compared. Not yet run.
"""

from jax_speechlm.configs.debian_en_joint import FRONT_END, MODEL
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
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
        frontend=FRONT_END,
        model=MODEL,
        optimizer=Optimizer(schedule=WarmupCosine(peak=2.5e-3, warmup_steps=300)),
        num_steps=9000,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=1500, checkpoint_every=1500),
    )
