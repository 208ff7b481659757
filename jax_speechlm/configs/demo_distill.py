"""A recogniser of 0.4 M parameters that learns asterisk-en from its transcripts and from the 1.3 M of demo_finetune.

jax-speechlm finetune --config demo_distill --objective.teachers.0.checkpoint runs/finetune --run-dir runs/distilled

Other teachers, or more of them: a config of your own. Sized for 2 CPU cores; not yet measured.
"""

from jax_speechlm.configs import demo_finetune
from jax_speechlm.objectives.distillation import Distillation, Teacher
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    large = demo_finetune.config()
    teacher = Teacher(checkpoint="runs/finetune", model=large.model, frontend=large.frontend)
    return large.replace(
        objective=Distillation(student=large.objective.replace(intermediate=(2,)), teachers=(teacher,)),
        model=large.model.replace(dim=64, num_layers=4),
    )
