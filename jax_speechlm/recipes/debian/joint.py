"""Joint pretraining on the transcribed English and the prose of Debian packages, 6 blocks of width 144, characters.

jax-speechlm prepare asterisk-en queen-en
jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm pretrain --config debian/joint --run-dir runs/debian_joint
jax-speechlm eval runs/debian_joint --sets asterisk-en queen-en

Encoder, CTC head and batches of pairs are those of `debian/en_joint`, which trains on the transcripts alone: the
difference is the effect of the other two streams and of TLM.

Result: not yet measured
"""

from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.recipes.common import on_cpu
from jax_speechlm.recipes.debian import en_joint
from jax_speechlm.recipes.experiment import Experiment, Mixture, Stream, Text


def config() -> Experiment:
    recognizer = en_joint.config()
    audio = recognizer.data.replace(shortest_first_epochs=0, speeds=(1.0,), max_crop=0.15)
    return recognizer.replace(
        data=Mixture(
            streams=(
                Stream(name="speech", data=audio),
                Stream(name="text", data=Text(sets=("spoken-en",), packed=False, context=160, tokens_per_batch=3200)),
                Stream(name="pairs", data=recognizer.data, weight=2),
            )
        ),
        objective=Joint(
            speech=BestRQ(codes=512, mask_span=0.24), text=MaskedLM(whole_words=True), ctc=recognizer.objective
        ),
        **on_cpu(9000, peak=2.5e-3, warmup_steps=300, eval_every=1500),
    )
