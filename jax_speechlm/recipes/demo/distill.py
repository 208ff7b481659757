"""Distillation: a recognizer of 0.4 M parameters learns from the transcripts of asterisk-en and from `demo/finetune`.

jax-speechlm finetune --config demo/distill --objective.teachers.0.checkpoint runs/finetune --run-dir runs/distilled

Other or more teachers take a config file of your own. Sized for 2 CPU cores.

Result: not yet measured
"""

from jax_speechlm.objectives.distillation import Distillation, Teacher
from jax_speechlm.recipes.demo import finetune
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    large = finetune.config()
    teacher = Teacher(checkpoint="runs/finetune", model=large.model, frontend=large.frontend)
    return large.replace(
        objective=Distillation(student=large.objective.replace(intermediate=(2,)), teachers=(teacher,)),
        model=large.model.replace(dim=64, num_layers=4),
    )
