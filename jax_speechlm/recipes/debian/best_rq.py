"""BEST-RQ on all speech that Debian packages contain: 12 hours in 13 languages; conformer XS at 40 ms a frame.

jax-speechlm prepare asterisk-en asterisk-es asterisk-fr asterisk-it asterisk-ru queen-en fillets-cs fillets-nl \\
  tuxpaint-fr tuxpaint-ru tuxpaint-ro tuxpaint-bg tuxpaint-es tuxpaint-ca tuxpaint-be tuxpaint-el tuxpaint-da
jax-speechlm pretrain --config debian/best_rq --run-dir runs/debian_best_rq

2 CPU cores, one of them used: 19 minutes, 24 hours of audio seen (2.8 passes), seed 0. Dev: loss 3.550, masked accuracy
17.9 % (unmasked 30.2 %), 12 % of the codes predicted. Digits of held-out speakers by full finetuning (`fsdd/digits`);
from random parameters 63.2 %. docs/results.md has more.

Result: digits of held-out speakers 68.9 % [67.2, 70.5] after full finetuning
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.recipes.common import CLIPS, CONFORMER_XS, MEL, on_cpu
from jax_speechlm.recipes.experiment import Experiment

SETS = (
    *(f"asterisk-{language}" for language in ("en", "es", "fr", "it", "ru")),
    "queen-en",
    *(f"fillets-{language}" for language in ("cs", "nl")),
    *(f"tuxpaint-{language}" for language in ("fr", "ru", "ro", "bg", "es", "ca", "be", "el", "da")),
)


def config() -> Experiment:
    return Experiment(
        data=CLIPS.replace(sets=SETS),
        objective=BestRQ(codes=128, mask_span=0.16),
        frontend=FrontEnd(mel=MEL),
        model=CONFORMER_XS.replace(dropout=0.0),  # under three passes over the data do not overfit
        **on_cpu(2400, peak=8e-4, warmup_steps=200, log_every=100, eval_every=800, checkpoint_every=400),
    )
