"""Commands whose function depends on the task of a run: eval, align, embed, classify, answer, generate, score-pairs and
few-shot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.evaluation.by_task import evaluator
from jax_speechlm.inference.classical import is_classical
from jax_speechlm.tasks import TASKS, Task, resolve
from jax_speechlm.training.runs import task_of_run

_SHOWN = {
    **dict.fromkeys(("eval", "align", "embed"), "ctc"),
    **dict.fromkeys(("generate", "score-pairs", "few-shot"), "causal_lm"),
    "classify": "classification",
    "answer": "question_answering",
}
"""Task whose options --help shows if no run is given."""

_USUAL = {
    "embed": "jax_speechlm.inference.embed:embed_files",
    "classify": "jax_speechlm.inference.classify:classify",
}
"""Functions of commands for tasks that declare none of their own."""


def run(argv: Sequence[str], prog: str) -> None:
    """Runs the command at the end of `prog` by the function that the task of the run declares for it."""
    command = prog.split()[-1]
    is_named = bool(argv) and not argv[0].startswith("-")
    is_run = is_named and not is_classical(Path(argv[0]))
    task = task_of_run(argv[0]) if is_run else TASKS[_SHOWN[command]]
    tyro.cli(_function(command, task, argv[0] if is_named else ""), prog=prog, args=argv)


def _function(command: str, task: Task, run: str) -> Callable[..., Any]:
    if command == "eval":
        return evaluator(task, run)
    if function := task.commands.get(command, _USUAL.get(command)):
        return resolve(function)
    able = ", ".join(name for name, task in TASKS.items() if command in task.commands)
    raise CheckpointError(f"{run} was trained by {task.name}, which has no {command}; {able} have")
