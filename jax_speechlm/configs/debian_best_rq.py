"""BEST-RQ on all speech that Debian carries by these names: 12 hours, 13 languages; conformer XS at 40 ms a frame.

jax-speechlm prepare asterisk-en asterisk-es asterisk-fr asterisk-it asterisk-ru queen-en fillets-cs fillets-nl \\
  tuxpaint-fr tuxpaint-ru tuxpaint-ro tuxpaint-bg tuxpaint-es tuxpaint-ca tuxpaint-be tuxpaint-el tuxpaint-da
jax-speechlm pretrain --config debian_best_rq --run-dir runs/debian_best_rq

2 CPU cores, one of them used: 19 minutes, 24 hours heard (2.8 passes), seed 0. Dev: loss 3.550, masked accuracy 17.9 %
(unmasked 30.2 %), 12 % of the codes predicted. Digits of speakers left out: 68.9 % [67.2, 70.5] after full finetuning
(`fsdd_digits`), where random parameters lead to 63.2 %; docs/results.md has more.
"""

from jax_speechlm.configs import demo_pretrain
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment, LoopConfig

SETS = (
    *(f"asterisk-{language}" for language in ("en", "es", "fr", "it", "ru")),
    "queen-en",
    *(f"fillets-{language}" for language in ("cs", "nl")),
    *(f"tuxpaint-{language}" for language in ("fr", "ru", "ro", "bg", "es", "ca", "be", "el", "da")),
)


def config() -> Experiment:
    demo = demo_pretrain.config()
    return demo.replace(
        data=demo.data.replace(sets=SETS),
        optimizer=Optimizer(schedule=WarmupCosine(peak=8e-4, warmup_steps=200)),
        num_steps=2400,
        loop=LoopConfig(log_every=100, eval_every=800, checkpoint_every=400),
    )
