"""Tasks, one module each: every capability is declared once, and all tables in the code derive from the declarations.

A new task is a new module here with a `TASK`; see docs/extending.md.
"""

import importlib
import pkgutil

from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.tasks.base import Task, resolve

__all__ = ["TASKS", "Task", "resolve", "task_of", "with_ability"]

_NO_TASKS = ("base", "inputs")


def _declared() -> dict[str, Task]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_TASKS)
    tasks = [importlib.import_module(f"{__name__}.{name}").TASK for name in modules]
    return {task.name: task for task in tasks}


TASKS = _declared()
"""All tasks by name, which is the `kind` of the objective."""


def task_of(objective: ObjectiveConfig) -> Task:
    """Returns the task of a trained model; for distillation, the student's task."""
    return TASKS[objective.model_kind]


def with_ability(ability: str) -> list[str]:
    """Returns the names of tasks whose checkpoints may have an ability, such as "transcribe"."""
    return [name for name, task in TASKS.items() if ability in task.abilities]
