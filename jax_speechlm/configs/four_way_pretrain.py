"""Pretraining without transcripts, on audio and on prose, for the four-way table: conformer XS at 40 ms a frame.

jax-speechlm pretrain --config four_way_pretrain --data.tokenizer runs/four_way/ctc-neither-0

`scripts/four_way.py` runs this as it stands, with either stream alone for as many batches of it, and not at all. One
CPU core: 27 minutes, 15 hours heard, seed 0. Dev: masked accuracy of audio 22.1 %, of text 40.6 %; either stream alone
has 14.8 and 40.3 %.
"""

from jax_speechlm.configs import demo_pretrain
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Mixture, Stream, Text


def config() -> Experiment:
    audio = demo_pretrain.config()
    return audio.replace(
        data=Mixture(
            streams=(
                Stream(name="speech", data=audio.data),
                Stream(name="text", data=Text(sets=("spoken-en",), packed=False, context=128, tokens_per_batch=2048)),
            )
        ),
        objective=Joint(speech=BestRQ(codes=128, mask_span=0.16), text=MaskedLM(whole_words=True)),
        optimizer=Optimizer(schedule=WarmupCosine(peak=8e-4, warmup_steps=200)),
        num_steps=3000,
        loop=LoopConfig(log_every=100, eval_every=1500, checkpoint_every=500),
    )
