"""Pretraining without transcripts, on audio and on prose, for the four-way table: conformer XS at 40 ms a frame.

jax-speechlm pretrain --config four_way/pretrain --data.tokenizer runs/four_way/ctc-neither-0

`scripts/four_way.py` runs it as it is, and with either stream alone for the same number of its batches. One CPU core:
27 minutes, 15 hours of audio seen, seed 0. Either stream alone has 14.8 and 40.3 %.

Result: dev masked accuracy of audio 22.1 %, of text 40.6 %
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.recipes.common import CLIPS, CONFORMER_XS, MEL, on_cpu
from jax_speechlm.recipes.experiment import Experiment, Mixture, Stream, Text


def config() -> Experiment:
    text = Text(sets=("spoken-en",), packed=False, context=128, tokens_per_batch=2048)
    return Experiment(
        data=Mixture(streams=(Stream(name="speech", data=CLIPS), Stream(name="text", data=text))),
        objective=Joint(speech=BestRQ(codes=128, mask_span=0.16), text=MaskedLM(whole_words=True)),
        frontend=FrontEnd(mel=MEL),
        model=CONFORMER_XS.replace(dropout=0.0),
        **on_cpu(3000, peak=8e-4, warmup_steps=200, log_every=100, eval_every=1500, checkpoint_every=500),
    )
