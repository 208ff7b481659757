"""Selects the evaluation that suits a run's task, for `jax_speechlm.evaluate` and `jax-speechlm eval`."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.core.paths import as_path
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.tasks import TASKS, Task, resolve
from jax_speechlm.training.runs import task_of_run


def evaluator(task: Task, run: str | os.PathLike) -> Callable[..., Any]:
    """Returns the function that evaluates the runs of a task; `run` is for the error that there is none."""
    if task.evaluator is None:
        able = ", ".join(name for name, other in TASKS.items() if other.evaluator)
        raise CheckpointError(
            f"{run} was trained by {task.name}, whose only measure is its loss, which training logs; there is an "
            f"evaluation for {able}"
        )
    return resolve(task.evaluator)


def evaluate(run: str | os.PathLike, sets: Sequence[str], **options: Any) -> Any:
    """Evaluates a run on prepared sets and writes the report into its folder.

        report = jax_speechlm.evaluate("runs/finetune", ["asterisk-en"], split="test")

    Args:
      run: its directory or URL, or one of its checkpoints/<step> folders.
      options: the options of `jax-speechlm eval RUN --help`, with underscores.

    Returns:
      The report of the task's evaluator.

    Raises:
      CheckpointError: the checkpoint is missing or unreadable, or its task has no evaluation.
    """
    path = as_path(run)
    return evaluator(task_of_run(path), path)(path, tuple(sets), **options)
