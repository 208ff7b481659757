"""The names of tasks stand where tasks, objectives and recipes are made, and nowhere else."""

import ast
from pathlib import Path

import pytest

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.objectives.base import Objective, ObjectiveConfig
from jax_speechlm.tasks import TASKS, resolve
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO

PACKAGE = Path(__file__).parents[1] / "jax_speechlm"
ROOMS = ("tasks/", "objectives/", "models/", "recipes/", "interop/hf/")
NAMES = TASKS.keys() - {"encoder", "classification", "intent"}  # also parameter groups, columns and ordinary words
SHOWN = {PACKAGE / "cli" / "by_task.py"}  # whose options --help shows where no run is named


def _places(file: Path) -> list[str]:
    """Returns where a module holds the name of a task, or compares the kind of an objective."""
    places = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            places.append(f"{file}:{node.lineno} {node.value!r}")
        if isinstance(node, ast.Compare):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            if any(side.endswith(("objective.kind", "model_kind")) for side in sides):
                places.append(f"{file}:{node.lineno} {ast.unparse(node)}")
    return places


def test_no_module_but_those_that_declare_tasks_names_one():
    files = [file for file in PACKAGE.rglob("*.py") if not file.relative_to(PACKAGE).as_posix().startswith(ROOMS)]
    assert len(files) > 100
    assert [place for file in files if file not in SHOWN for place in _places(file)] == []


class Toy(ObjectiveConfig):
    kind: str = "toy"

    def build(self, model, frontend, tokenizer) -> Objective:
        raise NotImplementedError  # only declared here, never built


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"name": "other"}, "the task 'other' is incomplete: name must be the objective's kind, 'toy'"),
        ({"objective": ObjectiveConfig}, "objective must be an ObjectiveConfig with a `kind` and its own `build`"),
        ({"models": ()}, "models names no model"),
        ({"inputs": {}}, "inputs names no kind of data"),
        ({"abilities": ("embed",)}, "predictor is missing, which embed need"),
        ({"evaluator": "nowhere.toy"}, "'nowhere.toy' should be 'module:name'"),
    ],
)
def test_an_incomplete_declaration_is_refused_when_it_is_imported(parts, message):
    whole = {"name": "toy", "objective": Toy, "models": (ConformerConfig,), "inputs": {"speech": (AUDIO,)}}
    Task(**whole)
    with pytest.raises(TypeError, match=message):
        Task(**whole | parts)


def test_what_declarations_name_exists():
    for task in TASKS.values():
        assert all(resolve(path) is not None for path in task.paths())
