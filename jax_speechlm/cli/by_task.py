"""Commands whose function depends on the task of a run: eval, generate, score-pairs."""

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.evaluation.by_task import evaluator
from jax_speechlm.inference.checkpoint import task_of_run
from jax_speechlm.parallel.hardware import cache_compilations
from jax_speechlm.tasks import TASKS, Task, resolve

_SHOWN = {"eval": "ctc", "generate": "causal_lm", "score-pairs": "causal_lm"}
"""Task whose options --help shows if no run is given."""


def evaluate(argv: Sequence[str], prog: str) -> None:
    """Runs `jax-speechlm eval`: evaluates a run by its task."""
    _run("eval", argv, prog)


def generate(argv: Sequence[str], prog: str) -> None:
    """Runs `jax-speechlm generate`: continues texts or units, or answers speech."""
    _run("generate", argv, prog)


def score_pairs(argv: Sequence[str], prog: str) -> None:
    """Runs `jax-speechlm score-pairs`."""
    _run("score-pairs", argv, prog)


def _run(command: str, argv: Sequence[str], prog: str) -> None:
    cache_compilations()
    is_named = bool(argv) and not argv[0].startswith("-")
    task = task_of_run(argv[0]) if is_named else TASKS[_SHOWN[command]]
    tyro.cli(_function(command, task, argv[0] if is_named else ""), prog=prog, args=argv)


def _function(command: str, task: Task, run: str) -> Callable[..., Any]:
    if command == "eval":
        return evaluator(task, run)
    if command in task.commands:
        return resolve(task.commands[command])
    able = ", ".join(name for name, each in TASKS.items() if command in each.commands)
    raise CheckpointError(f"{run} was trained by {task.name}, which has no {command}; {able} have")
