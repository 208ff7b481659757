"""Vocos on the one voice of asterisk-en with discriminators, from the model that `asterisk_tts/vocos` trained.

jax-speechlm pretrain --config asterisk_tts/vocos_gan --from runs/vocos --init-from.0.groups generator \\
  --run-dir runs/vocos_gan

Multi-period and multi-resolution discriminators; in the first 500 steps they learn alone from a vocoder that hardly
moves, because its learning rate warms up.

Result: not yet measured
"""

from jax_speechlm.objectives.tts.vocoder import Adversarial
from jax_speechlm.optim.optimizers import Group, Optimizer, UpdateRule, WarmupCosine
from jax_speechlm.recipes.asterisk_tts import vocos
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    spectral = vocos.config()
    rule = UpdateRule(schedule=WarmupCosine(peak=2e-4, warmup_steps=50), b1=0.8, b2=0.99)
    return spectral.replace(
        objective=spectral.objective.replace(adversarial=Adversarial()),
        optimizer=Optimizer(
            schedule=WarmupCosine(peak=2e-4, warmup_steps=500),
            b1=0.8,
            b2=0.99,
            ema_decay=0.998,
            groups=(Group(prefix="discriminators", optimizer=rule),),
        ),
    )
